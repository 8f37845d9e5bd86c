"""Records as a data frame."""

import copy
import math
from pathlib import Path

import pytest
from study import Study

import qdexp
from qdexp import record as records
from qdexp.errors import UserError
from qdexp.report.evidence import Evidence


def test_one_row_per_cell_with_every_number_and_its_interval(study: Study) -> None:
    frame = qdexp.load_records(study.out)
    assert len(frame) == len(study.records)
    assert frame.iloc[0]["method"] == "fp"
    for record in study.records:
        (row,) = frame[frame["cell"] == record["cell"]].to_dict("records")
        assert {name: row[name] for name in record["axes"]} == record["axes"]
        for name, value in record["metrics"].items():
            assert row[name] == value
        for name, estimate in Evidence(study.out).estimates(record).items():
            interval = estimate.interval()
            assert (row[f"{name}_low"], row[f"{name}_high"]) == (interval.low, interval.high)
        assert records.read_records([Path(row["record"])]) == [record]
        assert {name: Path(row[name]) for name in record["artifacts"]} == {
            name: study.out / path for name, path in record["artifacts"].items()
        }
    assert frame.groupby("identity")["seed"].nunique().max() > 1, "seeds of one configuration share it"


def test_a_failed_cell_is_a_row_without_numbers(study: Study, tmp_path: Path) -> None:
    record = copy.deepcopy(study.records[1])
    del record["metrics"]
    record |= {"status": "failed", "error": {"stage": "samples", "type": "E", "message": "no memory", "traceback": ""}}
    records.write(tmp_path, record)
    records.write(tmp_path, study.records[0])
    frame = qdexp.load_records(tmp_path)
    failed = frame[frame["status"] == "failed"].iloc[0]
    assert failed["error"] == "no memory"
    assert math.isnan(failed["fid"])


def test_without_records_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records"):
        qdexp.load_records(tmp_path)
