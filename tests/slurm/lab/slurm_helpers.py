"""Graphs of trivial jobs, and waiting for what they leave behind."""

import time
from collections.abc import Callable, Sequence

from qdexp.sweep.jobs import Node

LARGEST_ARRAY = 6
"""MaxArraySize of the cluster of these tests."""


def nodes(**needs: Sequence[str]) -> list[Node]:
    """``nodes(a=[], b=["a"])``; the kind of a node is its name without digits."""
    return [Node(name, name.rstrip("0123456789"), "cell", "stage", name, tuple(before)) for name, before in needs.items()]


def wait_for(ready: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
