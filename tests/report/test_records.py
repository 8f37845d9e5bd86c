import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdexp.errors import UserError
from qdexp.record import FORMAT, read, read_records, readable

Record = dict[str, Any]


def write(folder: Path, records: list[Record]) -> list[Path]:
    paths = [folder / f"{record['cell']}.json" for record in records]
    for path, record in zip(paths, records, strict=True):
        path.write_text(json.dumps(record))
    return paths


def test_folder_is_read_by_name_and_files_in_order(tmp_path: Path, make: Callable[..., Record]) -> None:
    records = [make("ptq"), make("fp"), make("ptq", {"fid": None}, seed=1)]
    paths = write(tmp_path, records)
    (tmp_path / "table.md").write_text("")
    assert read_records(tmp_path) == [records[1], records[0], records[2]]
    assert read_records(paths) == records


@pytest.mark.parametrize("text", ['{"format": 2, "cell": "a', "", "[]", "null", '{"files": {}}', "\x00", "[" * 100_000])
def test_what_is_no_record_is_named(tmp_path: Path, make: Callable[..., Record], text: str) -> None:
    write(tmp_path, [make("ptq")])
    (tmp_path / "torn.json").write_text(text)
    with pytest.raises(UserError, match=r"torn\.json") as caught:
        read_records(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"torn\.json"):
        read_records(tmp_path)


@pytest.mark.parametrize("format", [0, 3, "2", None])
def test_an_unknown_format_is_refused(tmp_path: Path, make: Callable[..., Record], format: object) -> None:
    write(tmp_path, [{**make("ptq"), "format": format}])
    with pytest.raises(UserError, match=f"has format {format}, this version reads 1 and 2: run the sweep again"):
        read_records(tmp_path)


@pytest.mark.parametrize("part", ["axes", "config", "keys", "protocol", "metrics"])
def test_a_record_that_lacks_a_part_is_named(tmp_path: Path, make: Callable[..., Record], part: str) -> None:
    for value in (None, [1], "text"):
        (path,) = write(tmp_path, [{**make("ptq"), part: value}])
        with pytest.raises(
            UserError, match=rf"{path.name} is no whole record \({part}[^\n]*\): delete it and run the sweep again"
        ):
            read_records(tmp_path)


def test_the_first_format_is_read_as_what_it_meant(tmp_path: Path, make: Callable[..., Record]) -> None:
    old = make("ptq", {"kid": 0.25, "kid_std": 0.125}) | {"format": 1}
    del old["identity"], old["files"]
    (tmp_path / "records").mkdir()
    write(tmp_path / "records", [old])
    (record,) = read_records(tmp_path / "records")
    assert (record["metrics"]["kid_subsets"], record["metrics"]["kid_subsets_std"]) == (0.25, 0.125)
    assert "kid" not in record["metrics"]
    assert (record["format"], record["identity"], record["files"]) == (FORMAT, record["cell"], {})
    assert read(tmp_path, record["cell"]) is None, "the cell itself makes it anew"


def test_missing_folder_and_file(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no records"):
            read_records(folder)
    with pytest.raises(UserError, match="cannot be read"):
        read_records([tmp_path / "nowhere.json"])


NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), 10**400)
HOSTILE: dict[str, list[Any]] = {
    "cell": ["../../x", "a/b", ".hidden", "", 3, "a\nb"],
    "status": ["done", None, []],
    "axes": [{"method": 3}, {"model": "net"}, {"method": "ptq", "weight_bits": "4"}],
    "keys": [{"samples": ["x"]}, {"samples": "../../x"}],
    "protocol": [{"hash": 3}, {}, {"hash": "x"}],
    "metrics": [{"fid": "low"}, {"fid": [1.0]}, {"fid": True}, *({"fid": number} for number in NO_NUMBERS)],
    "measures": [{"fid": {}}, {"fid": {"numbers": {"fid": {"digits": 10**9}}}}, {"fid": {"numbers": {"fid": {"factor": "2"}}}}],
    "curves": [{"timestep": 3}, {"timestep": ["x"]}, {"timestep": [float("nan")]}],
    "costs": [{"total": 3}, {"total": {"seconds": "x"}}],
    "stages": [{"samples": "x"}, {"samples": {"key": "k", "machines": 3}}],
    "files": [{"weights": "x"}, {"weights": {"path": 3}}, {"weights": {"path": "x"}}],
    "config": [{"a": {"b": [float("inf")]}}, {"\ud800": 1}, {"a": "\ud800"}, {"a": json.loads("[" * 99 + "]" * 99)}],
    "artifacts": [{"checkpoint": path} for path in ("/etc", "../x", "store/../../x", "", 3, "store\\..\\x")],
    "error": ["text", {"message": []}],
    "coverage": [[], {"macs": {"w4a8": float("nan")}}],
    "provenance": ["host", {"host": -float("inf")}],
}


@pytest.mark.parametrize("part", HOSTILE)
def test_parts_of_another_type_are_named_and_the_other_records_read(
    tmp_path: Path, make: Callable[..., Record], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (good,) = write(tmp_path, [make("fp")])
    bad = tmp_path / "other.json"
    for value in HOSTILE[part]:
        bad.write_text(json.dumps({**make("ptq"), part: value}))
        with pytest.raises(UserError, match=rf"^\S+other.json is no whole record \({part}[^\n]*\): delete it") as caught:
            read_records([bad])
        assert [record["cell"] for record in readable([bad, good])] == [make("fp")["cell"]]
        assert capsys.readouterr().err == f"qdexp: left out: {caught.value}\n"


def test_a_cell_reads_no_record_of_another_shape_or_name(tmp_path: Path, make: Callable[..., Record]) -> None:
    (tmp_path / "records").mkdir()
    record = make("ptq")
    path = tmp_path / "records" / f"{record['cell']}.json"
    for other in ({**record, "keys": []}, {**record, "cell": "another"}, [record]):
        path.write_text(json.dumps(other))
        assert read(tmp_path, record["cell"]) is None
    path.write_text(json.dumps(record))
    assert read(tmp_path, record["cell"]) == record
