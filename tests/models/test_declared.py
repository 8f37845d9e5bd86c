"""What a folder declares of its model: published ones pass, contradictions are told."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from diffusers import AutoencoderKL, UNet2DModel
from hydra import compose, initialize_config_dir
from published import PUBLISHED, Folder
from torch import nn

from qdexp.config import Config, FirstStage, Model
from qdexp.errors import UserError
from qdexp.models import checks
from qdexp.paths import conf_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


@pytest.fixture(scope="module")
def model_of() -> Iterator[Callable[..., Model]]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield lambda *options: Config.of(compose("config", list(options))).model


def write(root: Path, folder: Folder) -> None:
    """The files, and weights beside every ``config.json``: nothing looks into them here."""
    for name, content in folder.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
        if name.endswith("config.json") and "scheduler" not in name:
            (root / name).with_name(WEIGHTS).touch()


def told(model: Model) -> str:
    """What is refused; "" where nothing is."""
    try:
        checks.declarations(model)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(("name", "folder"), PUBLISHED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PUBLISHED)])
def test_published_folders_are_what_our_configs_say(
    model_of: Callable[..., Model], tmp_path: Path, name: str, folder: Folder
) -> None:
    write(tmp_path, folder)
    assert told(model_of(f"model={name}", f"model.weights={tmp_path}")) == ""


Change = Callable[[str, dict[str, Any]], Model]


@pytest.fixture
def saved(tiny_architecture: dict[str, Any], tmp_path: Path) -> Change:
    """``saved(file, changes)``: the tiny U-Net and an autoencoder in a diffusers folder, names in one file changed."""
    kl = {"_target_": "diffusers.AutoencoderKL", "norm_num_groups": 32}
    UNet2DModel(**{key: value for key, value in tiny_architecture.items() if key != "_target_"}).save_pretrained(
        tmp_path / "unet"
    )
    AutoencoderKL().save_pretrained(tmp_path / "vae")
    write(tmp_path, {SCHEDULER: {"_class_name": "DDIMScheduler", **SCHEDULE}})
    stage = FirstStage(str(tmp_path), kl, scale=0.18215)
    model = Model("tiny", str(tmp_path), [1, 8, 8], tiny_architecture, dict(SCHEDULE), "unet", first_stage=stage)

    def change(file: str, changes: dict[str, Any]) -> Model:
        content = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
        write(tmp_path, {file: {**content, **changes}})
        return model

    return change


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (UNET, {}),
        (UNET, {"sample_size": 64, "dropout": 0.5, "_diffusers_version": "0.0.4", "_name_or_path": "elsewhere"}),
        (UNET, {"num_class_embeds": None, "resnet_time_scale_shift": "default", "unheard_of": 3}),
        (UNET, {"_class_name": "FlaxUNet2DModel"}),
        (UNET, {"mid_block_scale_factor": 1, "norm_eps": 1e-5, "attn_norm_num_groups": None}),
        (SCHEDULER, {"clip_sample": False, "steps_offset": 1, "prediction_type": "epsilon"}),
        (SCHEDULER, {"trained_betas": [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]}),
        (SCHEDULER, {"_class_name": "FlaxPNDMScheduler", "trained_betas": None}),
        (SCHEDULER, {"_class_name": "DPMSolverSDEScheduler"}),
        (SCHEDULER, {"_class_name": "OfMyOwn", "rescale_betas_zero_snr": False}),
        (VAE, {"sample_size": 512, "force_upcast": False, "shift_factor": None, "latents_mean": None}),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"], "vae": ["diffusers", "AutoencoderKL"]}),
    ],
)
def test_what_changes_no_number_passes(saved: Change, file: str, changes: dict[str, Any]) -> None:
    assert told(saved(file, changes)) == ""


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (UNET, {"act_fn": "relu"}, "act_fn=relu, model.network.act_fn is silu"),
        (UNET, {"norm_num_groups": 8}, "norm_num_groups=8, model.network.norm_num_groups is 4"),
        (UNET, {"attention_head_dim": None}, "attention_head_dim=null, model.network.attention_head_dim is 8"),
        (UNET, {"center_input_sample": True}, "center_input_sample=true, model.network.center_input_sample is false"),
        (UNET, {"norm_eps": 1e-6}, "norm_eps=1e-06, model.network.norm_eps is 1e-05"),
        (UNET, {"block_out_channels": [8, 8]}, "block_out_channels=[8, 8], model.network.block_out_channels is [8, 16]"),
        (UNET, {"_class_name": "UNet2DConditionModel"},
         "_class_name=UNet2DConditionModel, model.network._target_ is diffusers.UNet2DModel"),
        (SCHEDULER, {"prediction_type": "v_prediction"},
         "prediction_type=v_prediction, model.schedule.prediction_type is epsilon"),
        (SCHEDULER, {"beta_end": 0.03}, "beta_end=0.03, model.schedule.beta_end is 0.02"),
        (SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule=squaredcos_cap_v2, model.sch"),
        (SCHEDULER, {"num_train_timesteps": 500}, "num_train_timesteps=500, model.schedule.num_train"),
        (SCHEDULER, {"trained_betas": [0.1] * 1000}, "trained_betas=[0.1, 0.1,"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=true, model.schedule.res"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler, which"),
        (SCHEDULER, {"beta_schedule": "none"}, "describes no noise schedule"),
        (VAE, {"scaling_factor": 0.5}, "scaling_factor=0.5, model.first_stage.scale is 0.18215"),
        (VAE, {"shift_factor": 0.1}, "shift_factor=0.1, model.first_stage.shift is 0.0"),
        (VAE, {"latents_mean": [0.1] * 4}, "latents_mean=[0.1, 0.1, 0.1, 0.1], model.first_stage is one scale"),
        (VAE, {"act_fn": "relu"}, "act_fn=relu, model.first_stage.network.act_fn is silu"),
        (VAE, {"_class_name": "VQModel"}, "_class_name=VQModel, model.first_stage.network._target_ is diffusers"),
    ],
)  # fmt: skip
def test_a_contradiction_names_file_option_and_both_values(
    saved: Change, file: str, changes: dict[str, Any], message: str
) -> None:
    text = told(saved(file, changes))
    option = "model.first_stage.weights" if file.startswith("vae") else "model.weights"
    assert text.startswith(f"{option}") and file in text and message in text


def test_several_are_counted(saved: Change) -> None:
    saved(SCHEDULER, {"prediction_type": "sample", "beta_end": 0.03})
    text = told(saved(UNET, {"act_fn": "relu", "norm_eps": 1e-6, "freq_shift": 1}))
    assert text.count(" says ") == 3 and "; and 2 more; give these options the folder's values, or name the folder" in text


def test_the_class_in_the_pipelines_index_counts_where_the_config_has_none(saved: Change, tmp_path: Path) -> None:
    model = saved("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]})
    assert told(model) == ""
    content = json.loads((tmp_path / UNET).read_text())
    del content["_class_name"]
    (tmp_path / UNET).write_text(json.dumps(content), encoding="utf-8-sig")
    assert "_class_name=UNet2DConditionModel" in told(model)


def test_the_networks_folder_and_the_file_in_it_are_known_by_what_lies_beside(saved: Change, tmp_path: Path) -> None:
    saved("model_index.json", {"unet": ["diffusers", "UNet2DModel"]})
    model = saved(SCHEDULER, {"beta_end": 0.03})
    alone = [replace(model, weights=str(tmp_path / place)) for place in ("unet", f"unet/{WEIGHTS}")]
    assert all("scheduler/scheduler_config.json says beta_end=0.03" in told(one) for one in alone)
    (tmp_path / "unet" / WEIGHTS).rename(tmp_path / "unet" / "mine.safetensors")
    assert told(replace(model, weights=str(tmp_path / "unet/mine.safetensors"))) == ""


def test_a_name_on_the_hub(saved: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = replace(saved(UNET, {"act_fn": "relu"}), weights="me/tiny")
    snapshots = tmp_path / "cache" / "models--me--tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tmp_path, snapshots / ("0" * 40), ignore=shutil.ignore_patterns("cache"))
    assert told(model).startswith("model.weights=me/tiny: unet/config.json says act_fn=relu, ")


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_broken_file_is_named(saved: Change, tmp_path: Path, text: str) -> None:
    model = saved(UNET, {})
    (tmp_path / UNET).write_text(text)
    assert UNET in told(model) and told(model).endswith("; fetch it again")


class Mine(nn.Module):
    """A network of a user's own: of what its arguments mean, nothing is known."""

    def __init__(self, act_fn: str) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}, ""), ({"_class_name":
        "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "says shift=1.0, model.schedule.shift is 3.0"), ({"_class_name":
        "DDIMScheduler", "prediction_type": "epsilon"}, "prediction_type=epsilon, model.schedule.prediction_type"),
    ],
)  # fmt: skip
def test_the_schedule_of_a_flow(model_of: Callable[..., Model], tmp_path: Path, said: dict[str, Any], expected: str) -> None:
    write(tmp_path, {"scheduler/scheduler_config.json": said, "unet/config.json": {"_class_name": "UNet2DModel"}})
    schedule = {"num_train_timesteps": 1000, "shift": 3.0, "prediction_type": "flow_prediction"}
    model = replace(model_of("model=ddpm_fashion"), schedule=schedule, weights=str(tmp_path), subfolder="unet")
    assert expected in told(model) and bool(expected) == bool(told(model))


def test_of_a_network_of_ones_own_only_the_schedule_is_compared(saved: Change) -> None:
    model = replace(saved(UNET, {"act_fn": "relu"}), network={"_target_": f"{__name__}.Mine", "act_fn": "silu"})
    assert told(model) == ""
    assert "beta_end=0.03" in told(replace(saved(SCHEDULER, {"beta_end": 0.03}), network=model.network))


def test_random_weights_have_no_folder(saved: Change) -> None:
    model = saved(UNET, {"act_fn": "relu"})
    assert model.first_stage is not None
    assert told(replace(model, weights="random")) == ""
