import hashlib
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qdexp import files
from qdexp.errors import UserError


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert files.sha256(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_the_name_appears_only_when_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"

    def writer(part: Path) -> None:
        assert part.parent == path.parent  # a rename is atomic within one file system only
        assert part.name.startswith(files.PART)
        part.write_text("half")
        assert not path.exists()
        part.write_text("half and half")

    files.write(path, writer)
    assert path.read_text() == "half and half"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        files.write(path, fail)
    assert not path.exists()
    files.write_text(path, "old")
    with pytest.raises(OSError, match="no space left"):
        files.write(path, fail)
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_whoever_reads_while_a_file_is_replaced_sees_the_old_one(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file.txt", "old")
    with (tmp_path / "file.txt").open() as reader:
        files.write_text(tmp_path / "file.txt", "new")
        assert reader.read() == "old"


def test_text_is_utf_8(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file.txt", "ε ≤ 1")
    assert (tmp_path / "file.txt").read_bytes().decode("utf-8") == "ε ≤ 1"


def test_tensors_come_back(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5, dtype=torch.uint8)}
    files.write_tensors(path, tensors, {"note": "x"})
    again = load_file(path)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": "x"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "text", "x")
        files.write_tensors(tmp_path / "tensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    for name in ("text", "tensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_folder_that_can_be_written_to(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "a" / "b", "out=a/b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_takes_empty_files_alone(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(UserError, match=r"^out=here: File too large; choose a folder that can be written to$"):
            files.require_writable(tmp_path, "out=here")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/qdexp"])
def test_a_folder_that_cannot(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / where
    with pytest.raises(UserError) as caught:
        files.require_writable(out, f"out={out}")
    assert str(caught.value).startswith(f"out={out}: ")
    assert str(caught.value).endswith("choose a folder that can be written to")
    assert "\n" not in str(caught.value)
