"""What quantization adds to a network, joined into five tensors: an entry of its own in a file would cost each of them about a
hundred bytes.

    quantized.weight             uint8, every layer's integers less qmin, packed at that layer's bits, layer after layer
    quantized.weight_scale       float32 [groups of all layers]
    quantized.weight_zero_point  uint8 [groups of all layers]; int32 where one lies outside 0 .. 255
    quantized.act_scale          float32 [groups of all activation quantizers with an observed range, in each group of
                                 timesteps where there are such]
    quantized.act_zero_point     uint8, likewise

in definition order of the layers.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qdexp.quant.affine import QParams
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.quant.packing import pack, packed_bytes, unpack

WEIGHT = "quantized.weight"
"""The name of the packed integers."""


def packed_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What quantization has added to a network, by the names in a checkpoint."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, layer in quantized_layers(network):
        if layer.weight_scheme is None:
            continue
        if layer.weight_int is None or layer.weight_qparams is None:
            raise ValueError(f"the weight of {name} is not quantized yet")
        parts["weight"].append(pack(layer.weight_int.int() - layer.weight_scheme.qmin, layer.weight_scheme.bits))
        parts["weight_scale"].append(layer.weight_qparams.scale)
        parts["weight_zero_point"].append(layer.weight_qparams.zero_point)
    for name, quantizer in activation_quantizers(network):
        if quantizer.mode != "on":
            raise ValueError(f"the activation quantizer {name} is not on")
        if quantizer.observed:
            parts["act_scale"].append(quantizer.scale.flatten())
            parts["act_zero_point"].append(quantizer.zero_point.flatten())
    joined = {f"quantized.{name}": torch.cat(tensors) for name, tensors in parts.items()}
    return joined | {name: _narrow(values) for name, values in joined.items() if name.endswith("_zero_point")}


def _narrow(values: Tensor) -> Tensor:
    """Integers as bytes if all of them are."""
    fits = bool(((values >= 0) & (values < 256)).all())
    return values.to(torch.uint8 if fits else torch.int32)


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The dequantized weights by all the names that they have in `state_dict()`; a checkpoint has their integers instead."""
    layers = network.named_modules(remove_duplicate=False)
    return {
        f"{name}.weight".lstrip("."): layer.weight
        for name, layer in layers
        if isinstance(layer, QuantizedLayer) and layer.weight_int is not None
    }


def fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `packed_tensors`, which are taken out of `tensors`: for a network whose layers have their schemes.

    Raises ValueError where they are not those of the network.
    """
    cursors = {name: _Cursor(tensors.pop(name)) for name in list(tensors) if name.startswith("quantized.")}
    schemes = [(layer, layer.weight_scheme) for _, layer in quantized_layers(network)]
    needed = sum(packed_bytes(layer.weight.numel(), scheme.bits) for layer, scheme in schemes if scheme is not None)
    if needed != (len(cursors[WEIGHT].tensor) if WEIGHT in cursors else 0):
        raise ValueError("the packed weights are not those of the architecture")
    for layer, scheme in schemes:
        if scheme is not None:
            count, shape = layer.weight.numel(), layer.weight.shape
            values = unpack(cursors[WEIGHT].take(packed_bytes(count, scheme.bits)), scheme.bits, count)
            groups = sum(scheme.granularity.groups(shape))
            layer.set_weight((values + scheme.qmin).to(scheme.dtype).view(shape), _take_qparams(cursors, "weight", groups))
    for _, quantizer in activation_quantizers(network):
        if quantizer.observed:
            taken = _take_qparams(cursors, "act", quantizer.scale.numel())
            quantizer.set_qparams(QParams(*(values.view_as(quantizer.scale) for values in taken)))
        quantizer.mode = "on"
    if any(cursor.position < len(cursor.tensor) for cursor in cursors.values()):
        raise ValueError("a tensor is longer than the schemes say")


def _take_qparams(cursors: Mapping[str, "_Cursor"], kind: str, groups: int) -> QParams:
    scale, zero_point = (cursors[f"quantized.{kind}_{name}"].take(groups) for name in ("scale", "zero_point"))
    return QParams(scale, zero_point.int())


class _Cursor:
    """Reads a joined tensor part by part."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.position = tensor, 0

    def take(self, count: int) -> Tensor:
        start, self.position = self.position, self.position + count
        if self.position > len(self.tensor):
            raise ValueError("a tensor is shorter than the schemes say")
        return self.tensor[start : self.position].clone()
