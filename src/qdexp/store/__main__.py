"""``python -m qdexp.store``: looks after the store of an output folder (--out, default outputs).

du                     how much each kind of stage takes, and what nothing needs
verify                 checks every file of every entry against its digest; ends with 1 where one is corrupt
prune [--yes]          removes what no record and no sweep needs, and what killed processes left unfinished;
                           without --yes it only says what. Sweeps may begin and run meanwhile
accept                 after a change of code: of each stage makes one entry of each method, model and bit-width again,
                           and where all bits are equal gives what is finished the keys that the code of now asks for;
                           ends with 1 where they are not
copy SWEEP TO          a sweep's records, tables, images and checkpoints (--all: every entry) into the output folder TO,
                       or, where TO is -, as a tar stream:

ssh cluster 'cd study && python -m qdexp.store copy ladder -' | tar xf - -C outputs
"""

import sys
from pathlib import Path

from qdexp import permanent
from qdexp.arguments import Parser
from qdexp.errors import UserError, one_line
from qdexp.store import Store, tool


def _parser() -> Parser:
    parser = Parser("python -m qdexp.store", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("du", "verify", "prune", "accept", "copy"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path("outputs"))
        if name == "prune":
            command.add_argument("--yes", action="store_true")
        if name == "copy":
            command.add_argument("sweep")
            command.add_argument("to")
            command.add_argument("--all", action="store_true")
    return parser


def main(arguments: list[str]) -> int:
    given = _parser().parse_args(arguments)
    store = Store(given.out)
    if not store.layout.store.is_dir():
        raise UserError(f"--out {given.out}: holds no store; name the output folder of a run")
    if given.command == "verify":
        return tool.verify(store)
    if given.command == "accept":
        with permanent.imports():
            from qdexp.sweep.accept import accept  # torch is loaded here, not for the others

        return accept(given.out)
    if given.command == "du":
        tool.du(store)
    elif given.command == "prune":
        tool.prune(store, given.yes)
    else:
        tool.copy(store, given.sweep, given.to, given.all)
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main(sys.argv[1:]))
