"""Draws the noise-prediction error at every step of the sampler, one line a record.

    python analysis/error_curves.py outputs/records/*.json --out curves.png

Left, teacher-forced: the step's own error. Right, free-running: what has accumulated until there.
"""

import math

import matplotlib.pyplot as plt
from drawing import arguments

from qdexp.report.records import read_records

KINDS = {"teacher_forced": "error of the step: |eps_q - eps|² / |eps|²", "free_running": "error accumulated: |x_q - x|² / |x|²"}


def main() -> None:
    """Reads the records given and writes one figure."""
    args = arguments(__doc__)
    records = [record for record in read_records(args.records) if "curves" in record]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for record in records:
            curves = record["curves"]
            errors = [error or math.nan for error in curves[kind]]  # both walks start from the same noise: no error to draw
            label = f"{record['axes']['method']} {record['axes']['quant']}"
            axis.plot(curves["timestep"], errors, marker="o", markersize=3, label=label)
        axis.set(title=title, xlabel="timestep t (the sampler walks from left to right)", yscale="log")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
