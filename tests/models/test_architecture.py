"""What a hostile checkpoint may do: nothing."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from omegaconf import OmegaConf
from processes import Python
from quant_helpers import output, quantized
from torch import nn

import qdexp
from qdexp import files
from qdexp.errors import UserError
from qdexp.models import architecture, checkpoint
from qdexp.paths import conf_folder

TINY_UNET: dict[str, Any] = {
    "_target_": "diffusers.UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "dropout": 0.1,
}
"""The network of `tiny_unet`."""


class Command:
    """Unpickled, it runs a command of the shell."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.fixture
def saved(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "downloaded", quantized(tiny_unet, 4, 8), tiny_architecture)
    return tmp_path / "downloaded"


@pytest.fixture
def describe(saved: Path) -> Callable[[dict[str, Any]], Path]:
    """The checkpoint, its network described as somebody else likes."""

    def described(network: dict[str, Any]) -> Path:
        content = checkpoint.metadata(saved) | {"architecture": network}
        files.write_sealed(saved / checkpoint.JSON, content)
        return saved

    return described


Describe = Callable[[dict[str, Any]], Path]


FIDELITY = "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3"
PICKLED = {"name": "net", "features_list": ["64"], "feature_extractor_weights_path": "evil.pth"}
SYSTEM = {"_target_": "os.system", "command": "touch ran"}
DIT = "diffusers.DiTTransformer2DModel"
HOSTILE: dict[str, dict[str, Any]] = {
    "a pickle": {"_target_": FIDELITY, **PICKLED},
    "a module beside it": {"_target_": "innocent.Net"},
    "a function": SYSTEM,
    "a nested function": {**TINY_UNET, "dropout": SYSTEM},
    "a function deep in lists": {**TINY_UNET, "block_out_channels": [8, [{"deep": [SYSTEM]}]]},
    "a partial function": {**SYSTEM, "_partial_": True},
    "not recursive": {**TINY_UNET, "_recursive_": False, "dropout": SYSTEM},
    "positional": {"_target_": "os.system", "_args_": ["touch ran"]},
    "a constructor by another name": {"_target_": "diffusers.UNet2DModel.from_pretrained", "path": "innocent"},
    "behind a module of diffusers": {"_target_": "diffusers.utils.import_utils.importlib.import_module", "name": "innocent"},
    "behind a listed module": {"_target_": "diffusers.models.attention_dispatch.importlib.import_module", "name": "innocent"},
    "behind a module of ours": {"_target_": "qdexp.models.networks.nn.Identity"},
    "a model that is no network": {"_target_": "diffusers.AutoModel"},
    "a pipeline": {"_target_": "diffusers.DDPMPipeline"},
    "a module of torch": {"_target_": "torch.nn.Identity"},
    "a path": {**TINY_UNET, "act_fn": "/etc/passwd"},
    "a file beside it": {**TINY_UNET, "act_fn": "evil.pth"},
    "a path in a list": {**TINY_UNET, "down_block_types": ["DownBlock2D", "~evil"]},
    "a path as a key": {**TINY_UNET, "act_fn": {"../evil": 1}},
    "a number": {"_target_": 3},
    "nothing": {"sample_size": 8},
    "an empty name": {"_target_": ""},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_checkpoint_names_is_not_run_imported_or_opened(
    describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Each of these, believed, would write the file `ran`, or open another."""
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Command("touch ran")))
    (tmp_path / "innocent.py").write_text("open('ran', 'w')\nclass Net: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"checkpoint .*downloaded") as error:
        qdexp.load(describe(HOSTILE[case]))
    assert not (tmp_path / "ran").exists()
    assert "innocent" not in sys.modules
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "${zoo:fashion_cnn}", "???"])
def test_interpolations_are_texts(describe: Describe, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SECRET", "silu")
    network = qdexp.load(describe({**TINY_UNET, "resnet_time_scale_shift": "default", "center_input_sample": text}))
    assert network.config["center_input_sample"] == text  # type: ignore[index]


class Inner(nn.Module):
    """An argument that is a module itself."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(x, self.slope)


class Net(nn.Module):
    """A user's network: a nested module, and a file that its constructor opens."""

    def __init__(self, between: nn.Module, scale: str) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(*channels, 3, padding=1) for channels in ((1, 4), (4, 1)))
        self.between, self.scale = between, float(Path(scale).read_text())

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.scale * self.last(self.between(self.first(x))),)


def test_what_is_trusted_is_loaded_and_the_error_says_how(tmp_path: Path) -> None:
    file = str(tmp_path / "scale.txt")
    Path(file).write_text("0.5")
    described = {"_target_": f"{__name__}.Net", "between": {"_target_": f"{__name__}.Inner", "slope": 0.1}, "scale": file}
    network = quantized(Net(Inner(0.1), file), 4, 8)
    checkpoint.save(tmp_path / "mine", network, described)
    needed = [f"{__name__}.Net", f"{__name__}.Inner", file]
    for missing in needed:
        with pytest.raises(UserError) as error:
            qdexp.load(tmp_path / "mine", trust=[text for text in needed if text != missing])
        assert f"qdexp.load(..., trust={[missing]})" in str(error.value)
    assert torch.equal(output(qdexp.load(tmp_path / "mine", trust=needed)), output(network))
    assert architecture.named(described) == set(needed)


def test_one_name_is_enough_where_there_is_one(tmp_path: Path) -> None:
    plain = {"_target_": "torch.nn.Sequential"}
    with pytest.raises(UserError, match=r"trust=\['torch.nn.Sequential'\]"):
        architecture.build(plain, (), 0, 0)
    assert isinstance(architecture.build(plain, ["torch.nn.Sequential"], 0, 0), nn.Sequential)
    with pytest.raises(UserError, match="makes no"):
        architecture.build({"_target_": "builtins.dict"}, ["builtins.dict"], 0, 0)


def test_our_models_need_no_trust() -> None:
    for path in (conf_folder() / "model").glob("*.yaml"):
        network = OmegaConf.to_container(OmegaConf.load(path)).get("network", {})  # type: ignore[union-attr]
        names = {text for text in architecture.named(network) if not architecture.is_listed(text)}
        assert not names, path


GREEDY: dict[str, dict[str, Any]] = {
    "wide": {**TINY_UNET, "block_out_channels": [2**15, 2**15]},
    "far too wide": {**TINY_UNET, "block_out_channels": [2**40, 2**40]},
    "deep": {**TINY_UNET, "layers_per_block": 10**9},
    "many classes": {**TINY_UNET, "num_class_embeds": 2**34},
    "a large buffer": {"_target_": DIT, "sample_size": 2**16, "num_layers": 1},
    "many blocks": {**TINY_UNET, "block_out_channels": [4] * 50_000, "down_block_types": ["DownBlock2D"] * 50_000,
                    "up_block_types": ["UpBlock2D"] * 50_000},
    "a float": {**TINY_UNET, "layers_per_block": 1e400},
}  # fmt: skip
MEASURE = """
import json, resource, sys, time
import qdexp
from qdexp import files
from qdexp.errors import UserError
from qdexp.models import checkpoint
qdexp.load(sys.argv[1])
content = checkpoint.metadata(sys.argv[1])
told = {}
for name, network in json.load(open(sys.argv[2])).items():
    files.write_sealed(checkpoint.Path(sys.argv[1]) / checkpoint.JSON, content | {"architecture": network})
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        qdexp.load(sys.argv[1])
    except UserError as error:
        said = str(error)
    told[name] = [said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, time.process_time() - start]
print(json.dumps(told))
"""


def test_numbers_take_no_more_memory_than_the_file_needs(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "greedy.json").write_text(json.dumps(GREEDY))
    (tmp_path / "measure.py").write_text(MEASURE)
    told = json.loads(Python(["measure.py", str(saved), str(tmp_path / "greedy.json")], tmp_path).wait().stdout)
    assert told.keys() == GREEDY.keys()
    for name, (said, megabytes, seconds) in told.items():
        assert "cannot be read" in said, name
        assert megabytes < 150, (name, megabytes)
        assert seconds < 20, (name, seconds)
