"""Progress bars: on a terminal at its foot, all in one display; elsewhere nothing.

Two live displays would draw over each other, so whatever has something to show shows it here. What is printed meanwhile
appears above the bars.
"""

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

_display: Progress | None = None


class _TimeLeft(ProgressColumn):
    """The time left if the rest goes on like what is done. rich's own column looks at the last half minute, in which nothing
    may happen."""

    max_refresh = 1.0

    def render(self, task: Task) -> Text:
        if not task.completed or not task.total or task.elapsed is None:
            return Text()
        return Text(duration(task.elapsed / task.completed * (task.total - task.completed)) + " left", style="dim")


def duration(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Bar:
    """One bar; ``shown`` is whether anybody sees it."""

    def __init__(self, display: Progress, title: str, total: float) -> None:
        self._display, self._task, self.shown = display, display.add_task(title, total=total), not display.disable

    def update(self, done: float, title: str | None = None) -> None:
        """``done`` of the total; a new ``title`` takes the place of the old one."""
        self._display.update(self._task, completed=done, description=title)

    def close(self) -> None:
        self._display.remove_task(self._task)


@contextlib.contextmanager
def bar(title: str, total: float) -> Iterator[Bar]:
    """A bar as long as the work within lasts, below those of the work around it."""
    global _display
    outermost = _display is None
    if _display is None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            _TimeLeft(),
        )
        terminal, errors = sys.stdout.isatty(), sys.stderr.isatty()
        _display = Progress(*columns, console=Console(), redirect_stderr=errors, transient=True, disable=not terminal)
        _display.start()
    one = Bar(_display, title, total)
    try:
        yield one
    finally:
        one.close()
        if outermost:
            if one.shown:  # one that is not would end with an empty line
                _display.stop()
            _display = None
