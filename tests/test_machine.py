"""What tells one machine from another."""

import json
import subprocess
import sys

import pytest
import torch

from qdexp import machine

CPU = torch.device("cpu")


def test_a_machine_is_the_same_in_every_process() -> None:
    script = "import torch, json; from qdexp import machine; torch.set_num_threads(1)\n"
    script += "print(json.dumps(machine.describe(torch.device('cpu'))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == machine.describe(CPU)


def test_whatever_changes_timings_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.describe(CPU)
    assert len(here["digest"]) == machine.DIGITS
    assert here["gpu"] is here["driver"] is None
    digests = {here["digest"]}
    for name in ("processor", "cores", "memory_gb", "torch", "build"):
        other = {**machine._host(), name: "another"}
        monkeypatch.setattr(machine, "_host", lambda other=other: other)
        digests.add(machine.describe(CPU)["digest"])
        monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    digests.add(machine.describe(CPU)["digest"])
    assert len(digests) == 7


def test_a_line_names_what_computes_and_the_digest() -> None:
    found = machine.describe(CPU)
    assert machine.line(CPU) == f"{found['processor']}, 1 thread ({found['digest']})"


def test_where_no_such_device_is_the_rest_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert machine.describe(torch.device("cuda"))["gpu"] is None


def test_a_kind_of_machine_is_one_line() -> None:
    found = machine.describe(CPU)
    assert machine.kind(CPU) == f"{found['processor']}, 1 thread, torch build {found['build']}"
