"""Objects from ``_target_`` in a config, of the kind that is asked for there, with their options checked."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from inspect import isabstract
from typing import Any, TypeVar

from hydra.utils import get_object

from qdexp.config.checks import checked
from qdexp.errors import UserError

TARGET = "_target_"
T = TypeVar("T")


def made(kind: type[T], node: Any, option: str, *, ours: str, without: Collection[str] = (), optional: bool = False) -> T:
    """Make the object of a node, which has to be a dataclass that extends ``kind``.

    Args:
        kind: An abstract dataclass.
        node: A mapping with ``_target_``, the full name of the class, and its options.
        option: What the node is called on a command line.
        ours: The package whose ``__all__`` names our classes of this kind.
        without: Keys of the node that are no options of the class.
        optional: Whether null in its place leaves it out.

    Raises:
        UserError: One line, with the option: there is no such class, or an option of it is not there or not possible.
    """
    if not isinstance(node, Mapping) or TARGET not in node:
        fix = f", or leave it out with {option}=null" if optional else ""
        raise UserError(f"{option}={node}: name a subclass of {ours}.{kind.__name__} as {TARGET}{fix}")
    target = str(node[TARGET])
    try:
        found = get_object(target)
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(f"{option}.{TARGET}={target}: cannot be imported ({' '.join(str(error).split())}); check the name "
                        f"and PYTHONPATH{_near(target, ours)}") from error  # fmt: skip
    if not (isinstance(found, type) and issubclass(found, kind)) or isabstract(found):
        raise UserError(f"{option}.{TARGET}={target}: name a subclass of {ours}.{kind.__name__} that can be made")
    return checked(found, {name: value for name, value in node.items() if name != TARGET and name not in without}, option)


def _near(target: str, ours: str) -> str:
    package, _, name = target.rpartition(".")
    near = get_close_matches(name, getattr(get_object(ours), "__all__", ()), 1) if package in ("", ours) else []
    return f"; did you mean {ours}.{near[0]}?" if near else ""
