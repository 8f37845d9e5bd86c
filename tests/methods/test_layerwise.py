"""Steps that change layers and compute the same in full precision: on networks of every kind, in every order, and which layers
they leave alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel
from quant_helpers import conditional
from torch import Tensor, nn

from qdexp.calling import estimate_of
from qdexp.cell import Cell
from qdexp.config import Quant
from qdexp.errors import UserError
from qdexp.methods import Rotate, Smooth, Step, Work
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Batch, call, first_row
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import quantized_layers, split
from qdexp.quant.shortcuts import chosen_sizes

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]
W4A8 = Quant(4, 8, softmax_bits=8, first_last_bits=8)
ROWS = 4


def timesteps() -> Tensor:
    return torch.linspace(0, 900, ROWS).long()


def unet() -> tuple[nn.Module, Batch]:
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(12, 24), norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return network, (torch.randn(ROWS, 1, 8, 8), timesteps())


def split_unet() -> tuple[nn.Module, Batch]:
    network, batch = unet()
    split(network, chosen_sizes(Adapter(network.eval(), first_row(batch)).concatenations, "skip+conv1"))
    return network, batch


def cross() -> tuple[nn.Module, Batch]:
    return conditional(), (torch.randn(ROWS, 4, 8, 8), timesteps(), {"encoder_hidden_states": torch.randn(ROWS, 5, 8)})


def dit() -> tuple[nn.Module, Batch]:
    network = DiTTransformer2DModel(
        sample_size=8,
        in_channels=1,
        patch_size=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=3,
    )
    return network, (torch.randn(ROWS, 1, 8, 8), timesteps(), {"class_labels": torch.arange(ROWS) % 3})


def sd3() -> tuple[nn.Module, Batch]:
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=4, in_channels=1, out_channels=1, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        joint_attention_dim=6, caption_projection_dim=16, pooled_projection_dim=4, pos_embed_max_size=7,
    )  # fmt: skip
    asked = {"encoder_hidden_states": torch.randn(ROWS, 5, 6), "pooled_projections": torch.randn(ROWS, 4)}
    return network, (torch.randn(ROWS, 1, 8, 8), timesteps(), asked)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {one.__name__: one for one in (unet, split_unet, cross, dit, sd3)}
ORDERS: dict[str, Sequence[Step]] = {
    "smooth": [Smooth(alpha=0.5)],
    "search": [Smooth()],
    "rotate": [Rotate()],
    "groups": [Rotate(size=4)],
    "smooth, rotate": [Smooth(alpha=0.5), Rotate()],
    "rotate, smooth": [Rotate(size=8), Smooth(alpha=0.5)],
    "smooth, rotate, smooth": [Smooth(alpha=0.7), Rotate(), Smooth(alpha=0.2)],
}


def built(name: str) -> tuple[nn.Module, Batch]:
    """One of `NETWORKS`, no layer of which gives nothing but zeros: diffusers starts some projections so."""
    network, batch = NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.1)
    return network.eval(), batch


def work_on(network: nn.Module, batch: Batch, quant: Quant = W4A8) -> Work:
    made: Any = None
    return Work(network=network.eval(), quant=quant, model=made, example=first_row(batch), batches=[batch], least=2, seed=0,
                folder=Path(), build=made)  # fmt: skip


def estimate(network: nn.Module, batch: Batch) -> Tensor:
    with torch.inference_mode():
        found: Tensor = estimate_of(call(network, batch))
        return found


def changed_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: layer for name, layer in quantized_layers(network) if layer.changed}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_in_full_precision_nothing_changes(name: str, order: str) -> None:
    network, batch = built(name)
    expected = estimate(network, batch)
    work = work_on(network, batch)
    for step in ORDERS[order]:
        step.apply(work)
    found = estimate(network, batch)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    layers = changed_layers(network)
    left = set(work.adapter.layers) - layers.keys()
    assert len(layers) > 10
    assert {
        work.adapter.layers[-1],
        next(name for name in work.adapter.layers if "conv_in" in name or "pos_embed" in name),
    } <= left
    assert all(len(layer.transforms) == len(ORDERS[order]) for name, layer in layers.items() if layer.weight.shape[1] % 4 == 0)
    assert all(layer.weight_scheme is None and isinstance(layer.input_quantizer, nn.Identity) for layer in layers.values())


def test_a_rotation_mixes_no_parts() -> None:
    network, batch = split_unet()
    Rotate().apply(work_on(network, batch))
    layer: Any = network.get_submodule("up_blocks.0.resnets.0.conv1")
    assert layer.parts == (24, 24)
    assert layer.transforms[0].runs == [(24, 24), (24, 24)]
    x = torch.randn(1, 48, 3, 3)
    x[:, 24:] = 0
    assert not layer.transforms[0](x)[:, 24:].any()


def test_the_seed_draws_the_signs_of_every_layer() -> None:
    found: list[list[Tensor]] = []
    for seed in (0, 0, 1):
        network, batch = unet()
        work = work_on(network, batch)
        work.seed = seed
        Rotate().apply(work)
        rotations: list[Any] = [layer.transforms[0] for layer in changed_layers(network).values()]
        found.append([rotation.signs for rotation in rotations])
    first, again, other = (torch.cat(signs) for signs in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(signs.tolist()) for signs in found[0] if len(signs) == 24}) > 1


@pytest.mark.parametrize("step", [Smooth(alpha=0.5), Rotate()])
def test_what_the_plan_leaves_in_full_precision_is_left_alone(step: Step) -> None:
    network, batch = unet()
    kept = {"*attentions*": {"weight_bits": 32, "act_bits": 32}, "*resnets*": {"act_bits": 32}}
    step.apply(work_on(network, batch, Quant(4, 8, softmax_bits=8, first_last_bits=8, layers=kept)))
    names = changed_layers(network).keys()
    assert not [name for name in names if "attentions" in name]
    assert [name for name in names if "resnets" in name]


@pytest.mark.parametrize("step", [Smooth(alpha=0.5, first_last=True), Rotate(size=2, first_last=True)])
def test_the_first_and_the_last_layer_where_they_are_asked_for(step: Step) -> None:
    network, batch = unet()
    step.apply(work_on(network, batch))
    assert "conv_out" in changed_layers(network)
    assert ("conv_in" in changed_layers(network)) == isinstance(step, Smooth), "one channel has nothing to be mixed with"


def test_convolutions_of_several_groups_are_left_alone() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)
            )

        def forward(self, x: Tensor, t: Tensor) -> Any:
            return self.layers(x)

    for step in (Smooth(alpha=0.5), Rotate()):
        network = Depthwise()
        step.apply(work_on(network, (torch.randn(ROWS, 1, 8, 8), timesteps())))
        assert changed_layers(network).keys() == {"layers.2"}


@pytest.mark.parametrize("step", [Smooth(), Rotate()])
def test_a_step_that_finds_no_layer_says_so(step: Step) -> None:
    network, batch = unet()
    with pytest.raises(UserError, match=f"{type(step).__name__} finds no layer"):
        step.apply(work_on(network, batch, Quant(32, 32, softmax_bits=32, first_last_bits=None)))


BAD = {
    "exponents beyond 1": (["quantizer=smooth", "quantizer.steps.smooth.alpha=1.5"], ["steps.smooth.alpha"]),
    "a word that is none": (["quantizer=smooth", "quantizer.steps.smooth.alpha=best"], ["steps.smooth.alpha"]),
    "no rows": (["quantizer=smooth", "quantizer.steps.smooth.rows=0"], ["steps.smooth.rows"]),
    "a size that is no power of two": (["quantizer=rotate", "quantizer.steps.rotate.size=48"], ["rotate.size=48", "power"]),
    "a size of one": (["quantizer=rotate", "quantizer.steps.rotate.size=1"], ["steps.rotate.size"]),
    "a step that finds nothing": (
        ["quantizer=rotate", "quant.layers={*_*: {weight_bits: 32, act_bits: 32}, conv_*: {weight_bits: 8}}"],
        ["Rotate finds no layer", "first_last: true"],
    ),
    "rotated once the weights are rounded": (
        ["quantizer=gptq", "quantizer.steps.mine={_target_: qdexp.methods.Rotate, before: act}"],
        ["steps.mine", "before: weights"],
    ),
    "smoothed once the activations have ranges": (
        ["quantizer=gptq", "quantizer.steps.mine={_target_: qdexp.methods.Smooth, before: end}"],
        ["steps.mine", "before: act"],
    ),
    "split once the channels are mixed": (
        ["quantizer=rotate", "quantizer.steps.mine={_target_: qdexp.methods.SplitShortcuts, before: weights}"],
        ["steps.mine", "stands after rotate, which makes the rotations"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_before_any_work(qdexp: Command, case: str, tmp_path: Path) -> None:
    options, told = BAD[case]
    code, _, err = qdexp(*options)
    assert code == 1
    assert err.startswith("qdexp: ")
    assert err.count("\n") <= 1
    assert all(part in err for part in told), err
    assert not (tmp_path / "out" / "store").exists()
