"""Entries as report, tracker and stages read them: what was made, or one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qdexp import entries, files
from qdexp.entries import CorruptError
from qdexp.layout import MANIFEST
from qdexp.store import Store

NAME = "quantization-0123456789abcdef"


def compute(folder: Path) -> dict[str, float]:
    (folder / "checkpoint").mkdir(exist_ok=True)
    for name in ("curves.json", "checkpoint/weights"):
        files.write_text(folder / name, f"the content of {name}")
    return {"seconds": 1.5, "peak_memory_mb": 2.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Store(tmp_path).make(NAME, compute, {"stage": "quantization"}).folder


def flip(path: Path, at: int = 5) -> None:
    """One bit."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_whole_entry_is_read(folder: Path) -> None:
    assert entries.require(folder, "curves.json").read_text() == "the content of curves.json"
    assert set(entries.whole(folder)["files"]) == entries.names(folder) == {"curves.json", "checkpoint/weights"}
    entries.check_part(folder / "checkpoint")


def every_bit_of_the_manifest(folder: Path) -> list[tuple[int, int]]:
    return [(at, bit) for at in range(0, (folder / MANIFEST).stat().st_size, 3) for bit in range(8)]


def test_no_flipped_bit_of_the_manifest_changes_what_it_says(folder: Path) -> None:
    path, told = folder / MANIFEST, entries.whole(folder)
    raw = path.read_bytes()
    for at, bit in every_bit_of_the_manifest(folder):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        try:
            found = entries.whole(folder)
        except CorruptError as error:
            assert "\n" not in str(error)
        else:  # a bit of the layout, or of the seal's own name
            assert {name: found[name] for name in ("costs", "files", "note")} == {
                n: told[n] for n in ("costs", "files", "note")
            }


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda folder: flip(folder / "checkpoint/weights"),
    "truncated": lambda folder: os.truncate(folder / "checkpoint/weights", 3),
    "missing": lambda folder: (folder / "checkpoint/weights").unlink(),
    "a folder in place of a file": lambda folder: turn_into_a_folder(folder / "checkpoint/weights"),
    "one more": lambda folder: (folder / "checkpoint/other").write_text(""),
    "a link to a folder": lambda folder: (folder / "checkpoint/other").symlink_to(folder.parent, target_is_directory=True),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "no list of files": lambda folder: (folder / MANIFEST).write_text('{"files": []}'),
    "nested": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "not UTF-8": lambda folder: (folder / MANIFEST).write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_entry_is_one_line(folder: Path, damage: str) -> None:
    entries.whole(folder)
    DAMAGE[damage](folder)
    for read in (entries.whole, lambda folder: entries.require(folder, "checkpoint/weights")):
        with pytest.raises(CorruptError, match=rf"{NAME} is corrupt \(.*\): run its cell again") as error:
            read(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(CorruptError):
        entries.check_part(folder / "checkpoint")


def test_a_file_that_the_manifest_does_not_name_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    for name in ("other", "../../secret", str(tmp_path / "secret"), MANIFEST):
        with pytest.raises(CorruptError):
            entries.require(folder, name)


def test_what_a_process_is_writing_does_not_count(folder: Path) -> None:
    (folder / "checkpoint" / f"{files.PART}weights-0123").write_text("half")
    (folder / ".costs-whole").write_text("")
    entries.whole(folder)


def test_a_file_is_hashed_once_and_again_where_it_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def counted(path: Path, sha256: Callable[[Path], str] = files.sha256) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr("qdexp.files.sha256", counted)
    path = folder / "curves.json"
    os.utime(path, (1e9, 1e9))
    for _ in range(3):
        entries.require(folder, path.name)
    assert hashed == [path]
    flip(path)
    os.utime(path, (1e9, 1e9 + 1))
    with pytest.raises(CorruptError):
        entries.require(folder, path.name)
    assert hashed == [path, path]


def test_a_file_that_has_just_changed_is_not_taken_for_known(folder: Path) -> None:
    """Within a tick of the clock it may change again, and keep its size and its times."""
    path = folder / "curves.json"
    entries.require(folder, path.name)
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptError):
        entries.require(folder, path.name)


def test_a_folder_that_lies_in_no_store_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    entries.check_part(tmp_path / "checkpoint")
