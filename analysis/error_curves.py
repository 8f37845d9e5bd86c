"""Draws the noise-prediction error at every step of the sampler, one line a method.

    python analysis/error_curves.py outputs/records/*.json --out curves.png

Left, teacher-forced: the step's own error. Right, free-running: what has accumulated until there. Of all steps of the sampler;
one at t = 0, which metrics.noise_error leaves out, is marked.
"""

from drawing import arguments
from matplotlib import rc_context

from qdexp.errors import one_line
from qdexp.record import read_records
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.figures.methods import curves
from qdexp.report.figures.style import STYLE


def main() -> None:
    """Reads the records given and writes one figure."""
    args = arguments(__doc__)
    evidence = Evidence(args.records[0].resolve().parents[1])
    with rc_context(STYLE):
        figure = curves(compare(read_records(args.records), evidence), evidence)
        if figure is None:
            raise SystemExit("none of the records has curves: full precision alone has no error")
        figure.savefig(args.out)


if __name__ == "__main__":
    with one_line():
        main()
