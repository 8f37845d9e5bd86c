"""The row cache: what calibration rows hold while blocks are learned, in three tiers: the device's memory, the host's, scratch
space on a disk. Each takes what has no room in the one before it. On a CPU the first two are the same memory: one tier.

The joined rows of the block at hand are read in every iteration; what passes hold at an entrance (see `pending`) is read when
they go on. So rows get room first. What is needed next is read ahead: the pass that runs and the one whose turn is next, and in
learning two batches of rows, come on top of the budgets. No bit depends on these.
"""

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qdexp.quant.ahead import Reader
from qdexp.quant.pending import Pending, Turn
from qdexp.quant.scratch import Scratch
from qdexp.quant.stored import InHost, InScratch, OnDevice, Stored, joined

__all__ = ["UNBOUNDED", "Budgets", "RowCache", "Turn"]


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Bytes of rows in the device's memory and in the host's, None: no bound; `scratch`: the folder for what fits in neither.
    On a CPU `device` stands for all memory, and `host` is 0."""

    device: int | None = None
    host: int | None = 0
    scratch: Path = Path()


class RowCache:
    """See the module's docstring. `networks`: those whose passes run; what their modules keep as attributes stays."""

    def __init__(self, budgets: Budgets, device: torch.device, networks: Sequence[nn.Module] = ()) -> None:
        self.budgets, self.device = budgets, device
        self._scratch = Scratch(budgets.scratch)
        self._pending = Pending(device, self._scratch, networks)
        self._reader: Reader | None = None
        self._joined: dict[int, tuple[type[Stored], int]] = {}

    def __enter__(self) -> "RowCache":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if error is None:
            self._pending.restore_all()
        self._scratch.close()

    @property
    def bounded(self) -> bool:
        """Whether anything may ever have to move."""
        return self.budgets.device is not None

    @property
    def reader(self) -> Reader:
        """Reads ahead; its thread begins when it is first asked for."""
        if self._reader is None:
            self._reader = Reader(self.device)
        return self._reader

    @contextmanager
    def turn(self, own: Turn, following: Turn | None) -> Iterator[None]:
        """While a pass runs: what it has parked is there again; that of the `following` one is brought meanwhile."""
        if not self.bounded:
            yield
            return
        self._pending.begin(own, self.reader)
        self._pending.arrive(own, self.reader)
        if following is not None:
            self._pending.begin(following, self.reader)
        yield
        self._pending.ran(own)
        self._make_room()

    def see(self, turn: Turn, *tree: object) -> None:
        """A pass has made these tensors, or been given them."""
        if self.bounded:
            self._pending.see(turn, tree)

    def keep(self, *tree: object) -> None:
        """Keep these tensors where they are."""
        if self.bounded:
            self._pending.keep(tree)

    def lent(self, *tensors: Tensor) -> AbstractContextManager[None]:
        """The values of what a pass holds may be read, though it stands still."""
        return self._pending.lent(*tensors)

    def join(self, parts: Sequence[Tensor], rows: slice = slice(None), dtype: torch.dtype | None = None) -> Stored:
        """`torch.cat(parts)[rows]`, floats as `dtype` if it is given, but for single numbers: a timestep needs its digits, and
        no room. Lies in the first tier that has room for it beside other rows."""
        whole = joined(parts)[rows]
        if dtype is not None and whole.is_floating_point() and whole.ndim > 1:
            whole = whole.to(dtype)
        stored = self._place(whole, parts[0].device)
        stored.fill(self._cut(parts, rows))
        return stored

    def _place(self, whole: Tensor, device: torch.device) -> Stored:
        size, budgets = whole.numel() * whole.element_size(), self.budgets
        if budgets.device is None or size + self._taken(OnDevice) <= budgets.device:
            self._make_room(size)
            stored: Stored = OnDevice(whole, device)
        elif budgets.host is None or size + self._taken(InHost) <= budgets.host:
            if budgets.host is not None:
                self._pending.leave_host(size + self._taken(InHost) + self._pending.in_host() - budgets.host)
            stored = InHost(whole, device)
        else:
            return InScratch(whole, device, self._scratch)
        self._joined[id(stored)] = type(stored), size
        weakref.finalize(stored, self._joined.pop, id(stored))
        return stored

    def _cut(self, parts: Sequence[Tensor], rows: slice) -> Iterator[Tensor]:
        """Yield the part of each tensor that lies among these rows of all; lent until the next."""
        first, last, _ = rows.indices(sum(len(part) for part in parts))
        for part in parts:
            own = slice(max(0, first), max(0, min(last, len(part))))
            first, last = first - len(part), last - len(part)
            if own.start < own.stop:
                with self.lent(part):
                    yield part[own]

    def _taken(self, kind: type[Stored]) -> int:
        """Bytes of joined rows."""
        return sum(size for own, size in self._joined.values() if own is kind)

    def _make_room(self, size: int = 0) -> None:
        """Park what passes hold until `size` bytes more would fit on the device."""
        budgets = self.budgets
        if budgets.device is None:
            return
        excess = size + self._taken(OnDevice) + self._pending.there() - budgets.device
        if excess > 0:
            left = excess if budgets.host is None else budgets.host - self._taken(InHost) - self._pending.in_host()
            self._pending.park(excess, left)
            _give_back()


UNBOUNDED = RowCache(Budgets(), torch.device("cpu"))
"""Nothing ever moves."""


def _give_back() -> None:
    """Free memory goes back to the system: glibc would keep it between other pieces, where it still counts as the process's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
