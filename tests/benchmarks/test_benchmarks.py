"""That the benchmarks run, that their tables can be read, and that both sides of a comparison do the same. Nothing is timed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import data_path, range_search
from benchmarks.__main__ import main
from benchmarks.subject import Subject, config_of, resized
from qdexp.quant.blocks import Rows
from qdexp.quant.streams import streaming

Table = list[dict[str, str]]
NUMBER = r"[\d.e+,-]+"
SECONDS, RATIO = rf"{NUMBER} \({NUMBER}\)", rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"


@pytest.fixture
def tables(small: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Table]]:
    """``tables(*arguments, set=options)``: what the command prints on the tiny model, part -> rows by column."""

    def printed(*arguments: str, set: tuple[str, ...] = ()) -> dict[str, Table]:
        main([*arguments, "--set", *small, *set])
        head, *parts = capsys.readouterr().out.strip().split("\n\n")
        assert head.startswith("tiny, ") and "w4a8" in head and "1 thread" in head
        titles, bodies = parts[::2], parts[1::2]
        return {title.split(",")[0]: read(body) for title, body in zip(titles, bodies, strict=True)}

    return printed


def read(markdown: str) -> Table:
    """The rows of a table, by the names of its columns."""
    header, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines())
    assert rule == ["---", *["---:"] * (len(header) - 1)]
    return [dict(zip(header, row, strict=True)) for row in rows]


def matches(row: dict[str, str], **patterns: str) -> bool:
    """Whether each column whose name begins or ends like a key is written as its pattern says."""
    kinds = [(kind, value) for name, value in row.items() for kind in patterns if kind in name]
    return len(kinds) > 0 and all(re.fullmatch(patterns[kind], value) for kind, value in kinds)


@pytest.mark.slow
def test_several_parts_in_one_command(tables: Callable[..., dict[str, Table]]) -> None:
    parts = ["data_path", "range_search", "sampling", "quantization", "overhead"]
    found = tables(*parts, "--rows", "8", "--repetitions", "1")
    assert list(found) == parts
    assert [row["learned rounding of all blocks"] for row in found["data_path"]] == ["data path", "data path and inner loop"]
    assert [row["quantization"] for row in found["quantization"]][1:] == ["split", "weights", "act", "scales", "whole"]
    assert found["range_search"][0]["same range"] == "100.00%"
    assert len(found["sampling"]) == 1
    assert found["overhead"][0]["jobs of one cell"] == "8 jobs, 10 images"
    assert matches(found["overhead"][0], **{"s (CPU)": SECONDS})
    for part in ("data_path", "range_search", "sampling"):
        assert all(matches(row, **{"s (CPU)": SECONDS, "ratio": RATIO}) for row in found[part])
    whole_pass, *stages = found["quantization"]
    assert matches(whole_pass, **{"s (CPU)": SECONDS, "peak": "-"})
    assert all(matches(row, **{"s (CPU)": SECONDS, "peak": NUMBER, "passes": RATIO}) for row in stages)


@pytest.mark.slow
def test_growth_over_rows_and_widths(tables: Callable[..., dict[str, Table]]) -> None:
    """With a quantizer that learns nothing and searches nothing, which is quicker."""
    rows = tables("growth", "--rows", "8", set=("quantizer=linear", "recon.heldout=1"))["growth"]
    assert [(row["model"], row["rows"]) for row in rows] == [
        *((model, "2") for model in ("tiny x 0.5", "tiny", "tiny x 2")),
        *(("tiny", count) for count in ("8", "32")),
    ]
    narrower, embedded, wider = (float(row["M parameters"]) for row in rows[:3])
    assert narrower < embedded < wider
    assert all(matches(row, **{"s (CPU)": SECONDS, "passes": RATIO, "/": RATIO}) for row in rows)


@pytest.mark.slow  # three exports
def test_onnx_runtime_beside_torch(tables: Callable[..., dict[str, Table]]) -> None:
    rows = tables("onnx", "--rows", "20", "--repetitions", "1", set=("quantizer=linear",))["onnx"]
    assert [row["onnx"].partition(", ")[0] for row in rows] == ["float32", "simulated", "float32", "quantized", "quantized"]
    assert all(matches(row, **{"s (CPU)": SECONDS, "ratio": RATIO}) for row in rows)
    full, narrow, wide = rows[2:]
    assert float(narrow["file, MB"]) < float(wide["file, MB"])
    counts = [[int(number) for number in row["products of integers"].split(" of ")] for row in (full, narrow, wide)]
    assert counts[0][0] == 0 < counts[1][0] <= counts[2][0]


@pytest.fixture
def subject(small: list[str], tmp_path: Path) -> Subject:
    return Subject(config_of(small), 20, tmp_path)


def test_rows_are_as_many_as_asked_for_and_of_all_timesteps(subject: Subject) -> None:
    x_t, t = (torch.cat(part) for part in zip(*subject.batches, strict=True))
    assert len(x_t) == len(t) == 20
    assert len(t.unique()) == subject.config.calib.timesteps


def test_both_data_paths_hand_out_the_same_rows_and_targets(subject: Subject) -> None:
    full = subject.full()
    network, blocks = subject.rounded(full)
    batches = subject.batches
    with streaming(network, list(blocks), batches) as one, data_path.restarting(network, list(blocks), batches) as other:
        for has_rows in blocks.values():
            ours, theirs = (Rows(feed.calls, has_rows, feed.sizes) for feed in (one, other))
            assert len(ours) == 20
            (x, *_), (y, *_) = ours.take(slice(0, 20))[0], theirs.take(slice(0, 20))[0]
            assert torch.equal(x, y)
            for mine, expected in zip(one.advance(), other.advance(), strict=True):
                assert all(torch.equal(*pair) for pair in zip(mine, expected, strict=True))


def test_a_channel_with_another_range_counts_against_the_agreement(subject: Subject) -> None:
    layers = range_search.weights(subject)[:3]
    halved = [(weight.clone(), scheme) for weight, scheme in layers]
    halved[0][0][0] *= 0.5
    channels = sum(len(weight) for weight, _ in layers)
    agreement = range_search.agreement(range_search.batched(layers), range_search.looped(halved))
    assert agreement == pytest.approx(1 - 1 / channels)


def test_a_resized_model_is_the_same_architecture_with_weights_of_its_own(subject: Subject, tmp_path: Path) -> None:
    config = resized(subject.config, 0.5, tmp_path)
    half = Subject(config, 8, tmp_path).full()
    assert [name for name, _ in half.named_parameters()] == [name for name, _ in subject.full().named_parameters()]
    assert config.model.network["block_out_channels"] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["speed"], "no part is called speed; choose from data_path"),
        (["--rows", "0"], "must be at least 1"),
        (["--set", "quant.weight_bits=99"], "quant.weight_bits=99: has to be 2, 3, "),
        (["--set", "quant=w9a9"], "qdexp: quant=w9a9: there is no such choice"),
        (["--set", "qant=w4a8"], "Could not override 'qant'"),
        (["--set", "method=fp"], "no weights are quantized"),
        (["data_path", "--rows", "64"], "data_path learns from 64 rows, of which recon.heldout=64 only judge"),
        (["growth", "--rows", "256"], "growth learns from 64 rows"),
    ],
)
def test_mistakes_are_told_before_any_work(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert told in f"{stop.value} {capsys.readouterr().err}"
