"""``python -m qdexp.export CELL``: the quantized network of a cell as a file for other runtimes.

CELL is the name of a cell or how that begins, a method, a record, or the folder of a checkpoint. The file holds integers,
and a pair of QuantizeLinear and DequantizeLinear around whatever is rounded. It is run by ONNX Runtime before it gets its
name, and held against the simulated network.
"""

import argparse
import importlib.util
from pathlib import Path

from qdexp import files
from qdexp.arguments import Parser
from qdexp.errors import UserError, one_line
from qdexp.layout import Layout

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ROWS = 8
"""Samples of which both are run."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser("python -m qdexp.export", __doc__)
    parser.add_argument("cell", metavar="CELL", help="a cell, a record, or the folder of a checkpoint")
    parser.add_argument("--to", choices=["onnx"], default="onnx", help="the format (%(default)s)")
    parser.add_argument("--file", type=Path, help="where to (exports/CELL.onnx in the output folder)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="output folder that holds the cell (%(default)s)")
    parser.add_argument(
        "--int8-weights", action="store_true", help="8-bit integers for narrower weights too, which more kernels multiply"
    )
    parser.add_argument(
        "--trust", nargs="+", default=[], metavar="NAME", help="classes of yours that a checkpoint names, such as mine.TinyNet"
    )
    return parser.parse_args()


def check_packages() -> None:
    """Raises UserError where a package is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--to onnx: {', '.join(missing)} is not installed; pip install 'qdexp[onnx]'")


def main() -> None:
    """Writes the file and prints what it holds. Raises UserError."""
    given = arguments()
    check_packages()
    from qdexp.export import graph, limits, runtime
    from qdexp.export.qdq import OPSET
    from qdexp.export.source import Source
    from qdexp.quant.blocks import first_row

    source = Source.of(given.cell, given.out, given.trust)
    path = given.file or Layout(given.out).export(source.name)
    files.require_writable(path.parent, f"--file {path}")
    limits.check(source.network)
    batch = source.batch(ROWS)
    paired = limits.paired(source.network, first_row(batch))
    model = graph.exported(source.network, batch, 8 if given.int8_weights else 4)
    try:
        found = graph.write(
            model, path, source.metadata, lambda part: runtime.held(source.network, runtime.Runtime(part), batch)
        )
    except OSError as error:
        raise UserError(f"--file {path}: {error.strerror or error}; nothing is left of it") from error
    print(f"written    {path}, {path.stat().st_size / 1e6:,.2f} MB, opset {OPSET}")
    print(f"quantized  {paired:.2%} of the MACs have both factors between pairs")
    print(f"held       ONNX Runtime differs from simulated by {found.runtime}, of its root mean square")
    print(f"last bits  of all that is rounded make a difference of {found.last_bits}")


if __name__ == "__main__":
    with one_line():
        main()
