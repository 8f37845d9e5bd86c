"""The metrics of a cell from ``metric`` in the config, each checked."""

from typing import Any

from qdexp.config import Config
from qdexp.config.checks import PART_NAME
from qdexp.errors import UserError
from qdexp.metrics.base import OPTION, Metric, NamedMetric
from qdexp.targets import TARGET, made


def metrics_of(config: Config) -> list[NamedMetric]:
    """The metrics that apply, in the order of the config; null turns one off.

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
    if not PART_NAME.fullmatch(name):
        raise UserError(f"{option}: is no name of a metric; give small letters, digits and _ alone, at most 40")
    metric = made(Metric, node, option, ours="qdexp.metrics.base", optional=True)  # type: ignore[type-abstract]
    target = str(node[TARGET])
    if not getattr(metric, "numbers", ()):
        raise UserError(f"{option}.{TARGET}={target}: declares no numbers; list them as its class attribute numbers")
    return NamedMetric(name, target, metric)
