"""Tables as this package prints them: Markdown that grows row by row."""

from collections.abc import Sequence


def line(cells: Sequence[str]) -> str:
    """A row."""
    return f"| {' | '.join(cells)} |"


def head(columns: Sequence[str]) -> str:
    """The names of the columns, and the line below them: what follows the first are numbers."""
    return "\n".join((line(columns), line(["---", *["---:"] * (len(columns) - 1)])))
