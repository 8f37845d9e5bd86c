"""One random generator a sample.

Sample i of a stream starts from the same noise in every cell, on every device and in every shard: its generator lives on the
CPU and has a seed of its own. torch keeps 32 bits of a seed, too few for hashes never to meet (two of 50,000 samples would be
equal in one run of four). So the samples of a stream count up from a start that is a hash of the seed, and each stream has one
half of the 32 bits to itself.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

STREAMS = ("calibration", "evaluation")
_HALF = 2**31


def generators(stream: str, seed: int, samples: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each sample number; ``stream`` is one of ``STREAMS``, which never share a sample."""
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big")
    half = STREAMS.index(stream) * _HALF
    return [torch.Generator().manual_seed(half + (start + sample) % _HALF) for sample in samples]


def draw(sources: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [len(sources), *shape], row i from generator i."""
    return torch.stack([torch.randn(shape, generator=source) for source in sources])
