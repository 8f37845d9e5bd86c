"""A small sweep under kill -9: at random moments, and at every point at which something is written. No result may tell."""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PROCESSES

from qdexp import files
from qdexp.cell import Cell
from qdexp.sweep import manifest
from qdexp.sweep.jobs import Job
from qdexp.sweep.launch import Frozen
from qdexp.sweep.worker import work

METHODS = ("ptq", "qdiffusion")
KILLS = 50


def run(out: Path, killed: Path | None = None) -> None:
    """The jobs of the sweep one after another, as a cluster would run them; dies at write points that are not in ``killed``.

    A job that a process has ended is not run by those after it, as a cluster would not.
    """
    torch.set_num_threads(1)
    ended = out / "ended"
    before = ended.read_text().splitlines() if ended.exists() else []
    with contextlib.nullcontext() if killed is None else dying(killed):
        for node in manifest.read(out, "trial").nodes:
            if node.id not in before:
                work(Job(out, out.parent, "trial", node, threads=1))
                with ended.open("a") as log:
                    log.write(f"{node.id}\n")


@contextlib.contextmanager
def dying(killed: Path) -> Iterator[None]:
    """SIGKILL before every file, and before and after every folder takes its name, the first time that one of its name does."""
    write, rename = files.write, Path.rename

    def point(name: str) -> None:
        with killed.open("a+") as log:
            log.seek(0)
            if name not in log.read().splitlines():
                log.write(f"{name}\n")
                log.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path: Path, writer: Callable[[Path], object]) -> None:
        def both(part: Path) -> None:
            writer(part)
            point(f"before {path.parent.name}/{path.name}")

        write(path, both)

    def dying_rename(path: Path, target: Path) -> Path:
        point(f"before {target}")
        moved = rename(path, target)
        point(f"after {target}")
        return moved

    files.write, Path.rename = dying_write, dying_rename  # type: ignore[method-assign,assignment]
    yield


def start(out: Path, killed: Path | None = None) -> Any:
    process = PROCESSES.Process(target=run, args=(out, killed))
    process.start()
    return process


@pytest.fixture
def sweep(cell_of: Callable[..., Cell], tmp_path: Path) -> Callable[[str], Path]:
    """``sweep(name)``: the output folder of a sweep of two cells, frozen, with nothing done yet."""

    def freeze(name: str) -> Path:
        out = tmp_path / name
        Frozen([cell_of(f"method={method}", f"out={out}", "cluster.parts=2", "protocol.steps=2") for method in METHODS]).write()
        return out

    return freeze


def results(out: Path) -> dict[str, Any]:
    """All that the undisturbed run and a killed one must agree on: records but for their times, and the files in the store."""
    told = {}
    for path in (out / "records").glob("*.json"):
        record = json.loads(path.read_text())
        told[record["cell"]] = {
            name: record.get(name) for name in ("status", "axes", "keys", "metrics", "curves", "reconstruction", "artifacts")
        }
    entries = {
        folder.name: json.loads((folder / "manifest.json").read_text())["files"] for folder in (out / "store").glob("[!.]*")
    }
    return {"records": told, "store": entries}


def check(out: Path, undisturbed: Path) -> None:
    assert results(out) == results(undisturbed)
    assert not [path for path in (out / "store").iterdir() if path.name.startswith(".work")]
    log = out / "executions.jsonl"  # a kill between an entry and its line may cost the line
    made = Counter(json.loads(line)["entry"] for line in log.read_text().splitlines()) if log.exists() else Counter()
    assert set(made.values()) <= {1}
    assert set(made) <= set(results(out)["store"])


@pytest.fixture
def undisturbed(sweep: Callable[[str], Path]) -> Path:
    out = sweep("undisturbed")
    process = start(out)
    process.join(300)
    assert process.exitcode == 0
    assert [record["status"] for record in results(out)["records"].values()] == ["complete"] * len(METHODS)
    return out


@pytest.mark.slow
def test_fifty_kills_at_random_moments(sweep: Callable[[str], Path], undisturbed: Path, tmp_path: Path) -> None:
    """Sweep after sweep is killed until there have been fifty kills; each then ends as if nothing had been."""
    chance, kills, number = random.Random(0), 0, 0
    while kills < KILLS:
        out, number = sweep(f"sweep{number}"), number + 1
        while kills < KILLS:
            process = start(out)
            process.join(chance.uniform(0.2, 1.5))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        process = start(out)
        process.join(300)
        assert process.exitcode == 0
        check(out, undisturbed)


@pytest.mark.slow
def test_a_kill_at_every_write_point(sweep: Callable[[str], Path], undisturbed: Path, tmp_path: Path) -> None:
    out, killed = sweep("killed"), tmp_path / "points"
    end = time.monotonic() + 1200
    while (process := start(out, killed)) and process.join(300) is None and process.exitcode != 0:
        assert process.exitcode == -signal.SIGKILL
        assert time.monotonic() < end
    check(out, undisturbed)
    names = killed.read_text().splitlines()
    assert len(names) == len(set(names)) > 60
    for kind in ("shard-", "manifest.json", "weights-", "blocks.json", "records/", "curves.json", ".costs-", "store/samples-"):
        assert any(kind in name for name in names), kind
