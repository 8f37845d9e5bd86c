"""LPIPS to full precision: the library's numbers with weights in torchvision's files, and what is refused."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import alexnet, vgg16, vgg16_bn

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.metrics.perceptual import BACKBONES, Backbone, Perceptual, backbone_of
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.tables import to_markdown
from qdexp.sampling.shards import read_shards
from qdexp.store import Store

CellOf = Callable[..., Cell]
NETWORKS = {"alex": alexnet, "vgg": vgg16}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of the real backbones as torchvision saves them; of the classifier, which is not read, the last bias."""
    folder = tmp_path_factory.mktemp("weights")
    for name, network in NETWORKS.items():
        torch.manual_seed(0)
        state = network(weights=None).state_dict()
        kept = {key: value for key, value in state.items() if key.startswith("features.") or key == "classifier.6.bias"}
        torch.save(kept, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in NETWORKS}


def expected(name: str, weights: Path, a: Tensor, b: Tensor) -> Tensor:
    """By the library as its users write it: the backbone is torchvision's, images in [-1, 1], one after the other."""
    network = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    backbone = NETWORKS[name](weights=None)
    backbone.load_state_dict(torch.load(weights), strict=False)
    for part in range(1, 6):
        for place, layer in getattr(network.net, f"slice{part}").named_children():
            layer.load_state_dict(backbone.features[int(place)].state_dict())
    with torch.no_grad():
        return torch.stack([network(x[None] / 127.5 - 1, y[None] / 127.5 - 1).squeeze() for x, y in zip(a, b, strict=True)])


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_it_is_what_the_library_says(weights: dict[str, Path], backbone: Backbone) -> None:
    file = weights[backbone.name]
    network = Perceptual(backbone, torch.load(file), torch.device("cpu"))
    a, b = (torch.randint(0, 256, (35, 3, backbone.least, backbone.least + 3), dtype=torch.uint8) for _ in range(2))
    found = network.distance(a, b)
    assert torch.allclose(found, expected(backbone.name, file, a, b), rtol=1e-4)
    assert found.min() > 0
    assert not network.distance(a, a).any()
    grey, other = a[:2, :1], b[:2, :1]
    assert torch.equal(network.distance(grey, other), network.distance(grey.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_the_least_size_is_the_networks(weights: dict[str, Path], backbone: Backbone) -> None:
    network = Perceptual(backbone, torch.load(weights[backbone.name]), torch.device("cpu"))
    small = torch.zeros(1, 3, backbone.least - 1, backbone.least - 1, dtype=torch.uint8)
    with pytest.raises(UserError, match=f"{backbone.title} it takes grey or RGB images of {backbone.least} pixels or more"):
        network.distance(small, small)
    with pytest.raises(RuntimeError, match="too small"):
        network.network(small.float(), small.float())


def test_another_network_is_none_of_them() -> None:
    with torch.device("meta"):
        state = vgg16_bn(weights=None).state_dict()
    assert backbone_of({name: tuple(value.shape) for name, value in state.items()}) is None


def test_what_cannot_be_used_is_told_before_any_work(cell_of: CellOf, weights: dict[str, Path], tmp_path: Path) -> None:
    def refusal(file: Path) -> str:
        with pytest.raises(UserError) as told:
            cell_of(f"inspection.lpips={file}")
        return str(told.value)

    torn, other = tmp_path / "torn.pth", tmp_path / "other.pth"
    torn.write_bytes(weights["alex"].read_bytes()[:1000])
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, other)
    assert "no such file" in refusal(tmp_path / "none.pth")
    assert "not a whole checkpoint" in refusal(torn)
    assert "not the weights of AlexNet or VGG-16" in refusal(other)
    assert refusal(weights["alex"]).endswith("not [1, 28, 28]; name weights of VGG-16 or leave it null")
    assert not (tmp_path / "out" / "store").exists() or not any((tmp_path / "out" / "store").iterdir())


def test_channels_that_are_no_colours_are_refused() -> None:
    BACKBONES[1].check([3])  # of a latent model: the size is known once it has been decoded
    with pytest.raises(UserError, match=r"not \[4\]; leave it null"):
        BACKBONES[0].check([4])


def test_a_cell_with_weights_and_its_table(cell_of: CellOf, weights: dict[str, Path]) -> None:
    option = f"inspection.lpips={weights['vgg']}"
    full, plain, cell = cell_of("method=fp", option), cell_of(), cell_of(option)
    assert cell.stages.keys() - plain.stages.keys() == {"lpips"}
    assert all(cell.stages[name].key == stage.key for name, stage in plain.stages.items())
    assert full.key == cell_of("method=fp").key
    assert "LPIPS" not in to_markdown(compare([full.run(), plain.run()], Evidence(plain.out)))
    record, store = cell.run(), Store(cell.out)
    lpips_of = load_file(store.folder(cell.stages["lpips"].entry) / "images.safetensors")["lpips"]
    images, truth = (
        torch.cat(list(read_shards(store.folder(cell.stages[name].entry), "images"))) for name in ("samples", "full_precision")
    )
    network = Perceptual(BACKBONES[1], torch.load(weights["vgg"]), torch.device("cpu"))
    assert torch.allclose(lpips_of, network.distance(images, truth), rtol=1e-4)
    assert record["metrics"]["lpips"] == pytest.approx(lpips_of.double().mean().item())
    made_with = {"backbone": "VGG-16", "weights": sha256(weights["vgg"]), "library": f"lpips {version('lpips')}"}
    assert record["measures"]["lpips"]["made_with"] == made_with
    evidence = Evidence(cell.out)
    comparison = compare([full.run(), record], evidence)
    number = comparison.lines[1].numbers["lpips"]
    assert number.value == pytest.approx(record["metrics"]["lpips"])
    assert number.low < number.value < number.high
    replicates = evidence.estimates(record)["lpips"].replicates
    assert np.ptp(replicates) > 0
    table = to_markdown(comparison)
    assert " LPIPS to FP |" in table
    said = f"LPIPS to FP: backbone VGG-16, weights {sha256(weights['vgg'])[:8]}, library lpips {version('lpips')}."
    assert said in table
    assert plain.run() == record, "what was measured stays"


def test_other_weights_are_another_number(cell_of: CellOf, weights: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(weights["vgg"])
    torch.save(state | {"features.0.bias": state["features.0.bias"] + 1}, tmp_path / "other.pth")
    (tmp_path / "same.pth").write_bytes(weights["vgg"].read_bytes())
    files = (weights["vgg"], tmp_path / "other.pth", tmp_path / "same.pth")
    one, other, same = (cell_of(f"inspection.lpips={file}") for file in files)
    assert one.keys == same.keys
    assert one.key == other.key, "a cell is the same whatever is measured of it"
    assert {name for name in one.stages if one.stages[name].key != other.stages[name].key} == {"lpips"}
    elsewhere = cell_of(f"inspection.lpips={files[1]}", "quant=w8a8")
    records = [json.loads(json.dumps(cell.run())) for cell in (one, other)]
    assert records[0]["metrics"]["lpips"] != records[1]["metrics"]["lpips"]
    with pytest.raises(UserError, match="lpips was measured with different things"):
        compare([records[0], elsewhere.run()], Evidence(one.out))
