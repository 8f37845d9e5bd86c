"""The details of cells as scripts, which hand them to the page as text: within the page as long as they are small together,
else in files beside it, which it reads when they are asked for. A page from a disk may read scripts, and nothing else.

A file is called by the digest of its content. So a page never finds another page's details, whenever its writing was cut off.
"""

import contextlib
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from qdexp import files

LARGE = 4 * 2**20
"""Bytes of details from which these lie beside the page."""
PART = 2**19
"""Bytes of a script, about."""


class Parts:
    """The scripts of a page whose details lie in ``folder``, once they are many.

    Attributes:
        inside: Those within the page.
        beside: The names of the others, as the page calls them.
        of: By cell, the number of its script.
    """

    def __init__(self, folder: Path, details: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self.folder, self.inside, self.beside = folder, list[Markup](), list[str]()
        self.of: dict[str, int] = {}
        self._cells, self._count = list[str](), 0
        for name, told in details:
            self.of[name] = self._count
            self._cells.append(f"{as_json(name)}:{as_json(told)}")
            if sum(map(len, self._cells)) > PART:
                self._end_part()
        self._end_part()

    def _end_part(self) -> None:
        if not self._cells:
            return
        text = f"{{{','.join(self._cells)}}}".replace("\\", "\\\\")  # no quote is left in it
        self.inside.append(Markup(f"part('{text}')"))
        self._cells, self._count = [], self._count + 1
        if self.beside or sum(map(len, self.inside)) > LARGE:
            self.beside += map(self._write, self.inside)
            self.inside = []

    def _write(self, script: str) -> str:
        path = self.folder / f"{sha256(script.encode()).hexdigest()[:16]}.js"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_text(path, script)
        return f"{self.folder.name}/{path.name}"

    def remove_others(self) -> None:
        """Removes what an earlier page had, once this one is there."""
        for path in self.folder.glob("*.js"):
            if f"{self.folder.name}/{path.name}" not in self.beside:
                path.unlink()
        with contextlib.suppress(OSError):  # there is none, or something is in it
            self.folder.rmdir()


def as_json(value: Any) -> Markup:
    """JSON that has no sign of markup and no single quote in it, wherever it stands in a page."""
    return htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False)
