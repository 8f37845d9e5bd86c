"""The code that jobs run is the code of the submission."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import qdexp
from qdexp import files
from qdexp.cell import Cell
from qdexp.stages.base import Stage
from qdexp.sweep import manifest, snapshot
from qdexp.sweep.launch import Frozen

CellOf = Callable[..., Cell]
STRATEGY = """
from own_helpers.inner import START

def pick(steps, timesteps, generator):
    return list(range(START, START + timesteps))
"""
OWN = {
    "own_strategy.py": STRATEGY,
    "own_helpers/__init__.py": "",
    "own_helpers/inner.py": "START = 0\n",
    "own_helpers/late.py": "",
    "elsewhere.py": "",
}
COPIED = {name for name in OWN if name != "elsewhere.py"}
OPTIONS = ("method=ptq", "calib.strategy._target_=own_strategy.pick")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's modules, on Python's path."""
    folder = tmp_path / "own"
    for name, source in OWN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in [name for name in sys.modules if name.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_a_copy_holds_the_package_and_the_users_modules_that_the_cells_lead_to(
    cell_of: CellOf, own: Path, tmp_path: Path
) -> None:
    copy = snapshot.take(tmp_path / "sweep", [cell_of(*OPTIONS)])
    there = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert {"qdexp/stages/base.py", "qdexp/zoo/fashion_cnn/model.safetensors", "snapshot.json"} < there
    assert {name for name in there if not name.startswith("qdexp/")} == {"snapshot.json", *COPIED}
    assert not [path for path in copy.rglob("*") if path.name == "__pycache__"]

    again = snapshot.take(tmp_path / "sweep", [cell_of(*OPTIONS)])
    assert again == copy
    (own / "own_helpers" / "inner.py").write_text("START = 1\n")
    assert snapshot.take(tmp_path / "sweep", [cell_of(*OPTIONS)]) != copy
    assert [path.name.startswith(files.PART) for path in copy.parent.iterdir()] == [False, False]


def test_what_is_large_is_linked_and_output_folders_are_left_out(
    cell_of: CellOf, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "LARGE", 1000)
    (own / "own_helpers" / "table.bin").write_bytes(bytes(1001))
    (own / "linked").mkdir()
    (own / "linked" / "found.py").write_text("")
    (own / "own_helpers" / "elsewhere").symlink_to(own / "linked")
    (own / "own_helpers" / "again").symlink_to(own / "own_helpers")
    out = own / "own_helpers" / "outputs"
    cell = cell_of(*OPTIONS, f"out={out}")
    copy = snapshot.take(out / "sweeps" / "trial" / "code", [cell])
    there = {str(path.relative_to(copy)) for path in copy.rglob("*") if "qdexp" not in path.parts[len(copy.parts) :]}
    files_there = {name for name in there if (copy / name).is_file()}
    assert files_there == {"snapshot.json", *COPIED, "own_helpers/table.bin", "own_helpers/elsewhere/found.py"}
    assert (copy / "own_helpers" / "table.bin").is_symlink()
    assert (copy / "qdexp" / "zoo" / "fashion_cnn" / "model.safetensors").stat().st_size > 1000
    assert not [path for path in (copy / "qdexp").rglob("*") if path.is_symlink()]
    assert snapshot.take(out / "sweeps" / "trial" / "code", [cell]) == copy


def test_a_copy_that_has_lost_something_is_made_again(cell_of: CellOf, own: Path, tmp_path: Path) -> None:
    cell = cell_of(*OPTIONS)
    copy = snapshot.take(tmp_path / "sweep", [cell])
    for name in ("own_strategy.py", "qdexp/files.py", "snapshot.json"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
        assert snapshot.take(tmp_path / "sweep", [cell]) == copy
        assert (copy / name).read_bytes() == whole
        (copy / name).unlink()
        assert snapshot.take(tmp_path / "sweep", [cell]) == copy
        assert (copy / name).read_bytes() == whole


def test_of_two_shells_that_copy_the_same_the_second_takes_what_the_first_has_made(
    cell_of: CellOf, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, copyfile = cell_of(*OPTIONS), shutil.copyfile
    other = snapshot.take(tmp_path / "other", [cell])

    def slow(source: Path, target: Path) -> None:
        place = tmp_path / "sweep" / other.name
        if not place.exists():
            shutil.copytree(other, place, copy_function=copyfile)
        copyfile(source, target)

    monkeypatch.setattr(snapshot.shutil, "copyfile", slow)
    copy = snapshot.take(tmp_path / "sweep", [cell])
    assert copy.name == other.name
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_copy_that_breaks_off_is_none(cell_of: CellOf, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, copies, copyfile = cell_of(*OPTIONS), list[Path](), shutil.copyfile

    def full_disk(source: Path, target: Path) -> None:
        copies.append(target)
        if len(copies) == 20:
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot.shutil, "copyfile", full_disk)
        with pytest.raises(OSError, match="No space"):
            snapshot.take(tmp_path / "sweep", [cell])
    assert not list((tmp_path / "sweep").iterdir())


def test_the_copy_makes_the_same_keys_whatever_was_edited_since(cell_of: CellOf, own: Path, tmp_path: Path) -> None:
    cell = cell_of(*OPTIONS)
    copy = Frozen([cell]).write()
    for path in own.rglob("*.py"):
        path.write_text("raise RuntimeError('edited')\n")
    script = (
        "import json, sys; from pathlib import Path; import qdexp; from qdexp import provenance; from qdexp.cell import Cell\n"
        "from qdexp.sweep import manifest; from qdexp.sweep.freeze import read_config\n"
        "sweep = manifest.read(Path(sys.argv[1]), 'trial'); (key,) = sweep.cells\n"
        "print(json.dumps([qdexp.__file__, Cell(read_config(sweep, key)).keys, provenance.commit()]))"
    )
    with snapshot.running(copy):
        done = subprocess.run([sys.executable, "-c", script, str(cell.out)], capture_output=True, text=True, cwd=own)
    assert done.returncode == 0, done.stderr
    place, keys, made = json.loads(done.stdout)
    assert Path(place) == copy / "qdexp" / "__init__.py"
    assert keys == cell.keys == manifest.read(cell.out, "trial").cells[cell.key].keys
    assert made == json.loads((copy / "snapshot.json").read_text())
    assert os.environ.get("PYTHONSAFEPATH") is None


def test_what_lines_of_setup_put_on_the_path_of_a_job_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/shell's own")
    copy = tmp_path / "a copy"
    for before, expected in (("export PYTHONPATH=/of/module", ["/of/module"]), ("unset PYTHONPATH", [])):
        lines = [before, *snapshot.setup(copy), f"{sys.executable} -c 'import os; print(os.environ[\"PYTHONPATH\"])'"]
        done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        assert done.stdout.strip().split(":") == [str(copy), "/shell's own", str(tmp_path), *expected]


def test_an_edit_of_a_method_changes_what_it_makes_and_nothing_before(cell_of: CellOf, tmp_path: Path) -> None:
    """A new process with another copy of the package, as after an edit of `quant/gptq.py`."""
    cell = cell_of("quantizer=gptq")
    Frozen([cell]).write()
    edited = tmp_path / "edited"
    shutil.copytree(Path(qdexp.__file__).parent, edited / "qdexp", ignore=shutil.ignore_patterns("__pycache__"))
    path = edited / "qdexp" / "quant" / "gptq.py"
    path.write_text(path.read_text().replace("DAMPING = 0.01", "DAMPING = 0.02"))
    script = (
        "import json, sys; from pathlib import Path; from qdexp.cell import Cell\n"
        "from qdexp.sweep import manifest; from qdexp.sweep.freeze import read_config\n"
        "sweep = manifest.read(Path(sys.argv[1]), 'trial'); (key,) = sweep.cells\n"
        "print(json.dumps(Cell(read_config(sweep, key)).keys))"
    )
    environment = {**os.environ, "PYTHONPATH": str(edited)}
    done = subprocess.run([sys.executable, "-c", script, str(cell.out)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    keys = json.loads(done.stdout)
    same = {name for name in keys if keys[name] == cell.keys[name]}
    assert same == {"trajectory", "calibration", "heldout", "full_precision"}
    assert isinstance(cell.stages["weights"], Stage)
