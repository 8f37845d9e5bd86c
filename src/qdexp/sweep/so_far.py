"""The table and picture that a sweep shows before its end."""

import time
from collections.abc import Sequence

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.record import readable
from qdexp.sweep import results

SHARE = 20
"""Drawing again takes at most one part in so many of the time."""


class SoFar:
    """Prints the table of what is finished as soon as there are two cells to compare; from then on keeps table and picture in
    the sweep's folder up to date. With the last cell the sweep ends, and shows all by itself."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self._missing = {cell.key for cell in cells if cell.finished() is None}
        self._printed, self._again = False, 0.0

    def add(self, cell: Cell) -> None:
        """A cell has been finished; one that was so before adds nothing."""
        start, before = time.monotonic(), len(self._missing)
        self._missing.discard(cell.key)
        done = len(self.cells) - len(self._missing)
        if len(self._missing) == before or not 2 <= done < len(self.cells) or start < self._again:
            return
        try:
            self._draw(done)
        except (UserError, OSError) as error:  # what it ends with says more
            print(f"warning: {error}", flush=True)
        self._again = start + SHARE * (time.monotonic() - start)

    def _draw(self, done: int) -> None:
        out, name = self.cells[0].out, self.cells[0].config.sweep
        records = readable(cell.record for cell in self.cells if cell.key not in self._missing)
        if self._printed:
            results.draw(out, name, records, printed=False)
            return
        self._printed = True
        print(f"{done} of {len(self.cells)} cells so far")
        print("\n".join(results.draw(out, name, records)), flush=True)
