import copy
import gc
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import weakref
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from processes import Python
from quant_helpers import conditional, split_sizes
from recon_helpers import FILES, Batches, Pair, Recon, batches, differing, equal, held_out_errors, pair, recon, table
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.files import PART, sha256
from qdexp.quant import MinMax, PerChannel, Scheme, WeightFormat, qparams_from_range
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Rows
from qdexp.quant.cache import Budgets
from qdexp.quant.gptq import InputMoments, gptq
from qdexp.quant.layers import to_quantized
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.quant.ranges import estimate
from qdexp.quant.stored import Stored
from qdexp.recon import walk as walks
from qdexp.recon.learning import Site
from qdexp.recon.second_order import round_block

ATTENTION = "mid_block.attentions.0"


@pytest.fixture
def data() -> Batches:
    """24 rows, of which the last 8 are held out."""
    return batches(9, 9, 6)


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


def test_learned_rounding_beats_nearest_on_rows_that_it_has_not_seen(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    data = batches(16, 16, 16)
    splits = split_sizes(tiny_unet, data[0], "skip")
    start = pair(tiny_unet, data, 4, splits=splits)
    learned = copy.deepcopy(start)
    learned.walk(tmp_path, recon(batch=8, heldout=16, iterations=60)).learn_weights(data)

    rows = table(tmp_path)
    assert [row["block"] for row in rows] == list(start.blocks)
    assert all(row["kept"] == (row["learned"] < row["before"]) for row in rows)
    assert sum(row["kept"] for row in rows) >= 14
    for name, error in held_out_errors(learned, 16).items():
        row = next(row for row in rows if row["block"] == name)
        assert error == pytest.approx(min(row["before"], row["learned"]), rel=1e-3)
    assert learned.error() < 0.8 * start.error()
    assert hooks(learned.network) == hooks(learned.full) == 0

    before: dict[str, Any] = dict(quantized_layers(start.network))
    layers: dict[str, Any] = dict(quantized_layers(learned.network))
    for name, layer in layers.items():
        assert (layer.weight_int.int() - before[name].weight_int.int()).abs().max() <= 1
        for mine, theirs in zip(layer.weight_qparams, before[name].weight_qparams, strict=True):
            assert torch.equal(mine, theirs)
    for name, parameter in learned.network.named_parameters():
        assert torch.equal(parameter, tiny_unet.get_parameter(name)), "biases and norms are not learned"


def test_second_order_rounding_beats_nearest_in_every_block_and_is_resumed(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    data = batches(16, 16, 16)
    splits = split_sizes(tiny_unet, data[0], "skip")
    start, learned, again = (pair(tiny_unet, data, 4, splits=splits) for _ in range(3))
    learned.walk(tmp_path, recon(heldout=16)).round_weights(data)
    rows = table(tmp_path)
    assert [row["block"] for row in rows] == list(start.blocks)
    for name, error in held_out_errors(learned, 16).items():
        row = next(row for row in rows if row["block"] == name)
        assert error == pytest.approx(min(row["before"], row["learned"]), rel=1e-3)
    assert learned.error() < 0.38 * start.error(), "towards outputs of the layers' own inputs it would be 0.43"

    for path in sorted(tmp_path.glob(".weights-*"))[7:]:
        path.unlink()
    again.walk(tmp_path, recon(heldout=16)).round_weights(data)
    assert equal(again.state(), learned.state())


def test_learning_goes_on_from_second_order_rounding(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    data = batches(16, 16, 16)
    rounded, learned, again, worse = (pair(tiny_unet, data, 4) for _ in range(4))
    rounded.walk(tmp_path / "rounded", recon(batch=8, heldout=16)).round_weights(data)
    options = recon(batch=8, heldout=16, start="gptq", iterations=60)
    learned.walk(tmp_path / "learned", options).learn_weights(data)
    rows = table(tmp_path / "learned")
    gained = [mine["learned"] / theirs["learned"] for mine, theirs in zip(rows, table(tmp_path / "rounded"), strict=True)]
    assert statistics.geometric_mean(gained) < 0.98, "blocks of random weights leave second order little to learn"
    for name, error in held_out_errors(learned, 16).items():
        row = next(row for row in rows if row["block"] == name)
        assert error == pytest.approx(min(row["before"], row["learned"]), rel=1e-3)

    (tmp_path / "again").mkdir()
    for path in sorted((tmp_path / "learned").glob(".weights-*"))[:7]:
        shutil.copy(path, tmp_path / "again")
    again.walk(tmp_path / "again", options).learn_weights(data)
    assert equal(again.state(), learned.state())

    worse.walk(tmp_path / "worse", recon(batch=8, heldout=16, start="gptq", rate=1e3)).learn_weights(data)
    assert worse.error() < 1.05 * rounded.error(), "what learning makes worse stays as second order has rounded it"


class Twice(nn.Module):
    """A block that runs a layer on two inputs, and changes one of them in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).relu_()
        return self.last(self.layer(y.mul_(2)).relu_())


def test_second_order_rounding_of_a_layer_that_runs_twice() -> None:
    original = Twice().requires_grad_(False)
    block: Any = copy.deepcopy(original)
    x, exact, scheme = torch.randn(24, 6), torch.randn(24, 6), Scheme(3, PerChannel(0))
    for name in ("layer", "last"):
        layer = to_quantized(block.get_submodule(name), scheme, None)
        qparams = qparams_from_range(*estimate(layer.weight, scheme, MinMax()), scheme)
        layer.set_weight(nearest(layer.weight, qparams, scheme), qparams)
    before = copy.deepcopy(block)
    rows, paired = (Rows([((values,), {})], [True], [24]) for values in (x, exact))
    state = round_block(Site(block, original, rows, [original(exact)], paired, batch=8), seed=0)

    moments = InputMoments(original.layer, 24, seed=0)
    moments.observe(x, exact)
    moments.observe(2 * before.layer(x).relu(), 2 * original.layer(exact).relu())
    expected = gptq(original.layer.weight, before.layer.weight_qparams, scheme, moments.total, moments.shift)
    assert torch.equal(state["layer"], expected)
    assert not torch.equal(state["layer"], before.layer.weight_int)


def test_second_order_rounding_reads_no_more_rows_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer reads one vector of a row, so of more rows."""
    monkeypatch.setattr("qdexp.quant.gptq.ROWS", 8)
    monkeypatch.setattr("qdexp.quant.gptq.SAMPLES", 4)

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu().mean(1))

    original, x, scheme = Pooling().requires_grad_(False), torch.randn(40, 3, 6), Scheme(3, PerChannel(0))
    block: Any = copy.deepcopy(original)
    for layer in (to_quantized(block.first, scheme), to_quantized(block.last, scheme)):
        qparams = qparams_from_range(*estimate(layer.weight, scheme, MinMax()), scheme)
        layer.set_weight(nearest(layer.weight, qparams, scheme), qparams)
    runs: list[int] = []
    block.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    rows = Rows([((x,), {})], [True], [40])
    round_block(Site(block, original, rows, [original(x)], rows, batch=4), seed=0)
    assert runs == [4] * (8 // 4 + 4 * 6 // 4)


def test_second_order_rounding_of_transformer_blocks(tmp_path: Path) -> None:
    x, t, context = torch.randn(24, 4, 8, 8), torch.randint(0, 1000, (24,)), torch.randn(24, 3, 8)
    data: Batches = list(zip(x.split(8), t.split(8), context.split(8), strict=True))
    one = pair(conditional().eval(), data, 4)
    one.walk(tmp_path, recon(heldout=8)).round_weights(data)
    better = {row["block"]: row["learned"] < row["before"] for row in table(tmp_path)}
    assert better["down_blocks.0.attentions.0.transformer_blocks.0"]
    assert sum(better.values()) > 0.7 * len(better)


def test_learned_scales_never_lose_and_stay_positive(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    start = pair(tiny_unet, data, 8, 4).observe()
    learned = copy.deepcopy(start)
    learned.walk(tmp_path, recon(batch=8, iterations=40, rate=0.02)).learn_scales(data)
    rows = table(tmp_path)
    assert [row["block"] for row in rows] == list(start.blocks)
    assert sum(row["kept"] for row in rows) > 4
    for name, error in held_out_errors(learned, 8).items():
        row = next(row for row in rows if row["block"] == name)
        assert error == pytest.approx(min(row["before"], row["learned"]), rel=1e-3)
    before = dict(activation_quantizers(start.network))
    kept = {row["block"] for row in rows if row["kept"]}
    for name, quantizer in activation_quantizers(learned.network):
        assert ((quantizer.scale > 0) & quantizer.scale.isfinite()).all()
        assert quantizer.scale.shape == before[name].scale.shape
        assert torch.equal(quantizer.zero_point, before[name].zero_point)
        block = next(block for block in start.blocks if name.startswith(f"{block}."))
        unchanged = torch.equal(quantizer.scale, before[name].scale)
        assert unchanged == (quantizer.fixed or block not in kept), name
    for name, layer in quantized_layers(learned.network):
        assert torch.equal(layer.weight, dict(quantized_layers(start.network))[name].weight)


@pytest.mark.parametrize("what", ["weights", "scales"])
def test_what_makes_a_block_worse_is_not_used(
    tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    one = pair(tiny_unet, data, 8, 8).observe() if what == "scales" else pair(tiny_unet, data, 8)
    before, walk = copy.deepcopy(one.state()), one.walk(tmp_path, recon(rate=1e3))
    (walk.learn_weights if what == "weights" else walk.learn_scales)(data)
    assert equal(one.state(), before)
    rows = table(tmp_path)
    assert not any(row["kept"] for row in rows)
    title = {"weights": "weight rounding", "scales": "activation scales"}[what]
    stayed = ", ".join([*list(one.blocks)[:3], "..."])
    assert capsys.readouterr().out == f"  {title}: no gain in 18 of 18 blocks, which stay as they were: {stayed}\n"


def test_dropout_stays_off_while_a_block_is_learned(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    one = pair(tiny_unet, data, 4)
    seen: list[bool] = []

    def look(module: nn.Module, *_: Any) -> None:
        seen.append(module.training)
        learning.append(torch.is_grad_enabled())

    learning: list[bool] = []
    for network in (one.network, one.full):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                assert module.p in (0.0, 0.1)
                module.register_forward_hook(look)
    one.walk(tmp_path, recon(iterations=3)).learn_weights(data)
    assert sum(learning) >= 3 * 8, "every residual block and attention was learned on"
    assert not any(seen)
    quiet, loud = one.error(), Pair(one.network.train(), one.full, one.blocks, data).error()
    assert loud > 2 * quiet, "with dropout on, most of a block's error would be dropout"


class Backwards(nn.Module):
    """Defines its layers in the order opposite to that in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = (nn.Conv2d(*channels, 3, padding=1) for channels in ((8, 1), (8, 8), (1, 8)))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.last(torch.relu_(self.middle(torch.relu_(self.first(x))))),)


def test_blocks_are_visited_in_execution_order(data: Batches, tmp_path: Path) -> None:
    """A block that was visited before one that runs earlier would have learned from other inputs than it gets."""
    one = pair(Backwards(), data, 3, layers={"*": {"weight_bits": 3}})
    start = copy.deepcopy(one)
    one.walk(tmp_path, recon(iterations=30)).learn_weights(data)
    rows = table(tmp_path)
    assert [row["block"] for row in rows] == ["first", "middle", "last"]
    told = {row["block"]: min(row["before"], row["learned"]) for row in rows}
    assert held_out_errors(one, 8) == pytest.approx(told, rel=1e-3)
    assert rows[1]["kept"]
    assert rows[2]["before"] != pytest.approx(held_out_errors(start, 8)["last"], rel=1e-3), "its inputs have changed"


def test_layers_left_in_floating_point_are_passed_by(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    float_layers = {"conv_in": {"weight_bits": 32, "act_bits": 32}, f"{ATTENTION}.*": {"weight_bits": 32, "act_bits": 32}}
    one = pair(tiny_unet, data, 4, 8, layers=float_layers)
    one.walk(tmp_path).learn_weights(data)
    expected = [name for name in one.blocks if name not in ("conv_in", ATTENTION)]
    assert len(expected) == 16
    assert [row["block"] for row in table(tmp_path)] == expected
    walk = one.observe().walk(tmp_path / "scales")
    walk.learn_scales(data)
    assert [row["block"] for row in table(tmp_path / "scales")] == expected
    for name in ("conv_in.weight", f"{ATTENTION}.to_q.weight"):
        assert torch.equal(one.network.get_parameter(name), tiny_unet.get_parameter(name))


def test_a_block_with_no_weights_to_round_still_has_scales(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    one = pair(tiny_unet, data, 4, 8, layers={f"{ATTENTION}.*": {"weight_bits": 32}})
    one.walk(tmp_path).learn_weights(data)
    assert ATTENTION not in [row["block"] for row in table(tmp_path)]
    one.observe().walk(tmp_path / "scales").learn_scales(data)
    assert ATTENTION in [row["block"] for row in table(tmp_path / "scales")]


def test_scales_alone(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    """w32a8"""
    one = pair(tiny_unet, data, 32, 8)
    one.walk(tmp_path).learn_weights(data)
    assert not list(tmp_path.iterdir())
    before = copy.deepcopy(one.observe().state())
    one.walk(tmp_path, recon(iterations=20)).learn_scales(data)
    assert len(table(tmp_path)) == 18
    changed = differing(one.state(), before)
    assert changed
    assert all(name.endswith(".scale") for name in changed)


@pytest.mark.parametrize("balanced", [False, True])
def test_weights_alone(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, balanced: bool) -> None:
    """w4a32"""
    one = pair(tiny_unet, data, 4)
    before = copy.deepcopy(one.state())
    one.walk(tmp_path / "weights", recon(balanced=balanced)).learn_weights(data)
    one.walk(tmp_path / "scales").learn_scales(data)
    assert differing(one.state(), before)
    assert len(table(tmp_path / "weights")) == 18
    assert not list((tmp_path / "scales").iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["mid_block.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.bias"])
def test_weights_that_are_not_finite_are_reported(
    tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, name: str, value: float
) -> None:
    tiny_unet.get_parameter(name).data.view(-1)[3] = value
    one = pair(tiny_unet, data, 4)
    with pytest.raises(UserError, match=r"^block mid_block\.resnets\.0: .*not finite$") as caught:
        one.walk(tmp_path).learn_weights(data)
    assert "\n" not in str(caught.value)
    assert hooks(one.network) == hooks(one.full) == 0


@pytest.mark.parametrize("row", [0, 17, 23])
def test_rows_that_are_not_finite_are_reported(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, row: int) -> None:
    """Whether they are learned from or held out."""
    x = torch.cat([batch[0] for batch in data])
    x[row, 0, 0, 0] = float("inf")
    spoiled: Batches = [(part, t) for part, (_, t) in zip(x.split([9, 9, 6]), data, strict=True)]
    with pytest.raises(UserError, match=r"^calib: the calibration rows hold values that are not finite"):
        pair(tiny_unet, data, 4).walk(tmp_path).learn_weights(spoiled)


@pytest.mark.parametrize("what", ["weights", "scales"])
def test_dead_channels_and_dead_blocks(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, what: str) -> None:
    """A channel of zero weights, a layer of zeros, and a block whose output is zero (as networks are initialised)."""
    dead = "mid_block.resnets.0.conv2", "time_embedding.linear_2", "conv_out"
    tiny_unet.conv_in.weight.data[2] = 0
    for name in dead:
        for parameter in tiny_unet.get_submodule(name).parameters():
            parameter.data.zero_()
    one = pair(tiny_unet, data, 4, 8)
    if what == "weights":
        one.walk(tmp_path, recon(iterations=20)).learn_weights(data)
    else:
        one.observe().walk(tmp_path, recon(iterations=20)).learn_scales(data)
    rows = {row["block"]: row for row in table(tmp_path)}
    for name in ("time_embedding.linear_2", "conv_out"):
        assert rows[name] == {"block": name, "before": 0, "learned": 0, "kept": False}
    assert sum(row["kept"] for row in rows.values()) > 2
    layers = dict(quantized_layers(one.network))
    for weight in (layers["conv_in"].weight[2], *(layers[name].weight for name in dead)):
        assert weight.eq(0).all()
    for tensor in one.state().values():
        assert tensor.isfinite().all()


class Half(nn.Module):
    """Its second layer's output is zero for every row in full precision, but not quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(1, 1, 1)
        for parameter in self.first.parameters():
            parameter.data[1] = parameter.data[0]
        self.second.weight.data = torch.tensor([0.25, -0.25]).view(1, 2, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.third(self.second(self.first(x)) + x),)


@pytest.mark.parametrize("what", ["weights", "scales"])
def test_a_block_that_ought_to_give_nothing_but_zeros(data: Batches, tmp_path: Path, what: str) -> None:
    """Its error has nothing to be relative to."""
    one = pair(Half(), data, 4, 8, weight=WeightFormat(symmetric=what == "weights"))
    second: Any = dict(quantized_layers(one.network))["second"]
    other = second.weight_int.clone()
    other[0, 1] += 1
    second.set_weight(other, second.weight_qparams)
    if what == "weights":
        one.walk(tmp_path, recon(iterations=20)).learn_weights(data)
    else:
        one.observe().walk(tmp_path, recon(iterations=20)).learn_scales(data)
    row = table(tmp_path)[1]
    assert row["before"] > 0
    assert row["learned"] < row["before"]
    for tensor in one.state().values():
        assert tensor.isfinite().all()


@pytest.fixture
def finished(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> Pair:
    """An uninterrupted walk in `tmp_path/whole`."""
    one = pair(tiny_unet, data, 4, 8)
    one.walk(tmp_path / "whole", recon(iterations=2)).learn_weights(data)
    return one


def test_resumed_at_any_block_it_ends_with_the_same_bits(
    tiny_unet: UNet2DModel, data: Batches, finished: Pair, tmp_path: Path
) -> None:
    parts = sorted((tmp_path / "whole").glob(".weights-*.safetensors"))
    assert len(parts) == 18
    for done in range(18):
        folder = tmp_path / str(done)
        folder.mkdir()
        for path in parts[:done]:
            shutil.copy2(path, folder)
        one = pair(tiny_unet, data, 4, 8)
        one.walk(folder, recon(iterations=2)).learn_weights(data)
        assert equal(one.state(), finished.state())
        assert (folder / "blocks.json").read_bytes() == (tmp_path / "whole" / "blocks.json").read_bytes()
        for path in parts:
            again = folder / path.name
            assert again.read_bytes() == path.read_bytes()
            assert (again.stat().st_mtime_ns == path.stat().st_mtime_ns) == (path in parts[:done]), "kept, or made anew"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, ArithmeticError])
def test_stopped_in_the_middle_of_a_block(
    tiny_unet: UNet2DModel, data: Batches, finished: Pair, tmp_path: Path, interrupt: type[BaseException]
) -> None:
    one, steps = pair(tiny_unet, data, 4, 8), []

    def stop(*_: Any) -> None:
        steps.append(torch.is_grad_enabled())
        if sum(steps) == 2:
            raise interrupt

    handle = one.network.get_submodule("mid_block.resnets.1").register_forward_pre_hook(stop)
    with pytest.raises(interrupt):
        one.walk(tmp_path / "stopped", recon(iterations=2)).learn_weights(data)
    handle.remove()
    assert hooks(one.network) == hooks(one.full) == 0
    assert len(list((tmp_path / "stopped").iterdir())) == 9
    again = pair(tiny_unet, data, 4, 8)
    again.walk(tmp_path / "stopped", recon(iterations=2)).learn_weights(data)
    assert equal(again.state(), finished.state())


def test_scales_are_resumed_too(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    whole, again = (pair(tiny_unet, data, 8, 4).observe() for _ in range(2))
    whole.walk(tmp_path).learn_scales(data)
    parts = sorted(tmp_path.glob(".scales-*"))
    assert len(parts) == 18
    for path in parts[7:]:
        path.unlink()
    again.walk(tmp_path).learn_scales(data)
    assert equal(again.state(), whole.state())


def test_the_seed_decides_every_bit(tiny_unet: UNet2DModel, data: Batches, finished: Pair, tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.manual_seed(1 + seed)  # the state of torch's own generator does not matter
        one = pair(tiny_unet, data, 4, 8)
        one.walk(tmp_path / str(seed), recon(iterations=2), seed).learn_weights(data)
        assert equal(one.state(), finished.state()) == (seed == 0)


def test_batches_are_epochs_of_the_rows_that_are_not_held_out(tiny_unet: UNet2DModel, data: Batches, tmp_path: Path) -> None:
    x = torch.cat([batch[0] for batch in data])
    one, seen = pair(tiny_unet, data, 4), []

    def look(_: nn.Module, args: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            seen.append([next(row for row in range(24) if torch.equal(x[row], image)) for image in args[0]])

    one.network.get_submodule("conv_in").register_forward_pre_hook(look)
    one.walk(tmp_path, recon(iterations=14)).learn_weights(data)
    assert [len(batch) for batch in seen] == [4] * 14
    rows = [row for batch in seen for row in batch]
    epochs = [rows[start : start + 16] for start in range(0, 48, 16)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3, "in another order each"
    assert len(set(rows[48:])) == 8


def test_memory_format_changes_nothing_but_the_last_bits(data: Batches, tmp_path: Path) -> None:
    network, finished = Backwards(), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        one = pair(copy.deepcopy(network).to(memory_format=memory_format), data, 4)
        one.walk(tmp_path / str(memory_format), recon(iterations=20)).learn_weights(data)
        finished.append(dict(quantized_layers(one.network)))
    plain, last = finished
    assert last["middle"].weight.is_contiguous(memory_format=torch.channels_last)
    same = torch.cat([(plain[name].weight == layer.weight).flatten() for name, layer in last.items()])
    assert same.float().mean() > 0.95


def small_case(name: str, unet: nn.Module) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A network, 24 rows for it, and how it is converted."""
    x, t = torch.randn(24, 4, 8, 8), torch.randint(0, 1000, (24,))
    sizes = [9, 9, 6]
    if name == "conditional":
        return (
            conditional().eval(),
            list(zip(x.split(sizes), t.split(sizes), torch.randn(24, 3, 8).split(sizes), strict=True)),
            {},
        )
    if name == "transformer":
        labels = [{"class_labels": part} for part in torch.randint(0, 10, (24,)).split(sizes)]
        network = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
        )
        return network.eval(), list(zip(x.split(sizes), t.split(sizes), labels, strict=True)), {}
    splits = {"splits": split_sizes(unet, batches(1)[0], "skip+conv1")} if name == "split" else {}
    return unet, batches(*sizes), splits


def learn(one: Pair, folder: Path, options: Recon, data: Any) -> dict[str, str]:
    """Both walks in a folder, which must keep nothing but what they learned: the digests of its files."""
    one.walk(folder, options).learn_weights(data)
    one.observe().walk(folder, options).learn_scales(data)
    assert not list(folder.glob(f"{PART}*"))
    return {path.name: sha256(path) for path in folder.iterdir()}


TIERS = {
    "one byte": Budgets(device=1, host=0),
    "host": Budgets(device=1, host=None),
    "some of each": Budgets(device=60_000, host=60_000),
}


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("transformer", "gptq"),
        ("split", "nearest"),
        pytest.param("split", "gptq", marks=pytest.mark.slow),  # 10 s each
        pytest.param("conditional", "nearest", marks=pytest.mark.slow),
        pytest.param("conditional", "gptq", marks=pytest.mark.slow),
    ],
)
def test_no_bit_depends_on_the_tiers(
    tiny_unet: UNet2DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: str
) -> None:
    """Of AdaRound, GPTQ and what learns scales, in a U-Net whose concatenations are split, one that is asked by text, and a
    transformer; on a CPU, too, what is parked in the host's memory is a copy."""
    network, data, options = small_case(name, tiny_unet)
    one = pair(network, data, 4, 8, **options)
    others = {tiers: copy.deepcopy(one) for tiers in TIERS}
    budgets = Budgets()
    monkeypatch.setattr(walks, "budgets", lambda *_: replace(budgets, scratch=tmp_path))
    written = learn(one, tmp_path / "unbounded", recon(iterations=2, start=start), data)
    for tiers, other in others.items():
        budgets = TIERS[tiers]
        assert learn(other, tmp_path / tiers, recon(iterations=2, start=start), data) == written
        assert equal(other.state(), one.state())


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from recon_helpers import FILES, batches, pair, recon
from conftest import TINY_UNET
from diffusers import UNet2DModel

torch.set_num_threads(1)
torch.manual_seed(0)
network = UNet2DModel(**{key: value for key, value in TINY_UNET.items() if key != "_target_"}).eval()
data = batches(9, 9, 6)
one, steps = pair(network, data, 4, 8), []

def kill(*_):
    steps.append(torch.is_grad_enabled())
    if sum(steps) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

one.network.get_submodule("mid_block.resnets.1").register_forward_pre_hook(kill)
one.walk(Path(sys.argv[1]), recon(iterations=2), memory=FILES).learn_weights(data)
"""


def test_killed_while_rows_lie_in_files(tiny_unet: UNet2DModel, data: Batches, finished: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    (tmp_path / "killed.py").write_text(KILLED)
    paths = os.pathsep.join(str(Path(__file__).parents[1] / part) for part in ("", "models", "quant", "recon"))
    done = Python(["killed.py", str(folder)], tmp_path, {**os.environ, "PYTHONPATH": paths}).wait()
    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.glob(".weights-*"))) == 9
    assert len(list(folder.iterdir())) == 9, "files of rows have no names: they end with the process"
    again = pair(tiny_unet, data, 4, 8)
    again.walk(folder, recon(iterations=2), memory=FILES).learn_weights(data)
    assert equal(again.state(), finished.state())


def test_a_full_disk_stops_the_walk_and_leaves_what_is_finished(
    tiny_unet: UNet2DModel, data: Batches, finished: Pair, tmp_path: Path
) -> None:
    """The system refuses files of more than 16 KiB."""
    one, before = pair(tiny_unet, data, 4, 8), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        with pytest.raises(UserError, match=r"^memory\.scratch=.*run again: finished blocks are kept$"):
            one.walk(tmp_path / "full", recon(iterations=2), memory=FILES).learn_weights(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert hooks(one.network) == hooks(one.full) == 0
    names = {path.name for path in (tmp_path / "full").iterdir()}
    assert names
    assert names < {path.name for path in (tmp_path / "whole").iterdir()}
    one.walk(tmp_path / "full", recon(iterations=2)).learn_weights(data)
    assert equal(one.state(), finished.state())


@pytest.mark.slow
def test_the_peak_of_a_process_with_limited_memory(tmp_path: Path) -> None:
    """What twelve batches take more than one, which has what comes on top (networks, a pass, an iteration), is the limit and at
    most a quarter of it."""
    paths = os.pathsep.join(str(Path(__file__).parents[1] / part) for part in ("quant", "recon"))
    script, folders = str(Path(__file__).with_name("peak_memory.py")), count()

    def peak(*options: str) -> float:
        command = [sys.executable, script, str(tmp_path / str(next(folders))), *options]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1]) * 2**20

    alone = peak("1")
    assert peak("12") - alone > 4 * 1e8
    # pages of the file that a busy disk has yet to take count as the process's, now and then: not in each of three tries
    assert any(peak("12", "0.1") - alone < 1.25 * 1e8 for _ in range(3))


def test_the_rows_of_a_block_go_before_those_of_the_next_are_joined(
    tiny_unet: UNet2DModel, data: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's trainer is a part of reference cycles, and holds what it was given until they are collected."""
    one, joined, left = pair(tiny_unet, data, 4, 8), list[weakref.ref[Stored]](), list[int]()
    original = walks.Walk._sites

    def sites(self: walks.Walk, *details: Any) -> Any:
        left.append(sum(ref() is not None for ref in joined))
        joined.clear()
        made = original(self, *details)
        rows = (one for site in made for one in (*site.rows.stored, *site.targets))
        joined.extend(weakref.ref(one) for one in rows if isinstance(one, Stored))
        return made

    monkeypatch.setattr(walks.Walk, "_sites", sites)
    gc.collect()
    gc.disable()
    try:
        one.walk(tmp_path, recon(iterations=2, start="gptq")).learn_weights(data)
    finally:
        gc.enable()
    assert len(left) > 10
    assert not any(left)
