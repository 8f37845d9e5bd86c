"""The iterations in other arithmetic: what is learned, judged and kept goes on in float32, and is resumed bit for bit."""

import copy
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from quant_helpers import conditional
from recon_helpers import FILES, batches, equal, held_out_errors, pair, recon, table
from torch import Tensor, nn
from torch._dynamo.utils import counters

from qdexp import device as devices
from qdexp.config import Memory
from qdexp.errors import UserError

CPU = torch.device("cpu")
BLOCK = "up_blocks.0.resnets.0"


def computes_bfloat16() -> bool:
    try:
        devices.require_arithmetic(CPU, "bfloat16", False)
    except UserError:
        return False
    return True


with_bfloat16 = pytest.mark.skipif(not computes_bfloat16(), reason="needs a CPU that computes in bfloat16")


@with_bfloat16
def test_bfloat16_learns_and_is_judged_in_float32(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    data, options = batches(16, 16, 16), {"batch": 8, "heldout": 16, "iterations": 30}
    start = pair(tiny_unet, data, 4)
    exact, rough = copy.deepcopy(start), copy.deepcopy(start)
    exact.walk(tmp_path / "float32", recon(**options)).learn_weights(data)
    rough.walk(tmp_path / "bfloat16", recon(precision="bfloat16", **options)).learn_weights(data)
    assert not equal(exact.state(), rough.state())
    assert max(rough.error(), exact.error()) < 0.75 * start.error()  # which is the better is chance in so small a network
    rows, theirs = table(tmp_path / "bfloat16"), table(tmp_path / "float32")
    against = statistics.geometric_mean(one["learned"] / other["learned"] for one, other in zip(rows, theirs, strict=True))
    assert against == pytest.approx(1, abs=0.1), "of seven seeds 0.956 to 1.044; without learning it would be 1.18"
    told = {row["block"]: min(row["before"], row["learned"]) for row in rows}
    assert held_out_errors(rough, 16) == pytest.approx(told, rel=1e-5)


@with_bfloat16
def test_what_computes_in_bfloat16(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    """Convolutions do, in the iterations; norms and all that judges do not."""
    data = batches(9, 9, 6)
    one = pair(tiny_unet, data, 4)
    seen: dict[tuple[str, bool], set[torch.dtype]] = {}

    def look(module: nn.Module, args: tuple[Tensor], result: Tensor) -> None:
        kind = "norm" if isinstance(module, nn.GroupNorm) else "convolution"
        seen.setdefault((kind, torch.is_grad_enabled()), set()).add(result.dtype)

    block = one.network.get_submodule(BLOCK)
    for module in block.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(look)
    one.walk(tmp_path, recon(iterations=2, precision="bfloat16")).learn_weights(data)
    half, full = {torch.bfloat16}, {torch.float32}
    judging = {("convolution", False): full, ("norm", False): full}
    assert seen == {("convolution", True): half, ("norm", True): full, **judging}
    assert not any(module._forward_pre_hooks for module in block.modules())


@with_bfloat16
@pytest.mark.parametrize("name", ["unet", "conditional"])
def test_bfloat16_is_resumed_and_does_not_mind_limited_memory(tiny_unet: UNet2DModel, tmp_path: Path, name: str) -> None:
    network, data = tiny_unet, batches(9, 9, 6)
    if name == "conditional":
        x, t, context = torch.randn(24, 4, 8, 8), torch.randint(0, 1000, (24,)), torch.randn(24, 3, 8)
        network, data = conditional().eval(), list(zip(*(part.split([9, 9, 6]) for part in (x, t, context)), strict=True))
    whole, again = (pair(network, data, 4, 8) for _ in range(2))
    options = recon(iterations=2, precision="bfloat16")
    for one, memory in ((whole, Memory()), (again, FILES)):
        folder = tmp_path / str(memory.host_gb)
        if memory is FILES:  # goes on where a killed process stopped
            shutil.copytree(tmp_path / "auto", folder)
            for part in ("weights", "scales"):
                for path in sorted(folder.glob(f"{part}-*"))[12:]:
                    path.unlink()
        one.walk(folder, options, memory=memory).learn_weights(data)
        if name == "unet":
            one.observe().walk(folder, options, memory=memory).learn_scales(data)
    assert equal(again.state(), whole.state())


@pytest.mark.slow
def test_compiled_blocks_learn_the_same_and_share_their_code(tmp_path: Path) -> None:
    """Of five blocks two are alike; what was compiled is used again, by a walk that goes on too."""
    network, data = Twins(), batches(9, 9, 6)
    start = pair(network, data, 4, 8, layers={"*": {"weight_bits": 4}})
    plain, compiled, again = (copy.deepcopy(start) for _ in range(3))
    counted = counters["stats"]
    before = counted["unique_graphs"]
    for one, folder, options in (
        (plain, tmp_path / "plain", recon(iterations=8)),
        (compiled, tmp_path / "compiled", recon(iterations=8, compile=True)),
    ):
        one.walk(folder, options).learn_weights(data)
        one.observe().walk(folder, options).learn_scales(data)
    assert counted["unique_graphs"] - before == 2 * 4
    same = torch.cat([(compiled.state()[name] == value).flatten() for name, value in plain.state().items()])
    assert same.float().mean() > 0.95
    assert compiled.error() == pytest.approx(plain.error(), rel=0.05)

    for path in sorted((tmp_path / "compiled").glob("*-*"))[1:]:
        path.unlink()
    again.walk(tmp_path / "compiled", recon(iterations=8, compile=True)).learn_weights(data)
    again.observe().walk(tmp_path / "compiled", recon(iterations=8, compile=True)).learn_scales(data)
    assert equal(again.state(), compiled.state())
    assert counted["unique_graphs"] - before == 2 * 4


class Twins(nn.Module):
    """Five blocks of one layer; the third and the fourth are alike."""

    def __init__(self) -> None:
        super().__init__()
        channels = [1, 8, 4, 4, 4, 1]
        sizes = [3, 1, 3, 3, 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(one, other, size, padding=size // 2)
            for one, other, size in zip(channels, channels[1:], sizes, strict=False)
        )

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x,)
