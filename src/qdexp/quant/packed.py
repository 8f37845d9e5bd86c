"""Tensors that quantization adds to a network, joined into a few: an entry of its own in a file would cost each of them about a
hundred bytes.

    quantized.weight             uint8, every layer's codes (integers less qmin), packed at that layer's bits, layer after layer
    quantized.weight_scale       float32 [groups of all layers]
    quantized.weight_zero_point  uint8 [groups of all layers]; int32 where one lies outside 0 .. 255
    quantized.act_scale          float32 [groups of all activation quantizers with an observed range, in each group of
                                 timesteps where there are such]
    quantized.act_zero_point     uint8, likewise
    quantized.smoothing          bfloat16 [input channels of all layers that are smoothed]
    quantized.signs              uint8, the signs of all layers that are rotated, a bit each, packed layer after layer
    quantized.low_rank           bfloat16, both factors of the branches of all layers that have one

in definition order of the layers, and of what is done to the input of one; and of weights whose scales have few bits, or that
are floating point numbers

    quantized.weight_scale_TYPE        their scales: float16, bfloat16, or uint8 the bits of e8m0 and e4m3
    quantized.weight_scale_e4m3_tensor float32, one of each weight with such scales
    quantized.weight_zero_point_packed uint8, zero points packed at the weight's bits; none where the grid is symmetric
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from qdexp.quant import scales
from qdexp.quant.affine import QParams
from qdexp.quant.granularity import PerGroup, whole
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.quant.packing import pack, packed_bytes, unpack
from qdexp.quant.scheme import Scheme
from qdexp.quant.transforms import Transform

WEIGHT = "quantized.weight"
"""The name of the packed codes."""
ZERO_POINT_BYTES = 1
"""The bytes of a zero point that is not packed."""


def packed_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that quantization has added to a network, by their names in a checkpoint."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, layer in quantized_layers(network):
        for kind, one in _added(layer):
            parts[kind].append(one.kept())
        scheme = layer.weight_scheme
        if scheme is None:
            continue
        if layer.weight_int is None or layer.weight_qparams is None:
            raise ValueError(f"the weight of {name} is not quantized yet")
        parts["weight"].append(pack(layer.weight_int.int() - _lowest(scheme), scheme.bits))
        for kind, tensor in _packed_grid(layer.weight_qparams, scheme).items():
            parts[f"weight_{kind}"].append(tensor)
    for name, quantizer in activation_quantizers(network):
        if quantizer.mode != "on":
            raise ValueError(f"the activation quantizer {name} is not on")
        if quantizer.observed:
            parts["act_scale"].append(quantizer.scale.flatten())
            parts["act_zero_point"].append(quantizer.zero_point.flatten())
    joined = {f"quantized.{name}": torch.cat(tensors) for name, tensors in parts.items()}
    return joined | {name: _narrow(values) for name, values in joined.items() if name.endswith("_zero_point")}


def _packed_grid(qparams: QParams, scheme: Scheme) -> dict[str, Tensor]:
    """The stored tensors of one weight's grid."""
    if _is_plain(scheme):
        return {"scale": qparams.scale, "zero_point": qparams.zero_point}
    codes, tensor = scales.encode(qparams.scale, scheme.scale)
    found = {_scale_name(scheme): codes}
    if tensor is not None:
        found[f"{_scale_name(scheme)}_tensor"] = tensor
    if not scheme.symmetric:
        found["zero_point_packed"] = pack(qparams.zero_point, scheme.bits)
    return found


def grid_bytes(scheme: Scheme, shape: Sequence[int]) -> int:
    """The stored bytes of the grid of a weight of this shape."""
    groups = sum(scheme.granularity.groups(shape))
    scale_bytes = groups * scales.BITS[scheme.scale] // 8
    if _is_plain(scheme):
        return scale_bytes + groups * ZERO_POINT_BYTES
    tensor = scales.TENSOR_BYTES if scheme.scale == "e4m3" else 0
    return scale_bytes + tensor + (0 if scheme.symmetric else packed_bytes(groups, scheme.bits))


def group_bytes(weights: Iterable[tuple[Scheme | None, Sequence[int]]]) -> int:
    """The stored bytes of the grids of those among weights of these schemes and shapes that have groups."""
    found = ((scheme, shape) for scheme, shape in weights if scheme is not None)
    return sum(grid_bytes(scheme, shape) for scheme, shape in found if isinstance(whole(scheme.granularity), PerGroup))


def schemes_of(network: nn.Module) -> Iterator[tuple[Scheme | None, Sequence[int]]]:
    """The scheme and the shape of each weight."""
    return ((layer.weight_scheme, layer.weight.shape) for _, layer in quantized_layers(network))


def _is_plain(scheme: Scheme) -> bool:
    """Integers with scales in float32: their zero points are stored whatever they are."""
    return scheme.is_integer and scheme.scale == "float32"


def _scale_name(scheme: Scheme) -> str:
    return "scale" if scheme.scale == "float32" else f"scale_{scheme.scale}"


def _lowest(scheme: Scheme) -> int:
    """The lowest code: what is packed begins at 0."""
    return int(scheme.qmin) if scheme.is_integer else 0


def _added(layer: QuantizedLayer) -> Iterator[tuple[str, Any]]:
    """Yield the transforms and the branch of a layer, each with the tensor that holds its numbers."""
    for transform in cast("Iterable[Transform]", layer.transforms):
        yield transform.tensor, transform
    if layer.branch is not None:
        yield "low_rank", layer.branch


def added_bytes(network: nn.Module) -> int:
    """The bytes of transforms and branches, as a checkpoint has them."""
    return sum(one.kept().nbytes for _, layer in quantized_layers(network) for _, one in _added(layer))


def _narrow(values: Tensor) -> Tensor:
    """Integers as bytes if all of them are."""
    fits = bool(((values >= 0) & (values < 256)).all())
    return values.to(torch.uint8 if fits else torch.int32)


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The dequantized weights as `state_dict()` has them, by all their names; a checkpoint has their codes instead."""
    layers = network.named_modules(remove_duplicate=False)
    return {
        f"{name}.weight".lstrip("."): layer.effective_weight()
        for name, layer in layers
        if isinstance(layer, QuantizedLayer) and layer.weight_int is not None
    }


def fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `packed_tensors`, which are taken out of `tensors`: for a network whose layers have their schemes, their
    transforms and branches.

    Raises ValueError where they are not those of the network.
    """
    cursors = {name: _Cursor(tensors.pop(name)) for name in list(tensors) if name.startswith("quantized.")}
    schemes = [(layer, layer.weight_scheme) for _, layer in quantized_layers(network)]
    needed = sum(packed_bytes(layer.weight.numel(), scheme.bits) for layer, scheme in schemes if scheme is not None)
    if needed != (len(cursors[WEIGHT].tensor) if WEIGHT in cursors else 0):
        raise ValueError("the packed weights are not those of the architecture")
    for layer, scheme in schemes:
        for tensor, one in _added(layer):
            one.fill(_take(cursors, tensor, one.length))
        if scheme is not None:
            count, shape = layer.weight.numel(), layer.weight.shape
            values = unpack(cursors[WEIGHT].take(packed_bytes(count, scheme.bits)), scheme.bits, count)
            qparams = _take_grid(cursors, scheme, sum(scheme.granularity.groups(shape)))
            layer.set_weight((values + _lowest(scheme)).to(scheme.dtype).view(shape), qparams)
    for _, quantizer in activation_quantizers(network):
        if quantizer.observed:
            taken = _take_qparams(cursors, "act", quantizer.scale.numel())
            quantizer.set_qparams(QParams(*(values.view_as(quantizer.scale) for values in taken)))
        quantizer.mode = "on"
    if any(cursor.position < len(cursor.tensor) for cursor in cursors.values()):
        raise ValueError("a tensor is longer than the schemes say")


def _take_grid(cursors: Mapping[str, "_Cursor"], scheme: Scheme, groups: int) -> QParams:
    """The inverse of `_packed_grid`."""
    if _is_plain(scheme):
        return _take_qparams(cursors, "weight", groups)
    name = f"{WEIGHT}_{_scale_name(scheme)}"
    tensor = cursors[f"{name}_tensor"].take(1) if scheme.scale == "e4m3" else None
    scale = scales.decode(cursors[name].take(groups), scheme.scale, tensor)
    if scheme.symmetric:
        return QParams(scale, torch.zeros_like(scale, dtype=torch.int32))
    points = cursors[f"{WEIGHT}_zero_point_packed"].take(packed_bytes(groups, scheme.bits))
    return QParams(scale, unpack(points, scheme.bits, groups))


def _take_qparams(cursors: Mapping[str, "_Cursor"], kind: str, groups: int) -> QParams:
    scale, zero_point = (_take(cursors, f"{kind}_{name}", groups) for name in ("scale", "zero_point"))
    return QParams(scale, zero_point.int())


def _take(cursors: Mapping[str, "_Cursor"], name: str, count: int) -> Tensor:
    return cursors[f"quantized.{name}"].take(count)


class _Cursor:
    """Reads a joined tensor part by part."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.position = tensor, 0

    def take(self, count: int) -> Tensor:
        start, self.position = self.position, self.position + count
        if self.position > len(self.tensor):
            raise ValueError("a tensor is shorter than the schemes say")
        return self.tensor[start : self.position].clone()
