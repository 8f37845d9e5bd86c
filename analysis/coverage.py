"""How often a 95 % interval of a report holds the truth: an experiment on real images, corrupted.

    python analysis/coverage.py
    python analysis/coverage.py --only "2 seeds" --repetitions 1000

The population: 1,024 real images (held out from the reference), each corrupted several times by fresh noise. The baseline is
lightly corrupted; its rivals are the same pictures, with the same draws, corrupted further. A repetition draws n of them and
makes the report's own interval; the truth is the mean of the estimates over all repetitions. A row "2 seeds" or "3 seeds" draws
as many rivals from a family of 48 as well, as seeds of a calibration would.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from qdexp.metrics.extractors import FASHION_CNN
from qdexp.metrics.features import extract
from qdexp.statistics.estimate import Estimate, Interval, of_mean, pool
from qdexp.statistics.frechet import Frechet
from qdexp.statistics.kernel import Kernel

ROOT = Path(__file__).parents[1]
SIDE = 28
"""Pixels of an image, in the picture of images as in the model."""
FAMILY = 48
SEEDS = {"much alike": 0.01, "as far apart as draws of images": 0.04, "far apart": 0.15}
"""How much the strength of the noise differs between seeds, relative standard deviations."""
COUNTS = (3, 2)
"""Seeds of a study."""
KID_REFERENCE = 1000
"""Rows of the reference that KID is measured against here, where it is measured thousands of times."""

Features = NDArray[np.float32]
Corruption = Callable[[Tensor, Tensor], Tensor]
"""(images in [0, 1], standard normal noise of their shape) -> images."""


def noisy(strength: float) -> Corruption:
    """Additive noise."""
    return lambda images, noise: images + strength * noise


def blurred(images: Tensor, noise: Tensor) -> Tensor:
    """Blur, then as little noise as the baseline has."""
    return gaussian_blur(images, [5, 5], [0.6, 0.6]) + 0.02 * noise


def posterized(images: Tensor, noise: Tensor) -> Tensor:
    """Eight grey levels, of what the baseline shows."""
    return ((images + 0.02 * noise) * 7).round() / 7


RIVALS: dict[str, Corruption] = {"noise": noisy(0.04), "blur": blurred, "8 grey levels": posterized}


class Population:
    """Images corrupted in ``variants`` ways by fresh noise; every corruption sees the same draws."""

    def __init__(self, images: Tensor, variants: int) -> None:
        self.images = images.repeat(variants, 1, 1, 1)
        self.noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(0))

    def corrupted(self, corruption: Corruption) -> Tensor:
        """uint8 [variants * images, 1, 28, 28]."""
        return (corruption(self.images, self.noise).clamp(0, 1) * 255).round().to(torch.uint8)

    def features(self, corruption: Corruption) -> Features:
        """What the embedded extractor says of them."""
        features: Features = extract(FASHION_CNN, self.corrupted(corruption), 256, torch.device("cpu")).pool.numpy()
        return features

    def distances(self, corruption: Corruption, other: Corruption) -> Features:
        """Mean squared distance of each picture between two corruptions, pixels in [0, 1]."""
        apart = (self.corrupted(corruption).float() - self.corrupted(other).float()) / 255
        distances: Features = apart.square().mean(dim=(1, 2, 3)).numpy()
        return distances


def coverage(draw: Callable[[np.random.Generator], Interval], repetitions: int) -> tuple[float, float, float]:
    """Share of intervals that hold the mean of all values; that mean; the mean half width."""
    intervals = [draw(np.random.default_rng(seed)) for seed in range(repetitions)]
    truth = float(np.mean([interval.value for interval in intervals]))
    held = [interval.low <= truth <= interval.high for interval in intervals]
    return float(np.mean(held)), truth, float(np.mean([interval.half for interval in intervals]))


def experiments(population: Population, n: int) -> Iterator[tuple[str, Callable[[np.random.Generator], Interval]]]:
    """(name, a function that draws one interval)."""
    reference = load_file(ROOT / "src/qdexp/zoo/fashion_cnn/reference.safetensors")
    frechet, kernel = Frechet(reference["mu"], reference["sigma"]), Kernel(reference["features"][:KID_REFERENCE])
    light = noisy(0.02)
    baseline, size = population.features(light), len(population.images)

    def paired(measure: Callable[[Features], Estimate], one: Features, other: Features) -> Callable[..., Interval]:
        def draw(random: np.random.Generator) -> Interval:
            rows = random.integers(size, size=n)
            return (measure(one[rows]) - measure(other[rows])).interval()

        return draw

    def alone(measure: Callable[[Features], Estimate], values: Features) -> Callable[..., Interval]:
        return lambda random: measure(values[random.integers(size, size=n)]).interval()

    yield "FID of the baseline", alone(frechet.fid, baseline)
    for name, corruption in RIVALS.items():
        rival, distances = population.features(corruption), population.distances(corruption, light)
        yield f"FID difference, {name}", paired(frechet.fid, rival, baseline)
        yield f"KID difference, {name}", paired(kernel.kid, rival, baseline)
        yield f"MSE, {name}", alone(of_mean, distances)
    for name, spread in SEEDS.items():
        strengths = 0.04 * np.exp(spread * np.random.default_rng(1).standard_normal(FAMILY))
        family = [population.features(noisy(float(strength))) for strength in strengths]

        def seeds(random: np.random.Generator, family: list[Features], count: int) -> Interval:
            rows = random.integers(size, size=n)
            base = frechet.fid(baseline[rows])
            return pool([frechet.fid(family[one][rows]) - base for one in random.integers(FAMILY, size=count)])

        for count in COUNTS:
            yield f"FID difference, noise, {count} seeds {name}", partial(seeds, family=family, count=count)


def read_images(path: Path) -> Tensor:
    """Images [n, 1, 28, 28] in [0, 1] of a picture that holds them side by side."""
    picture = torch.from_numpy(np.array(Image.open(path).convert("L")))
    tiles = picture.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)
    return tiles.reshape(-1, 1, SIDE, SIDE).float() / 255


def main() -> None:
    """Prints a Markdown table, a row an experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=ROOT / "tests/data/fashion_test_1024.png")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=8, help="corruptions of each image in the population")
    parser.add_argument("--only", default="", help="the experiments whose names hold this")
    parser.add_argument("--n", type=int, default=1024, help="images a repetition draws")
    args = parser.parse_args()
    if min(args.repetitions, args.variants) < 1 or args.n < 2 or not args.images.is_file():
        parser.error("--repetitions and --variants must be at least 1, --n at least 2, --images a file")
    torch.set_num_threads(1)
    margin = 100 * 1.96 * math.sqrt(0.95 * 0.05 / args.repetitions)
    print(f"n = {args.n:,}, {args.repetitions:,} repetitions: coverage to ± {margin:.1f} points\n")
    print("| interval | truth | mean half width | coverage, % |\n| --- | ---: | ---: | ---: |")
    for name, draw in experiments(Population(read_images(args.images), args.variants), args.n):
        if args.only in name:
            share, truth, half = coverage(draw, args.repetitions)
            print(f"| {name} | {truth:.4g} | {half:.2g} | {100 * share:.1f} |", flush=True)


if __name__ == "__main__":
    main()
