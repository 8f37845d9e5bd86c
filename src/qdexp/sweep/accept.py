"""New keys for finished results after a change of code that changes no bit.

A change of code gives all that it computes new keys. Where it is a refactoring, one entry of each kind that is made again shows
it: the others then keep their files under their new keys. Manifests and records name the key of before.

Of one kind are entries that the same code makes along the same ways through it: what they were asked for, and what they read,
differs in numbers (bits aside) and files alone. So GPTQ's weights say nothing of AdaRound's, nor W8 of how W4 is packed.

What belongs to one machine, as a latency does, comes out equal never: the record loses it, and the cell's next run measures it.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from qdexp import device as devices
from qdexp import entries, files, listing, meter
from qdexp import record as records
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.config.checks import checked
from qdexp.errors import UserError
from qdexp.layout import Layout, Sweep, entry_name, files_of, records_in, stage_and_key
from qdexp.listing import Line
from qdexp.protocol import protocol_of
from qdexp.record import Record, read_records
from qdexp.stages.base import Stage
from qdexp.stages.keys import short_hash
from qdexp.store import Entry, Store, pruning
from qdexp.sweep import manifest
from qdexp.sweep.jobs import RECORD

_BESIDE = ("made", "accepted")
"""The notes of a manifest beside what the key is made of."""


@dataclass(frozen=True)
class _Finished:
    """An entry, the stage that would make it now, the entries that it read, and what its key would be made of now had these
    kept their keys."""

    stage: Stage
    entry: Entry
    inputs: dict[str, Entry]
    now: dict[str, Any]

    @property
    def codes(self) -> tuple[str, str]:
        """Then and now."""
        then, now = (json.dumps(list(_codes(made_of))) for made_of in (self.entry.note, self.now))
        return then, now

    @property
    def kind(self) -> tuple[str, ...]:
        """The kind of the result: one of each kind is made again."""
        return self.stage.name, *self.codes, _ways(self.stage)

    @property
    def new_code(self) -> bool:
        then, now = self.codes
        return then != now

    @property
    def renamed(self) -> bool:
        return self.stage.entry != self.entry.folder.name


def accept(out: Path) -> int:
    """Gives the finished cells of ``out`` new keys where nothing but the code has changed, and one entry of each kind comes out
    bit-equal. Returns 1 where one did not, else 0. Raises UserError where no record tells of results that are there."""
    devices.make_repeatable()
    store = Store(out)
    cells = {path: cell for path in records_in(store.layout.records) if (cell := _finished(store, path))}
    if not cells:
        raise UserError(f"--out {out}: no record of a complete cell whose results are there; nothing can be accepted")
    kinds: dict[tuple[str, ...], dict[str, _Finished]] = defaultdict(dict)
    for stages in cells.values():
        for one in stages.values():
            if one.new_code:
                kinds[one.kind][one.entry.folder.name] = one
    equal = {kind: _made_again(store, list(members.values())) for kind, members in kinds.items()}
    renamed = 0
    for path, stages in cells.items():
        if all(equal.get(one.kind, True) for one in stages.values()) and any(one.renamed for one in stages.values()):
            _list(store.layout, path, stages)
            for one in stages.values():
                _adopt(store, one)
            _rename(out, path, stages)
            renamed += 1
    if any(one.renamed for stages in cells.values() for one in stages.values()):
        print(
            f"{renamed} of {len(cells)} cells have new keys; what the old ones alone need goes with python -m qdexp.store prune"
        )
    else:
        print(f"nothing to accept: all {len(cells)} cells have the keys of this code")
    return 0 if all(equal.values()) else 1


def _key(entry: Entry) -> str:
    return stage_and_key(entry.folder.name)[1]


def _finished(store: Store, path: Path) -> dict[str, _Finished] | None:
    """The stages of a record by their roles; None, with a line why, where it cannot be accepted."""
    record = read_records([path])[0]
    if record["status"] != "complete":
        return None
    try:
        stages = Cell(checked(Config, record["config"])).stages
        return dict(_compared(store, record, stages))
    except UserError as error:
        print(f"left as it is: {record['cell']}: {error}")
        return None


def _compared(store: Store, record: Record, stages: dict[str, Stage]) -> Iterator[tuple[str, _Finished]]:
    if record["keys"].keys() != stages.keys():
        raise UserError("its stages are others now")
    stages = {role: stage for role, stage in stages.items() if stage.portable}
    found: dict[str, Entry] = {}
    for role, stage in stages.items():
        entry = store.open(entry_name(stage.name, record["keys"][role]))
        if entry is None:
            raise UserError(f"the entry of {role} is not there, or corrupt")
        found[stage.entry] = entry
    for role, stage in stages.items():
        now = stage.described(lambda one: _key(found[one.entry]))
        if _without_code(now) != _without_code(found[stage.entry].note):
            raise UserError(f"not only the code of {role} has changed, but options, files or versions")
        inputs = {name: found[one.entry] for name, one in stage.inputs.items()}
        yield role, _Finished(stage, found[stage.entry], inputs, now)


def _codes(made_of: Any) -> Iterator[Any]:
    """The digests of code in what a key is made of."""
    if isinstance(made_of, dict):
        for name in sorted(made_of.keys() - set(_BESIDE)):
            yield from [made_of[name]] if name == "code" else _codes(made_of[name])
    elif isinstance(made_of, list):
        for inner in made_of:
            yield from _codes(inner)


def _ways(stage: Stage) -> str:
    """The ways through the code that a stage takes, and those of the stages that it reads."""
    return short_hash(_chosen(stage.described(_ways)))


def _chosen(made_of: Any, name: str = "") -> Any:
    """The description without numbers (except bits) and digests of files."""
    if isinstance(made_of, dict):
        return {key: _chosen(inner, key) for key, inner in made_of.items()}
    if isinstance(made_of, list):
        return sorted({json.dumps(_chosen(inner, name), sort_keys=True) for inner in made_of})
    if isinstance(made_of, str):
        return "" if re.fullmatch("[0-9a-f]{64}", made_of) else made_of
    return made_of if isinstance(made_of, bool | None) or name.endswith("bits") else 0


def _without_code(made_of: Any) -> Any:
    if isinstance(made_of, dict):
        return {name: _without_code(inner) for name, inner in made_of.items() if name not in (*_BESIDE, "code")}
    return [_without_code(inner) for inner in made_of] if isinstance(made_of, list) else made_of


def _made_again(store: Store, members: list[_Finished]) -> bool:
    """Makes the cheapest of the entries again, from what it read then; whether every file comes out the same."""
    one = min(members, key=lambda member: member.entry.costs["seconds"])
    folder = store.work(entry_name(f"accept-{uuid4().hex[:12]}", _key(one.entry)))  # which a record needs: prune leaves it
    folder.mkdir()
    try:
        inputs = {role: entry.folder for role, entry in one.inputs.items()}
        spent = meter.measure(one.stage.device, lambda: one.stage.compute(folder, inputs))
        then, now = _digests(one.entry.folder), _digests(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    unequal = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    verdict = f"differs in {', '.join(unequal[:3])}: not accepted" if unequal else "bit-equal"
    print(f"{one.stage.name:<13} 1 of {len(members)} made again in {spent['seconds']:.1f} s: {verdict}", flush=True)
    return not unequal


def _digests(folder: Path) -> dict[str, str]:
    return {name: files.sha256(folder / name) for name in entries.names(folder)}


def _list(layout: Layout, path: Path, stages: dict[str, _Finished]) -> None:
    """The cell under its new name in the sweeps that have it, and in its own, so that nobody prunes what it is about to get."""
    record = read_records([path])[0]
    cell, own = Cell(checked(Config, record["config"])), layout.sweep(record["config"]["sweep"])
    listed = {place.parent: line for place in layout.all_cells() if (line := listing.of_run(place).get(record["cell"]))}
    labels = {own.folder: cell.label} | {folder: line.label for folder, line in listed.items()}
    for folder, label in labels.items():
        listing.write(Sweep(folder), {cell.name: Line(label, [one.stage.entry for one in stages.values()])})
    pruning.put_back(layout)


def _adopt(store: Store, one: _Finished) -> None:
    """The entry under its new key too."""
    note, before = one.entry.note, _key(one.entry)
    described = one.stage.described(lambda stage: stage.key)
    store.adopt(one.stage.entry, one.entry, described | {"made": note["made"], "accepted": note.get("accepted", []) + [before]})


def _rename(out: Path, path: Path, stages: dict[str, _Finished]) -> None:
    """The record under its new name, with the new keys; then the old one goes."""
    record = read_records([path])[0]
    record = records.without(record, record["keys"].keys() - stages.keys())
    cell = Cell(checked(Config, record["config"]))
    names = {one.entry.folder.name: one.stage.entry for one in stages.values()}
    for role, one in stages.items():
        before = _key(one.entry)
        told = record["stages"][role]
        record["keys"][role] = one.stage.key
        record["stages"][role] = told | {"key": one.stage.key}
        if one.renamed:
            record["stages"][role]["accepted"] = [*told.get("accepted", []), before]
    for what, place in record["artifacts"].items():
        record["artifacts"][what] = "/".join(names.get(part, part) for part in place.split("/"))
    old, record["cell"] = record["cell"], cell.name
    record |= {"identity": cell.identity, "protocol": protocol_of(cell.config)}  # code is in both
    records.write(out, record)
    for listed in Layout(out).all_cells():
        if old in (cells := listing.of_run(listed)):
            files.write_text(listed, listing.text({name: line for name, line in cells.items() if name != old}))
    for sweep in manifest.names(out):
        _rename_submitted(out, sweep, old, cell, names | {f"{RECORD}-{old}": f"{RECORD}-{cell.name}"})
    path.unlink()


def _rename_submitted(out: Path, name: str, old: str, cell: Cell, names: Mapping[str, str]) -> None:
    """The cell in the manifests of a sweep, so that it is found to be done there."""
    paths, sweep = files_of(Layout(out).sweep(name).manifest), manifest.read(out, name)
    key = next((key for key, listed in sweep.cells.items() if listed.name == old), None)
    if key is None:
        return
    config = Layout(out).sweep(name).config
    files.write_text(config(cell.key), config(key).read_text())
    entries_now = {role: stage.entry for role, stage in cell.stages.items()}
    listed = manifest.CellEntry(cell.key, cell.name, sweep.cells[key].label, entries_now)
    cells = {name: one for name, one in sweep.cells.items() if name != key} | {cell.key: listed}
    nodes = [
        replace(node, cell=cell.key, entry=names.get(node.entry, node.entry)) if node.cell == key else node
        for node in sweep.nodes
    ]
    replace(sweep, cells=cells, nodes=nodes).write()
    for path in paths:  # all of them are in the new one
        path.unlink()
