"""From ``metric`` in the config to the metrics of a cell, each checked."""

import re
from collections.abc import Mapping
from inspect import isabstract
from typing import Any

from hydra.utils import get_object

from qdexp.config import Config
from qdexp.config.checks import checked
from qdexp.errors import UserError
from qdexp.metrics.base import OPTION, Metric, NamedMetric

TARGET = "_target_"


def metrics_of(config: Config) -> list[NamedMetric]:
    """Those that apply, in the order of the config; null turns one off.

    Raises UserError, one line with the option, where a metric or an option of one is not there or not possible, or where two
    give the same number.
    """
    found = [_made(name, node) for name, node in config.metric.items() if node is not None]
    given: dict[str, NamedMetric] = {}
    for one in found:
        for number in one.metric.numbers:
            if (other := given.setdefault(number.key, one)) is not one:
                raise UserError(f"{one.option}: gives {number.key}, as {other.option} does; turn one of the two off (=null)")
    return [one for one in found if one.metric.applies(config)]


def check(config: Config, one: NamedMetric) -> None:
    """Raises UserError for what a metric cannot do in this cell."""
    try:
        one.metric.check(config)
    except ValueError as error:
        raise UserError(f"{one.option}.{error}") from error


def _made(name: str, node: Any) -> NamedMetric:
    option = f"{OPTION}.{name}"
    if not re.fullmatch(r"[a-z]\w*", name):
        raise UserError(f"{option}: is no name of a metric; give small letters, digits and _ alone")
    if not isinstance(node, Mapping) or TARGET not in node:
        raise UserError(f"{option}={node}: name the metric's class as {TARGET}, or leave it out with {option}=null")
    target = str(node[TARGET])
    try:
        kind = get_object(target)
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(f"{option}.{TARGET}={target}: cannot be imported ({error}); check the name and PYTHONPATH") from error
    if not (isinstance(kind, type) and issubclass(kind, Metric)) or isabstract(kind):
        raise UserError(f"{option}.{TARGET}={target}: is no metric; name a subclass of qdexp.metrics.base.Metric")
    if not getattr(kind, "numbers", ()):
        raise UserError(f"{option}.{TARGET}={target}: declares no numbers; list them as its class attribute numbers")
    return NamedMetric(name, target, checked(kind, {key: value for key, value in node.items() if key != TARGET}, option))
