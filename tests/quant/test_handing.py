"""Quantized networks in the hands of those who save, load, copy and cast networks."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from quant_helpers import batches, output, quantized
from torch import Tensor, nn
from unseen import sd3

from qdexp.errors import UserError
from qdexp.quant import MinMax, NormSearch, PerTensor, Scheme, Split, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import call, first_row
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import activation_quantizers, quantized_layers, set_activation_mode
from qdexp.quant.scheme import TimeGroups
from qdexp.quant.timegroups import set_time

GROUPS = TimeGroups((250.0, 600.0))
LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@pytest.fixture
def network(tiny_unet: UNet2DModel) -> nn.Module:
    """With a split layer, one in full precision, and attention."""
    splits = {"up_blocks.0.resnets.1.conv1": (16, 8)}
    return quantized(tiny_unet, 4, 8, splits=splits, layers={"mid_block*to_v": {"weight_bits": 32}})


@pytest.mark.parametrize("time", ["static", "dynamic", GROUPS])
@pytest.mark.parametrize("weight_bits", [4, 32])
def test_the_state_is_what_the_class_in_full_precision_has(tiny_unet: UNet2DModel, weight_bits: int, time: Any) -> None:
    original = copy.deepcopy(tiny_unet)
    network = quantized(tiny_unet, weight_bits, 8, splits={"up_blocks.0.resnets.1.conv1": (16, 8)})
    set_time(network, time)
    observe_activations(network, batches(), NormSearch())
    before, state = output(original), network.state_dict()
    assert not any(original.load_state_dict(state))
    set_activation_mode(network, "off")
    torch.testing.assert_close(output(original), output(network))
    assert torch.equal(output(original), before) is (weight_bits == 32)
    for name, layer in quantized_layers(network):
        assert torch.equal(state[f"{name}.weight"], layer.weight)


def test_a_transformer_of_several_outputs_likewise() -> None:
    original, rows = sd3()
    network, data = copy.deepcopy(original), [rows(4)]
    adapter = Adapter(network, first_row(data[0]))
    convert(network, plan_bits(network, adapter.layers, 3, 8), adapter.sites)
    quantize_weights(network, MinMax(), nearest)
    observe_activations(network, data, MinMax())
    original.eval().load_state_dict(network.state_dict())
    set_activation_mode(network, "off")
    with torch.no_grad():
        torch.testing.assert_close(call(original, data[0])[0], call(network, data[0])[0])


def test_its_own_state_is_taken_again(network: nn.Module) -> None:
    before, state = output(network), {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert not torch.equal(output(network), before)
    for strict in (True, False):
        network.load_state_dict(state, strict=strict)
        assert torch.equal(output(network), before)
    del state["conv_in.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*conv_in\.weight"):
        network.load_state_dict(state)


def test_other_weights_are_refused_before_the_layer_changes(network: nn.Module) -> None:
    state = {name: value + 1 for name, value in network.state_dict().items()}
    before = output(network)
    with pytest.raises(UserError, match=r"conv_in\.weight: its layer is quantized and takes no other weights") as refusal:
        network.load_state_dict(state)
    assert "\n" not in str(refusal.value)
    assert torch.equal(output(network), before)


@pytest.mark.parametrize("part", ["", "conv_in", "mid_block.attentions.0"])
@pytest.mark.parametrize("dump", [pickle.dumps, lambda module: torch.save(module, io.BytesIO())])
def test_no_pickle_is_made(network: nn.Module, part: str, dump: Callable[[nn.Module], object]) -> None:
    with pytest.raises(UserError, match=r"cannot be pickled, nor saved whole by torch\.save: .* copy the folder") as refusal:
        dump(network.get_submodule(part))
    assert "\n" not in str(refusal.value)


def test_tensors_of_its_state_are_saved_by_torch(network: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())


def test_copies_are_whole_and_their_own(network: nn.Module) -> None:
    before, other = output(network), copy.deepcopy(network)
    assert torch.equal(output(copy.copy(network)), before)
    for value in (*network.parameters(), *network.buffers()):
        value.data.zero_()
    assert torch.equal(output(other), before)
    with pytest.raises(UserError):
        pickle.dumps(other)


def test_a_forked_process_has_it(network: nn.Module) -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(output(network).tolist()))
    process.start()
    assert receiver.poll(60)
    assert receiver.recv() == output(network).tolist()
    process.join()


@LOW
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("time", ["static", "dynamic"])
@pytest.mark.parametrize("granularity", [PerTensor(), Split((3, 5))])
def test_values_of_any_dtype_are_rounded_to_the_same_grid(
    granularity: PerTensor | Split, time: Any, symmetric: bool, dtype: torch.dtype
) -> None:
    x, quantizer = 7 * torch.randn(5, 8, 6), ActivationQuantizer(Scheme(6, granularity, symmetric, time))
    if quantizer.observed:
        quantizer.start(MinMax())
        quantizer(x)
        quantizer.finish()
    quantizer.mode = "on"
    low = copy.deepcopy(quantizer).to(dtype)
    assert low(x.to(dtype)).dtype == dtype
    assert torch.equal(low(x.to(dtype)), quantizer(x.to(dtype).float()).to(dtype))


@LOW
@pytest.mark.parametrize("time", ["static", "dynamic", GROUPS])
def test_a_network_that_is_cast_keeps_its_grids(tiny_unet: UNet2DModel, dtype: torch.dtype, time: Any) -> None:
    """Layers and attention: each rounds what it gets as in float32, and computes with the same integers."""
    network = quantized(tiny_unet, 4, 8)
    set_time(network, time)
    observe_activations(network, batches(), NormSearch())
    expected, low = output(network), copy.deepcopy(network).to(dtype)
    assert {value.dtype for value in low.parameters()} == {dtype}
    exact: dict[str, Any] = dict(activation_quantizers(network))
    seen: list[str] = []

    def check(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
            exact[name].context = low.get_submodule(name).context
            assert y.dtype == args[0].dtype == dtype
            assert torch.equal(y, exact[name](args[0].float()).to(dtype))
            seen.append(name)

        return hook

    for name, quantizer in activation_quantizers(low):
        quantizer.register_forward_hook(check(name))
    x, t = batches(4, 1)[0]
    with torch.inference_mode():
        y = low(x.to(dtype), t)[0]
    assert set(seen) == exact.keys() and any(".quantized_products." in name for name in seen)
    assert y.dtype == dtype
    assert (y.float() - expected).norm() < 0.05 * expected.norm()
    for (_, one), (_, other) in zip(quantized_layers(low), quantized_layers(network), strict=True):
        assert torch.equal(one.weight, other.weight.to(dtype))
        assert torch.equal(_integers(one), _integers(other))


def _integers(layer: QuantizedLayer) -> Tensor:
    assert layer.weight_int is not None
    return layer.weight_int


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda net: net.type(torch.float16)])
def test_constants_of_grids_are_as_exact_as_before(network: nn.Module, cast: Callable[[nn.Module], nn.Module]) -> None:
    before = {name: value.clone() for name, value in network.named_buffers()}
    grids = {name for name in before if not name.endswith(".weight")}
    assert grids
    for name, value in cast(network).named_buffers():
        if name in grids:
            assert torch.equal(value, before[name].to(value.dtype))
            assert value.dtype in (torch.float32, torch.float64) or value.dtype == before[name].dtype


def test_where_there_are_no_numbers_there_are_no_constants(network: nn.Module) -> None:
    network.to("meta").half()
    assert all(value.is_meta for value in network.buffers())


@pytest.mark.parametrize(("name", "bits", "time", "words"), [
    ("conv_in", 4, "static", "1, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), W8A8, per channel"),
    ("mid_block.resnets.0.conv1", 4, "static", "padding=(1, 1), W4A8, per channel"),
    ("up_blocks.0.resnets.1.conv1", 4, "dynamic", "W4A8, per channel, parts 16+8, dynamic"),
    ("up_blocks.0.resnets.1.conv1", 32, GROUPS, "W32A8, per tensor, parts 16+8, 3 timestep groups"),
    ("up_blocks.0.resnets.1.conv1.input_quantizer", 4, GROUPS, "8 bits, per tensor, parts 16+8, 3 timestep groups, on"),
    ("mid_block.attentions.0", 4, GROUPS, "A8, softmax 8 bits, 3 timestep groups"),
])  # fmt: skip
def test_what_is_printed_names_bits_grids_and_parts(
    tiny_unet: UNet2DModel, name: str, bits: int, time: Any, words: str
) -> None:
    network = quantized(tiny_unet, bits, 8, splits={"up_blocks.0.resnets.1.conv1": (16, 8)})
    set_time(network, time)
    set_activation_mode(network, "on")
    module: Any = network.get_submodule(name)
    assert module.extra_repr().endswith(words)
    assert words in repr(network)


def test_symmetric_weights_are_told() -> None:
    assert str(Scheme(4, Split((2, 3), PerTensor()), symmetric=True)) == "4 bits, per tensor, parts 2+3, symmetric"
