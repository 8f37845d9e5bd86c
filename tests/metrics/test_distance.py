import torch

from qdexp.metrics.distance import image_distance


def test_distance_is_the_formula_for_every_image() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(256, (2, 300, 3, 4, 5), dtype=torch.uint8, generator=generator)
    expected = [
        sum((x / 255 - y / 255) ** 2 for x, y in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)) / 60
        for p, q in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(image_distance(a, b), torch.tensor(expected))


def test_black_to_white_is_one_and_unsigned_bytes_do_not_wrap() -> None:
    black, white = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.full((2, 1, 3, 3), 255, dtype=torch.uint8)
    assert image_distance(black, white).tolist() == image_distance(white, black).tolist() == [1.0, 1.0]
    assert image_distance(white, white).tolist() == [0.0, 0.0]
