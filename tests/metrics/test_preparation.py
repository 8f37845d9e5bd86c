import numpy as np
import pytest
import torch
from PIL import Image

from qdexp.errors import UserError
from qdexp.metrics.preparation import adm, ldm, none


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("prepare", [ldm, adm])
@pytest.mark.parametrize(("width", "height"), [(40, 16), (16, 40), (37, 90)])
def test_the_middle_square_fills_the_image(prepare: object, width: int, height: int) -> None:
    assert callable(prepare)
    image = np.asarray(prepare(gradient(width, height), 8)).astype(float)
    assert image.shape == (8, 8, 3)
    side = min(width, height)
    for channel, length in enumerate((width, height)):
        ends = [127.5 + 255 * sign * (side / length) * 7 / 16 for sign in (-1, 1)]
        line = image[:, :, channel].mean(axis=channel)
        np.testing.assert_allclose([line[0], line[-1]], ends, atol=8)


def test_adm_halves_by_means_where_ldm_does_not() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    means = np.asarray(noise).reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(adm(noise, 8)).astype(float), means, atol=3)
    assert not torch.equal(torch.from_numpy(np.array(adm(noise, 8))), torch.from_numpy(np.array(ldm(noise, 8))))


def test_none_refuses_another_size() -> None:
    assert none(gradient(8, 8), 8).size == (8, 8)
    with pytest.raises(UserError, match="an image is 9x8, not 8x8"):
        none(gradient(9, 8), 8)
