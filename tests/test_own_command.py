"""The command of a user who has a checkpoint and nothing else: each model brings the sampler and the protocol that suit it."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from smaller import changes, config, save_original

from qdexp import overrides
from qdexp.__main__ import main
from qdexp.cell import Cell, preflight
from qdexp.config import Protocol
from qdexp.errors import UserError
from qdexp.models import is_random
from qdexp.paths import conf_folder
from qdexp.report.__main__ import main as report
from qdexp.sweep import launch
from qdexp.sweep.freeze import freeze

Command = Callable[..., tuple[int, str, str]]

MODELS = sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml") if path.stem != "folder")
EMBEDDED = ("ddpm_fashion", "ddpm_fashion_bimodal", "dit_fashion")
CHOSEN = [
    ("", ("quick", "dpm_solver")),
    ("model=ldm_bedroom", ("fidelity", "ddim_latent")),
    ("model=ldm_imagenet", ("fidelity", "ddim_latent")),
    ("model=ddpm_church", ("fidelity", "ddim")),
    ("model=sd_v2_1", ("fidelity", "plms")),
    ("model=sdxl", ("fidelity", "euler")),
    ("model=sdxl sampler=plms", ("fidelity", "plms")),
    ("model=ldm_bedroom protocol=fid5k", ("fid5k", "ddim_latent")),
    ("model=ldm_bedroom protocol=quick sampler=euler", ("quick", "euler")),
    ("experiment=bits model=ldm_church", ("fidelity", "ddim_latent")),
    ("experiment=paper_bedroom", ("fid50k", "ddim_latent")),
    ("experiment=paper_bedroom protocol=fid5k", ("fid5k", "ddim_latent")),
    ("experiment=paper_cifar10 sampler=ddim_latent", ("fid50k", "ddim_latent")),
    ("model=ldm_bedroom model.weights=random", ("rehearsal", "ddim_latent")),
    ("model=ldm_bedroom model.weights=random protocol=fid5k", ("fid5k", "ddim_latent")),
    ("model=ldm_bedroom model.weights=random protocol.extractor=none", ("fidelity", "ddim_latent")),
    ("experiment=paper_sd model.weights=random", ("rehearsal", "plms")),
]


def composed(*arguments: str) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides.completed(arguments), return_hydra_config=True)


@pytest.mark.parametrize(("arguments", "expected"), CHOSEN, ids=[row[0] or "(nothing)" for row in CHOSEN])
def test_what_is_named_wins_over_what_the_model_brings(arguments: str, expected: tuple[str, str]) -> None:
    choices = composed(*arguments.split()).hydra.runtime.choices
    assert (choices.protocol, choices.sampler) == expected


def test_single_values_win_too() -> None:
    one = freeze(composed("model=sd_v1_4", "protocol.steps=7", "protocol.guidance=2", "protocol.n=12", "protocol.prompts=mine"))
    protocol = one.protocol
    assert (protocol.steps, protocol.guidance, protocol.n, protocol.prompts) == (7, 2, 12, "mine")
    assert freeze(composed("model=sd_v1_4", "protocol=fid5k")).protocol.guidance == 7.5
    assert freeze(composed("model=sd_v1_4", "protocol=fid5k")).protocol.prompts is None


@pytest.mark.parametrize("name", [name for name in MODELS if name not in EMBEDDED])
def test_without_the_checkpoint_one_line_says_where_it_belongs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = config(name)
    with pytest.raises(UserError) as caught:
        preflight(freeze(composed(f"model={name}")))
    text = str(caught.value)
    assert text.startswith(f"model.weights={model.weights}: no ")
    assert text.endswith(f"; download them from {model.publisher}, or rehearse the run with model.weights=random")


@pytest.mark.parametrize("name", MODELS)
def test_random_weights_need_nothing_else(name: str) -> None:
    config = freeze(composed(f"model={name}", "model.weights=random"))
    assert is_random(config.model)
    assert (config.protocol.name, config.protocol.extractor) == ("rehearsal", "inception-v3-random")
    if config.model.condition is None or "Classes" in config.model.condition["_target_"]:
        assert config.protocol.prompts is None
    else:
        assert Path(config.protocol.prompts or "").is_file()


def test_each_model_of_a_sweep_brings_its_own(qdexp: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Protocol] = []
    monkeypatch.setattr(launch, "dry", lambda cells, _: seen.extend(cell.config.protocol for cell in cells))
    dry = ["-m", "method=fp", "protocol.steps=5", "hydra.launcher.dry=true"]
    models = ["model=ldm_bedroom,tiny", "model.network.sample_size=8", "model.weights=random"]
    assert qdexp(*dry, *models)[::2] == (0, "")
    assert [(one.name, one.scheduler["_target_"], one.steps) for one in seen] == [
        ("rehearsal", "qdexp.sampling.schedulers.DDIM", 5),
        ("rehearsal", "diffusers.DPMSolverMultistepScheduler", 5),
    ]


def test_a_model_that_says_nothing_is_measured_as_the_embedded_ones(cell_of: Callable[..., Cell]) -> None:
    config = cell_of("model=tiny").config
    assert (config.protocol.name, config.protocol.scheduler["_target_"]) == ("quick", "diffusers.DPMSolverMultistepScheduler")
    assert (config.protocol.guidance, config.protocol.prompts) == (1.0, None)


def narrow(name: str) -> list[str]:
    """What makes a latent diffusion model as small as its checkpoint in these tests."""
    network, stage = changes(name)
    sizes = {"shape": [config(name).shape[0], 8, 8], "network": {"sample_size": 8, **network}}
    return options({**sizes, "first_stage": {"network": stage}})


def options(values: dict[str, Any], prefix: str = "model") -> list[str]:
    """``{"network": {"num_layers": 2}}`` as a command line has it."""
    found: list[str] = []
    for name, value in values.items():
        plain = str(value).replace(" ", "").replace("'", "")
        found += options(value, f"{prefix}.{name}") if isinstance(value, dict) else [f"{prefix}.{name}={plain}"]
    return found


def small_ldm(folder: Path) -> list[str]:
    """Puts the user's checkpoint where conf/model looks for it."""
    weights = folder / config("ldm_bedroom").weights
    weights.parent.mkdir(parents=True)
    save_original("ldm_bedroom", weights, scale=None)  # its authors measured none
    return narrow("ldm_bedroom")


KL = {"network": {"block_out_channels": [32, 32], "layers_per_block": 1, "down_block_types": ["DownEncoderBlock2D"] * 2,
                  "up_block_types": ["UpDecoderBlock2D"] * 2}}  # fmt: skip
LATENT: dict[str, Any] = {"shape": [4, 8, 8], "first_stage": KL}
U_NET: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 32,
}
TRANSFORMER = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
SDXL = {"attention_head_dim": [2, 4], "transformer_layers_per_block": [1, 1], "projection_class_embeddings_input_dim": 1546}
REHEARSED: dict[str, list[str]] = {
    "ddim_cifar10": options({"network": {"block_out_channels": [32] * 4}}),
    "ddpm_bedroom": options({"shape": [3, 64, 64], "network": {"sample_size": 64, "block_out_channels": [32] * 6}}),
    "ldm_bedroom": narrow("ldm_bedroom"),
    "ldm_church": narrow("ldm_church"),
    "ldm_imagenet": [*narrow("ldm_imagenet"), "model.condition.classes=10", "model.condition.empty=10"],
    "sd_v1_4": options({**LATENT, "network": U_NET}),
    "sd_v2_1": options({**LATENT, "network": {**U_NET, "attention_head_dim": [2, 4]}}),
    "sdxl": options({**LATENT, "network": {**U_NET, **SDXL}}),
    "dit_xl_256": options({**LATENT, "network": TRANSFORMER}),
    "pixart_alpha": options({**LATENT, "network": {**TRANSFORMER, "cross_attention_dim": 32, "caption_channels": 32}}),
    "dit_fashion": [],
}
"""Of each family a model, and what makes it 32 wide."""


FEW = "protocol.n=12 protocol.heldout=4 protocol.steps=4 trajectory.samples=4 calib.timesteps=2 calib.rows=4 sampling.batch=4"
LEARNING = "recon.heldout=2 recon.batch=2 recon.weights.iterations=2 recon.scales.iterations=2 inspection.rows=2"


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``typed(*arguments)``: a command line as it stands, without the other tests' options."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, main: Callable[[], None] = main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qdexp", *arguments])
        capsys.readouterr()
        code: str | int | None = None
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return (1, out, err + code) if isinstance(code, str) else (code or 0, out, err)

    return run


def titles(table: str) -> set[str]:
    """Those of the columns."""
    return {title.strip() for title in table.splitlines()[0].split("|")}


@pytest.mark.slow
def test_the_users_command_runs_with_the_checkpoint_alone(typed: Command, tmp_path: Path) -> None:
    """As typed, but for the size of the model and of the run: the whole ladder."""
    narrow, size = small_ldm(tmp_path), [*shlex.split(FEW), *shlex.split(LEARNING), "tracker=none", "sweep=own"]
    command = ["model=ldm_bedroom", "quant=w4a8", *narrow, *size, "-m"]
    code, out, err = typed(*command)
    assert (code, err) == (0, "")
    assert "FID      takes a reference and InceptionV3's weights: protocol=fid5k protocol.reference=FILE" in out
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs" / "records").iterdir()]
    assert {record["axes"]["method"] for record in records} == {
        *("fp", "ptq", "timestep_aware", "reconstruction", "qdiffusion")
    }
    for record in records:
        assert (record["status"], record["axes"]["weights"]) == ("complete", "file")
        assert (record["protocol"]["name"], record["protocol"]["extractor"]) == ("fidelity", "none")
        quantized = record["axes"]["method"] != "fp"
        assert record["metrics"].keys() == {"distance", "size_stored_mb", "size_nominal_mb", "gbops"} | (
            {"psnr", "ssim", "noise_error", "coverage_macs", "coverage_parameters"} if quantized else set()
        )
        assert "fid" not in record["keys"]
    table = (tmp_path / "outputs" / "sweeps" / "own" / "table.md").read_text()
    assert {"PSNR to FP", "SSIM to FP", "noise error x1000", "MSE to FP x1000"} <= titles(table)
    assert "FID" not in table
    assert "12, 4 DDIM steps, no reference: fidelity to full precision alone." in table

    code, _, err = typed("own", main=report)
    assert (code, err) == (0, "")
    folder = tmp_path / "outputs" / "reports" / "own"
    lines = (folder / "table.md").read_text().splitlines()
    assert {"method", "bits", "PSNR to FP", "SSIM to FP", "noise error x1000"} <= titles(lines[0])
    assert any(line.startswith("| ptq ") and " ± " in line for line in lines), "distances have their intervals"
    assert (folder / "index.html").exists()

    for option, message in (
        (
            "protocol=fid5k",
            "protocol.reference=: name a file of statistics (python -m qdexp.metrics.build makes one), or",
        ),
        (
            "protocol=rehearsal protocol.extractor=inception-v3",
            "protocol.extractor=inception-v3 lacks its weights; fetch",
        ),
    ):
        code, out, err = typed("model=ldm_bedroom", "-m", *narrow, *shlex.split(option), "protocol.extractor_weights=none.pth")
        assert (code, out) == (1, "")
        assert err.startswith(f"qdexp: {message}") and err.endswith("protocol.extractor=none") and "\n" not in err


@pytest.mark.slow
@pytest.mark.parametrize("name", REHEARSED)
def test_the_ladder_of_random_weights_passes_the_plan(typed: Command, name: str) -> None:
    """At full width, of each family a model; a few seconds each."""
    code, out, err = typed(f"model={name}", "model.weights=random", "-m", "hydra.launcher.dry=true")
    assert (code, err) == (0, "")
    assert "jobs     " in out


SCORED = ("ddim_cifar10", "ldm_bedroom")
"""Pixels and latents; the others are rehearsed without the Fréchet distance of 2,048 features, which no network changes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REHEARSED)
def test_a_rehearsal_runs_to_its_end(typed: Command, tmp_path: Path, name: str) -> None:
    """Ten seconds each, a few more where it is scored."""
    size = [*shlex.split(FEW), *shlex.split(LEARNING), "tracker=none", "method=reconstruction", "protocol=rehearsal"]
    extractor = [] if name in SCORED else ["protocol.extractor=none"]
    code, out, err = typed("-m", f"model={name}", "model.weights=random", *REHEARSED[name], *size, *extractor)
    assert (code, err) == (0, "")
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "outputs" / "records").iterdir())
    assert (record["status"], record["protocol"]["name"]) == ("complete", "rehearsal")
    assert {"distance", "noise_error", *(["fid"] if name in SCORED else [])} <= record["metrics"].keys()
    assert "weights: random, a rehearsal" in out


def test_the_protocol_without_a_reference_is_another(cell_of: Callable[..., Cell]) -> None:
    one, other = cell_of(), cell_of("protocol.extractor=none")
    assert one.stages.keys() - other.stages.keys() == {"features_fashion-cnn", "fid", "kid", "isc", "precision_recall"}
    assert all(one.stages[name].key == stage.key for name, stage in other.stages.items())
    assert cell_of("protocol.extractor=none", "protocol.reference=''").key == other.key
