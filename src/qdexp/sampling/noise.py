"""One random generator a sample.

Sample i of a stream starts from the same noise in every cell, on every device and in every shard: its generator lives on the
CPU and is seeded with SHA-256(stream, seed, i). The streams ``calibration`` and ``evaluation`` never share a sample.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def generators(stream: str, seed: int, samples: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each sample number."""
    return [torch.Generator().manual_seed(_seed_of(f"{stream}/{seed}/{sample}")) for sample in samples]


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def draw(sources: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [len(sources), *shape], row i from generator i."""
    return torch.stack([torch.randn(shape, generator=source) for source in sources])
