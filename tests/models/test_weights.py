"""Where weights may lie, what their files may hold, and random ones."""

import json
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import FirstStage, Model
from qdexp.errors import UserError
from qdexp.metrics.extractors import RANDOM_INCEPTION
from qdexp.metrics.reference import Reference
from qdexp.models import checks
from qdexp.models.compvis import AVERAGE, UNET, unet_name
from qdexp.protocol import protocol_of
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.protocols import protocol_line
from qdexp.report.tables import to_markdown
from qdexp.tracking.mirror import tags

KL = {
    "_target_": "diffusers.AutoencoderKL",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "latent_channels": 2,
}


@pytest.fixture
def tiny(tiny_architecture: dict[str, Any], tmp_path: Path) -> Model:
    return Model("tiny", str(tmp_path), [1, 8, 8], tiny_architecture, {}, subfolder="unet")


def same(network: nn.Module, other: nn.Module) -> bool:
    mine, theirs = network.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def refused(model: Model) -> str:
    with pytest.raises(UserError) as caught:
        models.build(model, channels_last=False)
    text = str(caught.value)
    assert text.startswith(f"model.weights={model.weights}: ") and "\n" not in text
    return text


@pytest.mark.parametrize("subfolder", ["unet", "."])
@pytest.mark.parametrize("form", ["safetensors", "bin", "parts"])
def test_a_diffusers_folder(tiny: Model, tiny_unet: UNet2DModel, tmp_path: Path, form: str, subfolder: str) -> None:
    size = "60KB" if form == "parts" else "1GB"
    tiny_unet.save_pretrained(tmp_path / subfolder, safe_serialization=form != "bin", max_shard_size=size)
    assert (len(models.files(tiny)) > 1) == (form == "parts")
    checks.weights(tiny)
    checks.fit(tiny)
    assert same(models.build(tiny, channels_last=True), tiny_unet)


def test_half_precision_files_fill_a_float_network(tiny: Model, tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in tiny_unet.state_dict().items()}, tmp_path / "half.safetensors")
    network = models.build(replace(tiny, weights=str(tmp_path / "half.safetensors")), channels_last=False)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert same(network, tiny_unet.half().float())


def test_attention_as_older_files_call_it(tiny: Model, tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = tiny_unet.state_dict()
    for new, old in older.items():
        tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    assert not tensors.keys() & {name for name in tiny_unet.state_dict() if ".to_" in name}
    assert same(models.build(tiny, channels_last=False), tiny_unet)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The snapshot folder of me/tiny in an empty cache; the hub itself is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("size", ["1GB", "60KB"])
def test_a_name_on_the_hub_is_looked_up_in_its_cache(tiny: Model, tiny_unet: UNet2DModel, hub: Path, size: str) -> None:
    tiny_unet.save_pretrained(hub / "unet", max_shard_size=size)
    named = replace(tiny, weights="me/tiny")
    assert same(models.build(named, channels_last=False), tiny_unet)
    assert all(path.is_relative_to(hub) for path in models.files(named).values())


def test_missing_weights_are_told_in_one_line(tiny: Model, hub: Path) -> None:
    offered = replace(tiny, weights="me/other", publisher="https://example.org/tiny")
    text = refused(offered)
    assert "no unet/diffusion_pytorch_model.safetensors or .bin in the hub's cache" in text
    assert text.endswith("download them from https://example.org/tiny, or rehearse the run with model.weights=random")
    text = refused(replace(offered, weights="models/tiny.ckpt"))
    assert f"models/tiny.ckpt: no such file in {Path.cwd()}; download" in text


class Evil:
    """Runs a command when it is unpickled, if it is allowed to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Evil(tmp_path / "ran")}, path)
    assert "posix.system, which could run code" in refused(replace(tiny, weights=str(path)))
    path.write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "ran")}))
    refused(replace(tiny, weights=str(path)))
    assert not (tmp_path / "ran").exists()


class Zeros:
    """Unpickled, a gigabyte: the one type that weights_only lets a file make by a number."""

    def __reduce__(self) -> Any:
        return bytearray, (2**30,)


def deflated(path: Path, tensors: Any) -> None:
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


BOMBS: dict[str, Callable[[Path], object]] = {
    "compressed": lambda path: deflated(path, {"a": torch.zeros(10**6)}),
    "made": lambda path: torch.save({"a": torch.zeros(1), "b": Zeros()}, path),
    "made, before zip files": lambda path: torch.save(
        {"a": torch.zeros(1), "b": Zeros()}, path, _use_new_zipfile_serialization=False
    ),
    "one number everywhere": lambda path: torch.save({"conv_in.weight": torch.zeros(1).expand(10**6, 10**6)}, path),
    "sparse": lambda path: torch.save({"a": torch.zeros(3).to_sparse()}, path),
    "no memory": lambda path: torch.save({"a": torch.zeros(3, device="meta")}, path),
    "nested": lambda path: path.write_bytes(b"\x80\x02" + b"(" * 10**6),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_checkpoint_takes_no_more_memory_than_it_has_bytes(tiny: Model, tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.ckpt"
    BOMBS[bomb](path)
    assert path.stat().st_size < 10**6 + 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refused(replace(tiny, weights=str(path)))
    assert "far more memory" in said or "more values than the file" in said or "not a whole checkpoint" in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kB: a quarter of the gigabyte


@pytest.mark.parametrize("parts", ['{"a": "../../secret.safetensors"}', '{"a": "/etc/passwd"}', '{"a": 3}', "{}", "[]", "3"])
def test_an_index_names_files_beside_it(tiny: Model, tmp_path: Path, parts: str) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(f'{{"weight_map": {parts}}}')
    assert "is no index of weights in this folder" in refused(tiny)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_left_in_a_checkpoint_is_no_obstacle(
    tiny: Model, tiny_unet: UNet2DModel, tmp_path: Path, zipped: bool
) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint

    path, score = tmp_path / "last.ckpt", np.float64(0.25)
    left = {ModelCheckpoint: {"best_model_score": torch.tensor(0.1), "best": score}, "more": OrderedDict(a=1)}
    content = {"epoch": 1, "state_dict": tiny_unet.state_dict(), "callbacks": left, "optimizer_states": []}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(models.build(replace(tiny, weights=str(path)), channels_last=False), tiny_unet)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"epoch": 1}}, {"state_dict": 3}, {"state_dict": None}])
def test_a_checkpoint_without_tensors(tiny: Model, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "none.ckpt")
    assert "no named tensors" in refused(replace(tiny, weights=str(tmp_path / "none.ckpt")))


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_a_torn_checkpoint(tiny: Model, tiny_unet: UNet2DModel, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "torn.ckpt"
    torch.save({"state_dict": tiny_unet.state_dict()}, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a whole checkpoint" in refused(replace(tiny, weights=str(path)))


def test_random_weights_are_the_same_every_time(tiny: Model) -> None:
    drawn = replace(tiny, weights="random")
    checks.weights(drawn)
    checks.fit(drawn)
    before = torch.get_rng_state()
    one, other = models.build(drawn, channels_last=False), models.build(drawn, channels_last=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, other) and models.files(drawn) == {}
    assert models.stored_bytes(drawn) == 4 * models.parameters(drawn)
    answer = one(torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]))[0]
    assert answer.isfinite().all() and answer.std() > 1e-3


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_stored_size_is_that_of_the_own_tensors_in_the_dtype_of_the_file(
    tiny: Model, tiny_unet: UNet2DModel, tmp_path: Path, dtype: torch.dtype, ending: str
) -> None:
    """Beside a moving average and another network, as original checkpoints are."""
    own: dict[str, Tensor] = {}
    for name, value in tiny_unet.state_dict().items():
        key = unet_name(name, tiny_unet)  # of q, k and v the same
        own[key] = torch.cat([own[key], value.to(dtype)]) if key in own else value.to(dtype)
    held = {f"{UNET}{name}": value.clone() for name, value in own.items()}
    held |= {AVERAGE + name.replace(".", ""): value.clone() for name, value in own.items()}
    held |= {f"cond_stage_model.{i}.weight": torch.zeros(64, 64, dtype=dtype) for i in range(10)}
    path = tmp_path / f"half.{ending}"
    save_file(held, path) if ending == "safetensors" else torch.save({"state_dict": held}, path)
    stored = models.stored_bytes(replace(tiny, weights=str(path)))
    assert stored == models.parameters(tiny) * torch.zeros(1, dtype=dtype).element_size()


@torch.inference_mode()
def test_a_first_stage_from_its_own_subfolder(tiny: Model, tmp_path: Path) -> None:
    torch.manual_seed(3)
    autoencoder = AutoencoderKL(**{key: value for key, value in KL.items() if key != "_target_"}).eval()
    autoencoder.save_pretrained(tmp_path / "vae")
    model = replace(tiny, weights="random", first_stage=FirstStage(str(tmp_path), KL, scale=0.5, shift=0.25))
    checks.weights(model)
    checks.fit(model)
    decoder = models.first_stage(model)
    assert decoder is not None and not decoder.training
    z = torch.randn(2, 2, 4, 4)
    assert torch.equal(decoder.decode(z), autoencoder.decode(z / 0.5 + 0.25).sample)
    assert list(models.first_stage_files(model).values()) == [tmp_path / "vae" / "diffusion_pytorch_model.safetensors"]
    assert models.first_stage(tiny) is None


@pytest.mark.slow
def test_a_rehearsal_says_so_everywhere(
    cell_of: Callable[..., Cell], capsys: pytest.CaptureFixture[str], executed: Callable[..., list[str]]
) -> None:
    cell = cell_of("model.weights=random")
    assert cell.key != cell_of().key
    record = cell.run()
    assert "(weights: random; no number of this run says anything of tiny)" in capsys.readouterr().out
    assert record["axes"]["weights"] == "random"
    assert "weights: random, a rehearsal" in to_markdown(compare([record], Evidence(cell.out)))
    made = executed()
    cell_of("model.weights=random").run()
    assert executed() == made


def test_the_rehearsal_protocol_needs_no_weights_of_an_extractor(cell_of: Callable[..., Cell]) -> None:
    narrow = [f"model.network.block_out_channels={[32] * 4}".replace(" ", ""), "model=ddim_cifar10", "protocol=rehearsal"]
    cell = cell_of(*narrow, "model.weights=random", "protocol.n=10")
    protocol = protocol_of(cell.config)
    assert (protocol["extractor"], protocol["extractor_digest"]) == ("inception-v3-random", "seed-0")
    assert "features of inception-v3-random seed-0" in protocol_line(protocol)
    Reference.load(Path(cell.config.protocol.reference)).check(RANDOM_INCEPTION)
    assert not cell.stages["fid"].files_outside, "its reference is no file"
    with pytest.raises(UserError, match=r"protocol\.reference was measured with extractor inception-v3-random"):
        cell_of("protocol.reference=random")


@pytest.mark.slow
def test_a_rehearsed_cell_is_whole(cell_of: Callable[..., Cell]) -> None:
    """Nearly all of its time goes into the 2,048 features' Fréchet distance."""
    narrow = [f"model.network.block_out_channels={[32] * 4}".replace(" ", ""), "model=ddim_cifar10", "protocol=rehearsal"]
    cell = cell_of(*narrow, "model.weights=random", "protocol.n=10", "protocol.heldout=4", "trajectory.samples=4")
    record = cell.run()
    assert {"fid", "sfid", "isc", "distance", "noise_error"} <= record["metrics"].keys()
    assert "weights: random, a rehearsal, extractor: random, its scores mean nothing, protocol rehearsal" in to_markdown(
        compare([record], Evidence(cell.out))
    )


@pytest.mark.slow
def test_real_weights_can_be_rehearsed_too_and_the_scores_are_marked(cell_of: Callable[..., Cell]) -> None:
    """Images of one channel, at that."""
    cell = cell_of("protocol.extractor=inception-v3-random", "protocol.reference=random", "method=fp", "protocol.n=10")
    record = cell.run()
    text = to_markdown(compare([record], Evidence(cell.out)))
    assert record["axes"]["weights"] == "file"
    assert record["protocol"]["random_extractor"] is True
    assert "fid" in record["metrics"]
    assert "weights: random" not in text
    assert "tiny, extractor: random, its scores mean nothing, protocol quick" in text
    assert tags(record)[-1] == "extractor: random"


PEAK = """
import json, resource, sys, torch
from qdexp import models
from qdexp.config import Model
from qdexp.cell import Cell
model = Model("wide", sys.argv[1], [3, 32, 32], json.loads(sys.argv[2]), {})
def peak(): return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = peak()
network = models.build(model, channels_last=True)
print(peak() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_loading_holds_the_weights_once(tmp_path: Path, form: str) -> None:
    """1.1 GB of them, at most 1.3 times as much memory."""
    wide = {"_target_": "diffusers.UNet2DModel", "sample_size": 32, "block_out_channels": [224, 448, 672, 896]}
    network = UNet2DModel(**{key: value for key, value in wide.items() if key != "_target_"})
    path = tmp_path / f"wide.{form}"
    if form == "ckpt":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    size = path.stat().st_size
    del network
    done = subprocess.run([sys.executable, "-c", PEAK, str(path), json.dumps(wide)], capture_output=True, text=True, check=True)
    assert size > 1e9
    assert int(done.stdout) < 1.3 * size


def test_tensors_come_some_at_a_time(tiny_unet: UNet2DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdexp.models import weights

    monkeypatch.setattr(weights, "CHUNK", 20_000)
    save_file(tiny_unet.state_dict(), tmp_path / "a.safetensors")
    found = weights.WeightFiles([tmp_path / "a.safetensors"], "here")
    parts: list[dict[str, Tensor]] = list(found.read(found.shapes))
    assert len(parts) > 5
    joined = {name: value for part in parts for name, value in part.items()}
    assert joined.keys() == tiny_unet.state_dict().keys()
    assert all(torch.equal(value, joined[name]) for name, value in tiny_unet.state_dict().items())
