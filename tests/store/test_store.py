import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from processes import PROCESSES

from qdexp import files
from qdexp.layout import MANIFEST
from qdexp.store import Entry, Store

COSTS = {"seconds": 1.5, "peak_memory_mb": 2.0}
NAME = "samples-0123456789abcdef"
NOTE = {"stage": "samples", "options": {"n": 3}}


def compute(folder: Path) -> dict[str, float]:
    """Three shards, and a file in a folder; what is there already is kept."""
    (folder / "sub").mkdir(exist_ok=True)
    for shard in range(3):
        path = folder / f"shard-{shard}"
        if not path.exists():
            files.write_text(path, f"shard {shard}")
    files.write_text(folder / "sub" / "file", "in a folder")
    return COSTS


def never(folder: Path) -> dict[str, float]:
    raise AssertionError("computed again")


def executions(out: Path) -> list[dict[str, Any]]:
    path = out / "executions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_whole(entry: Entry) -> None:
    assert [(entry.folder / f"shard-{shard}").read_text() for shard in range(3)] == [f"shard {shard}" for shard in range(3)]
    assert (entry.folder / "sub" / "file").read_text() == "in a folder"
    assert {name: entry.costs[name] for name in COSTS} == COSTS


def entries(out: Path) -> list[str]:
    """Names of the entries that a reader of the folder sees."""
    return [path.name for path in (out / "store").glob("[!.]*")]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An output folder with one entry."""
    Store(tmp_path).make(NAME, compute, NOTE)
    return tmp_path


def test_an_entry_is_made_once(made: Path) -> None:
    assert entries(made) == [NAME]
    for store in (Store(made), Store(made)):
        check_whole(store.make(NAME, never, NOTE))
        opened = store.open(NAME)
        assert opened is not None and opened.folder == store.folder(NAME)
        check_whole(opened)
    assert [line["entry"] for line in executions(made)] == [NAME]
    assert executions(made)[0].items() >= COSTS.items()


def test_a_missing_entry_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.open(NAME) is None
    store.make(NAME, compute, NOTE)
    assert store.open(NAME) is not None
    assert store.open("samples-fedcba9876543210") is None


def test_the_manifest_names_every_file(made: Path) -> None:
    folder = Store(made).folder(NAME)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest["files"]) == {"shard-0", "shard-1", "shard-2", "sub/file"}
    assert all(files.sha256(folder / file) == digest for file, digest in manifest["files"].items())
    assert (manifest["note"], manifest["costs"]) == (NOTE, COSTS)


def test_what_fails_leaves_no_entry_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, float]:
        files.write_text(folder / "shard-0", "shard 0")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Store(tmp_path).make(NAME, fail, NOTE)
    assert entries(tmp_path) == executions(tmp_path) == []
    assert Store(tmp_path).open(NAME) is None
    found: list[str] = []

    def resume(folder: Path) -> dict[str, float]:
        found.extend(path.name for path in folder.glob("[!.]*"))
        return compute(folder)

    check_whole(Store(tmp_path).make(NAME, resume, NOTE))
    assert found == ["shard-0"]
    assert len(executions(tmp_path)) == 1
    assert not list((tmp_path / "store").glob(".work-*"))


def killed_while_it_writes(folder: Path) -> dict[str, float]:
    files.write_text(folder / "shard-0", "shard 0")

    def writer(part: Path) -> None:
        part.write_text("sha")
        os.kill(os.getpid(), signal.SIGKILL)

    files.write(folder / "shard-1", writer)
    return COSTS


def make(out: Path, work: Callable[[Path], dict[str, float]], start: Barrier | None = None) -> None:
    if start is not None:
        start.wait(60)
    check_whole(Store(out).make(NAME, work, NOTE))


def test_a_killed_process_leaves_no_entry_and_its_whole_files(tmp_path: Path) -> None:
    process = PROCESSES.Process(target=make, args=(tmp_path, killed_while_it_writes))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert entries(tmp_path) == executions(tmp_path) == []
    work = tmp_path / "store" / f".work-{NAME}"
    left = sorted(path.name for path in work.glob("*shard*"))
    assert len(left) == 2 and left[0].startswith(f"{files.PART}shard-1") and left[1] == "shard-0"
    kept = (work / "shard-0").stat().st_mtime_ns
    entry = Store(tmp_path).make(NAME, compute, NOTE)
    check_whole(entry)
    assert (entry.folder / "shard-0").stat().st_mtime_ns == kept
    everything = {str(path.relative_to(entry.folder)) for path in entry.folder.rglob("*") if path.is_file()}
    assert everything == {"shard-0", "shard-1", "shard-2", "sub/file", MANIFEST}
    assert set(json.loads((entry.folder / MANIFEST).read_text())["files"]) == everything - {MANIFEST}


def slow(folder: Path) -> dict[str, float]:
    with (folder.parents[1] / "computed").open("a") as file:
        file.write("once\n")
    time.sleep(0.3)
    return compute(folder)


def test_two_processes_make_an_entry_once(tmp_path: Path) -> None:
    start = PROCESSES.Barrier(2)
    both = [PROCESSES.Process(target=make, args=(tmp_path, slow, start)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "computed").read_text() == "once\n"
    assert len(executions(tmp_path)) == 1
    assert entries(tmp_path) == [NAME]


def test_without_locks_the_first_to_finish_wins(tmp_path: Path) -> None:
    """As on a file system that ignores locks: another process finishes the same entry while this one computes."""

    def overtaken(folder: Path) -> dict[str, float]:
        aside = folder.with_name("other")
        aside.mkdir()
        compute(aside)
        digests = {str(p.relative_to(aside)): files.sha256(p) for p in aside.rglob("*") if p.is_file()}
        files.write_text(aside / MANIFEST, json.dumps({"costs": COSTS, "note": NOTE, "files": digests}))
        aside.rename(folder.with_name(NAME))
        return compute(folder)

    check_whole(Store(tmp_path).make(NAME, overtaken, NOTE))
    check_whole(Store(tmp_path).make(NAME, never, NOTE))
    assert entries(tmp_path) == [NAME]
    assert not list((tmp_path / "store").glob(".work-*"))


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def more(path: Path) -> None:
    path.write_text("a file that the manifest does not name")


def no_dict(path: Path) -> None:
    path.write_text("[]")


def no_dict_of_files(path: Path) -> None:
    path.write_text('{"files": 3, "costs": {}}')


DAMAGE = [(work, "shard-1") for work in (tear, flip, zero, empty, Path.unlink)]
DAMAGE += [(work, MANIFEST) for work in (tear, flip, zero, empty, no_dict, no_dict_of_files, Path.unlink)]
DAMAGE += [(tear, "sub/file"), (Path.unlink, "sub/file"), (more, "shard-3"), (more, "sub/other")]


@pytest.mark.parametrize(("work", "file"), DAMAGE, ids=lambda value: getattr(value, "__name__", value))
def test_damage_is_found_and_mended(made: Path, work: Callable[[Path], None], file: str) -> None:
    old = Store(made)
    assert old.open(NAME) is not None
    work(old.folder(NAME) / file)
    store = Store(made)
    assert store.open(NAME) is None
    check_whole(store.make(NAME, compute, NOTE))
    check_whole(Store(made).make(NAME, never, NOTE))
    assert [line["entry"] for line in executions(made)] == [NAME, NAME]
    assert entries(made) == [NAME]
    assert not list((made / "store").glob(".corrupt-*"))


def test_a_kill_between_manifest_and_rename_costs_nothing(tmp_path: Path) -> None:
    work = tmp_path / "store" / f".work-{NAME}"
    work.mkdir(parents=True)
    (work / MANIFEST).write_text("of a process that was killed")
    (work / ".begun-whole").touch()
    entry = Store(tmp_path).make(NAME, compute, NOTE)
    assert entry.costs["resumed"] == 1
    opened = Store(tmp_path).open(NAME)
    assert opened is not None
    assert MANIFEST not in json.loads((opened.folder / MANIFEST).read_text())["files"]


def test_parts_are_added_by_several_processes_and_their_costs_add_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for part in range(3):
        store.add(NAME, str(part), lambda folder: {"seconds": 2.0, "peak_memory_mb": 5.0 + len(list(folder.glob(".costs-*")))})
    assert not store.has(NAME)
    entry = store.make(NAME, compute, NOTE)
    assert entry.costs == {"seconds": 7.5, "peak_memory_mb": 7.0}
    assert store.has(NAME)
    assert {path.name for path in entry.folder.iterdir()} == {"shard-0", "shard-1", "shard-2", "sub", MANIFEST}


def test_a_part_that_was_killed_says_so(tmp_path: Path) -> None:
    process = PROCESSES.Process(target=Store(tmp_path).add, args=(NAME, "0", killed_while_it_writes))
    process.start()
    process.join(60)
    Store(tmp_path).add(NAME, "0", compute)
    assert Store(tmp_path).make(NAME, compute, NOTE).costs == {"seconds": 3.0, "peak_memory_mb": 2.0, "resumed": 1.0}


@pytest.mark.parametrize("text", ["", '{"seconds": 1', "[]", '{"seconds": "x", "peak_memory_mb": 1}', "{}"])
def test_costs_that_are_truncated_are_not_known(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.add(NAME, "0", compute)
    store.layout.costs(NAME, "0").write_text(text)
    store.layout.begun(NAME, "0").write_bytes(b"\xff\n")
    assert Store(tmp_path).make(NAME, compute, NOTE).costs == COSTS | {"resumed": 1.0}


def test_an_entry_knows_the_machines_that_made_its_parts(tmp_path: Path) -> None:
    """Also the one whose process was killed: its shards are there."""
    process = PROCESSES.Process(target=Store(tmp_path).add, args=(NAME, "0", killed_while_it_writes, "A100"))
    process.start()
    process.join(60)
    store = Store(tmp_path)
    store.add(NAME, "0", compute, "H100")
    store.add(NAME, "1", compute, "H100")
    made = store.make(NAME, compute, NOTE, "H100")
    opened = store.open(NAME)
    assert opened is not None
    store.adopt("quantization-fedcba9876543210", opened, NOTE)
    adopted = store.open("quantization-fedcba9876543210")
    assert adopted is not None
    assert [list(one.machines) for one in (made, opened, adopted)] == [["A100", "H100"]] * 3


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    check_whole(Store(tmp_path).make(NAME, compute, NOTE))
