"""Which jobs Slurm takes in one array, and what the array waits for.

An array waits for whole jobs that all its elements need (``afterok``), and, element for element, for the elements of other
arrays (``aftercorr``): then one broken cell ends in its own elements alone, and no cell waits for another.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qdexp.sweep.graph import Node


@dataclass(frozen=True)
class Array:
    """Nodes that are submitted with one command; ``dependency`` as sbatch takes it, empty for none."""

    nodes: tuple[Node, ...]
    dependency: str


def arrays(nodes: Sequence[Node], jobs: Mapping[str, str], largest: int) -> Iterator[Array]:
    """Cuts ``nodes``, which ask for the same resources and do not need each other, into arrays of at most ``largest``.

    ``jobs``: the job of each node that is submitted; a need that has none is there already.
    """
    alike: dict[tuple[str, ...], list[Node]] = defaultdict(list)
    for node in nodes:
        alike[tuple(sorted({_base(job) for job in _needs(node, jobs)}))].append(node)
    for group in alike.values():
        yield from _cut(group, jobs, largest)


def _cut(group: list[Node], jobs: Mapping[str, str], largest: int) -> Iterator[Array]:
    needs = {node.id: set(_needs(node, jobs)) for node in group}
    common = set.intersection(*needs.values())
    lines = _lines({node.id: needs[node.id] - common for node in group})
    if lines is None:
        for node in group:
            yield Array((node,), _after(needs[node.id]))
        return
    by_id = {node.id: node for node in group}
    for line, bases in lines:
        for start in range(0, len(line), largest):
            chunk = tuple(by_id[name] for name in line[start : start + largest])
            yield Array(chunk, ",".join(filter(None, [_after(common), *(f"aftercorr:{base}" for base in bases)])))


def _lines(own: dict[str, set[str]]) -> list[tuple[list[str], list[str]]] | None:
    """Nodes in the order of the elements that they need, as often as each element is needed, and the arrays of those.

    None where nodes and elements do not stand side by side: where a node needs elements of several places, or an element of
    the middle is needed by none.
    """
    if not any(own.values()):
        return [(list(own), [])]
    places: dict[int, list[str]] = defaultdict(list)
    for node, elements in own.items():
        indices = {int(index) if index else -1 for _, _, index in (job.partition("_") for job in elements)}
        if len(indices) != 1 or -1 in indices:
            return None
        places[indices.pop()].append(node)
    if sorted(places) != list(range(len(places))) or len(places) == 1 or len({len(nodes) for nodes in places.values()}) > 1:
        return None
    bases = sorted({_base(job) for job in next(iter(own.values()))})
    if any(sorted(map(_base, elements)) != bases for elements in own.values()):
        return None
    return [([places[place][turn] for place in range(len(places))], bases) for turn in range(len(places[0]))]


def _needs(node: Node, jobs: Mapping[str, str]) -> list[str]:
    return [jobs[need] for need in node.needs if need in jobs]


def _base(job: str) -> str:
    return job.partition("_")[0]


def _after(jobs: set[str]) -> str:
    return f"afterok:{':'.join(sorted(jobs))}" if jobs else ""
