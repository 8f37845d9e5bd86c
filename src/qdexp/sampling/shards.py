"""Sampling as a Lightning prediction, kept in shards.

A shard is one forward batch: exactly ``batch`` rows, the last one filled up with samples that are then dropped. So every image
is computed in the same company whatever the number of processes, and a killed run goes on at the next shard.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qdexp import files
from qdexp.sampling.conditions import Asked, Conditions
from qdexp.sampling.noise import generators
from qdexp.sampling.sampler import Sampler, require_finite, to_images

Tensors = dict[str, Tensor]

DECODED = 4
"""Latents that the first stage decodes at a time."""


@dataclass(frozen=True)
class Stream:
    """A stream of samples: the first ``n`` of the noise stream ``name`` with ``seed``, in batches of ``batch``."""

    name: str
    seed: int
    n: int
    batch: int

    @property
    def shards(self) -> range:
        return range(-(-self.n // self.batch))

    def samples(self, shard: int) -> range:
        """The samples of ``shard``, those that fill it up included."""
        return range(shard * self.batch, (shard + 1) * self.batch)

    def rows(self, shard: int) -> int:
        """The number of rows of ``shard`` that are kept."""
        return min(self.batch, self.n - shard * self.batch)


def _full_batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """``rows`` in batches of exactly ``size``; the last one is filled up with its own last row."""
    for part in rows.split(size):
        yield torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def read_shards(folder: Path, name: str) -> Iterator[Tensor]:
    """The tensor ``name`` of every shard in order; rows lie along dimension 0."""
    for path in sorted(folder.glob("shard-*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            yield shard.get_tensor(name)


def first_rows(folder: Path, name: str, count: int) -> Tensor:
    """The first ``count`` rows of the tensor ``name``, or all where there are fewer; no shard is read that has none of them."""
    found: list[Tensor] = []
    for part in read_shards(folder, name):
        found.append(part[:count])
        count -= len(part)
        if count <= 0:
            break
    return torch.cat(found)


class Images(Dataset[Tensor]):
    """The images in the shards of ``folder``, in order; one shard at a time is held."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("shard-*.safetensors"))
        self._ends = list(accumulate(_length(path) for path in self._paths))
        self._shard, self._held = -1, torch.empty(0)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Tensor:
        shard = bisect_right(self._ends, index)
        if shard != self._shard:
            self._shard, self._held = shard, load_file(self._paths[shard])["images"]
        return self._held[index - self._ends[shard]]


def _length(path: Path) -> int:
    with safe_open(path, framework="pt") as shard:
        length: int = shard.get_slice("images").get_shape()[0]
    return length


class Sampling(torch.nn.Module):
    """Sampling of a shard's images, or of its whole trajectory, by the shard's number.

    first_stage: makes images of what the sampler ends with, by its method ``decode``; None where those are images.
    pixels: how they become images of 8 bits.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        sampler: Sampler,
        stream: Stream,
        conditions: Conditions | None = None,
        first_stage: torch.nn.Module | None = None,
        pixels: str = "round",
    ) -> None:
        super().__init__()
        self.network, self.sampler, self.stream = network, sampler, stream
        self.conditions, self.first_stage, self.pixels = conditions or Conditions.none(), first_stage, pixels
        self.register_buffer("_here", torch.empty(0), persistent=False)  # a network may have no tensors at all

    @property
    def device(self) -> torch.device:
        """The device of the module."""
        here: torch.device = self.get_buffer("_here").device
        return here

    def sources(self, shard: int) -> list[torch.Generator]:
        """The generators of the shard's samples."""
        return generators(self.stream.name, self.stream.seed, self.stream.samples(shard))

    def asked(self, shard: int) -> Asked:
        """The conditions of the shard's samples."""
        return self.conditions.of(self.stream.samples(shard), self.device)

    def forward(self, shard: int) -> Tensors:
        """``images`` uint8 [batch, c, h, w], in the host's memory. Raises UserError where the trajectory ends in values that
        are not finite."""
        x_0 = self.sampler.run(self.network, self.sources(shard), self.device, self.asked(shard))
        images = to_images(x_0 if self.first_stage is None else self._decode(x_0, self.first_stage), self.pixels)
        kept = on_host(images.shape, self.device, torch.uint8).copy_(images, non_blocking=True)
        require_finite(x_0)
        return {"images": kept}

    def _decode(self, latents: Tensor, first_stage: Any) -> Tensor:
        """Images of the latents, ``DECODED`` at a time: a fixed number, and few, since a decoder needs much more memory than
        the network."""
        return torch.cat([first_stage.decode(part) for part in _full_batches(latents, DECODED)])[: len(latents)]


def on_host(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room in the host's memory for numbers of ``device``, which copies them there while it goes on computing."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


class Recording(Sampling):
    """Sampling of a shard with its trajectory recorded: ``x_t`` and (guided) ``eps`` float32 [batch, calls, c, h, w], the
    inputs and predictions. All of it may be too large for the device's memory."""

    def forward(self, shard: int) -> Tensors:
        shape = self.sampler.steps, self.stream.batch, *self.sampler.shape
        seen, answered = (on_host(shape, self.device) for _ in range(2))

        def observe(call: int, x_t: Tensor, eps: Tensor) -> None:
            seen[call].copy_(x_t, non_blocking=True)
            answered[call].copy_(eps, non_blocking=True)

        require_finite(self.sampler.run(self.network, self.sources(shard), self.device, self.asked(shard), observe))
        return {"x_t": seen.transpose(0, 1), "eps": answered.transpose(0, 1)}


def missing_shards(stream: Stream, folder: Path, shards: Sequence[int] | None = None) -> list[int]:
    """The shards that ``folder`` lacks of the stream's, or of ``shards``; a truncated one counts as lacking."""
    wanted = stream.shards if shards is None else shards
    return [shard for shard in wanted if not files.are_tensors(shard_path(folder, shard))]


def write_shards(module: Sampling, folder: Path, device: torch.device, shards: Sequence[int] | None = None) -> None:
    """Writes the shards that ``folder`` lacks (all of the stream's, or those of ``shards``)."""
    from qdexp import lightning  # late: it takes seconds

    def write(position: int, made: Tensors) -> None:
        shard = missing[position]
        kept = {name: value[: module.stream.rows(shard)].contiguous().cpu() for name, value in made.items()}
        files.write_tensors(shard_path(folder, shard), kept)

    missing = missing_shards(module.stream, folder, shards)
    if missing:
        lightning.predict(module, DataLoader(cast("Dataset[int]", missing), batch_size=None), device, write)
