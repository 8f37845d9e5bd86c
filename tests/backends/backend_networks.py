"""The embedded networks, quantized in a moment."""

from functools import cache

import pytest
from torch import nn

from benchmarks.execution.networks import Pair
from benchmarks.subject import config_of
from qdexp.backends.integer import kernels
from qdexp.config import Model
from qdexp.quant.blocks import Batch

ROWS = 4
NEEDS_VNNI = pytest.mark.skipif(not kernels.are_fast(), reason="int8 kernels sum in 16 bits on a CPU without AVX512-VNNI")


@cache
def _model(name: str) -> Model:
    return config_of([f"model={name}", "method=ptq", "tracker=none", "device=cpu"]).model


def quantized_network(name: str, weight_bits: int, act_bits: int) -> tuple[nn.Module, Batch]:
    """A network, its shortcuts split where it has any, and four rows at as many timesteps."""
    pair = Pair.of(_model(name), ROWS, weight_bits, act_bits, "skip+conv1")
    return pair.quantized, pair.batch
