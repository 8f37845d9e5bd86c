import copy
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from quant_helpers import batches, conditional, quantized
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.quant import execution_order
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Call, Rows, blocks_of, first_row, outputs, run
from qdexp.quant.streams import streaming


def test_blocks_of_a_unet_in_execution_order(tiny_unet: UNet2DModel) -> None:
    example = first_row(batches()[0])
    order = execution_order(tiny_unet, example)
    expected = [
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.resnets.0",
        "down_blocks.1.attentions.0",
        "mid_block.resnets.0",
        "mid_block.attentions.0",
        "mid_block.resnets.1",
        "up_blocks.0.resnets.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.resnets.1",
        "up_blocks.0.attentions.1",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
        "conv_out",
    ]
    assert list(blocks_of(tiny_unet, order, example)) == expected
    registered = [name for name, _ in tiny_unet.named_modules() if name in expected]
    assert registered != expected, "attentions are defined before the residual blocks, the middle block last"
    quantized(tiny_unet, 4, 8)
    assert list(blocks_of(tiny_unet, order, example)) == expected


def test_a_transformer_block_holds_its_attentions() -> None:
    blocks = list(Adapter(conditional(), (torch.randn(1, 4, 8, 8), torch.zeros(1).long(), torch.randn(1, 3, 8))).blocks)
    at = blocks.index("down_blocks.0.resnets.0")
    inner = "down_blocks.0.attentions.0"
    assert blocks[at + 1 : at + 4] == [f"{inner}.proj_in", f"{inner}.transformer_blocks.0", f"{inner}.proj_out"]
    assert not [name for name in blocks if "attn" in name or ".ff" in name]


def test_every_layer_lies_in_one_block_and_no_block_in_another() -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )
    one = torch.zeros(1).long()
    adapter = Adapter(transformer, (torch.randn(1, 4, 8, 8), one, one))
    blocks = list(adapter.blocks)
    assert blocks[:3] == ["pos_embed.proj", "transformer_blocks.0", "transformer_blocks.1"]
    for layer in adapter.layers:
        assert sum(f"{layer}.".startswith(f"{block}.") for block in blocks) == 1


def test_a_layer_alone_is_its_own_block() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    assert blocks_of(network, ["0", "1.1"], [torch.randn(1, 2)]) == {"0": (True,), "1.1": (True,)}


def call(rows: Tensor, shared: Tensor) -> Call:
    """Of a block that takes all that there is: tensors of rows in many places, a shared one, and what is no tensor."""
    args = (rows, None, (rows[:, 0], [True, "mode"]))
    return args, {"scale": 0.5, "shared": shared, "nested": {"rows": -rows, "number": shared.new_tensor(3.0)}}


HAS_ROWS = (True, False, True, False, False, False, False, True, False)
"""Of the leaves of ``call``."""


def assert_same(one: Call, other: Call) -> None:
    leaves = [pytree.tree_flatten(each) for each in (one, other)]
    assert leaves[0][1] == leaves[1][1]
    for mine, theirs in zip(leaves[0][0], leaves[1][0], strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine is theirs or mine == theirs


@pytest.mark.parametrize("shared", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("sizes", [(4, 4, 3), (4, 2), (4, 4), (5,)])
def test_rows_of_several_batches(sizes: tuple[int, ...], shared: int) -> None:
    """A tensor that all rows share may have as many entries as one of the batches has rows, or as all of them."""
    x, other = torch.randn(sum(sizes), 3, 2), torch.randn(shared, 3)
    rows = Rows([call(part, other.clone()) for part in x.split(sizes)], HAS_ROWS, sizes)
    assert len(rows) == len(x)
    for index in (torch.randperm(len(x)), torch.tensor([1, 1, 0]), slice(1, len(x)), slice(0, 2)):
        assert_same(rows.take(index), call(x[index], other))


def test_rows_of_one_batch_each() -> None:
    x = torch.randn(3, 5)
    rows = Rows([((part,), {}) for part in x.split(1)], [True], [1, 1, 1])
    assert_same(rows.take(slice(0, 3)), ((x,), {}))


def test_rows_keep_their_values_and_their_memory_format() -> None:
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    for parts in ([x], list(x.split(2))):
        batch = [part.clone() for part in parts]
        rows = Rows([((part,), {}) for part in batch], [True], [len(part) for part in batch])
        for part in batch:
            part.zero_()
        for index in (slice(0, 4), torch.arange(4)):
            (taken,), _ = rows.take(index)
            assert torch.equal(taken, x)
            assert taken.is_contiguous(memory_format=torch.channels_last)


def test_rows_kept_in_fewer_bits_keep_their_timesteps() -> None:
    x, t = torch.randn(4, 3), torch.tensor([999.0, 964.55, 930.1, 0.5])
    calls: list[Call] = [((x, t), {}) for x, t in zip(x.split(2), t.split(2), strict=True)]
    rows = Rows(calls, [True, True], [2, 2], dtype=torch.bfloat16)
    (kept, timesteps), _ = rows.take(slice(0, 4))
    assert torch.equal(kept, x.bfloat16().float())
    assert torch.equal(timesteps, t)


def test_what_differs_from_batch_to_batch_must_have_an_entry_a_row() -> None:
    """Such as two entries a row, of classifier-free guidance inside the network: no row could be run alone."""
    x = torch.randn(8, 3)
    with pytest.raises(ValueError, match="rows"):
        Rows([((torch.cat([part, part]),), {}) for part in x.split(4)], [False], [4, 4])
    with pytest.raises(ValueError, match="rows"):
        Rows([((part, number), {}) for number, part in enumerate(x.split(4))], [True, False], [4, 4])


def test_run_replaces_parameters_and_buffers_for_one_call(tiny_unet: UNet2DModel) -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    before, x = copy.deepcopy(block.state_dict()), torch.randn(2, 3)
    weight, mean = torch.randn(3, 3, requires_grad=True), torch.randn(3)
    expected = copy.deepcopy(block)
    expected[0].weight.data, expected[1].running_mean = weight.detach(), mean
    (y,) = run(block, ((x,), {}), {"0.weight": weight, "1.running_mean": mean})
    assert torch.equal(y, expected(x))
    y.sum().backward()
    assert weight.grad is not None
    (again,) = run(block, ((), {"input": x}))
    assert torch.equal(again, block(x))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_the_outputs_are_all_floating_point_tensors() -> None:
    x, y, index, flags = torch.zeros(1), torch.ones(1).half(), torch.zeros(1).long(), torch.ones(1).bool()
    for result, expected in (
        (x, [x]),
        ((None, [x, index, y], 0.5), [x, y]),
        ({"mask": flags, "sample": y, "more": {"state": x}}, [y, x]),
        (index, []),
    ):
        found = outputs(result)
        assert isinstance(found, tuple) and [id(one) for one in found] == [id(one) for one in expected]


class Pairs(nn.Module):
    """A block that is called with a table for all rows, and returns two tensors and which entry was looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, table: Tensor, *, entry: int) -> tuple[Tensor, dict[str, Any]]:
        y = self.first(x) + table[entry]
        return y, {"entry": torch.tensor(entry), "state": self.last(y), "cache": None}


class Looking(nn.Module):
    """Blocks that read a table of four entries."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pairs(), Pairs()])
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        for entry, block in enumerate(self.blocks):
            y, more = block(x, self.table, entry=entry)
            x = y + more["state"]
        return x


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_shared_tensor_with_as_many_entries_as_a_batch_has_rows_stays_shared(size: int) -> None:
    network, data = Looking().requires_grad_(False), [(part,) for part in torch.randn(2 * size, 3).split(size)]
    blocks = Adapter(network, first_row(data[0])).blocks
    assert blocks == dict.fromkeys(["blocks.0", "blocks.1"], (True, False, False))
    index = torch.tensor([2 * size - 1, 0, 0])
    with streaming(network, list(blocks), data) as stream:
        for entry, (name, has_rows) in enumerate(blocks.items()):
            rows = Rows(stream.calls, has_rows, stream.sizes)
            (x, table), named = rows.take(index)
            assert torch.equal(table, network.table) and named == {"entry": entry}
            assert torch.equal(x, torch.cat([args[0] for args, _ in stream.calls])[index])
            found, results = run(network.get_submodule(name), rows.take(index)), stream.advance()
            assert len(found) == 2
            for one, parts in zip(found, zip(*results, strict=True), strict=True):
                torch.testing.assert_close(one, torch.cat(parts)[index])
