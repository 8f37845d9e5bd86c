"""Every kind of grid that ONNX holds: the integers in the file, and what ONNX Runtime computes with its default options."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from families import FAMILIES
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.calling import estimate_of
from qdexp.export import graph, limits
from qdexp.export.runtime import Runtime, held
from qdexp.quant.blocks import Batch, call
from qdexp.quant.context import share
from qdexp.quant.granularity import PerChannel, PerGroup, PerTensor, Split
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.low_rank import LowRank
from qdexp.quant.network import quantized_layers
from qdexp.quant.scheme import Scheme, TimeGroups
from qdexp.quant.transforms import Rotation, Smoothing

LAST_BITS = 2e-6
"""Of the output: what sums in another order differ by."""
FALLEN = 1e-3
"""Likewise, on average over all values, where some of what was rounded has fallen to the other of two levels."""
PARTS = (40, 24)


def exported(network: nn.Module, batch: Batch, path: Path, narrowest: int = 4) -> tuple[Runtime, dict[str, Any]]:
    """The network in ONNX Runtime, and the initializers of the file."""
    limits.check(network)
    model = graph.exported(network, batch, narrowest)
    runtime = graph.write(model, path, {}, Runtime)
    file = onnx.load(path)
    onnx.checker.check_model(file)
    return runtime, {one.name: one for one in file.graph.initializer}


@torch.inference_mode()
def output(network: nn.Module, batch: Batch) -> Tensor:
    made: Tensor = estimate_of(call(network, batch))
    return made


def first(batch: Batch, rows: int) -> Batch:
    one: Batch = pytree.tree_map(lambda values: values[:rows], batch)
    return one


def same(expected: Tensor, found: Tensor) -> bool:
    """Up to last bits, but in the rows where a rounding fell the other way."""
    apart = (expected - found).abs() / expected.square().mean().sqrt()
    return float(apart.median()) < LAST_BITS and float(apart.mean()) < FALLEN


def integers(network: nn.Module, initializers: dict[str, Any]) -> None:
    """Holds the integers of all weights in a file against those of the layers."""
    for name, layer in quantized_layers(network):
        scheme, codes = layer.weight_scheme, layer.weight_int
        assert scheme is not None
        assert codes is not None
        parts = [codes] if layer.parts is None else codes.split(layer.parts, 1)
        for part, own in enumerate(parts):
            kept = initializers[f"{name}.integers.{part}.codes"]
            array = numpy_helper.to_array(kept)
            found = torch.from_numpy(array.reshape(array.shape[-own.ndim :]).astype(np.int32))
            assert torch.equal(found.mT if isinstance(layer, nn.Linear) else found, own.int())
            width = "4" if scheme.bits <= 4 else "8"
            assert onnx.TensorProto.DataType.Name(kept.data_type) == f"{'INT' if scheme.symmetric else 'UINT'}{width}"


def changed(network: Any) -> None:
    """Other coordinates for the layer that reads a concatenation and for one of an attention, and branches beside them."""
    for layer in (network.joined, network.attention.q):
        channels, out = layer.weight.shape[1], len(layer.weight)
        layer.transforms.append(Smoothing.by(torch.rand(channels) + 0.5, layer.channel_dim))
        layer.transforms.append(Rotation.drawn([(channels, 8)], layer.channel_dim, 0))
        layer.branch = LowRank(torch.randn(out, 4) / 50, torch.randn(4, *layer.weight.shape[1:]) / 50)


def test_static_grids(small: Callable[..., Any], tmp_path: Path) -> None:
    weights = {
        "deep": Scheme(3, PerGroup(16, 1)),  # the last group is short
        "joined": Scheme(4, Split(PARTS, PerGroup(8, 1))),
        "attention.q": Scheme(4, PerChannel(), symmetric=True),
        "attention.k": Scheme(8, PerChannel(), symmetric=True),
        "attention.v": Scheme(8, PerGroup(16, 1)),
        "attention.out": Scheme(5, PerTensor()),
    }
    acts = {
        "deep": Scheme(6),
        "joined": Scheme(4, Split(PARTS, PerTensor())),
        "attention.q": Scheme(8, symmetric=True),
        "attention.out": Scheme(4, symmetric=True),
        "last": Scheme(16),
        "time": Scheme(16),
    }
    made = small(weights, acts, changed, softmax_bits=16)
    network, batch = made.network, (*made.batch, {})
    expected = output(network, batch)
    runtime, initializers = exported(network, batch, tmp_path / "a.onnx")
    integers(network, initializers)
    assert same(expected, runtime(batch))
    assert same(expected[:1], runtime(first(batch, 1)))
    assert torch.equal(output(network, batch), expected)  # the network is as it was


def test_grids_of_rows(small: Callable[..., Any], tmp_path: Path) -> None:
    """Computed at the call, or looked up by the timestep."""
    groups = TimeGroups((250.0, 700.0))
    weights = {"attention.k": Scheme(8, PerChannel()), "attention.v": Scheme(8, PerChannel())}
    acts = {
        "deep": Scheme(8, time="dynamic"),
        "joined": Scheme(4, Split(PARTS, PerTensor()), time="dynamic"),
        "attention.q": Scheme(8, time=groups),
        "attention.k": Scheme(6, time=groups),
        "attention.v": Scheme(8, symmetric=True, time="dynamic"),
        "last": Scheme(8, time="dynamic"),
    }

    def in_groups(network: Any) -> None:
        for quantizer in (network.attention.quantized_products[0].query, network.attention.quantized_products[0].key):
            quantizer.set_time(groups)
        share(network)

    made = small(weights, acts, in_groups)
    batch = (*made.batch, {})
    expected = output(made.network, batch)
    runtime, initializers = exported(made.network, batch, tmp_path / "a.onnx")
    integers(made.network, initializers)
    assert same(expected, runtime(batch))
    assert same(expected[:3], runtime(first(batch, 3)))


def test_one_factor_alone(small: Callable[..., Any], tmp_path: Path) -> None:
    """Weights of 4 bits whose inputs are in full precision are not fused with what rounds these; and the other way round."""

    def in_full(network: Any) -> None:
        network.attention.k.input_quantizer = network.joined.input_quantizer = nn.Identity()

    made = small({"attention.v": Scheme(4, PerGroup(16, 1))}, {}, in_full)
    layer: Any = made.network.get_submodule("attention.v")
    layer.input_quantizer = nn.Identity()
    batch = (*made.batch, {})
    runtime, _ = exported(made.network, batch, tmp_path / "a.onnx")
    assert same(output(made.network, batch), runtime(batch))


def test_narrow_weights_in_eight_bits(small: Callable[..., Any], tmp_path: Path) -> None:
    made = small({"attention.v": Scheme(4, PerGroup(16, 1))}, {})
    batch = (*made.batch, {})
    runtime, initializers = exported(made.network, batch, tmp_path / "a.onnx", narrowest=8)
    assert not {one.data_type for one in initializers.values()} & {onnx.TensorProto.UINT4, onnx.TensorProto.INT4}
    codes = numpy_helper.to_array(initializers["attention.v.integers.0.codes"])
    layer = dict(quantized_layers(made.network))["attention.v"]
    assert isinstance(layer, QuantizedLayer)
    assert layer.weight_int is not None
    assert np.array_equal(codes[0].T, layer.weight_int.numpy())
    assert same(output(made.network, batch), runtime(batch))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ldm_church", "sd", "sdxl")]  # half a minute each


@pytest.mark.parametrize("name", ["ddpm", "dit", *SLOW])
def test_networks(name: str, tmp_path: Path) -> None:
    """Up to what falls to the other of two levels where last bits change."""
    family = next(one for one in FAMILIES if one.name == name)
    network = family.quantized(4, 8, split=family.splits)
    x_t, t, named = family.batch(network)
    batch = (x_t, t.float(), named)
    runtime, initializers = exported(network, batch, tmp_path / "a.onnx")
    integers(network, initializers)
    found = held(network, runtime, batch)
    assert found.runtime.mean < 4 * found.last_bits.mean + LAST_BITS
    assert found.runtime.largest < 4 * found.last_bits.largest + LAST_BITS
