"""What the stages that look inside see: ranges, histograms, errors of single layers, structural similarity."""

import copy
import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from qdexp.cell import Cell
from qdexp.metrics.inspection import BINS, input_ranges, layer_errors, shortcut_histograms
from qdexp.metrics.similarity import structural_similarity
from qdexp.quant import LayerBits, MinMax, convert, observe_activations
from qdexp.quant.scheme import Time, TimeGroups
from qdexp.quant.timegroups import set_time
from qdexp.sampling.shards import read_shards
from qdexp.store import Store

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def steps() -> list[Batch]:
    return [(torch.randn(3, 1, 8, 8), torch.full((3,), t)) for t in (900, 500, 100)]


def halved(steps: list[Batch]) -> list[list[Batch]]:
    """Each step in two batches, of 2 rows and of 1."""
    return [[(x[:2], t[:2]), (x[2:], t[2:])] for x, t in steps]


def seen_by(network: nn.Module, name: str, steps: list[list[Batch]]) -> list[Tensor]:
    """What the layer reads at each step."""
    inputs: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for batch in itertools.chain.from_iterable(steps):
        network(*batch)
    handle.remove()
    read = iter(inputs)
    return [torch.cat(list(itertools.islice(read, len(step)))) for step in steps]


def test_ranges_are_those_of_what_each_layer_reads(tiny_unet: UNet2DModel, steps: list[Batch]) -> None:
    ranges = input_ranges(tiny_unet, halved(steps))
    assert list(ranges)[:2] == ["time_embedding.linear_1", "time_embedding.linear_2"]
    assert list(ranges)[-1] == "conv_out"
    for name in ("conv_in", "up_blocks.1.resnets.0.conv_shortcut"):
        inputs = seen_by(tiny_unet, name, halved(steps))
        assert ranges[name].low == [x.min().item() for x in inputs]
        assert ranges[name].high == [x.max().item() for x in inputs]


def test_histograms_count_the_two_parts_of_a_concatenation(tiny_unet: UNet2DModel, steps: list[Batch]) -> None:
    histograms = shortcut_histograms(tiny_unet, halved(steps), input_ranges(tiny_unet, halved(steps)))
    assert len(histograms) == 4
    name = "up_blocks.1.resnets.1.conv_shortcut"
    x, parts = torch.cat(seen_by(tiny_unet, name, halved(steps))), histograms[name]
    sizes = (8, 8)
    for part, truth in zip(parts, x.split(sizes, dim=1), strict=True):
        assert part.range == (truth.min().item(), truth.max().item())
        expected, _ = np.histogram(truth.detach().numpy(), BINS, (x.min().item(), x.max().item()))
        assert np.abs(part.counts.numpy() - expected).sum() <= 4  # a value on the edge of two bins
        assert part.counts.sum() == truth.numel()


def test_the_error_of_a_layer_is_its_own(tiny_unet: UNet2DModel, steps: list[Batch]) -> None:
    first, conv = copy.deepcopy(tiny_unet.get_submodule("conv_in")), tiny_unet.get_submodule("conv_out")
    assert isinstance(conv, nn.Conv2d)
    other = nn.Conv2d(8, 1, 3, padding=1)
    with torch.no_grad():
        other.weight.copy_(conv.weight * 1.1)
        assert conv.bias is not None
        assert other.bias is not None
        other.bias.copy_(conv.bias * 1.1)
    errors = layer_errors(tiny_unet, {"conv_in": first, "conv_out": other}, steps)
    assert (errors["conv_in"].error, errors["conv_in"].sensitivity) == (0, 0)
    assert errors["conv_out"].error == pytest.approx(0.01, rel=1e-4)
    assert errors["conv_out"].sensitivity == pytest.approx(0.01, rel=1e-4)  # its output is the network's
    assert not tiny_unet.get_submodule("conv_out")._forward_hooks


@pytest.mark.parametrize("time", [TimeGroups((400.0,)), "dynamic"])
def test_the_error_of_a_layer_whose_grid_follows_the_timestep(tiny_unet: UNet2DModel, time: Time) -> None:
    """It is called by a network that it does not belong to."""
    network, steps = copy.deepcopy(tiny_unet), [(torch.randn(4, 1, 8, 8), torch.tensor([1, 900, 300, 500])) for _ in range(2)]
    convert(network, {"conv_in": LayerBits(32, 3)})
    set_time(network, time)
    observe_activations(network, steps, MinMax())
    errors = layer_errors(tiny_unet, {"conv_in": network.get_submodule("conv_in")}, steps)
    with torch.no_grad():
        ours, theirs = (torch.cat([one(*step)[0] for step in steps]) for one in (network, tiny_unet))
    expected = (ours - theirs).double().square().sum() / theirs.double().square().sum()
    assert errors["conv_in"].sensitivity == pytest.approx(float(expected), rel=1e-5)


def test_a_variance_that_the_network_answers_too_is_no_noise() -> None:
    class Learned(nn.Module):
        """Answers with the noise estimate, from the first layer, and a variance, from the second."""

        def __init__(self) -> None:
            super().__init__()
            self.noise, self.variance = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([self.noise(x), self.variance(x)], dim=1)

    network, doubled = Learned(), nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        for mine, theirs in zip(doubled.parameters(), network.noise.parameters(), strict=True):
            mine.copy_(2 * theirs)
    quantized: dict[str, nn.Module] = {"noise": doubled, "variance": nn.Conv2d(2, 2, 1)}
    errors = layer_errors(network, quantized, [(torch.randn(3, 2, 5, 4), torch.zeros(3))])
    assert errors["noise"].sensitivity == pytest.approx(1)
    assert errors["variance"].sensitivity == 0 < errors["variance"].error


def test_ssim_is_the_formula_and_one_for_equal_images() -> None:
    a = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    b = (a.float() * 0.8 + 20 * torch.rand(a.shape)).clamp(0, 255).to(torch.uint8)
    assert torch.allclose(structural_similarity(a, a), torch.ones(5))
    x, y = (image[2, 1].double().numpy() / 255 for image in (a, b))

    def window(z: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(z, 1.5, truncate=5 / 1.5)[5:-5, 5:-5])

    mx, my = window(x), window(y)
    vx, vy, cov = window(x * x) - mx**2, window(y * y) - my**2, window(x * y) - mx * my
    ssim = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    (found,) = structural_similarity(a[2:3, 1:2], b[2:3, 1:2]).tolist()
    assert found == pytest.approx(ssim.mean(), rel=1e-4)


def test_ssim_asks_for_images_as_large_as_its_window() -> None:
    with pytest.raises(ValueError, match="11 pixels or more"):
        structural_similarity(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_the_stages_of_a_cell(cell_of: Callable[..., Cell]) -> None:
    cell = cell_of("inspection.rows=4", "quant.layers={conv_out: {weight_bits: 32, act_bits: 32}}")
    record = cell.run()
    store = Store(cell.out)
    layers = json.loads((store.folder(cell.stages["layers"].entry) / "layers.json").read_text())
    bits = {layer["name"]: (layer["weight_bits"], layer["act_bits"]) for layer in layers}
    assert (bits["conv_in"], bits["conv_out"], bits["mid_block.resnets.0.conv1"]) == ((8, 8), (32, 32), (4, 8))
    untouched = next(layer for layer in layers if layer["name"] == "conv_out")
    assert untouched["error"] == untouched["sensitivity"] == 0
    assert all(layer["error"] > 0 for layer in layers if layer is not untouched)
    assert untouched["macs"] == 28 * 28 * (3 * 3 * 8)
    inside = sum(layer["macs"] * layer["weight_bits"] * layer["act_bits"] for layer in layers)
    products = record["coverage"]["macs"]["a8a8"] * record["coverage"]["total"]["macs"]  # of attention
    assert record["metrics"]["gbops"] == pytest.approx((inside + 64 * products) / 1e9)
    activations = json.loads((store.folder(cell.stages["activations"].entry) / "activations.json").read_text())
    assert list(activations["ranges"]) == [layer["name"] for layer in layers]
    assert len(activations["timestep"]) == len(activations["ranges"]["conv_in"]["low"]) == 4
    ssim = load_file(store.folder(cell.stages["ssim"].entry) / "images.safetensors")["ssim"]
    assert ssim.shape == (20,)
    assert record["metrics"]["ssim"] == pytest.approx(ssim.double().mean().item())


@pytest.mark.parametrize(("rows", "looked_at"), [(2, 2), (7, 7), (9, 8)])
def test_rows_are_looked_at_whichever_shards_hold_them(cell_of: Callable[..., Cell], rows: int, looked_at: int) -> None:
    """Of 8 trajectories, in shards of 3."""
    cell = cell_of(f"inspection.rows={rows}", "sampling.batch=3", "protocol.heldout=8")
    store = Store(cell.out)
    seen = json.loads((cell.stages["activations"].make(store).folder / "activations.json").read_text())["ranges"]["conv_in"]
    x_t = torch.cat(list(read_shards(store.folder(cell.stages["heldout"].entry), "x_t")))[:looked_at]
    assert seen == {"low": x_t.amin((0, 2, 3, 4)).tolist(), "high": x_t.amax((0, 2, 3, 4)).tolist()}


@pytest.mark.parametrize(("rows", "batches"), [(2, [2]), (7, [3, 3, 1]), (40, [3] * 10 + [2])])
def test_layers_are_looked_at_on_different_rows(cell_of: Callable[..., Cell], rows: int, batches: list[int]) -> None:
    """Of 8 trajectories of 4 steps, in batches of 3."""
    cell = cell_of(f"inspection.rows={rows}", "sampling.batch=3", "protocol.heldout=8")
    stage, store = cell.stages["layers"], Store(cell.out)
    found = stage._batches({"trajectory": cell.stages["heldout"].make(store).folder})  # type: ignore[attr-defined]
    assert [len(x) for x, _ in found] == batches
    assert len({x.numpy().tobytes() for batch, _ in found for x in batch}) == sum(batches)
    assert len({t.item() for _, steps in found for t in steps}) == min(rows, 4)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("inspection.rows=3", {"activations", "layers"}),
        ("protocol.heldout=9", {"activations", "layers"}),
        ("sampling.batch=7", {"activations", "layers"}),
        ("quant=w8a8", {"layers"}),
        ("protocol.n=21", set()),
    ],
)
def test_what_changes_what_is_seen(cell_of: Callable[..., Cell], option: str, expected: set[str]) -> None:
    rows = [] if option.startswith("inspection") else ["inspection.rows=4"]
    one, other = cell_of("inspection.rows=4").stages, cell_of(*rows, option).stages
    assert {name for name in ("activations", "layers") if one[name].key != other[name].key} == expected


def test_no_rows_no_inspection(cell_of: Callable[..., Cell]) -> None:
    assert not {"layers", "activations"} & cell_of("inspection.rows=0").stages.keys()
