"""Post-training quantization of networks in pure torch. `network` shows the order in which the pieces are used."""

from qdexp.quant.affine import QParams, dequantize, fake_quantize, qparams_from_range, quantize
from qdexp.quant.formats import ActFormat, WeightFormat
from qdexp.quant.granularity import PerChannel, PerGroup, PerTensor, Split
from qdexp.quant.network import (
    LayerBits,
    convert,
    execution_order,
    observe_activations,
    plan_bits,
    quantize_weights,
)
from qdexp.quant.ranges import MinMax, NormSearch, RangeEstimator, RangeStream
from qdexp.quant.scheme import Scheme

__all__ = [
    "ActFormat",
    "LayerBits",
    "MinMax",
    "NormSearch",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "QParams",
    "RangeEstimator",
    "RangeStream",
    "Scheme",
    "Split",
    "WeightFormat",
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
