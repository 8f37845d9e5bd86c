"""Every family of models through conversion, quantization, saving and loading."""

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from families import FAMILIES, Family
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

import qdexp
from qdexp import models
from qdexp.config import Config
from qdexp.models import checkpoint
from qdexp.models.networks import HeadsUNet2DModel, PixArtModel
from qdexp.paths import conf_folder
from qdexp.quant.adapter import Adapter
from qdexp.quant.attention import quantized_sites
from qdexp.quant.blocks import first_row
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.sampling.conditions import estimate_noise

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@torch.inference_mode()
def answer(family: Family, network: nn.Module) -> Tensor:
    x_t, t, condition = family.batch(network)
    eps: Tensor = network(x_t, t, **condition)[0]
    return eps


@each
def test_a_checkpoint_gives_the_same_network_back(family: Family, tmp_path: Path) -> None:
    network = family.quantized(4, 8, split=family.splits)
    full, before = answer(family, family.network()), answer(family, network)
    assert before.isfinite().all() and 0 < (before - full).norm() < full.norm()
    checkpoint.save(tmp_path / "checkpoint", network, family.architecture)
    again = qdexp.load(tmp_path / "checkpoint")
    assert type(again) is type(network)
    assert torch.equal(answer(family, again), before)


@each
def test_all_layers_and_all_attentions_are_quantized(family: Family) -> None:
    network = family.quantized(8, 8)
    layers = {name for name, _ in quantized_layers(network)}
    kinds = nn.Conv1d | nn.Conv2d | nn.Linear
    assert layers == {name for name, module in network.named_modules() if isinstance(module, kinds)}
    products = [name for name, _ in activation_quantizers(network) if ".quantized_products." in name]
    attentions = {name for name, module in network.named_modules() if isinstance(module, Attention)}
    assert quantized_sites(network).keys() == attentions and len(products) == 4 * len(attentions) > 0
    blocks = Adapter(network, first_row(family.batch(network))).blocks
    assert not [name for name in blocks if name.endswith(("to_q", "conv1"))], "they lie in blocks"


@each
def test_the_condition_matters_where_there_is_one(family: Family) -> None:
    network = family.network()
    x_t, t, condition = family.batch(network)
    if not condition:
        return
    for name, value in condition.items():
        if isinstance(value, Tensor):
            other = {**condition, name: value.roll(1, 0)}
            assert not torch.allclose(network(x_t, t, **other)[0], network(x_t, t, **condition)[0], atol=1e-6), name


def test_learned_variances_are_no_noise() -> None:
    dit = next(family for family in FAMILIES if family.name == "dit")
    network = dit.network()
    x_t, t, condition = dit.batch(network)
    whole = network(x_t, t, **condition)[0]
    assert whole.shape[1] == 8
    network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**condition, **kwargs}), with_kwargs=True)
    assert torch.equal(estimate_noise(network, x_t, t), whole[:, :4])


def test_heads_must_divide_the_channels() -> None:
    church = next(family for family in FAMILIES if family.name == "ldm_church")
    arguments = {key: value for key, value in church.architecture.items() if key != "_target_"}
    network = HeadsUNet2DModel(**arguments)
    assert network.config["num_heads"] == 4
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    assert {module.heads for module in attentions} == {4}
    assert {module.scale for module in attentions} == {4**-0.5, 8**-0.5}
    with pytest.raises(ValueError, match="num_heads=5: it does not divide the 16 channels"):
        HeadsUNet2DModel(**{**arguments, "num_heads": 5})


def test_pixart_can_be_called_as_its_pipeline_calls_it() -> None:
    pixart = next(family for family in FAMILIES if family.name == "pixart")
    network = pixart.network()
    assert isinstance(network, PixArtModel)
    x_t, t, condition = pixart.batch(network)
    by_name = network(x_t, timestep=t, return_dict=False, **condition)[0]
    assert torch.equal(by_name, network(x_t, t, **condition)[0])


@pytest.mark.parametrize("name", sorted({path.stem for path in (conf_folder() / "model").glob("*.yaml")} - {"folder"}))
def test_shapes_of_our_configs_fit_their_networks(name: str) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        model = Config.of(compose("config", [f"model={name}"])).model
    network = models.skeleton(model)
    assert [network.config["in_channels"], network.config["sample_size"], network.config["sample_size"]] == model.shape  # type: ignore[index]
    if model.first_stage is not None:
        stage = model.first_stage.network
        assert stage["latent_channels"] == model.shape[0]
        assert stage["sample_size"] == model.shape[1] * 2 ** (len(stage["block_out_channels"]) - 1)
        assert model.publisher is not None
