"""Names for models without a YAML file: from the folder, or the name on the hub, of their weights."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

from qdexp.config import Config, Model
from qdexp.models.weights import NETWORKS

LONGEST = 60
"""Bytes of a name, which is one of several words in the names of files."""


def told_apart(configs: Sequence[Config]) -> list[Config]:
    """The configs of a sweep, where several folders gave one name: each of these is called by as much of its path as tells it
    from the others."""
    longest = max((len(_place(config.model.weights)) for config in configs), default=0)
    found = list(configs)
    for words in range(2, longest + 1):
        places: dict[str, set[str]] = {}
        for config in found:
            places.setdefault(config.model.name, set()).add(config.model.weights)
        renamed: dict[int, Model] = {}  # what several cells share they go on to share
        for number, config in enumerate(found):
            model = config.model
            if len(places[model.name]) > 1 and model.name == name_of(model.weights, words - 1):
                new = renamed.setdefault(id(model), replace(model, name=name_of(model.weights, words)))
                found[number] = replace(config, model=new)
    return found


def name_of(weights: str, words: int = 1) -> str:
    """The last ``words`` of where a folder is, or of its name on the hub, as a part of file names."""
    text = re.sub(r"[^\w.+-]+", "_", normalize("NFC", "_".join(_place(weights)[-words:]))).lstrip("._+-")
    return text.encode()[:LONGEST].decode(errors="ignore").rstrip(".") or "folder"


def _place(weights: str) -> tuple[str, ...]:
    """The words of a path, or of a name on the hub: down to the pipeline's folder, where a network within it is named."""
    path = Path(weights)
    if path.exists():
        path = Path(os.path.abspath(path))  # a link keeps its own name
        path = path.parent if path.is_file() else path
        path = path.parent if path.name in NETWORKS else path
    return tuple(part for part in path.parts if part != path.anchor)
