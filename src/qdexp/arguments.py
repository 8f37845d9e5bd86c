"""The command lines of all commands but Hydra's."""

import argparse
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from qdexp.errors import did_you_mean

_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """A parser whose help is the module's docstring as it stands there; a mistyped argument gives one line with the nearest
    known one."""

    def __init__(self, prog: str, description: str | None = None, **more: object) -> None:
        text = (description or "").replace("``", "")  # marks code, for the pages made of docstrings
        super().__init__(prog=prog, description=text, formatter_class=argparse.RawTextHelpFormatter)

    def error(self, message: str) -> NoReturn:
        choice = _CHOICE.search(message)
        if choice:
            message += did_you_mean(choice[1], re.findall(r"'?([\w.-]+)'?", choice[2]))
        elif message.startswith("unrecognized arguments: -"):
            flag = message.split()[2].partition("=")[0]
            message += did_you_mean(flag, list(_flags(self)))
        print(f"qdexp: {message}; {self.prog} --help tells more", file=sys.stderr)
        sys.exit(2)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags of the parser and of the commands below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags(command)
