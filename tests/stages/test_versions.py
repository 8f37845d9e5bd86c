import inspect
import json

import pytest
from fingerprints import ACCEPTED, fingerprint, modules, plain, stages

from qdexp.stages.base import Stage

HELP = """
The code behind the stage {name!r} is not the one that was accepted as version {version}.
  If its results may differ by a single bit: raise `version` in {file}, so that no old result is used any more.
  Then, or if the results are provably the same: run `python tests/stages/fingerprints.py` and commit what it writes."""


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_new_code_has_a_new_version(stage: type[Stage]) -> None:
    accepted = json.loads(ACCEPTED.read_text()).get(stage.name, {"version": 0})
    file = inspect.getsourcefile(stage)
    assert fingerprint(stage) == accepted, HELP.format(name=stage.name, version=accepted["version"], file=file)


def test_all_that_was_accepted_is_there() -> None:
    assert json.loads(ACCEPTED.read_text()).keys() == {stage.name for stage in stages()}


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.name)
def test_sources_exist(stage: type[Stage]) -> None:
    for name in stage.sources:
        files = list(modules(name))
        assert files
        assert all(file.is_file() for file in files)


CODE = """
from qdexp.files import sha256

def scale(x: float, *, bits: int = 8) -> float:
    '''Doubles.'''
    if x > 0:
        return 2 * x  # twice
    return f(x, bits)
"""


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("'''Doubles.'''", "'''Makes it twice as large.'''", False),
        ("    '''Doubles.'''\n", "", False),
        ("# twice", "# 2x", False),
        ("x: float", "x: int", False),
        (" -> float", "", False),
        ("2 * x ", "(2 *  x)", False),
        ("2 * x", "x * 2", True),
        ("x > 0", "x >= 0", True),
        ("bits: int = 8", "bits: int = 4", True),
        ("f(x, bits)", "f(bits, x)", True),
        ("qdexp.files", "qdexp.other", True),
    ],
)
def test_what_counts_as_a_change(old: str, new: str, counts: bool) -> None:
    assert old in CODE
    assert (plain(CODE) != plain(CODE.replace(old, new))) is counts
