"""Conditional models through whole cells: a diffusion transformer, a U-Net with cross-attention, and a network of diffusers
that no config of ours names, which predicts the velocity of a flow."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.protocol import protocol_of
from qdexp.stages.calibration import read_rows

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("model", "method"), [("tiny_dit", "reconstruction"), ("tiny_cross", "qdiffusion")])
def test_a_guided_cell_from_noise_to_record(cell_of: CellOf, conditional: str, model: str, method: str) -> None:
    cell = cell_of(conditional, f"model={model}", f"method={method}", "protocol.guidance=2", "sampler=plms", "protocol.steps=3")
    record = cell.run()
    assert record["status"] == "complete"
    assert record["protocol"]["guidance"] == 2
    assert len(record["curves"]["timestep"]) == 4  # PLMS calls the network once more
    assert all(error > 0 for error in record["curves"]["teacher_forced"])
    assert record["metrics"]["distance"] > 0
    assert record["reconstruction"]["weights"]["block"]
    store = cell.out / "store"
    x_t, t, condition = read_rows(store / cell.stages["calibration"].entry)
    assert len(x_t) == len(t) == 2 * 2 * 4  # timesteps x rows x (as asked, empty)
    labels = condition["class_labels"].view(-1, 2)
    assert set(labels[:, 0].tolist()) == {0, 1, 2}
    assert set(labels[:, 1].tolist()) == {3}
    assert (x_t[::2] == x_t[1::2]).all()
    assert (t[::2] == t[1::2]).all()


def test_calibration_rows_keep_the_class_of_their_sample(cell_of: CellOf, conditional: str) -> None:
    cell = cell_of(conditional, "model=tiny_dit", "method=ptq", "sampler=euler", "protocol.steps=3", "calib.timesteps=1")
    cell.run()
    store = cell.out / "store"
    x_t, t, condition = read_rows(store / cell.stages["calibration"].entry)
    assert len(x_t) == 4  # no guidance: no empty condition
    assert t.is_floating_point()  # Euler's timesteps lie between the whole ones
    walks = [load_file(path)["x_t"][:, -1] for path in sorted((store / cell.stages["trajectory"].entry).glob("shard-*"))]
    for row, label in zip(x_t, condition["class_labels"].tolist(), strict=True):
        (sample,) = [8 * shard + n for shard, walk in enumerate(walks) for n, x in enumerate(walk) if (x == row).all()]
        assert label == sample % 3


@pytest.mark.parametrize(
    ("option", "same"), [("protocol.guidance=1.5", False), ("protocol.classes=[1]", False), ("calib=last", True)]
)
def test_what_is_asked_for_belongs_to_the_protocol(cell_of: CellOf, conditional: str, option: str, same: bool) -> None:
    one, other = (cell_of(conditional, "model=tiny_dit", *options) for options in ((), (option,)))
    assert (protocol_of(one.config)["hash"] == protocol_of(other.config)["hash"]) is same
    assert (one.stages["samples"].inputs["quantization"].key == other.stages["samples"].inputs["quantization"].key) is False


@pytest.mark.parametrize("option", ["protocol.guidance=2", "protocol.classes=[1]"])
def test_an_unconditional_model_is_asked_for_nothing(cell_of: CellOf, option: str) -> None:
    with pytest.raises(UserError, match=r"^protocol\..*tiny is unconditional; leave it out"):
        cell_of(option)


def test_the_ablation_leaves_out_a_method_that_finds_nothing_to_split(qdexp: Command, conditional: str, tmp_path: Path) -> None:
    code, out, _ = qdexp("-m", conditional, "model=tiny_dit", "protocol.guidance=2")
    assert code == 0
    assert "left out qdiffusion w4a8 of tiny_dit: quantizer.steps.split.scope=skip: no convolution" in out
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()]
    assert {record["axes"]["method"] for record in records} == {"fp", "ptq", "timestep_aware", "reconstruction"}
    code, _, err = qdexp("-m", conditional, "model=tiny_dit", "method=reconstruction,qdiffusion")
    assert code == 1
    assert "quantizer.steps.split.scope=skip" in err


def test_so_does_a_study_of_methods(qdexp: Command, conditional: str) -> None:
    code, out, _ = qdexp("-m", conditional, "model=tiny_dit", "experiment=methods", "seed=0", "hydra.launcher.dry=true")
    assert code == 0
    assert out.count("left out qdiffusion") == 1
    assert re.search(r"^sweep .*: 8 cells, ", out, re.M)


def test_a_text_model_without_a_condition_is_refused_before_any_work(cell_of: CellOf) -> None:
    with pytest.raises(UserError, match=r"^model\.condition=null: sd_v1_4 needs encoder_hidden_states"):
        cell_of("model=sd_v1_4", "model.weights=random", "model.condition=null", "sampler=plms")


def test_the_embedded_transformer_draws_what_it_is_asked_for(cell_of: CellOf) -> None:
    options = ("protocol.guidance=2", "protocol.n=40", "protocol.steps=10", "sampling.batch=20")
    cell = cell_of("model=dit_fashion", "method=fp", *options)
    cell.run()
    logits = load_file(cell.out / "store" / cell.stages["features_fashion-cnn"].entry / "features.safetensors")["logits"]
    seen = (logits.argmax(1) == torch.arange(40) % 10).double().mean()
    assert seen > 0.25  # chance: 0.1


def test_a_network_that_no_config_of_ours_names(cell_of: CellOf, conditional: str) -> None:
    """It is called by the name of its timestep, walked on a flow, described before any work, learned block by block."""
    options = (conditional, "model=tiny_sd3", "sampler=flow_euler", "protocol.steps=4", "protocol.guidance=2")
    record = cell_of(*options, "method=reconstruction").run()
    assert record["status"] == "complete"
    assert all(0 < error < 1 for error in record["curves"]["teacher_forced"])
    assert record["coverage"]["quantized"] == {"macs": 1.0, "parameters": 1.0}
    blocks = record["reconstruction"]["weights"]["block"]
    assert [name for name in blocks if "blocks" in name] == ["transformer_blocks.0", "transformer_blocks.1"]
    dynamic = cell_of(*options, "method=ptq", "quant.act.time=dynamic").run()
    assert dynamic["status"] == "complete", "its timestep is known by its name"


def test_a_flow_is_told_from_a_diffusion(cell_of: CellOf, conditional: str) -> None:
    with pytest.raises(
        UserError, match=r"^protocol\.scheduler=\S+DDIM: .*flow.*choose a sampler of flows, such as sampler=flow_euler$"
    ):
        cell_of(conditional, "model=tiny_sd3", "sampler=ddim", "protocol.steps=4")
