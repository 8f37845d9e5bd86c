"""Which jobs Slurm takes in one array, and what the array waits for."""

import pytest

from qdexp.sweep.jobs import Node, dependents, depths
from qdexp.sweep.slurm import arrays


def made(kind: str, **needs: list[str]) -> list[Node]:
    return [Node(name, kind, "cell", kind, name, tuple(before)) for name, before in needs.items()]


JOBS = {"one": "7", **{f"a{index}": f"8_{index}" for index in range(4)}, **{f"b{index}": f"9_{index}" for index in range(4)}}


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"x": [], "y": []}, [("x y", "")]),
        ({"x": ["one"], "y": ["one"]}, [("x y", "afterok:7")]),
        ({"x": ["a0"], "y": ["a1"]}, [("x y", "aftercorr:8")]),
        ({"x": ["a1"], "y": ["a0"]}, [("y x", "aftercorr:8")]),
        ({"x": ["a0", "one"], "y": ["a1", "one"]}, [("x y", "afterok:7,aftercorr:8")]),
        ({"x": ["a0", "b0"], "y": ["a1", "b1"]}, [("x y", "aftercorr:8,aftercorr:9")]),
        ({"x": ["a0"], "y": ["a1"], "z": ["a0"], "w": ["a1"]}, [("x y", "aftercorr:8"), ("z w", "aftercorr:8")]),
        ({"x": ["a0"], "y": ["b0"]}, [("x", "afterok:8_0"), ("y", "afterok:9_0")]),
        ({"x": ["a0"], "y": ["a2"]}, [("x", "afterok:8_0"), ("y", "afterok:8_2")]),
        ({"x": ["a0", "b1"], "y": ["a1", "b0"]}, [("x", "afterok:8_0:9_1"), ("y", "afterok:8_1:9_0")]),
        ({"x": ["a0"], "y": ["a1"], "z": ["a1"]}, [("x", "afterok:8_0"), ("y", "afterok:8_1"), ("z", "afterok:8_1")]),
        ({"x": ["there"], "y": ["there"]}, [("x y", "")]),
        ({"x": [], "y": ["one"]}, [("x", ""), ("y", "afterok:7")]),
    ],
)
def test_arrays(needs: dict[str, list[str]], expected: list[tuple[str, str]]) -> None:
    found = [(" ".join(one.id for one in array.nodes), array.dependency) for array in arrays(made("s", **needs), JOBS, 10)]
    assert found == expected


def test_arrays_have_a_largest_size() -> None:
    nodes = made("s", **{f"n{number}": ["one"] for number in range(7)})
    assert [len(array.nodes) for array in arrays(nodes, JOBS, 3)] == [3, 3, 1]


def test_depths_and_dependents() -> None:
    graph = made("s", a=["there"], b=["a"], c=["a"], d=["b", "c"], e=[])
    assert depths(graph) == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0}
    assert dependents(graph, ["b"]) == {"b", "d"}
