"""What a sweep shows before its end."""

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]
METHODS = ("fp", "ptq", "timestep_aware")


def rows(text: str) -> list[str]:
    """The methods of a printed table."""
    return [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in METHODS and "W" in line]


@pytest.mark.parametrize("launcher", ["sequential", pytest.param("local", marks=pytest.mark.slow)])  # the latter 40 s
def test_two_methods_are_compared_before_the_third_one_is_there(qdexp: Command, tmp_path: Path, launcher: str) -> None:
    """Printed once, and written where the whole will be; the same command again has nothing new to show."""
    command = ("-m", f"method={','.join(METHODS)}", f"hydra/launcher={launcher}", "calib.timesteps=4")
    code, out, err = qdexp(*command)
    assert (code, err) == (0, "")
    before, _, after = out.partition("2 of 3 cells so far\n")
    assert rows(before) == [] and rows(after) == ["fp", "ptq", *METHODS]
    folder = tmp_path / "out" / "sweeps" / "trial"
    assert after.count(f"samples  {folder / 'samples.png'}\n") == after.count(f"table    {folder / 'table.md'}\n") == 2
    assert all(f"| {method} " in (folder / "table.md").read_text() for method in METHODS)
    code, out, _ = qdexp(*command)
    assert code == 0 and "so far" not in out and rows(out) == list(METHODS)
