"""The numbers of records: what each is called, and how it is shown. A record says so itself, of every number that it holds.

So whatever shows numbers (tables, the CSV, figures, the page, W&B) iterates over what the records say, and shows a metric of
the user's own on a machine that has none of its code.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["quality", "fidelity", "cost", "share", "floor"]
Place = Literal["overview", "brief", "alone", "bars"]


@dataclass(frozen=True)
class Number:
    """One number of a record.

    Attributes:
        key: Its name in ``metrics``.
        title: What a column is called.
        kind: ``quality`` of the images, alone or against real ones; ``fidelity`` to full precision; ``cost``, the abscissa of
            Pareto figures where it is in the overview; ``share`` of a whole, told where a line has less than all of it;
            ``floor``: what perfect images would score, told below a table.
        shown: Where, beside the CSV, the page of a cell and W&B: ``overview``, the tables of a report and the page's first;
            ``brief``, the table that a sweep ends with; ``alone``, the same where nothing is compared with real images;
            ``bars``, figures.
        factor: By which it is multiplied where it is shown.
        digits: Behind the point; ``significant``: significant ones, of what spans orders of magnitude.
        higher: Whether more of it is better.
        differences: Whether differences to the baseline are taken, in pairs; distances to full precision are some already.
        axis: What an axis is called, where the title is too short for it.
    """

    key: str
    title: str
    kind: Kind = "quality"
    shown: tuple[Place, ...] = ("overview", "brief")
    factor: float = 1.0
    digits: int = 2
    significant: bool = False
    higher: bool = False
    differences: bool = False
    axis: str = ""

    def described(self) -> dict[str, Any]:
        """As a record holds it, under its key: what is not as it is by default."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {name: list(value) if name == "shown" else value for name, value in told.items() if name != "key"}

    @classmethod
    def of(cls, key: str, described: Mapping[str, Any]) -> "Number":
        """As a record describes it; what a later version says of it too is ignored."""
        known = {one.name: described[one.name] for one in fields(cls) if one.name in described}
        return cls(key, **{"title": key} | known | ({"shown": tuple(known["shown"])} if "shown" in known else {}))

    def text(self, value: float) -> str:
        """A value in its unit and digits; a small cost, which would be nothing in these, in two significant ones."""
        value *= self.factor
        if self.significant:
            if value == 0:
                return "0"
            return f"{value:#.{self.digits}g}".rstrip(".") if abs(value) < 10**self.digits else f"{value:.0f}"
        if self.kind == "cost" and 0 < abs(value) < 10 ** (1 - self.digits):
            return f"{value:.2g}"
        return f"{value:.{self.digits}f}"


def numbers_of(records: Iterable[Mapping[str, Any]]) -> list[Number]:
    """Those that the records hold, kind by kind, in the order of the record that holds most."""
    found: dict[str, Number] = {}
    for record in sorted(records, key=lambda one: -len(one.get("metrics", {}))):
        measures = record.get("measures", {}).values()
        told = {key: Number.of(key, described) for one in measures for key, described in one["numbers"].items()}
        for key in dict.fromkeys([*told, *record.get("metrics", {})]):
            found.setdefault(key, told.get(key) or shipped().get(key) or Number(key, key))
    kinds = get_args(Kind)
    return sorted(found.values(), key=lambda number: kinds.index(number.kind) if number.kind in kinds else len(kinds))


@cache
def shipped() -> dict[str, Number]:
    """The numbers of qdexp's own metrics, by their keys: for records that were made before these described them.

    They are read off the source, which imports nothing: who reads records needs no torch.
    """
    found = {}
    for path in sorted((Path(__file__).parent / "metrics").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == Number.__name__:
                named = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
                number = Number(*map(ast.literal_eval, node.args), **named)
                found[number.key] = number
    return found
