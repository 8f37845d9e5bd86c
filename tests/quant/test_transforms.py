"""Transforms against dense matrices, and layers that compute the same in other coordinates."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdexp.models import checkpoint
from qdexp.quant import MinMax, PerChannel, Scheme, dequantize
from qdexp.quant.affine import quantize
from qdexp.quant.hadamard import has_order, matrices
from qdexp.quant.layers import QuantizedLayer, to_quantized
from qdexp.quant.low_rank import LowRank
from qdexp.quant.macs import count
from qdexp.quant.network import quantize_weights, quantized_layers
from qdexp.quant.transforms import Rotation, Smoothing, Transform, from_dict, runs_of, to_dict

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 5), (4, 3, 24)),
    "conv": (lambda: nn.Conv2d(24, 5, 3, stride=2, padding=1), (3, 24, 7, 8)),
    "reflected": (lambda: nn.Conv2d(24, 5, 3, padding=1, padding_mode="reflect"), (3, 24, 6, 6)),
    "circular": (lambda: nn.Conv1d(24, 5, 3, padding=1, padding_mode="circular", bias=False), (3, 24, 6)),
    "dilated": (lambda: nn.Conv2d(24, 3, (3, 1), dilation=2, padding="same"), (2, 24, 7, 7)),
    "conv1d": (lambda: nn.Conv1d(24, 4, 3, stride=2, padding=2), (2, 24, 9)),
}
PARTS = (16, 8)


def kronecker(order: int) -> Tensor:
    found = torch.ones(1, 1, dtype=torch.int64)
    for matrix in matrices(order):
        found = torch.kron(found, matrix)
    return found


@pytest.mark.parametrize("order", [order for order in range(1, 300) if has_order(order)])
def test_rows_of_a_hadamard_matrix_are_orthogonal_in_integers(order: int) -> None:
    matrix = kronecker(order)
    assert set(matrix.unique().tolist()) <= {-1, 1}
    assert torch.equal(matrix @ matrix.mT, order * torch.eye(order, dtype=torch.int64))


def test_which_orders_there_are() -> None:
    """All powers of two, and the multiples of 4 below 92 but 52, of which Paley's constructions give none with a prime."""
    assert {order for order in range(1, 92) if has_order(order)} == {1, 2, *range(4, 92, 4)} - {52}
    assert has_order(4 * 1152)
    assert not has_order(6)
    with pytest.raises(ValueError, match="order 6"):
        matrices(6)


@pytest.mark.parametrize("order", [4, 16, 64, 256])
def test_powers_of_four_are_regular(order: int) -> None:
    """What all channels have in common goes to all of them."""
    assert kronecker(order).sum(1).unique().tolist() == [order**0.5]


@pytest.mark.parametrize(
    ("parts", "size", "expected"),
    [
        ((48,), None, [(48, 48)]),
        ((48, 32), None, [(48, 48), (32, 32)]),
        ((48, 32), 16, [(48, 16), (32, 16)]),
        ((80,), 64, [(80, 16)]),
        ((52,), None, [(52, 4)]),
        ((3,), None, [(3, 1)]),
        ((512,), 128, [(512, 128)]),
    ],
)
def test_the_blocks_of_a_layer(parts: tuple[int, ...], size: int | None, expected: list[tuple[int, int]]) -> None:
    assert runs_of(parts, size) == expected


@pytest.mark.parametrize("runs", [[(48, 48)], [(48, 16)], [(1152, 1152)], [(256, 256), (48, 12)], [(3, 1), (8, 4)]])
def test_a_rotation_is_its_matrix(runs: list[tuple[int, int]]) -> None:
    rotation = Rotation.drawn(runs, -1, seed=0).double()
    blocks = [kronecker(order).double() / order**0.5 for channels, order in runs for _ in range(channels // order)]
    dense = torch.block_diag(*blocks) * rotation.signs
    x = torch.randn(5, rotation.channels, dtype=torch.float64)
    assert set(rotation.signs.tolist()) == {-1, 1}
    assert torch.allclose(rotation(x), x @ dense.mT, atol=1e-6)  # the matrices are kept in float32
    assert torch.allclose(rotation.weight(x), x @ dense.mT, atol=1e-6)
    assert torch.allclose(rotation.restore(rotation.weight(x)), x, atol=1e-6)


def transforms(dim: int, parts: tuple[int, ...] = (24,)) -> list[Transform]:
    return [
        Smoothing.by(torch.rand(24) * 3 + 0.1, dim),
        Rotation.drawn(runs_of(parts, None), dim, seed=1),
        Smoothing.by(torch.rand(24) + 0.5, dim),
    ]


def changed(name: str, *, branch: bool = False) -> tuple[Any, QuantizedLayer, Tensor]:
    """A layer, the same in other coordinates, and an input."""
    make, shape = LAYERS[name]
    plain = make()
    layer = to_quantized(deepcopy(plain))
    layer.transforms.extend(transforms(layer.channel_dim))
    if branch:
        layer.branch = LowRank(torch.randn(len(plain.weight), 2) / 4, torch.randn(2, *plain.weight.shape[1:]) / 4)
    return plain, layer, torch.randn(shape)


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_layer_computes_the_same_in_other_coordinates(name: str, branch: bool) -> None:
    plain, layer, x = changed(name, branch=branch)
    expected = plain(x)
    assert (layer(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.allclose(layer.multiplied_weight(), plain.weight, atol=0.1)
    assert not torch.allclose(layer.transformed(x), x, atol=0.1)


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_its_state_is_the_weight_of_a_plain_layer(name: str, branch: bool) -> None:
    """Once it is rounded; before it is the weight itself, bit for bit."""
    plain, layer, x = changed(name, branch=branch)
    assert torch.equal(layer.state_dict()["weight"], plain.weight)
    layer.weight_scheme = Scheme(4, PerChannel(0))
    quantize_weights(layer, MinMax(), quantize)
    assert layer.weight_int is not None
    assert layer.weight_qparams is not None
    rounded = dequantize(layer.weight_int, layer.weight_qparams, layer.weight_scheme)
    own = layer.own_weight(plain.weight)
    assert (rounded - own).abs().max() <= 0.51 * layer.weight_qparams.scale.max(), "what is rounded is the weight in these"
    found = layer(x)
    assert not torch.allclose(found, plain(x), rtol=1e-3)
    plain.load_state_dict(layer.state_dict())
    assert (found - plain(x)).abs().max() < 1e-5 * found.abs().max()
    layer.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), found)


def test_a_value_that_stands_out_is_spread_over_its_block() -> None:
    """Kept: the norm. Of one channel in 64 that is 100 times larger the rest drowns in a grid that spans all."""
    x = torch.randn(1000, 64)
    x[:, 5] *= 100
    rotated = Rotation.drawn([(64, 64)], -1, seed=0)(x)

    def crest(values: Tensor) -> float:
        return float((values.abs().amax(1) / values.square().mean(1).sqrt()).mean())

    assert torch.allclose(rotated.norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert crest(x) > 7
    assert crest(rotated) < 1.5
    assert crest(Rotation.drawn([(64, 4)], -1, seed=0)(x)) > 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_memory_format_are_kept(dtype: torch.dtype) -> None:
    """What is computed in half precision is computed in float32 on the way; the constants lose nothing."""
    for transform in transforms(1):
        x = torch.randn(2, 24, 5, 5).to(dtype)
        exact = transform(x.float())
        cast = transform.to(dtype)
        assert all(value.dtype in (torch.float32, torch.float64) for value in cast.buffers())
        for given in (x, x.to(memory_format=torch.channels_last)):
            found = cast(given)
            assert found.dtype == dtype
            assert found.stride() == given.stride()
            assert torch.allclose(found, exact.to(dtype), rtol=1e-6, atol=1e-6)


def test_the_memory_format_of_weights_is_kept() -> None:
    weight = torch.randn(5, 24, 3, 3).to(memory_format=torch.channels_last)
    for transform in transforms(1):
        assert transform.weight(weight).stride() == weight.stride()
        assert transform.restore(weight).stride() == weight.stride()


@pytest.mark.slow
@torch.no_grad()
def test_a_compiler_sees_one_graph() -> None:
    """As learning with ``recon.compile=true`` does. Three seconds, to load the compiler."""
    for name in ("linear", "conv"):
        _, layer, x = changed(name, branch=True)
        compiled: Any = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), layer(x))


def test_gradients_pass() -> None:
    for transform in transforms(-1):
        x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(transform.double(), x)


def test_numbers_and_options_are_kept() -> None:
    for transform in transforms(-1, PARTS):
        again = from_dict(to_dict(transform), 24, -1)
        again.fill(transform.kept())
        x = torch.randn(4, 24)
        assert transform.kept().numel() == transform.length
        assert torch.equal(again(x), transform(x))
    assert transforms(-1)[0].kept().dtype == torch.bfloat16
    assert transforms(-1)[1].kept().nbytes == 3


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "mirror"},
        {"kind": "rotation", "runs": [[16, 16]]},
        {"kind": "rotation", "runs": [[24, 7]]},
        {"kind": "rotation", "runs": [[24, 6]]},
        {"kind": "rotation", "runs": [[24, 0]]},
        {"kind": "rotation", "runs": [[24, True]]},
        {"kind": "rotation", "runs": [[12, 12], [12, 2**40]]},
    ],
)
def test_what_is_no_transform_of_a_layer_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"transform|rotation"):
        from_dict(values, 24, -1)


@torch.no_grad()
def test_checkpoints_hold_them_bit_for_bit(tmp_path: Path) -> None:
    """Weights and activations in full precision, or on grids; parts of a concatenation; a branch."""
    network, again = (nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 24, 1)) for _ in range(2))
    layer: Any
    for layer in network:
        quantized = to_quantized(layer)
        quantized.parts = PARTS
        quantized.transforms.extend(transforms(1, PARTS))
    quantized.branch = LowRank(torch.randn(24, 3), torch.randn(3, 24, 1, 1))
    x = torch.randn(2, 24, 4, 4)
    for bits in (32, 3):
        if bits != 32:
            for layer in network:
                layer.weight_scheme = Scheme(bits, PerChannel(0))
            quantize_weights(network, MinMax(), quantize)
        found = network(x)
        checkpoint.save(tmp_path / str(bits), network, {"_target_": "torch.nn.Sequential"})
        tensors = checkpoint.load_file(tmp_path / str(bits) / "checkpoint.safetensors")
        assert tensors["quantized.smoothing"].dtype == torch.bfloat16
        assert len(tensors["quantized.signs"]) == 2 * 3
        assert len(tensors["quantized.low_rank"]) == 3 * (24 + 24)
        read = deepcopy(again)
        for own, (_, described) in zip(read, quantized_layers(network), strict=True):
            checkpoint._put_beside(to_quantized(own, described.weight_scheme), checkpoint._beside(described))
        checkpoint.fill(read, tensors)
        read.load_state_dict(checkpoint.weights(read) | tensors)
        assert torch.equal(read(x), found)


def test_a_rotation_counts_the_additions_of_a_fast_one() -> None:
    """log2 n for each value; 12 for each value of a factor of order 12."""
    layer = to_quantized(nn.Conv2d(80, 4, 1))
    layer.transforms.append(Rotation.drawn(runs_of((32, 48), None), 1, seed=0))
    products = {product.module: product.macs for product in count(nn.Sequential(layer), [torch.randn(1, 80, 5, 5)])}
    assert products == {"0": 80 * 4 * 25, "0.transforms.0": 25 * (32 * 5 + 48 * (2 + 12))}


@pytest.mark.parametrize(("name", "macs"), [("linear", 3 * 2 * (24 + 5)), ("conv", 4 * 4 * 2 * (9 * 24 + 5))])
def test_a_branch_counts_its_products(name: str, macs: int) -> None:
    _, layer, x = changed(name, branch=True)
    products = [product for product in count(nn.Sequential(layer), [x[:1]]) if product.module == "0.branch"]
    assert sum(product.macs for product in products) == macs
    assert {product.bits({"0.branch": 16}) for product in products} == {(16, 16)}
