"""Networks whose classes nobody has seen before: all that the adapter finds, it finds by calling them."""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from quant_helpers import split_sizes
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from unseen import HEADS, PRODUCTS, TOKENS, WIDTH, Attention, Transformer, by_hand, flux, rows, sd3, sdpa

from qdexp.errors import UserError
from qdexp.quant import NormSearch, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.attention import QuantizedSite, quantized_sites
from qdexp.quant.blocks import Batch, call
from qdexp.quant.coverage import Coverage, Wanted, known_bits
from qdexp.quant.macs import count
from qdexp.quant.network import LayerBits, activation_quantizers
from qdexp.quant.streams import streaming

SITES: dict[str, Sequence[tuple[str, ...]]] = {
    "sdpa": (("attention",),),
    "linear": (("act", "act"),) * 3,
    **dict.fromkeys(("by hand", "einsum", "bmm"), (("act", "act"), ("probability", "act"))),
}


def quantized(network: nn.Module, data: Sequence[Batch], act_bits: int = 8, **options: Any) -> tuple[Adapter, Coverage]:
    """All of it; what was found, and what it covers."""
    example: Batch = pytree.tree_map(lambda tensor: tensor[:1], data[0])
    adapter = Adapter(network.eval(), example)
    plan = plan_bits(network, adapter.layers, 4, act_bits, **options)
    convert(network, plan, adapter.sites)
    quantize_weights(network, NormSearch(), nearest)
    observe_activations(network, data, NormSearch())
    wanted = Wanted(plan, adapter.sites, LayerBits(4, act_bits), 8)
    return adapter, Coverage(network, count(network, example), known_bits(network), wanted)


BIASES_AND_NORMS = {"biases", "RMSNorm", "LayerNorm"}


@pytest.mark.parametrize("make", [sd3, flux])
def test_transformers_of_diffusers_are_taken_as_they_are(make: Callable[[], tuple[nn.Module, Callable[[int], Batch]]]) -> None:
    torch.manual_seed(0)
    network, rows = make()
    data = [rows(3), rows(3)]
    with torch.inference_mode():
        full = call(network.eval(), data[0])[0]
    adapter, coverage = quantized(network, data)
    assert {name for name in adapter.blocks if "blocks." in name} == {
        name for name, _ in network.named_modules() if name.split(".")[0].endswith("blocks") and name.count(".") == 1
    }, "each block of the transformer is one, whatever it returns"
    assert coverage.share("macs") == coverage.share("parameters") == 1
    assert set(coverage.left_out) <= BIASES_AND_NORMS
    assert all(name.endswith("attn") or name.endswith("attn2") for name in adapter.sites)
    with torch.inference_mode():
        error = (call(network, data[0])[0] - full).norm() / full.norm()
    assert 0 < error < 0.1


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_transformer_of_ones_own_is_quantized_wholly(kind: str) -> None:
    torch.manual_seed(0)
    network, data = Transformer(PRODUCTS[kind]), [rows(4), rows(4)]
    with torch.inference_mode():
        full = call(network.eval(), data[0])["sample"]
    adapter, coverage = quantized(network, data, 8)
    assert {name: site.products for name, site in adapter.sites.items()} == {
        f"blocks.{number}.attention": SITES[kind] for number in range(2)
    }
    assert {site.layer for site in adapter.sites.values()} == {"blocks.0.attention.qkv", "blocks.1.attention.qkv"}
    assert list(adapter.blocks) == ["first", "time", "blocks.0", "blocks.1", "last"]
    assert adapter.blocks["blocks.0"] == (True, True, False), "the table is shared, whatever its length"
    assert coverage.share("macs") == coverage.share("parameters") == 1
    assert set(coverage.left_out) == {"biases", "LayerNorm", "parameters outside layers"}, "the scale lies in no layer"
    with torch.inference_mode():
        error = (call(network, data[0])["sample"] - full).norm() / full.norm()
    assert 0 < error < 0.1
    known = [quantizer for _, quantizer in activation_quantizers(network) if quantizer.fixed]
    assert len(known) == (0 if kind == "linear" else 2), "softmaxes lie on the grid of [0, 1]"


@pytest.mark.parametrize("kind", ["by hand", "einsum", "bmm"])
def test_products_by_hand_are_those_of_the_fused_attention(kind: str) -> None:
    """To the last bits: the same values are rounded to the same grids, whoever multiplies them."""
    made = []
    for product in (PRODUCTS[kind], sdpa):
        torch.manual_seed(0)
        network, data = Transformer(product), [rows(4)]
        quantized(network, data)
        with torch.inference_mode():
            made.append(call(network, data[0])["sample"])
    one, other = made
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_torchs_own_attention_module() -> None:
    """Its products are quantized; its weights, which it uses past any layer, are listed."""
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            x = self.first(x) + t[:, None, None] / 1000
            for layer in self.layers:
                x = layer(x)
            y: Tensor = self.last(x)
            return y

    network, data = Encoder(), [rows(4)[:2]]
    adapter, coverage = quantized(network, data)
    assert list(adapter.sites) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert all(site.products in SITES.values() for site in adapter.sites.values())
    assert coverage.macs["a8a8"] > 0
    assert sum(found.macs for found in coverage.left_out.values()) == coverage.macs["full"]
    assert any("MultiheadAttention" in kind or "NonDynamically" in kind for kind in coverage.left_out)
    warning = coverage.warning("w4a8")
    assert warning is not None and "self_attn" in warning
    seen = {name: 0 for name, _ in activation_quantizers(network)}
    for name, quantizer in activation_quantizers(network):
        quantizer.register_forward_hook(lambda *_, name=name: seen.update({name: seen[name] + 1}))
    with torch.inference_mode():  # where torch would run its fused layer, past all quantizers
        call(network, data[0])
    assert all(seen.values())


class Experts(nn.Module):
    """A mixture: each token goes to one of the experts, and so do not all rows to any."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        chosen, out = self.router(tokens)[:, :2].argmax(-1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            taken = chosen == number
            if taken.any():
                out[taken] = expert(tokens[taken])
        return out.view_as(x)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList([Experts()])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.first(x) + t[:, None, None] / 1000
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.last(x)
        return y


def test_experts_are_no_blocks_and_those_that_do_not_run_are_listed() -> None:
    torch.manual_seed(0)
    adapter, coverage = quantized(Mixture(), [rows(8)[:2]])
    assert list(adapter.blocks) == ["first", "blocks.0", "last"]
    left = coverage.left_out["Linear, not run"]
    assert set(left.names) == {"blocks.0.experts.2.0", "blocks.0.experts.2.2"}, "the third expert is never chosen"


def test_bits_by_layer_reach_the_attention_that_follows_it() -> None:
    torch.manual_seed(0)
    network = Transformer(by_hand)
    _, coverage = quantized(network, [rows(4)], layers={"blocks.0.attention.qkv": {"act_bits": 32}})
    assert set(quantized_sites(network)) == {"blocks.1.attention"}
    assert coverage.share("macs") == 1, "it was not asked for"
    assert coverage.macs["full"] > 0


@pytest.mark.parametrize("kind", ["sdpa", "by hand", "linear"])
def test_copies_threads_and_whole_graphs(kind: str) -> None:
    torch.manual_seed(0)
    network, data = Transformer(PRODUCTS[kind]), [rows(4)]
    quantized(network, data)
    with torch.no_grad():
        expected = call(network, data[0])["sample"]
        twin = copy.deepcopy(network)
        assert torch.equal(call(twin, data[0])["sample"], expected)
        assert quantized_sites(twin).keys() == quantized_sites(network).keys()
        next(iter(quantized_sites(twin).values())).quantized_products = nn.ModuleList()
        assert torch.equal(call(network, data[0])["sample"], expected), "a copy has quantizers of its own"
        made: list[Tensor] = []
        threads = [threading.Thread(target=lambda: made.append(call(network, data[0])["sample"])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4 and all(torch.allclose(one, expected, atol=1e-5) for one in made)
        torch._dynamo.reset()
        compiled: Any = torch.compile(network, fullgraph=True, backend="aot_eager")
        assert torch.allclose(call(compiled, data[0])["sample"], expected, atol=1e-5)


def test_passes_that_stand_still_inside_an_attention_keep_its_function_mode() -> None:
    """Blocks are the layers of the attention: the passes of all batches stop between its products, turn by turn."""
    torch.manual_seed(0)
    network, data = Transformer(by_hand), [rows(3), rows(2)]
    quantized(network, data)
    inside = ["first", "time", "blocks.0.attention.qkv", "blocks.0.attention.out", "blocks.1.attention.out", "last"]
    with torch.no_grad():
        expected = [call(network, batch)["sample"] for batch in data]
    with streaming(network, inside, data) as stream:
        for name in inside:
            others = torch.randn(2, 3) @ torch.randn(3, 2)  # outside of the passes no product is anybody's
            assert others.shape == (2, 2)
            outputs = stream.advance()
            assert stream.sizes == [3, 2], name
    assert [torch.equal(output, truth) for (output,), truth in zip(outputs, expected, strict=True)] == [True, True]
    with streaming(network, inside, data) as stream:
        stream.advance()  # the passes end before their time
    with torch.no_grad():
        assert torch.equal(call(network, data[0])["sample"], expected[0])


class Changing(nn.Module):
    """Attends a second time, where the timestep is late."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, late: bool) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return sdpa(sdpa(q, k, v), k, v) if late else sdpa(q, k, v)


class Whimsical(nn.Module):
    def __init__(self, calls: Sequence[bool | None]) -> None:
        super().__init__()
        self.first, self.attention, self.last, self.calls = nn.Linear(4, WIDTH), Changing(), nn.Linear(WIDTH, 4), calls

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.first(x)
        for late in self.calls:
            x = x + self.attention(x, bool(t[0] > 500) if late is None else late)
        y: Tensor = self.last(x)
        return y


def test_an_attention_whose_calls_differ_is_listed_or_refused_in_one_line() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, TOKENS, 4)
    adapter, coverage = quantized(Whimsical([False, True]), [(x, torch.zeros(4))])
    assert not adapter.sites, "in one pass it is called in two ways"
    assert coverage.left_out["products of two activations"].names == {"attention": None}
    network = Whimsical([None])
    quantized(network, [(x, torch.zeros(4))])
    with pytest.raises(UserError, match=r"^model\.network: the attention in QuantizedChanging does not multiply .*act_bits 32"):
        call(network, (x, torch.full((4,), 900.0)))


def test_a_forward_that_somebody_has_replaced_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = Transformer(by_hand)
    attention: Any = network.blocks[0].attention
    own = attention.forward
    attention.forward = lambda x: 2 * own(x)
    adapter, coverage = quantized(network, [rows(4)])
    assert list(adapter.sites) == ["blocks.1.attention"]
    assert list(coverage.left_out["products of two activations"].names) == ["blocks.0.attention"]


@torch.library.custom_op("qdexp_test::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v)


def test_a_fused_kernel_that_no_rule_sees_is_listed() -> None:
    torch.manual_seed(0)
    network = Transformer(lambda q, k, v: attend(q, k, v))
    adapter, coverage = quantized(network, [rows(4)])
    assert not adapter.sites
    (kind,) = [kind for kind in coverage.left_out if "qdexp_test::attend" in kind]
    assert list(coverage.left_out[kind].names) == ["blocks.0.attention", "blocks.1.attention"]
    warning = coverage.warning("w4a8")
    assert warning is not None and "qdexp_test::attend" in warning and "\n" not in warning


def test_sites_keep_the_signature_of_their_forward() -> None:
    import inspect

    network = Transformer(sdpa)
    quantized(network, [rows(2)])
    site = network.blocks[0].attention
    assert isinstance(site, QuantizedSite) and isinstance(site, Attention)
    assert list(inspect.signature(site.forward).parameters) == ["x"]


def test_shortcuts_are_found_in_any_network() -> None:
    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            y: Tensor = self.up(torch.cat([x, self.down(x)], dim=1))
            return y

    batch = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert split_sizes(Joins(), batch, "skip") == {"up": (1, 3)}
    assert {name: read.sizes for name, read in Adapter(Joins(), batch).concatenations.items()} == {"up": (1, 3)}
