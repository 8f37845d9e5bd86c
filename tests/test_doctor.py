"""What a machine can run, as its user is told."""

import re
import sys
from pathlib import Path

import pytest

from qdexp import doctor
from qdexp.backends import choice
from qdexp.errors import UserError


def told(out: Path, subject: str) -> list[str]:
    return [what for name, what in doctor.findings(out) if name == subject]


def test_everything_is_told_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", "--out", str(tmp_path / "not" / "there")])
    doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(("backend", *doctor.OPTIONAL))] == [
        "qdexp", "torch", "processor", "memory", "disk", "GPU", "bfloat16", "compiler", "Slurm", "hub"
    ]  # fmt: skip
    assert {line.split()[1].rstrip(":") for line in lines if line.startswith("backend")} == set(choice.names())
    (memory,) = [line for line in lines if line.startswith("memory")]
    free, whole = map(float, re.findall(r"[\d.]+", memory))
    assert 0 < free < 1.08 * whole
    assert not (tmp_path / "not").exists()


def test_what_is_missing_is_said_with_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(doctor.OPTIONAL, "notebook", ("no-such-package", "a notebook"))
    assert told(tmp_path, "notebook") == ["not installed: a notebook needs it, pip install 'qdexp[notebook]'"]
    assert told(tmp_path, "compiler")[0].startswith("no: recon.compile=true: there is no C++ compiler")
    assert told(tmp_path, "Slurm") == ["no sbatch here: hydra/launcher=slurm is for a node that has it"]


def test_a_backend_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("backend=simulated: the kernels are missing")

    monkeypatch.setattr(choice, "check", refuse)
    assert told(tmp_path, "backend")[0].endswith(": no: backend=simulated: the kernels are missing")
