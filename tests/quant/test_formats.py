"""Numbers, scales and groups against independent implementations, bit for bit: torchao's and ml_dtypes'."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4
from torchao.prototype.mx_formats.mx_tensor import get_fp_scale, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale
from torchao.quantization.quant_primitives import (
    MappingType,
    _choose_scale_float8,
    _dequantize_affine_float8,
    _quantize_affine_float8,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from qdexp.errors import UserError
from qdexp.quant import (
    MinMax,
    PerChannel,
    PerGroup,
    PerTensor,
    QParams,
    Scheme,
    Split,
    dequantize,
    fake_quantize,
    quantize,
    scales,
)
from qdexp.quant import qparams_from_range as grid
from qdexp.quant.adaround import LEEWAY, SoftRounding
from qdexp.quant.affine import decode, fake_quantize_learned, round_to_levels
from qdexp.quant.dynamic import quantize_dynamic
from qdexp.quant.floats import FLOATS
from qdexp.quant.gptq import gptq
from qdexp.quant.ranges import NormSearch, estimate
from qdexp.quant.scheme import Granularity

REFERENCES: dict[str, Any] = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
TORCHAO: dict[str, Any] = {
    "e2m1": torch.float4_e2m1fn_x2,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
GROUP = 32
FORMATS: dict[str, Scheme] = {
    **{f"int{bits}": Scheme(bits, PerGroup(GROUP), scale="bfloat16") for bits in (2, 4, 8)},
    "int4_symmetric": Scheme(4, PerGroup(GROUP), True, scale="float16"),
    "int8_channel": Scheme(8, PerChannel(), True),
    "int8_tensor": Scheme(8),
    **{f"fp8_{name}": Scheme(8, PerGroup(128), True, number=name) for name in ("e4m3", "e5m2")},
    "fp8_tensor": Scheme(8, PerTensor(), True, number="e4m3"),
    **{f"mx_{name}": Scheme(own.bits, PerGroup(GROUP), True, number=name, scale="e8m0") for name, own in FLOATS.items()},
    "nvfp4": Scheme(4, PerGroup(16), True, number="e2m1", scale="e4m3"),
}


def fitted(x: Tensor, scheme: Scheme) -> QParams:
    """The grid that spans it."""
    return grid(*estimate(x, scheme, MinMax()), scheme)


def spread(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers whose magnitudes differ by orders."""
    return (torch.randn(shape) * torch.exp(3 * torch.randn(shape))).to(dtype).float()


def all_floats(sixteen: Any) -> Tensor:
    """Every bfloat16, or float16, of both signs."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(sixteen).float()


@pytest.mark.parametrize("name", FLOATS)
def test_every_bit_pattern_is_the_number_that_ocp_says(name: str) -> None:
    own = FLOATS[name]
    codes = torch.arange(2**own.bits, dtype=torch.uint8)
    expected = torch.from_numpy(codes.numpy().view(REFERENCES[name]).astype(np.float32))
    found = own.decode(codes)
    assert torch.equal(found.nan_to_num(nan=7e30), expected.nan_to_num(nan=7e30))
    assert torch.equal(found.signbit(), expected.signbit()) or name != "e2m1"
    finite = found[found.isfinite()]
    assert (finite.max(), -finite.min()) == (own.largest, own.largest)
    assert torch.equal(own.encode(finite), codes[found.isfinite()])


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_rounds_as_in_ml_dtypes(name: str) -> None:
    """All of 16 bits, those on and beside every tie, and those that no number is near."""
    own, scheme = FLOATS[name], Scheme(FLOATS[name].bits, PerTensor(), True, number=name)
    numbers = own.decode(torch.arange(2**own.bits, dtype=torch.uint8))
    numbers = numbers[numbers.isfinite()].unique()
    ties = (numbers[1:] + numbers[:-1]) / 2
    beside = [torch.nextafter(ties, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    x = torch.cat([ties, *beside, numbers, all_floats(torch.bfloat16), all_floats(torch.float16), spread(10_000)])
    x = x[x.isfinite()]
    held = x.clamp(-own.largest, own.largest).numpy().astype(REFERENCES[name])
    one = QParams(torch.ones(1), torch.zeros(1, dtype=torch.int32))
    assert torch.equal(quantize(x, one, scheme), torch.from_numpy(held.view(np.uint8)))
    assert torch.equal(fake_quantize(x, one, scheme), torch.from_numpy(held.astype(np.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("length", [96, 80, 20])
def test_mx_is_torchaos(name: str, dtype: torch.dtype, length: int) -> None:
    """An axis that the group does not divide, padded with zeros."""
    x, scheme = spread(64, length, dtype=dtype), FORMATS[f"mx_{name}"]
    padded = torch.nn.functional.pad(x, (0, -length % GROUP))
    scale, data = to_mx(padded, TORCHAO[name], GROUP)
    codes = unpack_uint4(data).view(64, -1) if name == "e2m1" else data.view(torch.uint8)
    qparams = fitted(x, scheme)
    assert torch.equal(scheme.granularity.expand(qparams.scale, x.shape), _widened(get_fp_scale(scale), length))
    assert torch.equal(quantize(x, qparams, scheme), codes[:, :length])
    values = f4_unpacked_to_f32(codes) if name == "e2m1" else data.float()
    expected = (values.unflatten(-1, (-1, GROUP)) * get_fp_scale(scale)[..., None]).flatten(-2)[:, :length]
    assert torch.equal(fake_quantize(x, qparams, scheme), expected)
    stored, _ = scales.encode(fitted(padded, scheme).scale, "e8m0")
    assert torch.equal(stored.view(64, -1), scale.view(torch.uint8))


def _widened(scale: Tensor, length: int, group: int = GROUP) -> Tensor:
    return scale.repeat_interleave(group, -1)[:, :length]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [96, 72, 8])
def test_nvfp4_is_torchaos(dtype: torch.dtype, length: int) -> None:
    x, scheme = spread(64, length, dtype=dtype), FORMATS["nvfp4"]
    padded = torch.nn.functional.pad(x, (0, -length % 16))
    tensor = per_tensor_amax_to_scale(x.abs().max())
    scale, data = nvfp4_quantize(padded, 16, tensor)
    codes, qparams = unpack_uint4(data).view(64, -1), fitted(x, scheme)
    assert torch.equal(scheme.granularity.expand(qparams.scale, x.shape), _widened(tensor * scale.float(), length, 16))
    assert torch.equal(quantize(x, qparams, scheme), codes[:, :length])
    values = f4_unpacked_to_f32(codes) * _widened(tensor * scale.float(), codes.shape[1], 16)
    assert torch.equal(fake_quantize(x, qparams, scheme), values[:, :length])
    stored, own = scales.encode(fitted(padded, scheme).scale, "e4m3")
    assert own is not None
    assert torch.equal(own, tensor.view(1))
    assert torch.equal(stored.view(64, -1), scale.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
@pytest.mark.parametrize(
    ("granularity", "block"),
    [(PerTensor(), (64, 256)), (PerChannel(), (1, 256)), (PerGroup(), (1, 256)), (PerGroup(128), (1, 128))],
)
def test_fp8_is_torchaos(name: str, granularity: Granularity, block: tuple[int, int], dtype: torch.dtype) -> None:
    x, scheme = spread(64, 256, dtype=dtype), Scheme(8, granularity, True, number=name)
    scale = _choose_scale_float8(x, list(block), TORCHAO[name])
    codes = _quantize_affine_float8(x, scale, TORCHAO[name])
    qparams = fitted(x, scheme)
    assert torch.equal(qparams.scale, scale.flatten())
    assert torch.equal(quantize(x, qparams, scheme), codes.view(torch.uint8))
    assert torch.equal(fake_quantize(x, qparams, scheme), _dequantize_affine_float8(codes, scale))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("granularity", "block"),
    [(PerTensor(), (32, 256)), (PerChannel(), (1, 256)), *((PerGroup(size), (1, size)) for size in (16, 32, 64, 128))],
)
def test_integers_are_torchaos(bits: int, symmetric: bool, granularity: Granularity, block: tuple[int, int]) -> None:
    """Its symmetric scale is amax / (2^(b-1) - 1/2), ours amax / (2^(b-1) - 1), so that the largest value is a level: with
    equal scales all is equal."""
    x, scheme = spread(32, 256), Scheme(bits, granularity, symmetric)
    kind = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    ends = int(scheme.qmin), int(scheme.qmax)
    scale, zero_point = choose_qparams_affine(x, kind, block, scheme.dtype, *ends)
    qparams = fitted(x, scheme)
    if symmetric:
        assert torch.allclose(qparams.scale * scheme.qmax, scale.flatten() * (scheme.qmax + 0.5), rtol=1e-6)
        qparams = QParams(scale.flatten(), zero_point.flatten())
    assert torch.equal(qparams.scale, scale.flatten())
    assert torch.equal(qparams.zero_point, zero_point.flatten())
    codes = quantize_affine(x, block, scale, zero_point, scheme.dtype, *ends)
    assert torch.equal(quantize(x, qparams, scheme), codes)
    expected = dequantize_affine(codes, block, scale, zero_point, scheme.dtype, *ends)
    assert torch.equal(fake_quantize(x, qparams, scheme), expected)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_zero_points_belong_to_the_rounded_scale(kind: str) -> None:
    x, scheme = torch.randn(64, 96) + 0.3, Scheme(4, PerGroup(32), scale=kind)
    qparams, exact = fitted(x, scheme), fitted(x, Scheme(4, PerGroup(32)))
    assert torch.equal(qparams.scale, exact.scale.to(getattr(torch, kind)).float())
    lo = x.unflatten(-1, (-1, 32)).amin(-1).clamp_max(0).flatten()
    assert torch.equal(qparams.zero_point, torch.round(-lo / qparams.scale).clamp(0, 15).int())


@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_values_agree_and_are_at_rest(name: str) -> None:
    scheme, x = FORMATS[name], spread(8, 256).requires_grad_()
    qparams = fitted(x.detach(), scheme)
    codes = quantize(x.detach(), qparams, scheme)
    assert codes.dtype == scheme.dtype
    hat = dequantize(codes, qparams, scheme)
    assert torch.equal(hat, fake_quantize(x.detach(), qparams, scheme))
    assert torch.equal(quantize(hat, qparams, scheme), codes) or name == "nvfp4"  # whose reciprocal is rounded
    learned = fake_quantize_learned(x, qparams, scheme)
    assert torch.equal(learned, hat)
    (by_x,) = torch.autograd.grad(learned.sum(), x)
    level = decode(codes, scheme)
    assert by_x[(level > scheme.qmin) & (level < scheme.qmax)].eq(1).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_no_number_or_out_of_the_ordinary(name: str, dynamic: bool) -> None:
    """NaN and infinities are never made numbers; zeros stay zeros, whatever lies in other groups; a huge value takes nothing
    but its group with it; the smallest ones are lost, not made large."""
    scheme = FORMATS[name]
    if dynamic and isinstance(scheme.granularity, PerChannel):
        scheme = Scheme(8, PerGroup(), True)
    scheme = replace(scheme, time="dynamic" if dynamic else "static")

    def rounded(x: Tensor) -> Tensor:
        return quantize_dynamic(x, scheme) if dynamic else fake_quantize(x, fitted(x, scheme), scheme)

    for broken in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(4, 256)
        x[1, 5] = broken
        y = rounded(x)
        assert not y[1, 5].isfinite()
        assert not (y.nan_to_num(0, 0, 0).abs() > 10).any(), "no other is changed into something else"
    x = torch.zeros(4, 256)
    assert torch.equal(rounded(x), x)
    x[2, 130:] = torch.randn(126)
    y = rounded(x)
    assert torch.equal(y[[0, 1, 3]], x[[0, 1, 3]])
    assert torch.equal(y[2, :128], x[2, :128])
    assert y[2].any()
    x = torch.randn(4, 256)
    x[1, 200] = -1e30
    y = rounded(x)
    assert y.isfinite().all()
    assert y[1, 200] == pytest.approx(-1e30, rel=0.3) or scheme.scale == "float16"
    subnormal = torch.full((4, 256), 1e-40)
    assert rounded(subnormal).abs().max() < 2e-38
    y = rounded(torch.full((4, 256), 3e-38))
    assert y.isfinite().all()
    assert y.abs().max() < 1e-37


@pytest.mark.parametrize("shape", [(3, 144, 5, 7), (3, 20, 5, 7), (4, 9, 80), (4, 80), (2, 3, 49, 24)])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_dynamic_grid_is_that_of_each_row_alone(name: str, shape: tuple[int, ...], channels_last: bool) -> None:
    """Along the channels of images, features of tokens, tokens of values; with a short last group; whatever lies beside in
    memory."""
    x, images = spread(*shape), len(shape) == 4
    axis = 1 if images and shape[1] > 3 else -2 if images else -1
    if channels_last:
        last = x.contiguous(memory_format=torch.channels_last) if images else x.transpose(-1, -2).contiguous().transpose(-1, -2)
        x = last
    kept = FORMATS[name]
    size = getattr(kept.granularity, "size", None)
    whole = kept.granularity if isinstance(kept.granularity, PerTensor) else PerGroup(size, axis)
    scheme = Scheme(kept.bits, whole, kept.symmetric, "dynamic", kept.number, kept.scale)
    y = quantize_dynamic(x, scheme)
    assert y.stride() == x.stride() or not images
    for row, found in zip(x, y, strict=True):
        assert torch.equal(fake_quantize(row[None], fitted(row[None], scheme), scheme)[0], found)
    assert torch.equal(quantize_dynamic(x.requires_grad_(), scheme), y)


@pytest.mark.parametrize("name", ["int4", "mx_e2m1", "nvfp4"])
def test_parts_have_groups_of_their_own(name: str) -> None:
    kept, x = FORMATS[name], spread(2, 120, 3, 3)
    assert isinstance(kept.granularity, PerGroup)
    size = kept.granularity.size
    scheme = Scheme(kept.bits, Split((72, 48), PerGroup(size, 1)), kept.symmetric, "dynamic", kept.number, kept.scale)
    y = quantize_dynamic(x, scheme)
    for row, found in zip(x, y, strict=True):
        assert torch.equal(fake_quantize(row[None], fitted(row[None], scheme), scheme)[0], found)
    if name != "nvfp4":  # one float32 is of both parts
        alone = Scheme(kept.bits, PerGroup(size, 1), kept.symmetric, "dynamic", kept.number, kept.scale)
        assert torch.equal(y, torch.cat([quantize_dynamic(part, alone) for part in x.split((72, 48), 1)], 1))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(5, 15, 3, 3), (5, 7, 15), (40,)])
def test_an_axis_of_few_elements_has_no_groups(name: str, shape: tuple[int, ...]) -> None:
    kept, x = FORMATS[name], torch.randn(shape)
    scheme = Scheme(
        kept.bits, PerGroup(GROUP, 1 if len(shape) == 4 else -1), kept.symmetric, "dynamic", kept.number, kept.scale
    )
    scale = "float32" if kept.scale == "e4m3" else kept.scale
    row = Scheme(kept.bits, PerTensor(), kept.symmetric, "dynamic", kept.number, scale)
    assert torch.equal(quantize_dynamic(x, scheme), quantize_dynamic(x, row))


@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_what_is_stored_of_them(name: str) -> None:
    scheme = FORMATS[name]
    for x in (spread(16, 256), torch.zeros(16, 256), torch.full((16, 256), 1e-37), 1e30 * spread(16, 256)):
        scale = fitted(x, scheme).scale
        assert (scale >= scales.TINY).all()
        codes, tensor = scales.encode(scale, scheme.scale)
        assert codes.element_size() * 8 == scales.BITS[scheme.scale]
        assert torch.equal(scales.decode(codes, scheme.scale, tensor), scale)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shrink", [1.0, 0.3])
def test_adaround_chooses_between_the_neighbours(name: str, shrink: float) -> None:
    """It starts at the weight, ends at the nearest level, and may take none but the two beside it."""
    scheme, weight = FORMATS[name], torch.randn(6, 256)
    qparams = fitted(weight * shrink, scheme)
    rounding, scale = SoftRounding(weight, qparams, scheme), scheme.granularity.expand(qparams.scale, weight.shape)
    zero_point = scheme.granularity.expand(qparams.zero_point, weight.shape)
    held = weight.clamp((scheme.qmin - zero_point) * scale, (scheme.qmax - zero_point) * scale)
    assert torch.allclose(rounding.weight(rounding.h()), held, atol=1e-5)
    nearest = quantize(weight, qparams, scheme)
    assert (
        (dequantize(rounding.integers(), qparams, scheme) - held)
        .abs()
        .le((dequantize(nearest, qparams, scheme) - held).abs() + 1e-6)
        .all()
    )
    ends = []
    for alpha in (-9.0, 9.0):
        rounding.alpha.data.fill_(alpha)
        ends.append(dequantize(rounding.integers(), qparams, scheme))
        assert torch.allclose(rounding.weight((rounding.alpha >= 0).float()), ends[-1], atol=1e-6)
    low, high = ends
    assert (low <= held + 1e-5).all()
    assert (held <= high + 1e-5).all()
    near = dequantize(nearest, qparams, scheme)
    assert ((near - low).abs() < 1e-6).logical_or((near - high).abs() < 1e-6).all()
    levels = quantize(weight + 0.5 * torch.randn(6, 256), qparams, scheme)
    other = SoftRounding(weight, qparams, scheme, levels)
    assert torch.equal(decode(other.integers(), scheme), decode(levels, scheme))
    away = (other.weight(other.h()) - dequantize(levels, qparams, scheme)).abs()
    assert (away <= 2.01 * LEEWAY * scale * other_gap(scheme, decode(levels, scheme))).all()


def other_gap(scheme: Scheme, levels: Tensor) -> Tensor:
    return torch.ones_like(levels) if scheme.is_integer else FLOATS[scheme.number].spacing(levels)


@pytest.mark.parametrize("name", FORMATS)
def test_gptq_and_range_search_lose_less(name: str) -> None:
    scheme, weight = FORMATS[name], torch.randn(16, 256)
    x = torch.randn(500, 128) @ torch.randn(128, 256) + 0.3 * torch.randn(500, 256)
    qparams, moments = fitted(weight, scheme), (x.mT @ x)[None]

    def error(codes: Tensor) -> Tensor:
        return (x @ (dequantize(codes, qparams, scheme) - weight).mT).square().sum()

    found = gptq(weight, qparams, scheme, moments, torch.zeros(1, *weight.shape))
    assert found.dtype == scheme.dtype
    assert error(found) < 0.7 * error(quantize(weight, qparams, scheme))
    searched = grid(*estimate(weight, scheme, NormSearch(p=2)), scheme)
    lost = [(fake_quantize(weight, one, scheme) - weight).square().sum() for one in (searched, qparams)]
    assert lost[0] <= lost[1] * 1.001


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 8, "number": "e2m1", "symmetric": True}, "4 bits, not 8"),
        ({"bits": 4, "number": "e4m3", "symmetric": True}, "8 bits, not 4"),
        ({"bits": 8, "number": "e4m3"}, "symmetric"),
        ({"bits": 4, "number": "e3m0", "symmetric": True}, "e3m0"),
        ({"bits": 4, "scale": "e8m0"}, "floating point"),
        ({"bits": 4, "scale": "e4m3", "symmetric": True}, "e2m1"),
        ({"bits": 4, "scale": "float8"}, "float8"),
        ({"bits": 4, "granularity": PerChannel(), "time": "dynamic"}, "per_tensor"),
    ],
)
def test_impossible_schemes_are_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as refusal:
        Scheme(**options)
    assert "\n" not in str(refusal.value)


def test_levels_beyond_the_ends_are_the_ends() -> None:
    for name, own in FLOATS.items():
        scheme = Scheme(own.bits, PerTensor(), True, number=name)
        v = torch.tensor([torch.inf, -torch.inf, 1e38, own.largest * 1.5, torch.nan])
        found = round_to_levels(v, torch.zeros(1), scheme)
        assert found[:4].tolist() == [own.largest, -own.largest, own.largest, own.largest]
        assert found[4].isnan()
