"""``python -m qdexp.sweep``: looks after sweeps, wherever they run.

    plan ARGUMENTS...      what `python -m qdexp ARGUMENTS... -m` would run, what is there already, and what it costs
    status [SWEEP]         cells and stages, what failed and why; --live keeps the table up to date
    collect [SWEEP]        the table and the picture of what is finished; cells that failed get their records
    logs CELL [SWEEP]      what the jobs of a cell printed (a part of its name will do)
    cancel [SWEEP]         ends what waits or runs, but for what another sweep has on the cluster too

SWEEP is the newest one unless it is named; --out says which output folder.
"""

import runpy
import sys
from pathlib import Path

from qdexp.arguments import Parser
from qdexp.errors import UserError, one_line
from qdexp.layout import Layout, Sweep, files_of
from qdexp.report.sources import names, newest
from qdexp.sweep import manifest, queue, submissions
from qdexp.sweep.listed import Listed
from qdexp.sweep.manifest import Manifest
from qdexp.sweep.shell import living
from qdexp.sweep.status import Status, log_of, show


def plan(arguments: list[str]) -> None:
    sys.argv = ["qdexp", "-m", *arguments, "hydra.launcher.dry=true"]
    runpy.run_module("qdexp", run_name="__main__")


def status(sweep: Sweep, live: bool) -> None:
    watcher, submitted = queue.Watcher(**({} if live else {"grace": 0})), _submitted(sweep)
    show(
        lambda: Listed(sweep) if submitted is None else Status(submitted, watcher.states),
        every=2.0 if live else None,
    )


def collect(sweep: Sweep) -> None:
    from qdexp.sweep import results  # torch is loaded here, not for the others

    submitted = _submitted(sweep)
    if submitted is None:
        results.collect_listed(Listed(sweep))
    else:
        results.collect(submitted, Status(submitted, queue.Watcher(grace=0).states))


def logs(sweep: Sweep, cell: str) -> None:
    submitted = _submitted(sweep)
    if submitted is None:
        raise UserError(f"logs {cell}: sweep {sweep.name} has no jobs: it runs in the shell that started it, and prints there")
    found = log_of(submitted, cell)
    if not found:
        names = ", ".join(entry.name for entry in submitted.cells.values())
        raise UserError(f"logs {cell}: no job of sweep {sweep.name} worked for such a cell; its cells are {names}")
    for path in found:
        print(f"==> {path}")
        print(path.read_text() if path.exists() else "(not started)")


def cancel(sweep: Sweep) -> None:
    submitted = _submitted(sweep)
    own = {} if submitted is None else _live(submitted)
    places = []
    for shell in living(sweep):
        places.append(shell.place)
        shell.cancel()
    jobs = {node: job for node, job in own.items() if job}
    others = dict[str, str]()
    for name in manifest.names(sweep.layout.out) if jobs else []:
        if name != sweep.name:
            others |= _live(manifest.read(sweep.layout.out, name))
    kept = jobs.keys() & others.keys()
    queue.cancel({job for node, job in jobs.items() if node not in kept})
    ended_unknown = submissions.cancel(sweep.layout, sweep.name)
    ended = f"; {', '.join(places)} has ended" if places else ""
    print(
        f"cancelled {len(own) - len(kept) + ended_unknown} jobs of {sweep.name}{ended}"
        + (f"; {len(kept)} go on for other sweeps" if kept else "")
    )


def _live(sweep: Manifest) -> dict[str, str]:
    """The jobs of a sweep that wait or run, by node, as long as one of its cells still hopes for its record; of a process of
    this machine the empty string."""
    found = Status(sweep, queue.Watcher(grace=0).states)
    hopes = {node.id for node in sweep.nodes if node.stage == "record" and found.nodes[node.id].live}
    needed = set(hopes)
    for node in reversed(sweep.nodes):
        if node.id in needed:
            needed |= set(node.needs)
    return {name: found.jobs.get(name, "") for name in needed if name in found.nodes and found.nodes[name].live}


def _submitted(sweep: Sweep) -> Manifest | None:
    """The manifest of a submitted sweep; None where the sweep runs in its shell alone, and has no jobs."""
    return manifest.read(sweep.layout.out, sweep.name) if files_of(sweep.manifest) else None


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
    layout = Layout(given.out)
    sweep = newest(given.out) if given.sweep is None else layout.sweep(given.sweep)
    if not files_of(sweep.cells):
        known = ", ".join(names(layout)) or "none"
        raise UserError(f"{given.sweep}: no such sweep in {layout.sweeps} (there are: {known})")
    if given.sweep is None:
        print(f"sweep {sweep.name}, the newest in {given.out}")
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
