"""Checkpoints, weights and the files of diffusers' folders that anybody may have written: they are loaded, or refused in one
line that names them."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, examples, mutated
from safetensors.torch import load_file, save_file

import qdexp
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.models import checkpoint
from qdexp.models.weights import WeightFiles, find

Finished = Callable[..., Cell]


def tried(work: Callable[[], object], name: object) -> None:
    """The work ends well, or in one line that names the file, or its folder."""
    try:
        work()
    except UserError as error:
        assert str(name) in str(error)
        assert "\n" not in str(error)


@st.composite
def rewritten(draw: Callable[..., Any], content: bytes) -> bytes:
    """A safetensors file whose header, JSON behind its length, is another; or whose bytes are."""
    (length,) = struct.unpack("<Q", content[:8])
    if draw(st.booleans()):
        return bytes(draw(damaged(content)))
    header = json.dumps(draw(mutated(json.loads(content[8 : 8 + length])))).encode()
    said = draw(st.sampled_from([len(header), 0, 1, length, 2**63, 2**40]))
    return struct.pack("<Q", said) + header + content[8 + length :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture
def saved(finished: Finished, folder: Path) -> tuple[dict[str, Any], bytes]:
    """Both files of a real checkpoint: what the JSON file says, without its seal, and the bytes of the other."""
    if not (folder / "kept.json").exists():
        cell = finished("method=ptq")
        made = cell.out / json.loads(cell.record.read_text())["artifacts"]["checkpoint"]
        (folder / "kept.json").write_bytes((made / checkpoint.JSON).read_bytes())
        (folder / "kept.safetensors").write_bytes((made / checkpoint.TENSORS).read_bytes())
    said = json.loads((folder / "kept.json").read_text())
    del said["content_digest"]
    return said, (folder / "kept.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:checkpoint .* has no digest of its own")
@examples(60)
@given(data=st.data())
def test_any_checkpoint(saved: tuple[dict[str, Any], bytes], folder: Path, data: st.DataObject) -> None:
    said, tensors = saved
    if data.draw(st.booleans()):
        said = data.draw(mutated(said))
    else:
        tensors = data.draw(rewritten(tensors))
        said = said | {"digest": hashlib.sha256(tensors).hexdigest()}  # of whoever has changed it
    (folder / checkpoint.JSON).write_text(json.dumps(said))
    (folder / checkpoint.TENSORS).write_bytes(tensors)
    tried(lambda: qdexp.load(folder), folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a tiny network: in one file of each format, and an index of two parts."""
    place = tmp_path_factory.mktemp("weights")
    tensors = {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.zeros(4), "norm.weight": torch.ones(4).half()}
    save_file(tensors, place / "one.safetensors")
    torch.save(tensors, place / "one.pth")
    names = list(tensors)
    for number, own in enumerate((names[:1], names[1:])):
        save_file({name: tensors[name] for name in own}, place / f"part-{number}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"part-{int(name != names[0])}.safetensors" for name in names}}
    return {"place": place, "index": index, "tensors": list(load_file(place / "one.safetensors"))}


@pytest.mark.parametrize("kind", ["safetensors", "pth", "index"])
@examples(40)
@given(data=st.data())
def test_any_weights(weights: dict[str, Any], kind: str, data: st.DataObject) -> None:
    place = weights["place"]
    if kind == "index":
        path = place / "diffusion_pytorch_model.safetensors.index.json"
        whole = json.dumps(weights["index"]).encode()
        changed = st.one_of(mutated(weights["index"]).map(lambda tree: json.dumps(tree).encode()), damaged(whole))
    else:
        path, whole = place / f"any.{kind}", (place / f"one.{kind}").read_bytes()
        changed = rewritten(whole) if kind == "safetensors" else damaged(whole)
    path.write_bytes(data.draw(changed))
    option = f"model.weights={path}"

    def look() -> None:
        try:
            found = find(str(place if kind == "index" else path), "")
        except FileNotFoundError:  # becomes one line where the option is known
            return
        held = WeightFiles(found, option)
        for name in held.shapes:
            held.tensor(name)

    tried(look, option)
