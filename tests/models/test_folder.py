"""A model from the JSON files of its folder: what is read, what is refused, and that a cell runs from it."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DModel,
)
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pipelines import save_model
from published import PUBLISHED, Folder

from qdexp import models
from qdexp.cell import preflight
from qdexp.config import Config, Model
from qdexp.config.checks import checked
from qdexp.errors import UserError
from qdexp.metrics.base import SAMPLES
from qdexp.models import checks
from qdexp.models.conditioning import Classes
from qdexp.models.conditions import Condition
from qdexp.models.declared import _arithmetic
from qdexp.models.titles import told_apart
from qdexp.models.weights import find
from qdexp.paths import conf_folder
from qdexp.sampling.shards import read_shards
from qdexp.store import Store
from qdexp.sweep.freeze import distinct, freeze

WEIGHTS = "diffusion_pytorch_model.safetensors"
Read = Callable[..., Config]


@pytest.fixture(scope="module")
def read() -> Iterator[Read]:
    """``read(weights, *options)``: the config of ``model=folder``."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):

        def config(weights: Path | str, *options: str) -> Config:
            arguments = ["model=folder", f"model.weights={weights}", "tracker=none", "device=cpu", *options]
            return freeze(compose("config", arguments, return_hydra_config=True), arguments)

        yield config


@pytest.fixture
def unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        act_fn="gelu",
    )


@pytest.fixture
def saved(unet: UNet2DModel, tmp_path: Path) -> Path:
    """The U-Net and its scheduler in one folder."""
    unet.save_pretrained(tmp_path / "saved")
    DDPMScheduler().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(read: Read, weights: Path | str, *options: str) -> str:
    with pytest.raises(UserError) as error:
        read(weights, *options)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(root: Path, files: Folder, encoders: list[str]) -> None:
    """As published, with the text encoders in the index."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
        if name.endswith("config.json") and "scheduler" not in name:
            (root / name).with_name(WEIGHTS).touch()
    named = {f"text_encoder{'_2' * place}": ["transformers", kind] for place, kind in enumerate(encoders)}
    change(root / "model_index.json", **named)


ENCODERS = {
    "sd": ["CLIPTextModel"],
    "sdxl": ["CLIPTextModel", "CLIPTextModelWithProjection"],
    "pixart": ["T5EncoderModel"],
}


@pytest.mark.parametrize(("name", "files"), PUBLISHED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PUBLISHED)])
def test_published_folders_are_the_models_of_our_own_files(read: Read, tmp_path: Path, name: str, files: Folder) -> None:
    write(tmp_path, files, ENCODERS.get(name.partition("_")[0], []))
    found = read(tmp_path).model
    ours = Config.of(compose("config", [f"model={name}", f"model.weights={tmp_path}"])).model
    assert (found.shape, found.condition, found.guidance, found.prompts) == (
        ours.shape,
        ours.condition,
        ours.guidance,
        ours.prompts,
    )
    assert {**found.schedule, "rescale_betas_zero_snr": False} == {**ours.schedule, "rescale_betas_zero_snr": False}
    assert _arithmetic(models.skeleton(found)) == _arithmetic(models.skeleton(ours))
    assert (found.first_stage is None) == (ours.first_stage is None)
    if found.first_stage is not None and ours.first_stage is not None:
        assert (found.first_stage.scale, found.first_stage.shift) == (ours.first_stage.scale, ours.first_stage.shift)
    checks.declarations(found)


def test_a_cell_of_a_folder_runs_in_full(read: Read, saved: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    """The record holds what was read, which needs the folder's JSON no more."""
    cell = preflight(read(saved, f"out={tmp_path / 'out'}", "scale=smoke"))
    record = cell.run()
    assert record["status"] == "complete" and record["axes"]["model"] == "saved" and record["axes"]["protocol"] == "smoke"
    assert record["config"]["model"]["network"]["act_fn"] == "gelu" and record["config"]["model"]["shape"] == [3, 16, 16]
    assert set(record["metrics"]) >= {"psnr", "ssim"} and "fid" not in record["metrics"]
    for name in ("config.json", "scheduler_config.json"):
        (saved / name).unlink()
    network = models.build(checked(Config, record["config"]).model, channels_last=False)
    for ours, theirs in zip(network.parameters(), unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_equal_content_is_one_cell_wherever_it_lies(read: Read, saved: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "a pipeline")
    first, second, third = (
        preflight(read(place, f"out={tmp_path / 'out'}")).key
        for place in (saved, tmp_path / "a pipeline", tmp_path / "a pipeline" / "unet")
    )
    assert first == second == third
    change(saved / "config.json", act_fn="silu")
    assert preflight(read(saved, f"out={tmp_path / 'out'}")).key != first


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("two words", "two_words"),
        ("böse (1)", "böse_1_"),
        (".hidden", "hidden"),
        ("x" * 200, "x" * 60),
        ("v1.", "v1"),
        ("pipe/unet", "pipe"),
    ],
)
def test_a_folder_gives_its_name(read: Read, saved: Path, tmp_path: Path, place: str, name: str) -> None:
    shutil.copytree(saved, tmp_path / place)
    assert read(f"'{tmp_path / place}'").model.name == name
    assert read(f"'{tmp_path / place}'", "model.name=mine").model.name == "mine"


def test_what_suits_the_model_is_chosen(read: Read, saved: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    assert read(saved).protocol.scheduler == named("dpm_solver")
    assert read(saved, "sampler=ddim").protocol.scheduler == named("ddim")
    assert read(saved, "protocol.steps=7").protocol.steps == 7
    change(saved / "scheduler_config.json", prediction_type="sample")
    assert read(saved).model.schedule["prediction_type"] == "sample"
    v = tmp_path / "v"
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)).save_pretrained(v)
    assert read(v).model.schedule["prediction_type"] == "v_prediction" and read(v).model.schedule["rescale_betas_zero_snr"]
    flow = tmp_path / "flow"
    DDPMPipeline(unet, FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(flow)
    config = read(flow, f"out={tmp_path / 'out'}")
    assert config.model.schedule == {"num_train_timesteps": 1000, "shift": 3.0, "prediction_type": "flow_prediction"}
    assert (config.protocol.scheduler, config.protocol.steps) == (named("flow_euler"), 28)
    preflight(config)


def named(sampler: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(conf_folder() / "sampler" / f"{sampler}.yaml").scheduler)


def test_latents_are_decoded_by_the_autoencoder_beside(read: Read, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "pipe" / "unet")
    shutil.copytree(saved, tmp_path / "pipe" / "scheduler")
    AutoencoderKL(latent_channels=3, scaling_factor=0.5, shift_factor=0.25).save_pretrained(tmp_path / "pipe" / "vae")
    config = read(tmp_path / "pipe", f"out={tmp_path / 'out'}")
    stage = config.model.first_stage
    assert stage is not None and (stage.scale, stage.shift, stage.subfolder) == (0.5, 0.25, "vae")
    assert config.protocol.scheduler == named("dpm_solver_latent")
    preflight(config)


def test_classes_are_those_of_the_network(read: Read, tmp_path: Path) -> None:
    dit = DiTTransformer2DModel(2, 8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=5, norm_num_groups=1)
    dit.save_pretrained(tmp_path / "dit" / "transformer")
    DDPMScheduler().save_pretrained(tmp_path / "dit" / "scheduler")
    config = read(tmp_path / "dit", f"out={tmp_path / 'out'}", "protocol.guidance=2")
    assert config.model.condition is not None and config.model.condition["classes"] == config.model.condition["empty"] == 5
    preflight(config)


def test_labels_of_a_pixel_network_are_drawn_in_turn(read: Read, tmp_path: Path) -> None:
    two = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(16, 1, 1, layers_per_block=1, norm_num_groups=4, num_class_embeds=3, **two)
    network.save_pretrained(tmp_path / "labels")
    DDPMScheduler().save_pretrained(tmp_path / "labels")
    small = ("method=fp", "scale=smoke")
    record = preflight(read(tmp_path / "labels", f"out={tmp_path / 'out'}", *small)).run()
    assert record["status"] == "complete" and record["config"]["model"]["condition"]["classes"] == 3


@pytest.mark.parametrize("name", ["tiny_sd", "tiny_sdxl", "tiny_pixart"])
def test_prompts_are_encoded_as_the_pipeline_says(read: Read, tmp_path: Path, name: str) -> None:
    place = tmp_path / "pipe"
    save_model(name, tmp_path / "conf", place)
    yaml: Any = OmegaConf.to_container(OmegaConf.load(tmp_path / "conf" / "model" / f"{name}.yaml"))
    role, encoders = yaml["subfolder"], ENCODERS[name.removeprefix("tiny_")]
    index = {f"text_encoder{'_2' * i}": ["transformers", kind] for i, kind in enumerate(encoders)}
    for part, target in {role: yaml["network"], "vae": yaml.get("first_stage", {}).get("network", {})}.items():
        if target:
            kind = target.pop("_target_").rpartition(".")[2].replace("PixArtModel", "PixArtTransformer2DModel")
            index[part] = ["diffusers", kind]
            (place / part / "config.json").write_text(json.dumps({"_class_name": kind, **target}))
    (place / "model_index.json").write_text(json.dumps(index))
    DDPMScheduler(prediction_type=yaml["schedule"]["prediction_type"]).save_pretrained(place / "scheduler")
    config = read(place, f"out={tmp_path / 'out'}", "scale=smoke")
    assert config.model.condition == {**yaml["condition"], "weights": str(place)}
    assert config.protocol.guidance == config.model.guidance != 1 and config.protocol.prompts is not None
    preflight(config)


@pytest.mark.parametrize("name", ["ddpm_fashion", "dit_fashion"])
def test_the_embedded_models_from_a_folder_draw_the_same_bits(read: Read, tmp_path: Path, name: str) -> None:
    own = ("scale=smoke", "method=fp", "protocol.n=10", f"out={tmp_path / 'out'}")
    model = Config.of(compose("config", [f"model={name}"])).model
    network: Any = models.build(model, channels_last=False)
    network.save_pretrained(tmp_path / name / ("transformer" if "dit" in name else "unet"))
    DDPMScheduler(**model.schedule).save_pretrained(tmp_path / name / "scheduler")
    cells = [preflight(read(weights, *own, *which)) for weights, *which in (
        (model.weights, f"model={name}", "protocol=quick"), (tmp_path / name, "protocol=quick")
    )]  # fmt: skip
    assert cells[0].key != cells[1].key and cells[0].config.model.name == cells[1].config.model.name
    store = Store(tmp_path / "out")
    images = [torch.cat(list(read_shards(cell.stages[SAMPLES].make(store).folder, "images"))) for cell in cells]
    assert torch.equal(images[0], images[1])


def test_folders_of_one_name_are_told_apart_in_a_sweep(read: Read, saved: Path, tmp_path: Path) -> None:
    places = [tmp_path / "runs" / name / "net" for name in ("a", "b")]
    for place in places:
        shutil.copytree(saved, place)
    change(places[1] / "scheduler_config.json", prediction_type="v_prediction")
    options = ("method=fp", "scale=smoke", "sweep=one", f"out={tmp_path / 'out'}")
    configs = [read(place, *options) for place in (*places, *places, saved)]
    kept = distinct([[f"model.weights={one.model.weights}"] for one in configs], configs)
    assert [cell.config.model.name for _, cell in kept] == ["a_net", "b_net"]  # the last is what the first is
    assert [one.model.name for one in told_apart([read(place, *options, "model.name=mine") for place in places])] == [
        "mine"
    ] * 2


def test_a_name_on_the_hub_is_read_from_its_cache(
    read: Read, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--me--tiny"
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    config = read("me/tiny", f"out={tmp_path / 'out'}")
    assert (config.model.name, config.model.network) == ("tiny", read(saved).model.network)
    preflight(config)
    assert "cannot be fetched" in refused(read, "me/other")


class Ones(Classes):
    """Asks SD3 for class k by embeddings that are k."""

    def encode(self, wanted: Sequence[Any], model: Model, device: torch.device) -> Condition:
        labels = torch.tensor(wanted, dtype=torch.float32)[:, None]
        return {"encoder_hidden_states": labels[:, None].expand(-1, 3, 8), "pooled_projections": labels.expand(-1, 8)}

    def nothing(self, model: Model, device: torch.device) -> Condition:
        return {}


def test_a_condition_of_ones_own_serves_where_none_of_ours_does(read: Read, tmp_path: Path) -> None:
    """SD3, a flow."""
    sd3 = SD3Transformer2DModel(8, 2, 3, 1, 4, 2, joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8,
                                out_channels=3, pos_embed_max_size=8)  # fmt: skip
    sd3.save_pretrained(tmp_path / "sd3" / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "sd3" / "scheduler")
    assert "no text encoders lie beside it" in refused(read, tmp_path / "sd3")
    condition = f"model.condition={{_target_: {__name__}.Ones, classes: 3}}"
    config = read(tmp_path / "sd3", condition, "scale=smoke", "method=fp", f"out={tmp_path / 'out'}")
    assert config.model.shape == [3, 8, 8] and config.protocol.scheduler == named("flow_euler")
    assert preflight(config).run()["status"] == "complete"


def test_what_is_given_wins(read: Read, saved: Path) -> None:
    (saved / "scheduler_config.json").unlink()
    told = refused(read, saved)
    given = told[told.index("model.schedule=") :].replace("'", "")
    assert read(saved, given).model.schedule["beta_end"] == 0.02
    change(saved / "config.json", sample_size=None)
    assert "model.shape=" in refused(read, saved, given)
    assert read(saved, given, "model.shape=[3,8,8]").model.shape == [3, 8, 8]
    assert "says in_channels=3" in refused(read, saved, given, "model.shape=[1,8,8]")
    whole = read(saved, given, "model.shape=[3,8,8]", "model.network={_target_: mine.Net, width: 8}")
    assert whole.model.network == {"_target_": "mine.Net", "width": 8}


@pytest.mark.parametrize(
    "given", ["+model.network.act_fn=silu", "model.schedule={prediction_type: sample}", "model.schedule={beta_end: 0.5}"]
)
def test_what_is_given_must_not_contradict_the_arithmetic(read: Read, saved: Path, tmp_path: Path, given: str) -> None:
    with pytest.raises(UserError, match=r"config.json says .* is "):
        preflight(read(saved, given, f"out={tmp_path / 'out'}"))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"_class_name": "os.system"}, "which is no network of diffusers"),
        ("config.json", {"_class_name": "StableDiffusionPipeline"}, "which is no network of diffusers"),
        ("config.json", {"_class_name": None}, "which is no network of diffusers"),
        ("config.json", {"act_fn": {"_target_": "os.system", "command": "true"}}, "os.system, which may run code"),
        ("config.json", {"act_fn": "${oc.env:HOME}"}, "which may run code or read"),
        ("config.json", {"act_fn": "/etc/passwd"}, "/etc/passwd, which may run code or read"),
        ("config.json", {"in_channels": 4, "out_channels": 3}, "called with more than x_t"),
        ("config.json", {"out_channels": 5}, "or predicts something else"),
        ("config.json", {"sample_size": [16]}, "give model.shape="),
        ("config.json", {"sample_size": 0}, "give model.shape="),
        ("config.json", {"_class_name": "UNet1DModel"}, "no text encoders lie beside it"),
        ("scheduler_config.json", {"prediction_type": "score"}, "has to be one of epsilon, v_prediction, sample"),
        ("scheduler_config.json", {"beta_schedule": "mine"}, "beta_schedule=mine"),
        ("scheduler_config.json", {"num_train_timesteps": "many"}, "num_train_timesteps=many"),
        ("scheduler_config.json", {"beta_start": -1}, "beta_start=-1"),
        ("config.json", {"class_embed_type": "timestep"}, "no condition of qdexp is for that"),
        ("config.json", {"_class_name": "SD3Transformer2DModel"}, "no text encoders lie beside it"),
        ("config.json", {"_class_name": "AutoencoderKL"}, "no text encoders lie beside it"),
        ("scheduler_config.json", {"beta_schedule": {"_target_": "os.system"}}, "os.system, which may run code"),
        ("scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "no betas"),
        (
            "scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "such a path",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(read: Read, saved: Path, file: str, changes: dict[str, Any], said: str) -> None:
    change(saved / file, **changes)
    told = refused(read, saved)
    assert f"model.weights={saved}: {file} " in told
    assert said in told


def test_a_folder_that_is_none_is_refused(read: Read, saved: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(read, tmp_path / "nowhere")
    assert "name a folder" in refused(read, "random")
    assert "is a file" in refused(read, saved / "config.json")
    for raw in ("[]", "", "{"):
        shutil.copytree(saved, tmp_path / "other", dirs_exist_ok=True)
        (tmp_path / "other" / "scheduler_config.json").write_text(raw)
        assert "scheduler_config.json " in refused(read, tmp_path / "other")
    (saved / "config.json").write_text('{"_class_name": "UNet2D')
    assert "no whole JSON file" in refused(read, saved)
    (saved / "config.json").unlink()
    assert "no config.json beside its weights" in refused(read, saved)
    (saved / WEIGHTS).unlink()
    assert "no diffusion_pytorch_model.safetensors or .bin in this folder" in refused(read, saved)


def test_what_diffusers_does_not_know_is_told(read: Read, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(saved / "config.json", of_tomorrow=3, of_yesterday=None)
    assert "of_tomorrow" not in read(saved).model.network
    assert "note: " in (told := capsys.readouterr().out) and "of_tomorrow: unknown to UNet2DModel" in told


def test_other_models_find_their_network_in_a_pipelines_folder(tmp_path: Path, unet: UNet2DModel) -> None:
    """Whatever ``model.subfolder`` says not."""
    unet.save_pretrained(tmp_path / "unet")
    assert find(str(tmp_path), "") == [tmp_path / "unet" / WEIGHTS]
