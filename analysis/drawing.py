"""What the scripts that draw records share."""

import argparse
from pathlib import Path


def arguments(description: str | None) -> argparse.Namespace:
    """``records``, the files to read, and ``out``, the figure to write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="PNG or PDF to write")
    return parser.parse_args()
