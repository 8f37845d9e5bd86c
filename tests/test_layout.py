"""The tree of an output folder, as it is drawn, against the paths that the code asks for."""

import re
from pathlib import Path

import pytest

from qdexp.layout import Layout, another, is_entry, is_hidden, stage_and_key

ENTRY = "samples-0123456789abcdef"
OTHERS = {"store/ENTRY/manifest.json"}
"""What a module finds in a folder that it was given."""


def paths() -> set[str]:
    """All that a layout knows, from the output folder, but for folders that hold another of these."""
    layout = Layout(Path("out"))
    found = {path for place in (layout, layout.sweep("trial")) for path in vars(place).values()}
    found |= {
        layout.sweep("trial").config("0123"),
        layout.sweep("trial").shell("01"),
        layout.sweep("trial").shell_cancelled("01"),
        layout.record("fp"),
        layout.export("fp"),
        layout.job(ENTRY),
        layout.error(ENTRY),
        layout.submitting("0123"),
        layout.wandb_lock("trial-fp"),
        layout.wandb_part("trial-fp", "0123456789ab"),
        layout.wandb_data("trial-fp", "0123456789ab"),
    }
    found |= {layout.entry(ENTRY), layout.work(ENTRY), layout.begun(ENTRY, "whole"), layout.costs(ENTRY, "1-of-2")}
    moved = layout.moved("0123")
    found |= {layout.corrupt(ENTRY, 1), moved, layout.returning(moved), layout.pruned(moved)}
    found |= {another(layout.sweep("trial").cells), another(layout.sweep("trial").manifest)}
    folders = {folder for path in found for folder in path.parents}
    return {path.relative_to("out").as_posix() for path in found - folders}


def test_what_is_drawn_is_what_modules_ask_for(drawn: dict[str, re.Pattern[str]]) -> None:
    asked = {path: (path, f"{path}/x", f"{path}/x/y") for path in paths()}
    unused = drawn.keys() - OTHERS
    for path, files in asked.items():
        lines = {line for line, pattern in drawn.items() if any(map(pattern.fullmatch, files))}
        assert lines, path
        unused -= lines
    assert not unused


@pytest.mark.parametrize("place", ["entry", "work", "corrupt"])
def test_folders_of_the_store_are_told_apart(place: str) -> None:
    layout = Layout(Path("out"))
    folder = layout.corrupt(ENTRY, 1) if place == "corrupt" else getattr(layout, place)(ENTRY)
    assert (is_entry(folder), is_hidden(folder)) == (place == "entry", place != "entry")
    assert place == "corrupt" or stage_and_key(folder.name)[1] == "0123456789abcdef"
