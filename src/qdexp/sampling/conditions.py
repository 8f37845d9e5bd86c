"""What a network is asked to draw, and classifier-free guidance.

A condition is a dict of named tensors with a row a sample, as the network's class names them (``class_labels``); dicts may lie
inside. Of the distinct conditions of a protocol, sample i is asked for number i modulo their count, in every cell. With
guidance g the noise is estimated twice (Ho and Salimans, arXiv 2207.12598, in the convention of diffusers):

    eps = eps(x_t, t, empty) + g (eps(x_t, t, condition) - eps(x_t, t, empty)),

so g = 1 is the conditional network alone, which is then called once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import files
from qdexp.config import Protocol
from qdexp.errors import UserError

Named = dict[str, Any]
"""Tensors by their names, dicts of such inside."""

FILE = "conditions.safetensors"
ASKED, EMPTY = "asked.", "empty."


def estimate_noise(network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
    """eps(x_t, t): x_t [n, c, h, w], t [n]; of a tuple or a diffusers output, the first element.

    Networks that learned a variance too answer with twice the channels: the first are the noise.
    """
    output = network(x_t, t, **condition)
    answer: Tensor = output if isinstance(output, Tensor) else output[0]
    return answer[:, : x_t.shape[1]]


@dataclass(frozen=True)
class Asked:
    """What one batch is asked for: ``branches`` are the conditions with which the network is called, the asked one first, then
    with guidance the empty one."""

    branches: tuple[Named, ...] = ({},)
    guidance: float = 1.0

    def batch(self, x_t: Tensor, t: Tensor) -> tuple[Any, ...]:
        """The network's call as asked, without guidance."""
        return (x_t, t, self.branches[0]) if self.branches[0] else (x_t, t)

    def estimate(self, network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided eps [n, c, h, w] of x_t [n, c, h, w] and t [n]."""
        answers = [estimate_noise(network, x_t, t, **branch) for branch in self.branches]
        return answers[0] if len(answers) == 1 else answers[1] + self.guidance * (answers[0] - answers[1])


class Conditions:
    """The distinct conditions of a protocol, a row each, and the empty one, of one row."""

    def __init__(self, asked: Named, empty: Named, guidance: float = 1.0) -> None:
        self.asked, self.empty, self.guidance = asked, empty, guidance

    @classmethod
    def none(cls) -> "Conditions":
        """Of an unconditional model."""
        return cls({}, {})

    @classmethod
    def load(cls, folder: Path, guidance: float) -> "Conditions":
        """What ``save`` wrote into ``folder``."""
        flat = load_file(folder / FILE)
        return cls(unflatten(flat, ASKED), unflatten(flat, EMPTY), guidance)

    def save(self, folder: Path) -> None:
        files.write_tensors(folder / FILE, flatten(self.asked, ASKED) | flatten(self.empty, EMPTY))

    @property
    def branches(self) -> int:
        """How often the network is called at each of the sampler's calls."""
        return 1 if self.guidance == 1 else 2

    def of(self, samples: Iterable[int], device: torch.device) -> Asked:
        """What these samples are asked for, on ``device``."""
        numbers = torch.tensor(list(samples))

        def rows(tensor: Tensor) -> Tensor:
            return tensor[numbers % len(tensor)].to(device)

        tables = (self.asked, self.empty)[: self.branches]
        return Asked(tuple(pytree.tree_map(rows, table) for table in tables), self.guidance)


class Classes:
    """Conditions of a class-conditional model: ``protocol.classes``, or all ``classes`` in turn.

    empty: the label that means "no class"; null where the model knows none. name: what the network calls its labels.
    """

    def __init__(self, classes: int, empty: int | None = None, name: str = "class_labels") -> None:
        self.classes, self.empty, self.name = classes, empty, name

    def check(self, protocol: Protocol) -> None:
        """Raises UserError where the protocol asks for what the model cannot be asked for."""
        if protocol.prompts is not None:
            raise UserError(f"protocol.prompts={protocol.prompts}: the model draws classes; leave it out")
        wrong = [label for label in protocol.classes or [] if not 0 <= label < self.classes]
        if wrong:
            raise UserError(f"protocol.classes={protocol.classes}: choose from 0 to {self.classes - 1}")
        if protocol.guidance != 1 and self.empty is None:
            raise UserError(f"protocol.guidance={protocol.guidance}: the model has no label for no class; leave it at 1")

    def files(self, protocol: Protocol) -> dict[str, Path]:
        """The files that decide what is asked."""
        return {}

    def encode(self, protocol: Protocol, device: torch.device) -> Conditions:
        """Labels int64 [classes]."""
        labels = torch.tensor(protocol.classes or list(range(self.classes)))
        empty = {} if self.empty is None else {self.name: torch.tensor([self.empty])}
        return Conditions({self.name: labels}, empty, protocol.guidance)


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
