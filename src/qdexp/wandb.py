"""``python -m qdexp.wandb check|sync``: are the offline W&B runs whole, and were they really sent?

Run it where there is a network, a login node say. The exit code is 0 only where every run is whole (check), and sent (sync).
"""

import sys
from pathlib import Path

from qdexp.arguments import Parser
from qdexp.layout import Layout
from qdexp.tracking.sync import check, report, runs_in, sync


def main() -> int:
    """Checks the runs and, with ``sync``, sends those that are whole."""
    parser = Parser("python -m qdexp.wandb", __doc__)
    parser.add_argument("action", choices=["check", "sync"])
    parser.add_argument(
        "place", type=Path, nargs="?", default=Layout(Path("outputs")).wandb, help="folder of runs, or a run (%(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one run may take (%(default)g)")
    args = parser.parse_args()
    runs = runs_in(args.place)
    if not runs:
        parser.error(f"{args.place} holds no offline-run-*: name the folder wandb/ of an output folder")
    checked = [check(run) for run in runs]
    broken = report(checked)
    return 1 if (sync(checked, args.timeout) if args.action == "sync" else broken) else 0


if __name__ == "__main__":
    sys.exit(main())
