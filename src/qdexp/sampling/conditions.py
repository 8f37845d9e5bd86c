"""Conditions of a network, and classifier-free guidance.

A condition is a dict of named tensors with a row a sample, as the network's class names them (``class_labels``); dicts may lie
inside. Of the distinct conditions of a protocol, sample i has number i modulo their count, in every cell. With guidance g the
noise is estimated twice (Ho and Salimans, arXiv 2207.12598, in the convention of diffusers):

    eps = eps(x_t, t, empty) + g (eps(x_t, t, condition) - eps(x_t, t, empty)),

so g = 1 is the conditional network alone, which is then called once.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.calling import call, estimate_of

Named = dict[str, Any]
"""Tensors by their names, dicts of such inside."""

PIECE = 32
"""Conditions in one file: what is encoded at once, and kept when a process is killed."""

PIECES, EMPTY = "asked-*.safetensors", "empty.safetensors"


def estimate_noise(network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
    """eps(x_t, t): x_t [n, c, h, w], t [n]; of a tuple, a dict or a diffusers output, the first element.

    Networks that learned a variance too return twice the channels: the first are the noise.
    """
    answer: Tensor = estimate_of(call(network, x_t, t, condition))
    return answer[:, : x_t.shape[1]]


def _told(network: nn.Module, branch: str) -> AbstractContextManager[None]:
    """Sets the branch of a call on networks that can know it, as diffusers' pipelines do."""
    tell = getattr(network, "cache_context", None)
    return nullcontext() if tell is None else tell(branch)


@dataclass(frozen=True)
class Asked:
    """The conditions of one batch: ``branches`` are those that the network is called with, first the conditional one, then with
    guidance the unconditional one."""

    branches: tuple[Named, ...] = ({},)
    guidance: float = 1.0

    def batch(self, x_t: Tensor, t: Tensor) -> tuple[Any, ...]:
        """The network's conditional call, without guidance."""
        return (x_t, t, self.branches[0]) if self.branches[0] else (x_t, t)

    def estimate(self, network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided eps [n, c, h, w] of x_t [n, c, h, w] and t [n]."""
        answers = []
        for name, branch in zip(("cond", "uncond"), self.branches, strict=False):
            with _told(network, name) if branch else nullcontext():
                answers.append(estimate_noise(network, x_t, t, **branch))
        return answers[0] if len(answers) == 1 else answers[1] + self.guidance * (answers[0] - answers[1])


class Conditions:
    """The distinct conditions of a noise stream, ``PIECE`` rows a piece (the last may have fewer), and the empty one, one row.

    Pieces that were loaded are mapped from their files, and take memory only where rows are read.
    """

    def __init__(self, pieces: Sequence[Named], empty: Named, guidance: float = 1.0) -> None:
        self.pieces, self.empty, self.guidance = pieces, empty, guidance
        sizes = [len(pytree.tree_leaves(piece)[0]) for piece in pieces]
        self.count = sum(sizes)
        assert all(size == PIECE for size in sizes[:-1])

    @classmethod
    def none(cls) -> "Conditions":
        """Make the conditions of an unconditional model."""
        return cls([], {})

    @classmethod
    def load(cls, folder: Path, guidance: float) -> "Conditions":
        """The pieces and the empty condition in ``folder``."""
        pieces = [unflatten(load_file(path)) for path in sorted(folder.glob(PIECES))]
        return cls(pieces, unflatten(load_file(folder / EMPTY)), guidance)

    @property
    def branches(self) -> int:
        """The number of calls of the network per call of the sampler."""
        return 1 if self.guidance == 1 else 2

    def of(self, samples: Iterable[int], device: torch.device) -> Asked:
        """The conditions of these samples, on ``device``."""
        if not self.pieces:
            return Asked()
        numbers = [sample % self.count for sample in samples]

        def asked(*pieces: Tensor) -> Tensor:
            return torch.stack([pieces[number // PIECE][number % PIECE] for number in numbers]).to(device)

        def empty(row: Tensor) -> Tensor:
            return torch.cat([row] * len(numbers)).to(device)

        branches = (pytree.tree_map(asked, *self.pieces), pytree.tree_map(empty, self.empty))
        return Asked(branches[: self.branches], self.guidance)


def piece_path(folder: Path, number: int) -> Path:
    return folder / PIECES.replace("*", f"{number:05d}")


def flatten(named: Named, prefix: str = "") -> dict[str, Tensor]:
    """Dicts inside become dots in the names, as a tensor file needs it."""
    flat: dict[str, Tensor] = {}
    for name, value in named.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value.contiguous()}
    return flat


def unflatten(flat: dict[str, Tensor], prefix: str = "") -> Named:
    """The inverse of ``flatten``, of the names that begin with ``prefix``."""
    named: Named = {}
    for path, value in flat.items():
        if path.startswith(prefix):
            *parents, name = path.removeprefix(prefix).split(".")
            inner = named
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[name] = value
    return named
