"""What is quantized of networks of any kind, and what is said of it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from foreign import ATTENTION, ENDS, MIDDLE, PRODUCTS, REPARAMETRIZED, Sandwich, conv
from quant_helpers import batches, output
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.folding import fold
from qdexp.models import checkpoint
from qdexp.quant import MinMax, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import first_row
from qdexp.quant.coverage import Coverage, Wanted, known_bits
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.macs import count
from qdexp.quant.network import LayerBits, verify_weights

ROW = first_row(batches()[0])


def quantized(
    network: nn.Module, weight_bits: int = 4, act_bits: int = 8, softmax_bits: int = 8, layers: dict | None = None
) -> Coverage:
    """Quantizes the network in place."""
    fold(network)
    adapter = Adapter(network, ROW)
    plan = plan_bits(network, adapter.layers, weight_bits, act_bits, layers=layers)
    convert(network, plan, adapter.sites, softmax_bits=softmax_bits)
    quantize_weights(network, MinMax(), nearest)
    verify_weights(network, ROW)
    observe_activations(network, batches(), MinMax())
    wanted = Wanted(plan, adapter.sites, LayerBits(weight_bits, act_bits), softmax_bits)
    return Coverage(network, count(network, ROW), known_bits(network), wanted)


def total(found: Coverage) -> int:
    return found.macs.total()


def test_all_of_a_unet(tiny_unet: UNet2DModel) -> None:
    parameters = sum(value.numel() for value in tiny_unet.parameters())
    weights = sum(m.weight.numel() for m in tiny_unet.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    found = quantized(tiny_unet)
    assert found.parameters.total() == parameters and found.parameters["full"] == parameters - weights
    assert found.macs.keys() == {"w4a8", "w8a8", "a8a8"}
    assert found.share("macs") == found.share("parameters") == 1
    assert found.left_out.keys() == {"GroupNorm", "biases"}
    assert found.weights == 0 and found.warning("w4a8") is None
    found.require_any("w4a8")


@pytest.mark.parametrize(
    ("bits", "labels"),
    [
        ((4, 32, 8), {"w4a32", "w8a32", "full"}),
        ((32, 8, 8), {"w32a8", "a8a8"}),
        ((4, 8, 32), {"w4a8", "w8a8", "a8a8", "a8a32", "a32a8"}),
    ],
)
def test_what_bits_leave_alone_is_not_asked_for(tiny_unet: UNet2DModel, bits: tuple[int, int, int], labels: set[str]) -> None:
    found = quantized(tiny_unet, *bits)
    assert set(found.macs) <= labels
    assert found.share("macs") == 1 and found.warning("") is None


def test_nor_is_what_quant_layers_leaves_alone(tiny_unet: UNet2DModel) -> None:
    untouched = {"weight_bits": 32, "act_bits": 32}
    found = quantized(tiny_unet, layers={"mid_block*": untouched})
    assert found.share("macs") == found.share("parameters") == 1
    assert found.macs["full"] > 0 and found.weights > 0
    assert {"Conv2d, by quant", "Linear, by quant", "products of two activations, by quant"} <= found.left_out.keys()
    with pytest.raises(UserError, match=r"^model\.network: nothing of it would be quantized at w4a8.*Conv2d, by quant"):
        quantized(
            UNet2DModel(**{k: v for k, v in tiny_unet.config.items() if not k.startswith("_")}), layers={"*": untouched}
        ).require_any("w4a8")


@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_reparametrized_weights_are_folded_and_quantized(name: str) -> None:
    network: Any = Sandwich(REPARAMETRIZED[name]()).eval()
    before = output(network)
    fold(network)
    assert torch.equal(output(network), before)
    found = quantized(network, 2, 32)
    assert found.macs == {"w2a32": MIDDLE, "w8a32": 2 * ENDS}
    assert not torch.allclose(output(network), before, rtol=1e-3)
    assert len(network.mid.weight[0].unique()) <= 4


def test_a_weight_that_is_drawn_at_each_call_is_left_out() -> None:
    found = quantized(Sandwich(foreign.parametrized(foreign.Noisy())))
    assert found.macs["full"] == MIDDLE
    ((kind, which),) = ((kind, which) for kind, which in found.left_out.items() if which.macs)
    assert kind == "ParametrizedConv2d, a weight computed at each call" and list(which.names) == ["mid"]


def test_a_weight_that_a_hook_writes_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.network: mid computes with other weights than those that were quantized"):
        quantized(Sandwich(foreign.rewriting()))


@pytest.mark.parametrize("kind", [foreign.Renamed, foreign.Logging, foreign.Scaled])
def test_subclasses_that_compute_the_same_are_quantized_and_stay_what_they_are(kind: type[nn.Module], tmp_path: Path) -> None:
    network, plain = Sandwich(conv(kind)), Sandwich(conv())
    plain.load_state_dict(network.state_dict())
    assert quantized(network).macs == quantized(plain).macs == {"w4a8": MIDDLE, "w8a8": 2 * ENDS}
    assert torch.equal(output(network), output(plain))
    assert isinstance(network.mid, kind) and isinstance(network.mid, QuantizedLayer)
    assert isinstance(copy.deepcopy(network).mid, kind)


class Halved(nn.Module):
    """Hands more to its layer than an input."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner = conv(kind)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, scale=0.5)
        return y


def test_it_is_the_call_that_tells_whether_a_subclass_computes_the_same() -> None:
    assert quantized(Sandwich(Halved(foreign.Logging))).share("macs") == 1
    found = quantized(Sandwich(Halved(foreign.Scaled)))
    assert (found.macs["full"], next(iter(found.left_out))) == (MIDDLE, "Scaled")
    assert found.share("macs") == pytest.approx(2 * ENDS / total(found))


def test_the_forward_of_an_object_counts_as_an_overridden_one() -> None:
    same = Sandwich(foreign.replaced(lambda layer, x: F.conv2d(x, layer.weight, layer.bias, padding=1)))
    assert quantized(same).share("macs") == 1
    assert isinstance(same.mid, QuantizedLayer) and "forward" not in vars(same.mid)
    tiled = foreign.replaced(lambda layer, x: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), layer.weight, layer.bias))
    assert quantized(Sandwich(tiled)).macs["full"] == MIDDLE


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_does_not_hide_the_grid(mode: str) -> None:
    assert quantized(Sandwich(conv(padding_mode=mode))).macs == {"w4a8": MIDDLE, "w8a8": 2 * ENDS}


LEFT: dict[str, tuple[Callable[[], nn.Module], str, str, int]] = {
    "weight standardization": (
        lambda: conv(foreign.Standardized),
        "Standardized, a weight computed at each call",
        "mid",
        MIDDLE,
    ),
    "magnitude preserving": (foreign.MagnitudePreserving, "MagnitudePreserving, a weight computed at each call", "mid", MIDDLE),
    "packed elsewhere": (foreign.FromBuffers, "FromBuffers, a weight computed at each call", "mid", MIDDLE),
    "functional": (lambda: foreign.Functional(called=False), "Conv2d, its weight used outside of it", "mid.inner", MIDDLE),
    "Conv3d": (foreign.Volume, "Conv3d", "mid.inner", MIDDLE),
    "transposed": (lambda: conv(nn.ConvTranspose2d), "ConvTranspose2d", "mid", MIDDLE),
    "tied": (foreign.Tied, "Tied", "mid", MIDDLE),
}


@pytest.mark.parametrize("case", LEFT)
def test_other_kinds_are_listed_and_warned_of(case: str) -> None:
    make, kind, name, macs = LEFT[case]
    found = quantized(Sandwich(make()))
    multiplied = {kind: which for kind, which in found.left_out.items() if which.macs}
    assert {kind: (list(which.names), which.macs) for kind, which in multiplied.items()} == {kind: ([name], macs)}
    assert found.macs["full"] == macs
    assert found.share("macs") == pytest.approx(1 - macs / total(found))
    warning = found.warning("w4a8")
    assert warning is not None and f"{kind}: {name}" in warning and "\n" not in warning


def test_a_quantized_weight_that_is_used_outside_of_its_layer_is_the_quantized_one() -> None:
    network = Sandwich(foreign.Functional(called=True))
    found = quantized(network)
    assert found.macs == {"w4a8": MIDDLE, "w4a32": MIDDLE, "w8a8": 2 * ENDS}
    assert next(iter(found.left_out)) == "Conv2d, its weight used outside of it, only w4a32"
    assert found.share("macs") == pytest.approx((MIDDLE + 2 * ENDS) / total(found))
    assert found.share("parameters") == 1


def test_a_low_rank_branch_is_quantized_like_the_layer() -> None:
    assert quantized(Sandwich(foreign.LowRank())).share("macs") == 1


@pytest.mark.parametrize("name", sorted(ATTENTION.keys() - {"one by one"}))
def test_attention_by_hand_is_quantized(name: str) -> None:
    found = quantized(Sandwich(foreign.Attends(ATTENTION[name])))
    assert found.macs == {"w4a8": 64 * 8 * 24, "w8a8": 2 * ENDS, "a8a8": PRODUCTS}
    assert "products of two activations" not in found.left_out and found.share("macs") == 1


def test_attention_that_multiplies_as_often_as_there_are_rows_stays_in_full_precision_and_is_listed() -> None:
    found = quantized(Sandwich(foreign.Attends(ATTENTION["one by one"])))
    assert found.macs == {"w4a8": 64 * 8 * 24, "w8a8": 2 * ENDS, "full": PRODUCTS}
    assert list(found.left_out["products of two activations"].names) == ["mid"]
    assert found.share("macs") == pytest.approx(1 - PRODUCTS / total(found))


def test_attention_whose_forward_somebody_has_set_stays_in_full_precision_and_is_listed() -> None:
    network: Any = Sandwich(foreign.Attends(ATTENTION["fused"]))
    attends = network.mid.forward
    network.mid.forward = lambda x: attends(x)
    found = quantized(network)
    assert found.macs == {"w4a8": 64 * 8 * 24, "w8a8": 2 * ENDS, "full": PRODUCTS}
    assert list(found.left_out["products of two activations"].names) == ["mid"]
    assert found.share("macs") == pytest.approx(1 - PRODUCTS / total(found))


def test_attention_of_torch_itself() -> None:
    """Its fast path would read the weights of layers without calling them."""
    network: Any = Sandwich(foreign.TorchAttention())
    found = quantized(network)
    assert found.macs == {"w4a8": 2 * 64 * 8 * 16, "w8a8": 2 * ENDS, "a8a8": PRODUCTS, "full": 64 * 8 * 32}
    assert {kind: which.macs for kind, which in found.left_out.items() if which.macs} == {
        "MultiheadAttention": 64 * 8 * 24,
        "NonDynamicallyQuantizableLinear, its weight used outside of it": 64 * 8 * 8,
    }
    before = output(network)
    network.mid.inner.linear1.input_quantizer.scale.mul_(4)
    assert not torch.equal(output(network), before)


class Keeps(nn.Module):
    """Draws a buffer that is not persistent, and has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv()
        self.register_buffer("phases", torch.randn(8, 1, 1), persistent=False)
        self.shift = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x + self.phases) + self.shift  # type: ignore[operator]
        return y


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "keeps": Keeps,
    "logging": lambda: conv(foreign.Logging),
    "standardized": lambda: conv(foreign.Standardized),
    "transformer": foreign.TorchAttention,
    "attention by hand": lambda: foreign.Attends(ATTENTION["einsum"]),
    "batch norm": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8)),
} | REPARAMETRIZED


class Made(Sandwich):
    """By name, as a checkpoint makes it."""

    def __init__(self, middle: str) -> None:
        super().__init__(MIDDLES[middle]())


@pytest.mark.parametrize("middle", MIDDLES)
def test_a_checkpoint_holds_all_that_the_network_needs(middle: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Made(middle)
    quantized(network)
    checkpoint.save(tmp_path, network, {"_target_": f"{__name__}.Made", "middle": middle})
    torch.manual_seed(7)
    again = checkpoint.load(tmp_path, trust=[f"{__name__}.Made"])
    assert torch.equal(output(again), output(network))


def test_a_buffer_that_the_constructor_makes_again_takes_no_room(tmp_path: Path) -> None:
    for seed in (0, 3):
        torch.manual_seed(seed)
        network = Made("keeps")
        quantized(network)
        checkpoint.save(tmp_path / str(seed), network, {"_target_": f"{__name__}.Made", "middle": "keeps"})
    held = [checkpoint.load_file(tmp_path / seed / checkpoint.TENSORS).keys() for seed in ("0", "3")]
    assert held[1] - held[0] == {"not_persistent.mid.phases"}


def test_content_adds_up(tiny_unet: UNet2DModel) -> None:
    found = quantized(tiny_unet, layers={"mid_block*": {"weight_bits": 32, "act_bits": 32}})
    content = found.content()
    assert sum(content["macs"].values()) == pytest.approx(1) == sum(content["parameters"].values())
    listed = sum(kind["parameters"] for kind in content["left_out"])
    assert listed == pytest.approx(content["parameters"]["full"] * content["total"]["parameters"])
    assert sum(kind["macs"] for kind in content["left_out"]) == pytest.approx(
        content["macs"]["full"] * content["total"]["macs"]
    )
    assert all(len(kind["names"]) == min(3, kind["count"]) for kind in content["left_out"])
