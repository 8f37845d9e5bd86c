"""Learning where grids follow the timestep or the row: rows of a block keep their timesteps, though no network is called."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from recon_helpers import FILES, Batches, Pair, batches, differing, equal, held_out_errors, joined, pair, recon, table
from torch import nn

from qdexp.quant import MinMax, QParams, fake_quantize, observe_activations
from qdexp.quant.blocks import Rows, run
from qdexp.quant.context import UNKNOWN, CallState, contexts, knowing
from qdexp.quant.network import activation_quantizers
from qdexp.quant.scheme import Time, TimeGroups
from qdexp.quant.streams import streaming
from qdexp.quant.timegroups import set_time
from qdexp.recon import inner
from qdexp.recon.learning import ScaleReconstruction, Site
from qdexp.recon.second_order import round_block

TIME = TimeGroups((250, 700))


@pytest.fixture
def data() -> Batches:
    """24 rows, of which the last 8 are held out."""
    return batches(9, 9, 6)


def timed(full: nn.Module, data: Batches, time: Time = TIME, weight_bits: int = 8) -> Pair:
    """Grids of 4 bits, observed."""
    one = pair(full, data, weight_bits, 4)
    set_time(one.network, time)
    observe_activations(one.network, data, MinMax())
    return one


def test_rows_keep_their_timesteps(data: Batches) -> None:
    t = torch.cat([batch[1] for batch in data])
    states = [CallState(batch[1], None) for batch in data]
    calls: Any = [((batch[0],), {}) for batch in data]
    learned, heldout = (Rows(calls, [True], [9, 9, 6], rows=rows, states=states) for rows in (slice(-8), slice(-8, None)))
    index = torch.tensor([15, 0, 9, 9])
    assert learned.state(index).timestep is not None
    assert torch.equal(learned.state(index).timestep, t[index])  # type: ignore[arg-type]
    assert torch.equal(heldout.state(slice(2, 5)).timestep, t[18:21])  # type: ignore[arg-type]
    assert learned.state(index).branch is None
    assert Rows(calls, [True], [9, 9, 6]).state(index) == UNKNOWN
    some = Rows(calls, [True], [9, 9, 6], states=[*states[:2], UNKNOWN])
    assert some.state(index) == UNKNOWN
    halves = Rows(calls, [True], [9, 9, 6], dtype=torch.bfloat16, states=[CallState(batch[1] + 0.123) for batch in data])
    assert torch.equal(halves.state(index).timestep, t[index] + 0.123)  # type: ignore[arg-type]
    told = Rows(calls, [True], [9, 9, 6], states=[CallState(None, torch.arange(size) % 2 == 0) for size in (9, 9, 6)])
    assert told.state(index).branch.tolist() == [True, True, True, True]  # type: ignore[union-attr]
    assert told.state(slice(0, 3)).branch.tolist() == [True, False, True]  # type: ignore[union-attr]


def test_the_loss_of_scales_by_timestep(tiny_unet: UNet2DModel, data: Batches) -> None:
    """A batch of mixed rows, beside each row alone at its own timestep."""
    one = timed(tiny_unet, data)
    name = "up_blocks.0.resnets.0"
    block, original = one.network.get_submodule(name), one.full.get_submodule(name)
    with streaming(one.full, [name], data) as full, streaming(one.network, [name], data) as stream:
        rows = Rows(stream.calls, one.blocks[name], stream.sizes, states=stream.states)
        targets = joined(full.advance())
    site = Site(block, original, rows, targets)
    module = ScaleReconstruction(site, recon().scales, start=1.0)
    assert {log.shape for log in module.parameters()} == {(3, 1)}
    t = torch.cat([batch[1] for batch in data])
    groups = TIME.index(t)
    index = torch.stack([(groups == group).nonzero()[0, 0] for group in (2, 0)] + [torch.tensor(5)])
    loss = module.training_step(site.take(index), 0)
    parts = []
    for row in index.tolist():
        with knowing(block, CallState(t[row : row + 1])), torch.no_grad():
            parts.append(run(block, rows.take(slice(row, row + 1)))[0] - targets[0][row : row + 1])
    naive = torch.cat(parts).double().square().sum() / targets[0][index].double().square().sum()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-4)
    loss.backward()
    seen = set(groups[index].tolist())
    assert len(seen) > 1
    for log in module.parameters():
        assert log.grad is not None
        assert [bool(group.any()) for group in log.grad] == [group in seen for group in range(3)]
    assert contexts(block)[0].state == UNKNOWN


def test_a_block_of_one_layer_learns_each_group_by_its_own_rows() -> None:
    """Against iterations by hand, in which every row is rounded by itself."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            return y

    data = batches(24)
    one = pair(Single(), data, 32, 4, layers={"layer": {"act_bits": 4}})
    set_time(one.network, TIME)
    observe_activations(one.network, data, MinMax())
    layer: Any = one.network.get_submodule("layer")
    quantizer, (x, t) = layer.input_quantizer, data[0]
    with streaming(one.network, ["layer"], data) as stream:
        rows = Rows(stream.calls, one.blocks["layer"], stream.sizes, states=stream.states)
    original: Any = one.full.get_submodule("layer")
    site = Site(layer, original, rows, [original(x)])
    module = ScaleReconstruction(site, recon().scales, start=1.0)
    (log,) = module.parameters()
    log.data += torch.tensor([[0.3], [-0.4], [0.1]])
    index = torch.randperm(24)[:10]
    scale, groups = log.detach().exp(), TIME.index(t)
    rounded = torch.cat(
        [
            fake_quantize(
                x[row][None], QParams(scale[groups[row]], quantizer.zero_point[groups[row]]), layer.input_quantizer.scheme
            )
            for row in index
        ]
    )
    difference = (original(rounded) - original(x[index])).double().square().sum()
    expected = difference / original(x[index]).double().square().sum()
    assert module.training_step(site.take(index), 0).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("time", [TIME, "dynamic"])
def test_a_walk_judges_blocks_as_whole_passes_do_and_is_resumed(
    tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    start = timed(tiny_unet, data, time)
    learned, again = copy.deepcopy(start), copy.deepcopy(start)
    learned.walk(tmp_path / "one", recon(batch=8, iterations=20, rate=0.02)).learn_scales(data)
    if time == "dynamic":
        assert equal(learned.state(), start.state()), "there is nothing to learn"
        return
    rows = table(tmp_path / "one")
    assert sum(row["kept"] for row in rows) > 4
    told = {row["block"]: min(row["before"], row["learned"]) for row in rows}
    assert held_out_errors(learned, 8) == pytest.approx(told, rel=1e-3)
    assert differing(learned.state(), start.state())

    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in sorted((tmp_path / "two").glob(".scales-*"))[7:]:
        path.unlink()
    again.walk(tmp_path / "two", recon(batch=8, iterations=20, rate=0.02), memory=FILES).learn_scales(data)
    assert equal(again.state(), learned.state())


def test_a_walk_through_a_transformer(data: Batches, tmp_path: Path) -> None:
    full = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()
    labels = torch.randint(0, 10, (24,)).split([9, 9, 6])
    latents = torch.randn(24, 4, 8, 8).split([9, 9, 6])
    rows: Any = [(x, t, {"class_labels": label}) for x, (_, t), label in zip(latents, data, labels, strict=True)]
    one = timed(full, rows)
    one.walk(tmp_path, recon(batch=8, iterations=10, rate=0.02)).learn_scales(rows)
    told = {row["block"]: min(row["before"], row["learned"]) for row in table(tmp_path)}
    assert held_out_errors(one, 8) == pytest.approx(told, rel=1e-3)


@pytest.mark.parametrize("time", [TIME, "dynamic"])
def test_weights_are_learned_before_grids_that_are_on(
    tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, time: Time
) -> None:
    """Second-order rounding, then iterations, with activations rounded meanwhile."""
    one = timed(tiny_unet, data, time, weight_bits=4)
    before = one.error()
    one.walk(tmp_path, recon(start="gptq", iterations=10)).learn_weights(data)
    told = {row["block"]: min(row["before"], row["learned"]) for row in table(tmp_path)}
    assert held_out_errors(one, 8) == pytest.approx(told, rel=1e-3)
    assert one.error() < before


def test_second_order_rounding_reads_what_its_rows_are_rounded_to(tiny_unet: UNet2DModel, data: Batches) -> None:
    """Batches of mixed rows, beside the rows of one timestep at a time."""
    one = timed(tiny_unet, data, weight_bits=4)
    name = "up_blocks.0.resnets.0"
    block, original = one.network.get_submodule(name), one.full.get_submodule(name)
    with streaming(one.full, [name], data) as full, streaming(one.network, [name], data) as stream:
        exact = Rows(full.calls, one.blocks[name], full.sizes)
        rows = Rows(stream.calls, one.blocks[name], stream.sizes, states=stream.states)
        targets = joined(full.advance())
    sites = [Site(copy.deepcopy(block), original, rows, targets, exact, batch=batch) for batch in (24, 1)]
    states = [round_block(site, 0) for site in sites]
    same = [(one == other).float().mean() for one, other in zip(states[0].values(), states[1].values(), strict=True)]
    assert min(same) > 0.97, "but for the order of sums"


def test_a_compiled_block_is_told_the_timesteps(
    tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile(inner._replaced, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(inner, "_compiled", lambda: compiled)
    plain = timed(tiny_unet, data)
    plain.blocks = {name: rows for name, rows in plain.blocks.items() if name == "mid_block.attentions.0"}
    other = copy.deepcopy(plain)
    for one, options in ((plain, recon(iterations=6)), (other, recon(iterations=6, compile=True))):
        one.walk(tmp_path / str(options.scales.compile), options).learn_scales(data)
    assert any(row["kept"] for row in table(tmp_path / "False"))
    for (name, mine), (_, theirs) in zip(
        activation_quantizers(plain.network), activation_quantizers(other.network), strict=True
    ):
        torch.testing.assert_close(mine.scale, theirs.scale, rtol=1e-4, atol=0, msg=name)
