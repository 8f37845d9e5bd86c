"""``python -m qdexp.report SWEEP``: tables, figures and one page of a sweep, or of the records named."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from qdexp import files
from qdexp.arguments import Parser
from qdexp.errors import one_line
from qdexp.layout import Layout
from qdexp.report import page, tables
from qdexp.report.comparison import compare
from qdexp.report.conformance import Paper, to_markdown
from qdexp.report.evidence import Evidence
from qdexp.report.figures import MOST, draw_all
from qdexp.report.page.content import content
from qdexp.report.protocols import of_protocol
from qdexp.report.sources import open_source

WIDTH = 150
"""Columns of a table that goes to a file."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser("python -m qdexp.report", __doc__)
    parser.add_argument(
        "source",
        nargs="*",
        metavar="SWEEP",
        help="a sweep's name or folder, records, or a folder of records (the newest sweep)",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="output folder that holds the sweep (%(default)s)")
    parser.add_argument("--baseline", help="method or cell to compare with (fp, or the first row where there is none)")
    parser.add_argument(
        "--protocol", help="of records of several protocols, those of this one: its name, or how its hash begins"
    )
    parser.add_argument("--to", type=Path, help="where the report is written (OUT/reports/SWEEP)")
    parser.add_argument("--reported", type=Path, help="a paper's numbers and settings (JSON), for a conformance list")
    parser.add_argument("--no-figures", action="store_true", help="leave the PDF and PNG figures out")
    return parser.parse_args()


def main() -> None:
    """Prints the table and the paths of what was written."""
    args = arguments()
    source = open_source(args.source, args.out)
    if not args.source:
        print(f"sweep {source.name}, the newest in {args.out}")
    if args.protocol:
        source = replace(source, records=of_protocol(source.records, args.protocol))
    paper = Paper.read(args.reported, source.records) if args.reported else None
    evidence = Evidence(source.out)
    folder: Path = args.to or Layout(source.out).reports / source.name
    files.require_writable(folder, f"--to {folder}")
    comparison = compare(source.records, evidence, args.baseline)
    listed = to_markdown(paper, comparison.lines) if paper else None
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(tables.to_terminal(comparison, console.width))
    for name, text in (("md", tables.to_markdown), ("tex", tables.to_latex), ("csv", tables.to_csv)):
        files.write_text(folder / f"table.{name}", text(comparison))
    if listed is not None:
        files.write_text(folder / "conformance.md", listed)
    page.write(content(source, evidence, comparison, paper), folder / "index.html")
    drawn = [] if args.no_figures else draw_all(comparison, evidence, folder)
    for gap in sorted(evidence.gaps):
        print(f"note     {gap}")
    if source.missing:
        print(f"missing  without a record yet: {len(source.missing)}: {', '.join(source.missing)}")
    print(f"tables   {folder / 'table'}.md .tex .csv")
    if drawn:
        lines = len(comparison.lines)
        first = f", of the first {MOST} of {lines:,} rows" if lines > MOST else ""
        print(f"figures  {folder}: {', '.join(drawn)} (.pdf .png){first}")
    if listed is not None:
        print(f"paper    {folder / 'conformance.md'}")
    print(f"page     {folder / 'index.html'}")


if __name__ == "__main__":
    with one_line():
        main()
