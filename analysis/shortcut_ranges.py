"""Prints how far the two parts of each concatenation differ in range, from a cell with split shortcut.

    python -m qdexp quantizer=linear quantizer.steps.split.scope=skip quant=w8a8
    python analysis/shortcut_ranges.py outputs/records/ddpm_fashion-linear-uniform-w8a8-*.json

Inputs: max - min over the calibration set, from the scales in the checkpoint. Weights: the ratio of max - min of an output
channel's two slices, the median over output channels. In diffusers' U-Nets the first part is the deep one.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

import qdexp
from qdexp.errors import UserError, one_line


def main() -> None:
    """Reads one record's checkpoint and prints a Markdown table, a row a concatenation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    path = parser.parse_args().record
    rows = list(table(qdexp.load(path)))
    if not rows:
        raise UserError(
            f"{path}: no layer of this cell is split; quantizer.steps.split.scope=skip (or quantizer=qdiffusion) splits"
        )
    print("| layer | input, deep | input, skip | deep / skip | weights, deep / skip |\n| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(rows))


def table(network: torch.nn.Module) -> Iterator[str]:
    """A row of Markdown for each layer that is split."""
    for name, layer in network.named_modules():
        scheme = getattr(getattr(layer, "input_quantizer", None), "scheme", None)
        sizes = getattr(scheme.granularity, "sizes", ()) if scheme is not None else ()
        if scheme is not None and len(sizes) == 2:
            deep, skip = (layer.input_quantizer.scale * (scheme.qmax - scheme.qmin)).tolist()
            spans = [span(part) for part in layer.weight.split(sizes, dim=1)]
            yield f"| {name} | {deep:.2f} | {skip:.2f} | {deep / skip:.2f} | {(spans[0] / spans[1]).median():.2f} |"


def span(weight: torch.Tensor) -> torch.Tensor:
    """max - min of each output channel: [out, in, ...] -> [out]."""
    rows = weight.flatten(1)
    return rows.amax(1) - rows.amin(1)


if __name__ == "__main__":
    with one_line():
        main()
