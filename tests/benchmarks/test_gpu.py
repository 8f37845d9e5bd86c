"""The command for machines with a GPU, as far as a CPU can tell: that it runs to its end, whatever happens in a section."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import ablation, command, fake_quantize
from benchmarks.gpu.apart import Apart, DiedError, FailedError, OutOfTimeError
from benchmarks.gpu.command import SECTIONS, Section
from benchmarks.gpu.repeated import compared
from benchmarks.gpu.setup import Row, Setup

ROOT = Path(command.__file__).parents[2]
HOUR = 3600


def far() -> float:
    return time.monotonic() + HOUR


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        ([], "qdexp: torch sees no CUDA device here; run this on a machine with a GPU", 2),
        (["sped"], "no section is called sped; choose from machine, fake_quantize", 2),
        (["--device", "cpu", "--out", "/proc/none/gpu.json"], "qdexp: --out /proc/none/gpu.json: ", 1),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_work(
    arguments: list[str], told: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["gpu", *arguments])
    printed = capsys.readouterr()
    said = stop.value.code if isinstance(stop.value.code, str) else printed.err
    assert told in said
    assert (1 if isinstance(stop.value.code, str) else stop.value.code) == code
    assert not printed.out


def test_whatever_a_section_ends_with_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    kept = list[int]()

    def broken(_: Setup) -> Iterator[Row]:
        yield {"part": 1}
        kept.append(len(json.loads(out.read_text())["sections"]["broken"]["rows"]))
        raise ValueError("no such kernel")

    def slow(_: Setup) -> Iterator[Row]:
        yield {"part": 1, "of": 3}
        raise OutOfTimeError

    def good(setup: Setup) -> Iterator[Row]:
        assert setup.end <= time.monotonic() + 0.1 * command.SECONDS
        yield {"part": 1}
        yield {"part": 2}

    sections = {"broken": Section(broken, 0, 1), "slow": Section(slow, 0, 1), "good": Section(good, 0, 0.1)}
    monkeypatch.setattr(command, "SECTIONS", {**sections, "dear": Section(good, 2 * command.SECONDS, 1)})
    with pytest.raises(SystemExit) as stop:
        main(["gpu", "--device", "cpu", "--out", str(out)])
    assert stop.value.code == 1
    found = json.loads(out.read_text())["sections"]
    assert kept == [1], "a row is in the file before the next one"
    assert {name: one["status"] for name, one in found.items()} == {
        "broken": "failed",
        "slow": "stopped",
        "good": "done",
        "dear": "skipped",
    }
    assert [len(one["rows"]) for one in found.values()] == [1, 1, 2, 0]
    assert "no such kernel" in found["broken"]["error"]
    printed = capsys.readouterr().out
    assert "| part |\n| --- |\n| 1 |\n| 2 |" in printed
    assert all(told in printed for told in ("failed)\nValueError: no such kernel", "its time was up)", "(skipped: 4"))


def test_work_apart_may_raise_die_or_take_too_long() -> None:
    with Apart(far(), os.abort) as dies, Apart(far(), os.strerror) as raises:
        with pytest.raises(DiedError, match="the process died: SIGABRT"):
            list(dies)
        with pytest.raises(FailedError, match=r"(?s)Traceback.*TypeError: .*strerror"):
            list(raises)
    begin = time.monotonic()
    with Apart(begin - 1, range, 3) as late, pytest.raises(OutOfTimeError):
        list(late)
    assert time.monotonic() - begin < 60


def test_the_kernel_of_torch_rounds_as_ours(tmp_path: Path) -> None:
    rows = list(fake_quantize.run(Setup("cpu", True, tmp_path, far())))
    assert len(rows) == 10
    for row in rows:
        assert row["differ from the CPU's"] == row["NaN lost"] == 0
        assert row["kernel differs from formula"] == (0 if row["a grid for each"] == "tensor" else "-")


def test_what_differs_is_counted() -> None:
    one, other = torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([1.0, torch.nan, 3.0])
    assert fake_quantize.differing(one, other) == 1
    assert fake_quantize.differing(one, one.half()) == 3
    once = {"weights/a": "1", "samples/b": "2", "samples/c": "3"}
    found = compared(once, {"weights/a": "1", "samples/b": "4"})
    assert (found["files"], found["differ"], found["in"]) == (3, 2, "samples")
    assert compared(once, once)["in"] == "-"


@pytest.mark.slow
def test_the_whole_command_small_on_a_cpu(tmp_path: Path) -> None:
    """Takes a minute of CPU."""
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--seconds", "2400", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "benchmarks", "gpu", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sections = json.loads(out.read_text())["sections"]
    assert list(sections) == list(SECTIONS)
    assert {one["status"] for one in sections.values()} == {"done"}
    assert all(f"\n{name}\n\n| " in done.stdout for name in sections)
    repeated = sections["repeated"]["rows"]
    assert [row["differ"] for row in repeated] == [0] * 4
    assert all(row["files"] > 10 for row in repeated)
    assert [row["against one run"] for row in repeated[:2]] == ["run again", "killed after 3 blocks, resumed"]
    assert {row["within the CPU's interval"] for row in sections["ablation"]["rows"]} == {"yes"}
    assert {row["method"] for row in sections["ablation"]["rows"]} == set(ablation.METHODS)
    assert [len(sections[name]["rows"]) for name in ("speed", "peaks", "rates")] == [1, 8, 7]
    assert all(0.8 < float(row["planned / live"]) < 1.2 for row in sections["peaks"]["rows"])
