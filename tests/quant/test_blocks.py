import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from quant_helpers import batches, conditional, quantized
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.quant import execution_order
from qdexp.quant.blocks import Call, Rows, blocks_of, output, run


def test_blocks_of_a_unet_in_execution_order(tiny_unet: UNet2DModel) -> None:
    order = execution_order(tiny_unet, batches()[0])
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
    assert blocks_of(tiny_unet, order) == expected
    registered = [name for name, _ in tiny_unet.named_modules() if name in expected]
    assert registered != expected, "attentions are defined before the residual blocks, the middle block last"
    quantized(tiny_unet, 4, 8)
    assert blocks_of(tiny_unet, order) == expected


def test_a_transformer_block_holds_its_attentions() -> None:
    network = conditional()
    order = execution_order(network, (torch.randn(1, 4, 8, 8), torch.zeros(1).long(), torch.randn(1, 3, 8)))
    blocks = blocks_of(network, order)
    at = blocks.index("down_blocks.0.resnets.0")
    inner = "down_blocks.0.attentions.0"
    assert blocks[at + 1 : at + 4] == [f"{inner}.proj_in", f"{inner}.transformer_blocks.0", f"{inner}.proj_out"]
    assert not [name for name in blocks if "attn" in name or ".ff" in name]


def test_every_layer_lies_in_one_block_and_no_block_in_another() -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )
    one = torch.zeros(1).long()
    order = execution_order(transformer, (torch.randn(1, 4, 8, 8), one, one))
    blocks = blocks_of(transformer, order)
    assert blocks[:3] == ["pos_embed.proj", "transformer_blocks.0", "transformer_blocks.1"]
    for layer in order:
        assert sum(f"{layer}.".startswith(f"{block}.") for block in blocks) == 1


def test_a_layer_alone_is_its_own_block() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    assert blocks_of(network, ["0", "1.1"]) == ["0", "1.1"]


def call(rows: Tensor, shared: Tensor) -> Call:
    """Of a block that takes all that there is: tensors of rows in many places, a shared one, and what is no tensor."""
    args = (rows, None, (rows[:, 0], [True, "mode"]))
    return args, {"scale": 0.5, "shared": shared, "nested": {"rows": -rows, "number": shared.new_tensor(3.0)}}


def assert_same(one: Call, other: Call) -> None:
    leaves = [pytree.tree_flatten(each) for each in (one, other)]
    assert leaves[0][1] == leaves[1][1]
    for mine, theirs in zip(leaves[0][0], leaves[1][0], strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine is theirs or mine == theirs


@pytest.mark.parametrize("shared", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("sizes", [(4, 4, 3), (4, 2), (4, 4), (5,)])
def test_rows_of_several_batches(sizes: tuple[int, ...], shared: int) -> None:
    """A tensor that all rows share may have as many entries as one of the batches has rows; or as all of them, if it is one."""
    x, other = torch.randn(sum(sizes), 3, 2), torch.randn(shared, 3)
    one = all(shared == size for size in sizes)
    rows = Rows([call(part, other if one else other.clone()) for part in x.split(sizes)], sizes)
    assert len(rows) == len(x)
    for index in (torch.randperm(len(x)), torch.tensor([1, 1, 0]), slice(1, len(x)), slice(0, 2)):
        assert_same(rows.take(index), call(x[index], other))


def test_rows_of_one_batch_each() -> None:
    x = torch.randn(3, 5)
    rows = Rows([((part,), {}) for part in x.split(1)], [1, 1, 1])
    assert_same(rows.take(slice(0, 3)), ((x,), {}))


def test_rows_keep_their_values_and_their_memory_format() -> None:
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    for parts in ([x], list(x.split(2))):
        batch = [part.clone() for part in parts]
        rows = Rows([((part,), {}) for part in batch], [len(part) for part in batch])
        for part in batch:
            part.zero_()
        for index in (slice(0, 4), torch.arange(4)):
            (taken,), _ = rows.take(index)
            assert torch.equal(taken, x)
            assert taken.is_contiguous(memory_format=torch.channels_last)


def test_rows_kept_in_fewer_bits_keep_their_timesteps() -> None:
    x, t = torch.randn(4, 3), torch.tensor([999.0, 964.55, 930.1, 0.5])
    rows = Rows([((x, t), {}) for x, t in zip(x.split(2), t.split(2), strict=True)], [2, 2], dtype=torch.bfloat16)
    (kept, timesteps), _ = rows.take(slice(0, 4))
    assert torch.equal(kept, x.bfloat16().float())
    assert torch.equal(timesteps, t)


def test_what_differs_from_batch_to_batch_must_have_an_entry_a_row() -> None:
    """Such as two entries a row, of classifier-free guidance inside the network: no row could be run alone."""
    x = torch.randn(8, 3)
    with pytest.raises(ValueError, match="rows"):
        Rows([((torch.cat([part, part]),), {}) for part in x.split(4)], [4, 4])
    with pytest.raises(ValueError, match="rows"):
        Rows([((part, number), {}) for number, part in enumerate(x.split(4))], [4, 4])


def test_run_replaces_parameters_and_buffers_for_one_call(tiny_unet: UNet2DModel) -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    before, x = copy.deepcopy(block.state_dict()), torch.randn(2, 3)
    weight, mean = torch.randn(3, 3, requires_grad=True), torch.randn(3)
    expected = copy.deepcopy(block)
    expected[0].weight.data, expected[1].running_mean = weight.detach(), mean
    y = run(block, ((x,), {}), {"0.weight": weight, "1.running_mean": mean})
    assert torch.equal(y, expected(x))
    y.sum().backward()
    assert weight.grad is not None
    assert torch.equal(run(block, ((), {"input": x})), block(x))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_the_output_is_the_first_tensor() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert output(x) is x
    assert output((None, [x, y])) is x
    assert output({"sample": y}) is y
