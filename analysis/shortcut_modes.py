"""Draws the noise-prediction error against how bimodal the shortcuts are, a panel a bit-width, and prints it as a table.

    python -m qdexp -m experiment=shortcut_modes
    python analysis/shortcut_modes.py outputs/records/ddpm_fashion_bimodal-*.json --out shortcut_modes.png

The full-precision function is the same for every gain; the error is the mean over the sampler's steps (metrics.noise_error).
"""

from collections import defaultdict

from drawing import arguments
from matplotlib import rc_context
from matplotlib.figure import Figure

from qdexp.errors import UserError, one_line
from qdexp.record import Record, read_records
from qdexp.report.figures.style import STYLE, Look, legend
from qdexp.report.identity import differing
from qdexp.report.protocols import common_protocol

LABELS = {"off": "one scale for both parts", "skip": "split shortcut: a scale each", "skip+conv1": "split before conv1 too"}
Lines = dict[str, dict[str, dict[float, float]]]
"""Bit-width -> split -> gain -> error."""
STUDIED = {"quant.weight_bits", "quant.act_bits", "quantizer.steps.split.scope", "model.network.deep_gain"}


def lines_of(records: list[Record]) -> Lines:
    """The errors of the quantized cells whose model has a deep_gain. Raises UserError where more than the study's differs."""
    chosen = [r for r in records if "deep_gain" in r["config"]["model"]["network"] and "noise_error" in r.get("metrics", {})]
    common_protocol(chosen)
    if others := differing(chosen) - STUDIED:
        raise UserError(f"the records differ in {', '.join(sorted(others))} too: give one study's")
    lines: Lines = defaultdict(lambda: defaultdict(dict))
    for record in chosen:
        line = lines[record["axes"]["quant"]][record["config"]["quantizer"]["steps"]["split"]["scope"]]
        gain = record["config"]["model"]["network"]["deep_gain"]
        if gain in line:
            raise UserError(f"{record['cell']} differs from another record in more than bits, split and gain: give one study's")
        line[gain] = record["metrics"]["noise_error"]
    return lines


def table(lines: Lines) -> str:
    """Markdown: a row a gain, a column for each bit-width and split."""
    columns = [(quant, split) for quant in lines for split in sorted(lines[quant])]
    gains = sorted({gain for quant, split in columns for gain in lines[quant][split]})
    rows = [["gain", *(f"{quant.upper()} {split}" for quant, split in columns)], ["---:"] * (len(columns) + 1)]
    for gain in gains:
        errors = [lines[quant][split].get(gain) for quant, split in columns]
        rows.append([f"{gain:g}", *("-" if error is None else f"{error:.3g}" for error in errors)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(lines: Lines) -> Figure:
    """A panel for each bit-width, a line for each split."""
    figure = Figure(figsize=(2.0 + 2.8 * len(lines), 3.2))
    looks = {
        split: Look(index).line for index, split in enumerate(sorted({one for splits in lines.values() for one in splits}))
    }
    panels = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for panel, (quant, splits) in zip(panels, lines.items(), strict=True):
        for split, errors in sorted(splits.items()):
            gains = sorted(errors)
            panel.plot(gains, [errors[gain] for gain in gains], **looks[split])
        panel.set(title=quant.upper(), xlabel="gain of the deep part", yscale="log")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("error: |eps_q - eps|² / |eps|²")
    legend(figure, {LABELS.get(split, split): options for split, options in looks.items()})
    return figure


def main() -> None:
    """Reads the records given, prints the table and writes one figure."""
    args = arguments(__doc__)
    lines = lines_of(read_records(args.records))
    with rc_context(STYLE):
        draw(lines).savefig(args.out)
    print(table(lines))


if __name__ == "__main__":
    with one_line():
        main()
