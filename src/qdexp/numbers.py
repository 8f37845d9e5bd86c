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
    """One number of a record, and how it is shown.

    Attributes:
        key: Its name in ``metrics``.
        title: The heading of its column.
        kind: ``quality`` of the images, alone or against real ones; ``fidelity`` to full precision; ``cost``, an abscissa of
            Pareto figures where it is in the overview; ``share`` of a whole, shown where a line has less than all of it;
            ``floor``: the score of perfect images, shown below a table.
        shown: The places beside the CSV, the page of a cell and W&B: ``overview`` (the tables of a report and the page's
            first), ``brief`` (the table that a sweep ends with), ``alone`` (the same where nothing is compared with real
            images), ``bars`` (figures).
        factor: The factor by which it is multiplied where it is shown.
        digits: Digits behind the point, or significant ones.
        significant: Whether ``digits`` are significant ones, for numbers that span orders of magnitude.
        higher: Whether a larger number is better.
        differences: Whether paired differences to the baseline are shown; distances to full precision are differences already.
        axis: The label of an axis, where the title is too long for it.
        meaning: A sentence that explains the number: the page shows it over the head of its column.
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
    meaning: str = ""

    def described(self) -> dict[str, Any]:
        """The description as a record holds it under the number's key: only what differs from the defaults."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {name: list(value) if name == "shown" else value for name, value in told.items() if name != "key"}

    @classmethod
    def of(cls, key: str, described: Mapping[str, Any]) -> "Number":
        """Read a description from a record; unknown keys of later versions are ignored."""
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
    """The numbers that the records hold, kind by kind, in the order of the record that holds most."""
    found: dict[str, Number] = {}
    for record in sorted(records, key=lambda one: -len(one.get("metrics", {}))):
        measures = record.get("measures", {}).values()
        told = {key: described for one in measures for key, described in one["numbers"].items()}
        for key in dict.fromkeys([*told, *record.get("metrics", {})]):
            if key not in found:
                found[key] = Number.of(key, told[key]) if key in told else shipped().get(key) or Number(key, key)
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
