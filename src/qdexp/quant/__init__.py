"""Post-training quantization of networks in pure torch. `network` shows the order in which the pieces are used."""

from qdexp.quant.affine import QParams, dequantize, fake_quantize, qparams_from_range, quantize
from qdexp.quant.network import (
    LayerBits,
    convert,
    execution_order,
    observe_activations,
    plan_bits,
    quantize_weights,
)
from qdexp.quant.ranges import MinMax, NormSearch, RangeEstimator, RangeStream
from qdexp.quant.scheme import PerChannel, PerTensor, Scheme, Split

__all__ = [
    "LayerBits",
    "MinMax",
    "NormSearch",
    "PerChannel",
    "PerTensor",
    "QParams",
    "RangeEstimator",
    "RangeStream",
    "Scheme",
    "Split",
    "convert",
    "dequantize",
    "execution_order",
    "fake_quantize",
    "observe_activations",
    "plan_bits",
    "qparams_from_range",
    "quantize",
    "quantize_weights",
]
