import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from qdexp.errors import UserError
from qdexp.metrics.extractors import FASHION_CNN
from qdexp.metrics.features import Features, extract
from qdexp.metrics.fid import Fid, fid, floor
from qdexp.metrics.inception_score import SPLITS, InceptionScore
from qdexp.metrics.kid import Kid
from qdexp.metrics.precision_recall import PrecisionRecall
from qdexp.metrics.reference import Reference, statistics
from qdexp.statistics.estimate import Estimate

ALWAYS = {"fid", "isc", "isc_std"}


def results(features: Features, reference: Reference, seed: int = 0) -> dict[str, Estimate | Tensor | float]:
    """All that is measured of features."""
    metrics = (Fid(), Kid(seed=seed), PrecisionRecall())
    found = {key: one for metric in metrics for key, one in metric.score(features, reference).items()}
    return found | InceptionScore(seed=seed).score(features)


def score(features: Features, reference: Reference, seed: int) -> dict[str, float]:
    """The numbers alone."""
    found = results(features, reference, seed)
    return {key: one.value if isinstance(one, Estimate) else float(one) for key, one in found.items()}


def estimates(pool: Tensor, reference: Reference) -> dict[str, Estimate]:
    """Those with an interval."""
    found = {**Fid().score(Features(pool), reference), **Kid(seed=0).score(Features(pool), reference)}
    return {key: one for key, one in found.items() if isinstance(one, Estimate)}


def rows(n: int, d: int, seed: int) -> Tensor:
    """Correlated, shifted features [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mix + torch.rand(d, generator=generator)


def reference_of(pool: Tensor, features: Tensor | None = None) -> Reference:
    return Reference(
        **statistics(pool),
        features=features,
        floor_features=None,
        extractor="",
        extractor_digest="",
        dataset="",
        digest="",
        images="",
    )


def root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


def test_fid_is_the_formula() -> None:
    a, b = rows(30, 6, seed=0).double().numpy(), rows(50, 6, seed=1).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root_a = root(cov_a)
    # similar to cov_a cov_b, so its root has the same trace, and symmetric
    cross = np.trace(root(root_a @ cov_b @ root_a))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert fid(torch.from_numpy(a), reference_of(torch.from_numpy(b))) == pytest.approx(expected, rel=1e-10)


def test_fid_is_computed_in_float64_from_float32_features() -> None:
    pool = rows(30, 6, seed=0)
    reference = reference_of(rows(50, 6, seed=1))
    assert fid(pool, reference) == fid(pool.double(), reference)


def test_fid_of_a_set_with_itself_is_zero(fashion_features: Features) -> None:
    assert fid(fashion_features.pool, reference_of(fashion_features.pool)) == pytest.approx(0, abs=1e-8)


def test_inception_score_is_the_formula() -> None:
    logits = 3 * rows(57, 4, seed=2)
    scores = score(Features(rows(57, 3, seed=3), logits), reference_of(rows(20, 3, seed=4)), seed=5)
    order = np.random.RandomState(5).permutation(57)
    p = np.exp(logits.double().numpy()[order])
    p /= p.sum(1, keepdims=True)
    splits = []
    for i in range(SPLITS):
        part = p[i * 57 // SPLITS : (i + 1) * 57 // SPLITS]
        divergences = [sum(py * np.log(py / qy) for py, qy in zip(row, part.mean(0), strict=True)) for row in part]
        splits.append(np.exp(np.mean(divergences)))
    assert scores["isc"] == pytest.approx(np.mean(splits), rel=1e-9)
    assert scores["isc_std"] == pytest.approx(np.std(splits), rel=1e-9)


def test_precision_and_recall_are_the_formula() -> None:
    samples, real = rows(40, 3, seed=6).double(), 1.5 * rows(60, 3, seed=7).double()

    def share_covered(points: Tensor, centres: Tensor) -> float:
        radii = [sorted((centres - c).norm(dim=1).tolist())[3] for c in centres]  # the nearest is the centre itself
        covered = [any((p - c).norm() <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(covered) / len(points)

    scores = score(Features(samples, samples), reference_of(real, features=real), seed=0)
    assert scores["precision"] == pytest.approx(share_covered(samples, real[:40]), abs=1e-6)
    assert scores["recall"] == pytest.approx(share_covered(real[:40], samples), abs=1e-6)
    assert 0 < scores["precision"] < 1
    assert 0 < scores["recall"] < 1


def test_kid_over_subsets_estimates_the_same_as_over_all_pairs() -> None:
    samples, real = rows(1000, 4, seed=8), rows(1200, 4, seed=9)
    reference = reference_of(real, features=real)
    whole = estimates(samples, reference)["kid"].value
    scores = score(Features(samples, samples), reference, seed=0)
    # 100 random subsets: four standard errors
    assert scores["kid_subsets"] == pytest.approx(whole, abs=4 * scores["kid_subsets_std"] / 10)


def test_what_has_an_interval(fashion_features: Features, fashion_reference: Reference) -> None:
    found = estimates(fashion_features.pool, fashion_reference)
    assert found.keys() == {"fid", "kid"}
    assert all(one.replicates.shape == (32,) for one in found.values())
    assert found["fid"].value == pytest.approx(fid(fashion_features.pool, fashion_reference), rel=1e-6)
    assert estimates(fashion_features.pool[:999], fashion_reference).keys() == {"fid"}
    bare = replace(fashion_reference, features=None)
    assert estimates(fashion_features.pool, bare).keys() == {"fid"}


def test_held_out_images_score_as_the_same_distribution(fashion_features: Features, fashion_reference: Reference) -> None:
    scores = score(fashion_features, fashion_reference, seed=0)
    assert abs(scores["kid_subsets"]) < scores["kid_subsets_std"]
    assert scores["precision"] > 0.85
    assert scores["recall"] > 0.85
    assert 8 < scores["isc"] < 10  # ten classes in equal parts, nearly all recognised
    expected = floor(fashion_reference, 1024)
    assert expected is not None
    assert scores["fid"] == pytest.approx(expected, rel=1e-3)


def test_the_floor_falls_with_n(fashion_reference: Reference) -> None:
    floors = [floor(fashion_reference, n) for n in (256, 1024, 4096, 10_000)]
    assert all(value is not None for value in floors)
    assert floors == sorted(floors, key=lambda value: -(value or 0))
    assert floor(fashion_reference, 10_001) is None
    assert floor(replace(fashion_reference, floor_features=None), 10) is None


@pytest.mark.parametrize(("n", "expected"), [(999, set()), (1000, {"kid", "kid_subsets", "kid_subsets_std"})])
def test_subsets_need_a_thousand_samples(
    fashion_features: Features, fashion_reference: Reference, n: int, expected: set[str]
) -> None:
    assert fashion_features.logits is not None
    some = Features(fashion_features.pool[:n], fashion_features.logits[:n])
    scores = score(some, fashion_reference, seed=0)
    assert set(scores) == ALWAYS | {"precision", "recall"} | expected
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_bare_statistics_give_fid_and_inception_score_only(fashion_features: Features, fashion_reference: Reference) -> None:
    assert set(score(fashion_features, replace(fashion_reference, features=None), seed=0)) == ALWAYS


def test_the_seed_decides_subsets(fashion_features: Features, fashion_reference: Reference) -> None:
    first, again, other = (score(fashion_features, fashion_reference, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["kid_subsets"] != other["kid_subsets"]
    assert first["isc"] != other["isc"]
    assert first["fid"] == other["fid"]


def test_too_few_samples_are_refused(fashion_reference: Reference) -> None:
    with pytest.raises(UserError, match=r"protocol.n=9.*at least 10"):
        score(Features(torch.rand(9, 64), torch.rand(9, 10)), fashion_reference, seed=0)


def blur(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(images, [9, 9], [sigma, sigma])


def add_noise(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def posterise(images: Tensor, steps: float) -> Tensor:
    return ((images / 255 * steps).round() / steps * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("damage", "grades"),
    [(blur, (0.5, 1.0, 2.0)), (add_noise, (10.0, 30.0, 90.0)), (posterise, (5.0, 3.0, 1.0))],
)
def test_fid_and_kid_rise_with_damage(
    damage: Callable[[Tensor, float], Tensor],
    grades: tuple[float, ...],
    fashion_images: Tensor,
    fashion_features: Features,
    fashion_reference: Reference,
) -> None:
    damaged = [extract(FASHION_CNN, damage(fashion_images, grade), 256, torch.device("cpu")) for grade in grades]
    scores = [score(features, fashion_reference, seed=0) for features in (fashion_features, *damaged)]
    for key in ("fid", "kid_subsets"):
        values = [s[key] for s in scores]
        assert all(after > before for before, after in pairwise(values)), (key, values)
