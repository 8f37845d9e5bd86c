"""Reading ahead: what is needed next is brought to the device while something else is worked on.

One thread reads files and gathers rows in the host's memory. On CUDA its copies to the device go through a stream of their own,
so that they run beside the arithmetic; whoever takes what was read has the current stream wait for them, never the host.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")
Key = TypeVar("Key")


class Reader:
    """Works ahead for one device, in the order of what it is given."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "rows")

    def close(self) -> None:
        """Ends the thread once it is done with what it is at; what it has not begun is left out."""
        self._thread.shutdown(cancel_futures=True)

    def begin(self, work: Callable[[], T]) -> "Future[T]":
        """Has it done, after all that was asked of the device before."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return self._thread.submit(self._done, work)

    def take(self, begun: "Future[T]") -> T:
        """The result of a read that was begun; to be used by the current stream."""
        result = begun.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_cuda:
                    leaf.record_stream(current)  # its memory was the other stream's
        return result

    def _done(self, work: Callable[[], T]) -> T:
        with torch.no_grad(), self._streaming():
            return work()

    def _streaming(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def each(reader: Reader | None, read: Callable[[Key], T], keys: Iterable[Key]) -> Generator[T]:
    """`read(key)` for every key, in order: the next one is read while one is worked on. Without a reader nothing is."""
    if reader is None:
        yield from map(read, keys)
        return
    following: Future[T] | None = None
    for key in keys:
        current, following = following, reader.begin(lambda key=key: read(key))  # type: ignore[misc]
        if current is not None:
            yield reader.take(current)
    if following is not None:
        yield reader.take(following)
