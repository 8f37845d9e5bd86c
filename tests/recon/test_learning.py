import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from diffusers import UNet2DModel
from pytorch_lightning.callbacks import Callback
from recon_helpers import batches, joined, pair, recon
from torch import Tensor, nn

from qdexp import lightning
from qdexp.quant import NormSearch, PerChannel, QParams, Scheme, Split, fake_quantize, qparams_from_range
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Rows
from qdexp.quant.layers import to_quantized
from qdexp.quant.network import activation_quantizers, observe_activations, quantized_layers
from qdexp.quant.ranges import MinMax, estimate
from qdexp.quant.streams import streaming
from qdexp.recon.learning import Reconstruction, Samples, ScaleReconstruction, Site, WeightReconstruction

ROWS = 12


def site(layer: nn.Module, x: Tensor, weight: Scheme | None = None, act: Scheme | None = None) -> Site:
    """A block of one layer that is handed `x`, [rows, ...]; its targets are those of the unquantized layer."""
    original = copy.deepcopy(layer.requires_grad_(False))
    quantized: Any = to_quantized(layer, weight, act)
    if weight is not None:
        qparams = qparams_from_range(*estimate(quantized.weight, weight, MinMax()), weight)
        quantized.set_weight(nearest(quantized.weight, qparams, weight), qparams)
    if act is not None:
        observer = quantized.input_quantizer.start(MinMax())
        quantized(x)
        observer.end_pass()
        quantized.input_quantizer.finish()
    return Site(quantized, original, Rows([((x,), {})], [True], [len(x)]), [original(x)])


def conv_site(bits: int = 3, granularity: PerChannel | Split = PerChannel()) -> Site:  # noqa: B008 - frozen
    return site(nn.Conv2d(6, 4, 3, padding=1), torch.randn(ROWS, 6, 5, 5), Scheme(bits, granularity))


SITES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (lambda: nn.Conv2d(6, 4, 3, padding=1), (6, 5, 5), 1),
    "sequence": (lambda: nn.Conv1d(6, 4, 3, padding=1), (6, 9), 1),
    "tokens": (lambda: nn.Linear(6, 4), (7, 6), -1),
    "vectors": (lambda: nn.Linear(6, 4), (6,), -1),
    "channels last": (lambda: nn.Linear(6, 4), (5, 5, 6), -1),
}
"""Layers, the shape of a row of their inputs, and where the channels of their outputs lie."""


def moved(module: WeightReconstruction) -> tuple[Tensor, Tensor]:
    """alpha, after it has left its start, and h: in a block of one layer."""
    (alpha,) = module.parameters()
    alpha.data += torch.randn_like(alpha)
    return alpha, (1.2 * torch.sigmoid(alpha) - 0.1).clamp(0, 1)


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("step", [0, 19, 20, 60, 99])
def test_the_loss_of_weight_rounding(kind: str, balanced: bool, step: int) -> None:
    """Of 100 steps, the first 20 without regulariser; then beta falls from 20 to 2."""
    make, shape, channels = SITES[kind]
    one = site(make(), torch.randn(ROWS, *shape), Scheme(3, PerChannel()))
    settings = recon(iterations=100, regulariser=0.7, warmup=0.2, beta=[20, 2], balanced=balanced).weights
    module = WeightReconstruction(one, settings, start=0.013)
    _, h = moved(module)
    layer: Any = one.block
    index = torch.tensor([3, 1, 7, 7])
    scale, zero_point = (values.view(-1, *[1] * (layer.weight.ndim - 1)) for values in layer.weight_qparams)
    original: Any = one.original
    low = (original.weight / scale).floor()
    soft = copy.deepcopy(original)
    soft.weight.data = ((low + h + zero_point).clamp(0, 7) - zero_point) * scale
    ((x,), _), targets = one.rows.take(index), cast(Any, one.targets)
    target = targets[0][index]
    difference = (soft(x) - target).double()
    squares, power = difference.square(), target.double().square().sum()
    rows = squares.numel() / squares.shape[channels]
    expected = squares.sum() / power / 0.013 if balanced else squares.sum() / rows
    if step >= 20:
        beta = 20 - 18 * (step - 20) / 80
        undecided = 1 - (2 * h.double() - 1).abs() ** beta
        expected = expected + 0.7 * (undecided.mean() if balanced else undecided.sum())
    assert module.training_step(one.take(index), step).item() == pytest.approx(expected.item(), rel=1e-4)
    assert module.error.item() == pytest.approx((squares.sum() / power).item(), rel=1e-4)
    assert not module.error.requires_grad


@pytest.mark.parametrize("balanced", [False, True])
def test_the_regulariser_sees_both_parts_of_a_split_layer(balanced: bool) -> None:
    """With inputs of zero only the regulariser has a gradient."""
    layer, granularity = nn.Conv2d(6, 4, 1), Split((2, 4), PerChannel())
    one = site(layer, torch.zeros(ROWS, 6, 5, 5), Scheme(3, granularity))
    module = WeightReconstruction(one, recon(iterations=10, balanced=balanced).weights, start=1.0)
    module.training_step(one.take(torch.arange(4)), 9).backward()
    (alpha,) = module.parameters()
    assert alpha.shape == layer.weight.shape
    assert alpha.grad is not None
    for part in alpha.grad.split((2, 4), dim=1):  # but for weights that lie on the grid, whose h is 0 or 1
        assert part.ne(0).float().mean() > 0.6


def test_all_weights_of_a_block_are_learned_at_once(tiny_unet: UNet2DModel) -> None:
    data = batches(8)
    one = pair(tiny_unet, data, 4)
    for name in ("up_blocks.0.resnets.0", "mid_block.attentions.0"):
        block, original = one.network.get_submodule(name), one.full.get_submodule(name)
        with streaming(one.full, [name], data) as stream:
            rows, targets = Rows(stream.calls, one.blocks[name], stream.sizes), joined(stream.advance())
        whole = Site(block, original, rows, targets)
        module = WeightReconstruction(whole, recon(iterations=10).weights, start=1.0)
        layers: dict[str, Any] = dict(quantized_layers(block))
        assert [alpha.shape for alpha in module.parameters()] == [layer.weight.shape for layer in layers.values()]
        module.training_step(whole.take(torch.arange(8)), 0).backward()
        for alpha in module.parameters():
            assert alpha.grad is not None
            assert alpha.grad.ne(0).float().mean() > 0.3
        assert not any(parameter.grad is not None for parameter in block.parameters())
        state = module.learned()
        assert state.keys() == layers.keys() == WeightReconstruction.state(block).keys()
        for layer_name, integers in state.items():
            assert torch.equal(integers, layers[layer_name].weight_int)  # at the start: the nearest


@pytest.mark.parametrize("power", [1.0, 2.0, 2.4])
def test_the_loss_of_scales(power: float) -> None:
    one = site(nn.Conv2d(6, 4, 1), torch.randn(ROWS, 6, 5, 5), None, Scheme(4, Split((2, 4))))
    layer: Any = one.block
    module = ScaleReconstruction(one, recon(power=power).scales, start=1.0)
    (log,) = module.parameters()
    assert torch.allclose(log.exp(), layer.input_quantizer.scale)
    log.data += torch.tensor([0.2, -0.3])
    index = torch.tensor([0, 5, 2])
    ((x,), _), targets = one.rows.take(index), cast(Any, one.targets)
    target = targets[0][index]
    quantizer = layer.input_quantizer
    rounded = fake_quantize(x, QParams(log.detach().exp(), quantizer.zero_point), quantizer.scheme)
    expected = one.original(rounded)
    error = (expected - target).abs().double().pow(power).sum() / target.abs().double().pow(power).sum()
    loss = module.training_step(one.take(index), 0)
    assert loss.item() == pytest.approx(error.item(), rel=1e-4)
    loss.backward()
    assert log.grad is not None
    assert log.grad.ne(0).all()
    assert not quantizer.scale.requires_grad


@pytest.mark.parametrize("softmax_bits", [8, 32])
def test_all_scales_of_a_block_are_learned_at_once(tiny_unet: UNet2DModel, softmax_bits: int) -> None:
    """Those of Q and K too, though the softmax's own grid is not learned; that grid stays."""
    data = batches(8)
    one = pair(tiny_unet, data, 8, 8, softmax_bits=softmax_bits)
    observe_activations(one.network, data, NormSearch())
    for name in ("up_blocks.0.resnets.0", "mid_block.attentions.0"):
        block, original = one.network.get_submodule(name), one.full.get_submodule(name)
        with streaming(one.full, [name], data) as stream:
            rows, targets = Rows(stream.calls, one.blocks[name], stream.sizes), joined(stream.advance())
        whole = Site(block, original, rows, targets)
        module = ScaleReconstruction(whole, recon().scales, start=1.0)
        quantizers = {name: quantizer for name, quantizer in activation_quantizers(block) if not quantizer.fixed}
        assert len(quantizers) == {"up_blocks.0.resnets.0": 4, "mid_block.attentions.0": 7}[name]
        assert ScaleReconstruction.state(block).keys() == module.learned().keys() == quantizers.keys()
        module.training_step(whole.take(torch.arange(8)), 0).backward()
        for log, quantizer in zip(module.parameters(), quantizers, strict=True):
            assert log.grad is not None
            assert log.grad.ne(0).all(), quantizer


class Rates(Callback):
    """The learning rate of every iteration."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("kind", [WeightReconstruction, ScaleReconstruction])
def test_the_rate_of_scales_falls_to_zero_as_a_cosine_and_that_of_weights_stays(kind: type[Reconstruction]) -> None:
    one = site(nn.Conv2d(6, 4, 1), torch.randn(ROWS, 6, 5, 5), Scheme(3, PerChannel()), Scheme(4))
    options, rates = recon(iterations=10, rate=0.02), Rates()
    module = kind(one, options.weights if kind is WeightReconstruction else options.scales, start=1.0)
    lightning.fit(module, Samples(one, torch.arange(10).view(10, 1).unbind()), torch.device("cpu"), rates)
    cosine = [0.02 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates.seen == pytest.approx([0.02] * 10 if kind is WeightReconstruction else cosine)


@pytest.mark.parametrize("kind", [WeightReconstruction, ScaleReconstruction])
def test_a_state_is_a_copy_that_can_be_given_back(kind: type[Reconstruction]) -> None:
    layer = nn.Conv2d(6, 4, 1)
    one = site(layer, torch.randn(ROWS, 6, 5, 5), Scheme(3, Split((2, 4), PerChannel())), Scheme(4, Split((2, 4))))
    block, ((x,), _) = one.block, one.rows.take(slice(0, 4))
    before, state = block(x), kind.state(block)
    other = {name: (value + 1).clamp(max=7) if value.dtype == torch.uint8 else value * 2 for name, value in state.items()}
    kind.restore(block, other)
    assert not torch.equal(block(x), before)
    assert all(torch.equal(value, kind.state(block)[name]) for name, value in other.items())
    kind.restore(block, state)
    assert torch.equal(block(x), before)


@pytest.mark.parametrize("kind", [WeightReconstruction, ScaleReconstruction])
def test_where_nothing_is_quantized_the_state_is_empty(kind: type[Reconstruction]) -> None:
    assert kind.state(nn.Conv2d(2, 2, 1)) == {}
    assert kind.state(nn.GroupNorm(2, 2)) == {}
    assert kind.state(to_quantized(nn.Conv2d(2, 2, 1), None, None)) == {}
    fixed = ActivationQuantizer(Scheme(8), fixed_range=(0.0, 1.0))
    assert kind.state(fixed) == {}


@pytest.mark.parametrize("loss", ["weights", "published weights", "scales"])
def test_targets_of_zero_leave_the_loss_finite(loss: str) -> None:
    """Some batch of a block may hold nothing else."""
    layer = nn.Conv2d(6, 4, 1)
    some = site(layer, torch.randn(ROWS, 6, 5, 5), Scheme(3, PerChannel()), Scheme(4))
    one = replace(some, targets=[torch.zeros(ROWS, 4, 5, 5)])
    settings = recon(balanced=loss == "weights")
    module: WeightReconstruction | ScaleReconstruction
    if loss == "scales":
        module = ScaleReconstruction(one, settings.scales, start=1.0)
    else:
        module = WeightReconstruction(one, settings.weights, start=1.0)
    value = module.training_step(one.take(torch.arange(4)), 0)
    value.backward()
    assert value.isfinite() and value > 0
    assert module.error.isfinite()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
