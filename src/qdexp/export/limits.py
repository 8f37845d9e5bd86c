"""Limits of ONNX's QuantizeLinear and DequantizeLinear: networks that they cannot hold are refused by the names of layers,
before any work."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from qdexp.errors import UserError
from qdexp.quant.blocks import Batch
from qdexp.quant.granularity import PerGroup, whole
from qdexp.quant.macs import FULL, count
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.quant.scheme import Scheme

NAMES = 3
"""The number of layers that are named for each reason."""


def check(network: nn.Module) -> None:
    """Raises UserError, a line for each reason, where a quantized network has what an ONNX file cannot hold."""
    found: Mapping[str, list[str]] = defaultdict(list)
    for name, reason in _reasons(network):
        found[reason].append(name)
    if found:
        raise UserError(*(f"--to onnx: cannot hold {reason}: {_listed(names)}" for reason, names in found.items()))


def paired(network: nn.Module, example: Batch) -> float:
    """The share of the MACs of a pass of which both factors are rounded to grids, so that they stand between pairs of nodes.

    Args:
        network: Quantized.
        example: One row.
    """
    grids = {f"{name}.weight": layer.weight_scheme.bits for name, layer in quantized_layers(network) if layer.weight_scheme}
    grids |= {name: quantizer.scheme.bits for name, quantizer in activation_quantizers(network)}
    products = count(network, example)
    return sum(product.macs for product in products if FULL not in product.bits(grids)) / sum(one.macs for one in products)


def _reasons(network: nn.Module) -> Iterator[tuple[str, str]]:
    for name, layer in quantized_layers(network):
        if layer.weight.dtype != torch.float32:
            dtype = str(layer.weight.dtype).removeprefix("torch.")
            yield name, f"networks in {dtype}, whose roundings differ from runtime to runtime (load them in float32)"
        if layer.weight_scheme is not None and not layer.weight_scheme.is_integer:
            yield name, f"weights of {_number(layer.weight_scheme)} (choose a quant of integers)"
    for name, quantizer in activation_quantizers(network):
        scheme = quantizer.scheme
        if not scheme.is_integer:
            yield name, f"activations of {_number(scheme)} (choose a quant of integers)"
        elif isinstance(whole(scheme.granularity), PerGroup):
            yield name, f"activations {whole(scheme.granularity)} (choose quant.act.granularity=per_tensor)"


def _number(scheme: Scheme) -> str:
    return scheme.number.upper()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMES]) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")
