"""Records compared: pooled seeds, differences to a baseline, and what is refused."""

import copy
import csv
import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from study import Study

from qdexp.errors import UserError
from qdexp.report import tables
from qdexp.report.comparison import Comparison, compare
from qdexp.report.evidence import Evidence
from qdexp.statistics.estimate import over_seeds

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


def test_without_full_precision_the_first_row_is_the_baseline(study: Study, comparison: Comparison) -> None:
    rest = [record for record in study.records if record["axes"]["method"] != "fp"]
    alone, named = compare(rest, Evidence(study.out)), compare(rest, Evidence(study.out), baseline="ptq")
    assert alone.baseline == "ptq" and alone.first
    assert [line.differences for line in alone.lines] == [line.differences for line in named.lines]
    assert [line.differences for line in alone.cells] == [line.differences for line in named.cells]
    assert alone.lines[1].differences and not alone.lines[0].differences
    note = "no full precision here: compared with the first row, ptq (--baseline NAME: another)"
    assert note in tables.notes(alone) and "FID - ptq" in tables.to_markdown(alone)
    assert not any("first row" in said for one in (named, comparison) for said in tables.notes(one))
    single = compare([record for record in rest if record["axes"]["method"] == "ptq"], Evidence(study.out))
    assert single.baseline is None and not any("first row" in said for said in tables.notes(single))


def test_bit_operations_of_full_precision_are_those_of_the_same_products(comparison: Comparison) -> None:
    fp, ptq = comparison.lines[0].numbers["gbops"].value, comparison.lines[1].numbers["gbops"].value
    assert 10 < fp / ptq < 32  # 4 x 8 bits but for the first layer (8 x 8) and the last (untouched)


def test_another_protocol_is_refused(study: Study) -> None:
    other = copy.deepcopy(study.records[0])
    other["protocol"] |= {"hash": "0ddba11", "n": 5000}
    with pytest.raises(UserError, match="numbers of different protocols do not compare"):
        compare([*study.records, other], Evidence(study.out))


def test_records_without_their_store_have_numbers_and_no_intervals(study: Study, tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    comparison = compare(study.records, evidence)
    assert all(math.isnan(line.numbers["fid"].low) for line in comparison.cells)
    assert not any(line.differences for line in comparison.lines)
    assert evidence.gaps == {"what some cells were measured by is not in the store: their numbers have no intervals"}


def test_intervals_need_the_store_and_nothing_else(study: Study) -> None:
    record = copy.deepcopy(study.records[1])
    record["config"]["protocol"]["reference"] = "gone.safetensors"
    found = Evidence(study.out).estimates(record)
    assert found.keys() == {"fid", "distance", "psnr", "ssim"}
    assert {name: one.value for name, one in found.items()} == {name: record["metrics"][name] for name in found}
    assert all(len(one.replicates) == 20 for one in found.values())
    assert Evidence(study.out).estimates(study.records[0]).keys() == {"fid"}  # full precision is at no distance to itself


READS: dict[str, tuple[str, Callable[[Evidence, Any], object]]] = {
    "fid": ("numbers.json", lambda evidence, record: evidence.estimates(record)),
    "layers": ("layers.json", lambda evidence, record: evidence.read_json(record, "layers")),
    "samples": ("shard-00000.safetensors", lambda evidence, record: evidence.images(record, 4)),
}


@pytest.mark.parametrize("stage", READS)
def test_a_flipped_bit_changes_no_number(study: Study, tmp_path: Path, stage: str) -> None:
    (name, read), record = READS[stage], study.records[1]
    shutil.copytree(study.out / "store", tmp_path / "store")
    read(Evidence(tmp_path), record)
    path = tmp_path / "store" / f"{stage}-{record['keys'][stage]}" / name
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(
        UserError, match=rf"{stage}-\w+ is corrupt \({name} is not what manifest.json says\): run its cell again"
    ):
        read(Evidence(tmp_path), record)


def test_records_that_do_not_describe_their_numbers_have_the_titles_of_those_of_qdexp(study: Study) -> None:
    older = [{name: part for name, part in record.items() if name != "measures"} for record in study.records]
    evidence = Evidence(study.out)
    comparison = compare(older, evidence)
    told = {number.key: number for number in compare(study.records, Evidence(study.out)).numbers}
    assert {number.key: number for number in comparison.numbers} == told
    assert evidence.gaps == {"some cells were measured before intervals were kept with them: run their sweeps again for these"}
    assert all(math.isnan(line.numbers["fid"].half) for line in comparison.lines)


def test_the_weights_of_each_line_have_their_own_baseline(two_weights: Study) -> None:
    """The network of the second sweep differs from that of the first by what its weights file held when it ran."""
    comparison = compare(two_weights.records, Evidence(two_weights.out))
    assert len({line.name for line in comparison.lines}) == 4
    for line in comparison.lines:
        assert len(line.records) == 1  # no seeds: what differs is another network
        assert f"weights={line.records[0]['files']['weights']['sha256'][:8]}" in line.name
        if line.axes["method"] == "ptq":
            (record,) = line.records
            (full,) = (one for one in two_weights.records if one["keys"]["samples"] == record["keys"]["full_precision"])
            apart = record["metrics"]["fid"] - full["metrics"]["fid"]
            assert line.differences["fid"].value == pytest.approx(apart, rel=1e-6)
    assert comparison.alone == []


def test_a_line_without_a_baseline_is_named(two_weights: Study) -> None:
    _, *others = sorted(two_weights.records, key=lambda record: record["axes"]["method"])  # without one of the two fp
    comparison = compare(others, Evidence(two_weights.out))
    assert [bool(line.differences) for line in comparison.lines if line.axes["method"] == "ptq"].count(True) == 1
    (alone,) = comparison.alone
    assert f"no fp of the same network to compare with: {alone}." in tables.to_markdown(comparison)


ALONE, SEEDS = "one seed: the interval is over the images alone", "and, where there are several, the seeds"


def test_what_an_interval_holds_is_said(study: Study, comparison: Comparison) -> None:
    text = tables.to_markdown(comparison)
    assert "±: half the width of a 95 % interval over the images (delete-group jackknife)" in text
    assert SEEDS in text and ALONE not in text
    assert [line.verdict for line in comparison.lines] == [False, True, True, True]  # fp is what they are compared with
    assert not any(cell.verdict for cell in comparison.cells), "a cell is one seed"
    one = compare([record for record in study.records if record["axes"]["seed"] == 0], Evidence(study.out))
    text = tables.to_markdown(one)
    assert ALONE in text and SEEDS not in text
    assert not any(line.verdict for line in one.lines)
    assert ALONE not in tables.to_markdown(compare(study.records[:1], Evidence(study.out)))  # no seed moves full precision


def test_an_interval_of_several_seeds_holds_images_and_seeds_or_is_none(comparison: Comparison) -> None:
    line, singles = comparison.lines[1], comparison.cells[1:3]
    spread = over_seeds([cell.numbers["fid"].value for cell in singles]).half
    assert line.numbers["fid"].half > max(spread, 0.5 * min(cell.numbers["fid"].half for cell in singles))
    assert math.isnan(line.numbers["noise_error"].half)  # nothing tells how the images move it


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
    Console(file=out, width=150).print(tables.to_terminal(against, 150))
    body = [line for line in out.getvalue().splitlines() if "W4A" in line]
    assert [line.split()[0] for line in body] == [line.name.split()[0] for line in against.lines if "w4a" in line.axes["quant"]]
    for line, shown in zip(against.lines[1:], body, strict=True):
        assert f"{line.numbers['fid'].value:.2f} ± {line.numbers['fid'].half:.2f}" in shown
