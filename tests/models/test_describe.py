"""Descriptions: the published numbers, and what a real checkpoint and a real forward pass say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from qdexp.config import Model, Quant
from qdexp.errors import UserError
from qdexp.models import __main__ as command
from qdexp.models import checkpoint
from qdexp.models.__main__ import main
from qdexp.models.conditions import example_condition
from qdexp.models.describe import describe
from qdexp.paths import conf_folder
from qdexp.quant.coverage import Coverage, Wanted, known_bits
from qdexp.quant.macs import count, macs_by_module
from qdexp.quant.network import LayerBits

WIDTHS = [(4, 8), (8, 8), (3, 4), (4, 32), (32, 8)]


def quant(weight_bits: int, act_bits: int) -> Quant:
    return Quant(weight_bits, act_bits, softmax_bits=8, first_last_bits=8)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main(list(arguments))
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bit-widths, and no word of memory: to compose all and to trace how blocks are learned takes ten seconds a network.
    `test_the_command_tells_of_every_format_and_of_memory` sees them."""
    monkeypatch.setattr(command, "_choices", lambda: ["w4a8", "w8a8"])
    monkeypatch.setattr(command, "memory_lines", lambda _: [])


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "parameters", "sizes"),
    [
        ("ddim_cifar10", "35,746,307 (35.7 M)", ("143.0", "35.7", "17.9")),
        ("ldm_bedroom", "274,056,163 (274.0 M)", ("1,096.2", "274.1", "137.0")),
        ("ldm_church", "294,966,916 (294.9 M)", ("1,179.9", "295.0", "147.5")),
    ],
)
def test_the_published_sizes(
    capsys: pytest.CaptureFixture[str], name: str, parameters: str, sizes: tuple[str, str, str]
) -> None:
    lines = printed(capsys, f"model={name}")
    assert f"parameters  {parameters}" in lines
    table = {line.split()[0]: line.split() for line in lines if line.startswith("w")}
    assert tuple(table[label][1] for label in ("w32a32", "w8a8", "w4a8")) == sizes
    assert any(line.startswith("weights     missing: model.weights=") for line in lines)


@pytest.mark.usefixtures("short")
def test_blocks_and_boundaries_of_church(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "model=ldm_church", "model.weights=random")
    blocks = lines[next(i for i, line in enumerate(lines) if line.startswith("block ")) + 1 :]
    assert blocks[0].split()[:2] == ["time_embedding.linear_1", "Linear"]
    assert "weights     random" in lines
    parts = [line.split()[-1] for line in blocks if "+" in line]
    assert parts[:3] == ["768+768", "768+768", "768+768"] and parts[-3:] == ["384+192", "192+192", "192+192"]
    assert len(parts) == 15, "every residual block of the up path reads a concatenation"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_macs_are_those_that_torch_counts(family: Family) -> None:
    network = family.network()
    # the fused kernel of the CPU is not counted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        network(torch.zeros(1, *family.shape), torch.zeros(1, dtype=torch.int64), **example_condition(network))
    assert describe(family.model).macs == counter.get_total_flops() // 2


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_stored_bytes_are_those_of_a_checkpoint(family: Family, bits: tuple[int, int], tmp_path: Path) -> None:
    network = family.quantized(*bits)
    checkpoint.save(tmp_path, network, family.architecture)
    tensors = checkpoint.load_file(tmp_path / checkpoint.TENSORS)
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert abs(describe(family.model).stored_bytes(quant(*bits)) - held) <= 8  # bytes that packing joins across layers


def test_bops_by_hand() -> None:
    """Two layers and nothing else: 8 x 8 at both ends, wherever the others are quantized."""
    layers: dict[str, Any] = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Conv2d", "_args_": [1, 2, 3]}],
    }
    with pytest.raises(UserError, match=r"model\.network: it cannot run on shapes alone"):
        describe(Model("own", "random", [1, 8, 8], layers, {}))
    family = FAMILIES[0]
    description = describe(family.model)
    names, macs = list(description.order), macs_by_module(description.products)
    ends = {next(name for name in names if "conv" in name), names[-1]}
    inner = sum(macs[name] for name in names if name not in ends)
    outer = sum(macs[name] for name in ends)
    products = description.macs - inner - outer
    assert (
        description.coverage(quant(4, 6)).bit_operations == 24 * inner + 64 * outer + (36 + 48) * products // 2 and products > 0
    )
    assert description.coverage(quant(32, 32)).bit_operations == 1024 * description.macs


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_all_that_is_multiplied_is_quantized(family: Family) -> None:
    """What was made has the coverage that was foretold, of every family."""
    network = family.quantized(4, 8)
    rows = tuple(pytree.tree_map(lambda part: part[:1], family.batch(network)))
    description = describe(family.model)
    wanted = Wanted(description.plan(quant(4, 8)), description.sites, LayerBits(4, 8), 8)
    found = Coverage(network, count(network, rows), known_bits(network), wanted)
    assert found.content() == description.coverage(quant(4, 8)).content()
    assert found.share("macs") == found.share("parameters") == 1
    assert found.macs["full"] == 0 and found.weights == 0


@pytest.mark.usefixtures("short")
def test_what_stays_in_full_precision_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "model=ddpm_fashion", "quant.layers={mid_block*: {weight_bits: 32, act_bits: 32}}")
    start = next(i for i, line in enumerate(lines) if line.startswith("in full precision"))
    assert lines[start + 1].split()[:4] == ["Conv2d,", "by", "quant", "4"]
    shares = {line.split()[0]: line.split()[-2:] for line in lines if line.startswith("w")}
    assert 90 < float(shares["w4a8+layers"][0]) < 99 and shares["w32a32"] == ["0.00", "0.00"]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("wrong", ["model=none", "quant.weight_bits=99", "model.network.norm_num_groups=7"])
def test_errors_are_one_line(wrong: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["model=ddim_cifar10", wrong] if not wrong.startswith("model=") else [wrong])
    assert str(stop.value.code).startswith("qdexp: ") and "\n" not in str(stop.value.code)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--help")[0] == "python -m qdexp.models model=NAME [OPTION=VALUE ...]"
    with pytest.raises(SystemExit, match="model=NAME"):
        main([])


@pytest.mark.usefixtures("short")
def test_weights_that_do_not_fit_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "model=ddpm_fashion", "model.network.layers_per_block=3")
    told = next(line for line in lines if line.startswith("weights "))
    assert "; no run takes them: model.weights=" in told and "does not fit model.network (" in told


@pytest.mark.usefixtures("short")
def test_a_network_that_no_run_takes_is_not_described() -> None:
    with pytest.raises(SystemExit, match=r"^qdexp: model\.network: called with x_t of model\.shape, \[1, 1, 27, 28\]"):
        main(["model=ddpm_fashion", "model.shape=[1,27,28]"])


class Nothing(torch.nn.Module):
    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t


class Small(torch.nn.Module):
    """Ten numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> Any:
        return self.layer(x_t)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("kind", "sizes"), [(Nothing, ["0", "0"]), (Small, ["4e-05", "4e-05"])])
def test_the_smallest_networks_are_described_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: type, sizes: list[str]
) -> None:
    (tmp_path / "model").mkdir()
    text = f"name: mine\nweights: random\nshape: [1, 8, 8]\nschedule: {{}}\nnetwork: {{_target_: {__name__}.{kind.__name__}}}\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    lines = printed(capsys, f"hydra.searchpath=[file://{tmp_path}]", "model=mine")
    assert next(line for line in lines if line.startswith("w32a32")).split()[1:3] == sizes


@pytest.mark.parametrize("flag", ["-m", "--cfg", "--version"])
def test_flags_of_runs_are_none_of_a_description(flag: str) -> None:
    with pytest.raises(SystemExit, match=f"^qdexp: {flag}: is for runs; "):
        main([flag, "model=ddpm_fashion"])


def test_the_command_tells_of_every_format_and_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    main(["model=dit_fashion", "sampling.batch=8", "recon.batch=4"])
    said = capsys.readouterr().out
    (table,) = re.findall(r"^bits .*\n((?:.+\n)+)", said, flags=re.MULTILINE)
    assert len(table.splitlines()) == len(list((conf_folder() / "quant").glob("*.yaml"))) + 1, "and full precision"
    (lines,) = re.findall(r"^memory, MB \(sampling\.batch=8, recon\.batch=4\)\n((?:.+\n)+)", said, flags=re.MULTILINE)
    found = dict(re.split(r"  +", line, maxsplit=1) for line in lines.splitlines())
    assert list(found) == ["network", "pass of 8 rows", "calibration row", "learning, 4 rows"]
    assert found["network"] == "5.7, quantized 7.2"
    assert re.fullmatch(r"weights [\d.]+, scales [\d.]+, second order [\d.]+", found["learning, 4 rows"])
