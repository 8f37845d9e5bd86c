"""Slow, obvious versions of what qdexp.quant computes, and small data."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from qdexp.quant import (
    MinMax,
    NormSearch,
    QParams,
    RangeEstimator,
    Scheme,
    convert,
    observe_activations,
    plan_bits,
    qparams_from_range,
    quantize_weights,
)
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.network import split
from qdexp.quant.ranges import estimate
from qdexp.quant.shortcuts import chosen_sizes


def conditional() -> nn.Module:
    """A new U-Net with cross-attention in transformer blocks: images [n, 4, 8, 8], contexts [n, tokens, 8]."""
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )


def slow_grid(lo: float, hi: float, bits: int, symmetric: bool) -> tuple[float, int]:
    """(scale, zero point), in double precision."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if symmetric:
        return max(-lo, hi) / (2 ** (bits - 1) - 1) or 1.0, 0
    scale = (hi - lo) / (2**bits - 1) or 1.0
    return scale, round(-lo / scale)


def slow_fake_quantize(x: float, scale: float, zero_point: int, qmin: float, qmax: float) -> float:
    return (min(max(round(x / scale) + zero_point, qmin), qmax) - zero_point) * scale


def slow_norm_search(values: Tensor, scheme: Scheme, p: float) -> tuple[list[float], float]:
    """For one group: the error sum of every candidate, and the largest magnitude of the range."""
    xs = values.double().tolist()
    lo, hi = min(0.0, *xs), max(0.0, *xs)
    errors = []
    for percent in range(100, 20, -1):
        grid = slow_grid(lo * percent / 100, hi * percent / 100, scheme.bits, scheme.symmetric)
        errors.append(sum(abs(x - slow_fake_quantize(x, *grid, scheme.qmin, scheme.qmax)) ** p for x in xs))
    return errors, max(-lo, hi)


def batches(rows: int = 8, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(rows, 1, 8, 8, generator=generator), torch.randint(0, 1000, (rows,), generator=generator))
        for _ in range(count)
    ]


def split_sizes(network: nn.Module, example: Batch, scope: str) -> dict[str, tuple[int, ...]]:
    """As the step chooses them."""
    return chosen_sizes(Adapter(network, example).concatenations, scope)


def quantized(network: nn.Module, weight_bits: int, act_bits: int, layers: Any = None, **options: Any) -> nn.Module:
    """The whole of post-training quantization, in place."""
    data = batches()
    adapter = Adapter(network, first_row(data[0]))
    plan = plan_bits(network, adapter.layers, weight_bits, act_bits, layers=layers)
    split(network, options.pop("splits", {}))
    convert(network, plan, adapter.sites, **options)
    quantize_weights(network, NormSearch(), nearest)
    observe_activations(network, data, NormSearch())
    return network


@torch.inference_mode()
def output(network: nn.Module, rows: int = 4) -> Tensor:
    x: Tensor = network(*batches(rows, 1)[0])[0]
    return x


def qparams_of(x: Tensor, scheme: Scheme) -> QParams:
    """The grid from end to end of a tensor."""
    return qparams_from_range(*estimate(x, scheme, MinMax()), scheme)


def observed(scheme: Scheme, estimator: RangeEstimator, parts: list[Tensor]) -> ActivationQuantizer:
    """A quantizer that has seen these parts of a tensor, and rounds."""
    quantizer = ActivationQuantizer(scheme)
    observer = quantizer.start(estimator)
    for _ in range(observer.passes):
        for part in parts:
            quantizer(part)
        observer.end_pass()
    quantizer.finish()
    return quantizer
