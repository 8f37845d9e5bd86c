"""``python -m qdexp.sweep``: looks after sweeps that were submitted.

    plan ARGUMENTS...      what `python -m qdexp ARGUMENTS... -m` would run, what is there already, and what it costs
    status [SWEEP]         cells x stages, what failed and why; --live keeps the table up to date
    collect [SWEEP]        the table and the picture of what is finished; cells that failed get their records
    logs CELL [SWEEP]      what the jobs of a cell printed (a part of its name will do)
    cancel [SWEEP]         cancels what waits or runs, but for what another sweep needs too

SWEEP is the newest one unless it is named; --out says which output folder.
"""

import runpy
import sys
from pathlib import Path

from qdexp.arguments import Parser
from qdexp.errors import UserError, one_line
from qdexp.sweep import manifest, queue
from qdexp.sweep.manifest import Manifest
from qdexp.sweep.status import Status, log_of, show


def plan(arguments: list[str]) -> None:
    sys.argv = ["qdexp", "-m", *arguments, "hydra.launcher.dry=true"]
    runpy.run_module("qdexp", run_name="__main__")


def status(sweep: Manifest, live: bool) -> None:
    watcher = queue.Watcher()
    show(lambda: Status(sweep, watcher.states), every=2.0 if live else None)


def collect(sweep: Manifest) -> None:
    from qdexp.sweep.results import collect as work  # torch is loaded here, not for the others

    work(sweep, Status(sweep, queue.Watcher(grace=0).states))


def logs(sweep: Manifest, cell: str) -> None:
    found = log_of(sweep, cell)
    if not found:
        names = ", ".join(entry.name for entry in sweep.cells.values())
        raise UserError(f"logs {cell}: no job of sweep {sweep.sweep} worked for such a cell; its cells are {names}")
    for path in found:
        print(f"==> {path}")
        print(path.read_text() if path.exists() else "(not started)")


def cancel(sweep: Manifest) -> None:
    own, others = _live(sweep), dict[str, str]()
    for name in manifest.names(sweep.out):
        if name != sweep.sweep:
            others |= _live(manifest.read(sweep.out, name))
    if any(job.startswith(queue.HERE) for job in own.values()):
        raise UserError(f"cancel {sweep.sweep}: it runs on this machine; press Ctrl-C in the shell that started it")
    kept = own.keys() & others.keys()
    queue.cancel({job for node, job in own.items() if node not in kept})
    print(f"cancelled {len(own) - len(kept)} jobs of {sweep.sweep}" + (f"; {len(kept)} go on for other sweeps" if kept else ""))


def _live(sweep: Manifest) -> dict[str, str]:
    """The jobs of a sweep that wait or run, by node, as long as one of its cells still hopes for its record."""
    found = Status(sweep, queue.Watcher(grace=0).states)
    hopes = {node.id for node in sweep.nodes if node.stage == "record" and found.nodes[node.id].live}
    needed = set(hopes)
    for node in reversed(sweep.nodes):
        if node.id in needed:
            needed |= set(node.needs)
    return {name: found.jobs[name] for name in needed if name in found.nodes and found.nodes[name].live}


def _parser() -> Parser:
    parser = Parser("python -m qdexp.sweep", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan")  # for the list of commands alone: what follows it is Hydra's
    for name in ("status", "collect", "logs", "cancel"):
        command = commands.add_parser(name)
        if name == "logs":
            command.add_argument("cell")
        command.add_argument("sweep", nargs="?")
        command.add_argument("--out", type=Path, default=Path("outputs"))
        if name == "status":
            command.add_argument("--live", action="store_true")
    return parser


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["plan"]:
        return plan(arguments[1:])
    given = _parser().parse_args(arguments)
    known = manifest.names(given.out)
    if given.sweep is None and not known:
        raise UserError(f"--out {given.out}: no sweep was submitted from here")
    sweep = manifest.read(given.out, given.sweep or known[-1])
    if given.command == "status":
        status(sweep, given.live)
    elif given.command == "collect":
        collect(sweep)
    elif given.command == "logs":
        logs(sweep, given.cell)
    else:
        cancel(sweep)
    return None


if __name__ == "__main__":
    try:
        with one_line():
            main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("qdexp: stopped looking; the jobs go on")
