"""Records compared: pooled seeds, differences to a baseline, and what is refused."""

import copy
import csv
import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from study import Study

from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.report import tables
from qdexp.report.comparison import Comparison, compare, grouped
from qdexp.report.evidence import Evidence
from qdexp.report.statistics.frechet import Frechet

Record = dict[str, Any]


@pytest.fixture
def comparison(study: Study) -> Comparison:
    return compare(study.records, Evidence(study.out))


def by_cell(study: Study, method: str) -> list[Record]:
    return [record for record in study.records if record["axes"]["method"] == method]


def test_seeds_are_pooled_and_full_precision_has_none(comparison: Comparison) -> None:
    assert [(line.axes["method"], len(line.records)) for line in comparison.lines] == [
        ("fp", 1), ("ptq", 2), ("timestep_aware", 2), ("qdiffusion", 2)]  # fmt: skip
    assert [line.records[0]["axes"]["seed"] for line in comparison.cells[1:]] == [0, 1] * 3


def test_values_are_those_of_the_records(study: Study, comparison: Comparison) -> None:
    for line in comparison.lines:
        for key in ("fid", "distance", "ssim", "noise_error", "size_stored_mb"):
            values = [record["metrics"][key] for record in line.records if key in record["metrics"]]
            if key == "distance" and line.axes["method"] == "fp":
                assert math.isnan(line.numbers[key].low)  # the distance of full precision to itself is known, not measured
            elif values:
                assert line.numbers[key].value == pytest.approx(sum(values) / len(values), rel=1e-5), key
    assert "ssim" not in comparison.lines[0].numbers


def test_differences_are_to_the_baseline_of_the_same_seed(study: Study, comparison: Comparison) -> None:
    against = compare(study.records, Evidence(study.out), baseline="ptq")
    fid = {(r["axes"]["method"], r["axes"]["seed"]): r["metrics"]["fid"] for r in study.records}
    for compared, rival in ((comparison, "fp"), (against, "ptq")):
        for line in compared.cells:
            method, seed = line.axes["method"], line.axes["seed"]
            if method == rival:
                assert not line.differences
            elif method != "fp":
                other = fid.get((rival, seed), fid.get((rival, 0)))
                assert line.differences["fid"].value == pytest.approx(fid[method, seed] - other, rel=1e-5)
    line = comparison.lines[2]
    assert line.differences["fid"].half < line.numbers["fid"].half  # the same noise: what both have in common cancels


def test_bit_operations_of_full_precision_are_those_of_the_same_products(comparison: Comparison) -> None:
    fp, ptq = comparison.lines[0].numbers["gbops"].value, comparison.lines[1].numbers["gbops"].value
    assert 10 < fp / ptq < 32  # 4 x 8 bits but for the first layer (8 x 8) and the last (untouched)


def test_where_a_seed_was_run_does_not_part_it_from_the_others(make: Callable[..., Record]) -> None:
    here = make("ptq", config={"seed": 0, "cluster": {"name": "here", "parts": 1}, "recon": {"cache_gb": None, "batch": 4}})
    there = make("ptq", seed=1, config={"seed": 1, "cluster": {"name": "mine"}, "recon": {"cache_gb": 2.0, "batch": 4}})
    assert grouped([here, there]) == [[here, there]]
    there["config"]["recon"]["batch"] = 8
    assert grouped([here, there]) == [[here], [there]]


def test_another_protocol_is_refused(study: Study) -> None:
    other = copy.deepcopy(study.records[0])
    other["protocol"] |= {"hash": "0ddba11", "n": 5000}
    with pytest.raises(UserError, match="numbers of different protocols do not compare"):
        compare([*study.records, other], Evidence(study.out))


def test_an_unknown_baseline_is_named(study: Study) -> None:
    with pytest.raises(UserError, match="--baseline squant: no such cell or method; methods there: fp, ptq, qdiffusion"):
        compare(study.records, Evidence(study.out), "squant")


def test_records_without_their_store_have_numbers_and_no_intervals(study: Study, tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    comparison = compare(study.records, evidence)
    assert all(math.isnan(line.numbers["fid"].low) for line in comparison.cells)
    assert not any(line.differences for line in comparison.lines)
    assert evidence.gaps == {"features of some cells are not in the store: their numbers have no intervals"}


def test_a_changed_reference_gives_no_intervals(study: Study, tmp_path: Path) -> None:
    records = copy.deepcopy(study.records)
    (tmp_path / "reference.safetensors").write_bytes(b"other")
    for record in records:
        record["config"]["protocol"]["reference"] = str(tmp_path / "reference.safetensors")
    evidence = Evidence(study.out)
    assert "fid" not in evidence.estimates(records[1])
    assert "ssim" in evidence.estimates(records[1])
    assert "is not there, or not what it was" in next(iter(evidence.gaps))


def test_published_statistics_give_intervals_of_fid(study: Study, tmp_path: Path) -> None:
    record = copy.deepcopy(study.records[1])
    expected = Evidence(study.out).estimates(record)["fid"]
    tensors = load_file(record["config"]["protocol"]["reference"])
    path = tmp_path / "published.npz"
    np.savez(path, mu=tensors["mu"], sigma=tensors["sigma"])
    record["config"]["protocol"]["reference"], record["protocol"]["reference_digest"] = str(path), sha256(path)
    found = Evidence(study.out).estimates(record)["fid"]
    assert found.value == expected.value
    assert found.replicates.tolist() == expected.replicates.tolist()


READS: dict[str, tuple[str, Callable[[Evidence, Any], object]]] = {
    "evaluation": ("features.safetensors", lambda evidence, record: evidence.estimates(record)),
    "similarity": ("similarity.safetensors", lambda evidence, record: evidence.estimates(record)),
    "layers": ("layers.json", lambda evidence, record: evidence.read_json(record, "layers")),
    "samples": ("shard-00000.safetensors", lambda evidence, record: evidence.images(record, 4)),
}


@pytest.mark.parametrize("stage", READS)
def test_a_flipped_bit_changes_no_number(study: Study, tmp_path: Path, stage: str) -> None:
    (name, read), record = READS[stage], study.records[1]
    shutil.copytree(study.out / "store", tmp_path / "store")
    read(Evidence(tmp_path), record)
    shutil.rmtree(tmp_path / "reports", ignore_errors=True)  # kept estimates, which need no features
    path = tmp_path / "store" / f"{stage}-{record['keys'][stage]}" / name
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(
        UserError, match=rf"{stage}-\w+ is corrupt \({name} is not what manifest.json says\): run its cell again"
    ):
        read(Evidence(tmp_path), record)


def test_kept_estimates_are_not_believed_where_they_changed(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.out / "store", tmp_path / "store")
    expected = Evidence(tmp_path).estimates(study.records[1])
    (kept,) = (tmp_path / "reports" / ".estimates").iterdir()
    digit = next(at for at, byte in enumerate(kept.read_bytes()) if byte in b"2468")
    for change in (lambda raw: raw[:digit] + b"1" + raw[digit + 1 :], lambda raw: raw[:-9], lambda _: b"{}"):
        kept.write_bytes(change(kept.read_bytes()))
        found = Evidence(tmp_path).estimates(study.records[1])
        assert {name: estimate.value for name, estimate in found.items()} == {name: e.value for name, e in expected.items()}


def test_estimates_are_kept_and_read_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Evidence(study.out).estimates(study.records[1])
    monkeypatch.setattr(Frechet, "fid", None)  # computing it again would fail
    again = Evidence(study.out).estimates(study.records[1])
    assert again.keys() == first.keys() == {"fid", "distance", "psnr", "ssim"}
    assert all((again[name].replicates == first[name].replicates).all() for name in first)
    monkeypatch.setattr("qdexp.report.evidence._code", lambda: "other code")
    with pytest.raises(TypeError):
        Evidence(study.out).estimates(study.records[1])


def test_the_csv_holds_every_number_and_its_protocol(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(comparison))))
    for row, line in zip(rows, comparison.lines, strict=True):
        assert (row["method"], int(row["seeds"])) == (line.axes["method"], len(line.records))
        assert float(row["fid"]) == line.numbers["fid"].value
        assert float(row["fid_low"]) == line.numbers["fid"].low
        assert (row["protocol_n"], row["protocol_extractor"]) == ("20", "fashion-cnn")
    assert rows[0]["fid_minus_baseline"] == ""
    assert float(rows[1]["fid_minus_baseline_high"]) == comparison.lines[1].differences["fid"].high


def test_tables_say_n_protocol_and_extractor(comparison: Comparison) -> None:
    markdown, latex = tables.to_markdown(comparison), tables.to_latex(comparison)
    for text in (markdown, latex):
        assert "protocol quick: n = 20, 4 DPMSolverMultistep steps, features of fashion-cnn" in text
        assert "one that holds 0 is no finding" in text
    widths = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [line.split(" & ")[0] for line in body] == ["fp", "ptq", r"timestep\_aware", "qdiffusion"]
    assert len({line.count(" & ") for line in body}) == 1
    assert r"$\pm$" in body[0]


def test_a_long_name_of_a_baseline_hides_no_column(study: Study) -> None:
    against = compare(study.records, Evidence(study.out), baseline=study.records[-1]["cell"])
    out = io.StringIO()
    Console(file=out, width=150).print(tables.to_terminal(against))
    body = [line for line in out.getvalue().splitlines() if "W4A" in line]
    assert [line.split()[0] for line in body] == [line.name.split()[0] for line in against.lines if "w4a" in line.axes["quant"]]
    for line, shown in zip(against.lines[1:], body, strict=True):
        assert f"{line.numbers['fid'].value:.2f} ± {line.numbers['fid'].half:.2f}" in shown
