import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from quant_helpers import batches, output, quantized
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from qdexp import files
from qdexp.errors import UserError
from qdexp.quant import checkpoint
from qdexp.quant.network import activation_quantizers, quantized_layers, set_activation_mode
from qdexp.store import Store

MIXED = {"mid_block*": {"weight_bits": 3, "act_bits": 5}, "*.to_?": {"weight_bits": 32}, "up_blocks.1*": {"act_bits": 32}}
SPLITS = {
    f"up_blocks.{level}.resnets.1.{name}": sizes
    for level, sizes in ((0, (16, 8)), (1, (8, 8)))
    for name in ("conv1", "conv_shortcut")
}
CASES: dict[str, dict[str, Any]] = {
    "w4a8": {"weight_bits": 4, "act_bits": 8},
    "w2a4_mixed": {"weight_bits": 2, "act_bits": 4, "layers": MIXED, "softmax_bits": 16},
    "symmetric": {"weight_bits": 5, "act_bits": 7, "weight_symmetric": True, "act_symmetric": True},
    "weights_only": {"weight_bits": 8, "act_bits": 32},
    "split": {"weight_bits": 3, "act_bits": 6, "splits": SPLITS, "layers": {"*.1.conv1": {"weight_bits": 32}}},
    "acts_only": {"weight_bits": 32, "act_bits": 8, "softmax_bits": 32},
}
READ = """
import sys, torch
from qdexp.quant import checkpoint
inputs = torch.load(sys.argv[1] + "/inputs.pt", weights_only=True)
network = checkpoint.load(sys.argv[1])
assert not network.training
with torch.inference_mode():
    torch.save(network(*inputs)[0], sys.argv[1] + "/outputs.pt")
"""


@pytest.fixture
def saved(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path, quantized(tiny_unet, 4, 8), tiny_architecture)
    return tmp_path


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_a_reloaded_network_is_the_same(
    tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path, case: str, memory_format: torch.memory_format
) -> None:
    network = quantized(tiny_unet.to(memory_format=memory_format), **CASES[case])
    checkpoint.save(tmp_path, network, tiny_architecture)
    again = checkpoint.load(tmp_path)
    assert not again.training
    assert torch.equal(output(again), output(network))
    for tensors in (lambda net: net.named_buffers(), lambda net: net.named_parameters()):
        for (name, one), (other, two) in zip(tensors(network), tensors(again), strict=True):
            assert name == other
            assert one.dtype == two.dtype
            assert strides(one) == strides(two)
            assert torch.equal(one, two)


def strides(x: Tensor) -> list[int]:
    """Those that mean something: a dimension of length 1 may have any."""
    return [stride for stride, length in zip(x.stride(), x.shape, strict=True) if length > 1]


@pytest.mark.parametrize("case", ["w4a8", "w2a4_mixed"])
def test_a_fresh_process_needs_the_two_files_only(
    tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path, case: str
) -> None:
    network = quantized(tiny_unet.to(memory_format=torch.channels_last), **CASES[case])
    checkpoint.save(tmp_path, network, tiny_architecture)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.json", "checkpoint.safetensors"}
    torch.save(batches(4, 1)[0], tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", READ, str(tmp_path)], check=True)
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), output(network))


def test_loading_runs_no_module(saved: Path) -> None:
    ran: list[nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, _: ran.append(module))
    try:
        network = checkpoint.load(saved)
        assert not ran
        output(network)
        assert len(ran) > 50
    finally:
        handle.remove()


def test_half_precision_stays_half(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    def cast(_: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return args[0].bfloat16(), args[1]

    tiny_unet.to(torch.bfloat16).register_forward_pre_hook(cast)
    checkpoint.save(tmp_path, quantized(tiny_unet, 4, 8), tiny_architecture)
    again = checkpoint.load(tmp_path)
    again.register_forward_pre_hook(cast)
    assert output(again).dtype == torch.bfloat16
    assert torch.equal(output(again), output(tiny_unet))


class Biasless(nn.Module):
    """No parameter is left when its weights are quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(*channels, 3, padding=1, bias=False) for channels in ((1, 4), (4, 1)))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.last(torch.relu(self.first(x))),)


class Shared(nn.Module):
    """One layer under two names, and two layers with the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.other, self.last = (
            nn.Conv2d(*channels, 3, padding=1) for channels in ((1, 4), (4, 4), (4, 4), (4, 1))
        )
        self.again = self.inner
        self.other.weight, self.other.bias = self.inner.weight, self.inner.bias

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        for layer in (self.first, self.inner, self.again, self.other):
            x = torch.relu(layer(x))
        return (self.last(x),)


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("network", [Biasless, Shared])
def test_networks_without_biases_or_with_shared_layers(network: type[nn.Module], bits: int, tmp_path: Path) -> None:
    made = quantized(network(), bits, 8)
    for folder in (tmp_path / "once", tmp_path / "twice"):
        checkpoint.save(folder, made, {"_target_": f"{__name__}.{network.__name__}"})
        again = checkpoint.load(folder, trust=[f"{__name__}.{network.__name__}"])
        assert torch.equal(output(again), output(made))
        made = again


def test_the_size_is_that_of_the_bits(saved: Path) -> None:
    network = checkpoint.load(saved)
    payload = 0.0
    for name, layer in quantized_layers(network):
        bits = 8 if name in ("conv_in", "conv_out") else 4
        payload += checkpoint.nominal_bytes(layer.weight.numel(), bits) + 5 * len(layer.weight)  # a scale and a zero point
    payload += 5 * sum(not quantizer.fixed for _, quantizer in activation_quantizers(network))
    payload += sum(value.numel() * value.element_size() for value in network.state_dict().values())
    tensors = (saved / "checkpoint.safetensors").stat().st_size
    entries = len(network.state_dict()) + 5
    assert payload <= tensors <= payload + 150 * entries
    assert checkpoint.size_bytes(saved) == tensors + (saved / "checkpoint.json").stat().st_size


def test_a_split_costs_its_scales_and_zero_points(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    whole = quantized(copy.deepcopy(tiny_unet), 4, 8)
    checkpoint.save(tmp_path / "whole", whole, tiny_architecture)
    checkpoint.save(tmp_path / "split", quantized(tiny_unet, 4, 8, splits=SPLITS), tiny_architecture)
    weights = dict(quantized_layers(whole))
    more = sum(len(weights[name].weight) + 1 for name in SPLITS)
    sizes = []
    for name in ("whole", "split"):
        tensors = load_file(tmp_path / name / "checkpoint.safetensors")
        sizes.append(sum(value.numel() * value.element_size() for value in tensors.values()))
    assert sizes[1] - sizes[0] == 5 * more > 0


def test_metadata(saved: Path, tiny_architecture: Any) -> None:
    content = checkpoint.metadata(saved)
    assert content["architecture"] == tiny_architecture
    assert sum(len(group["names"]) for group in content["layers"]) == len(list(quantized_layers(checkpoint.load(saved))))


def test_saving_again_replaces(saved: Path, tiny_architecture: Any) -> None:
    before = output(checkpoint.load(saved))
    wider = quantized(UNet2DModel(**{key: value for key, value in tiny_architecture.items() if key != "_target_"}), 8, 8)
    checkpoint.save(saved, wider, tiny_architecture)
    assert torch.equal(output(checkpoint.load(saved)), output(wider))
    assert not torch.equal(output(wider), before)


def edit(path: Path, **changes: Any) -> None:
    """By somebody who knows that the file is sealed."""
    files.write_sealed(path, json.loads(path.read_text()) | changes)


def schemes(folder: Path, part: str, **changes: Any) -> None:
    """Changes all the schemes of weights or inputs."""
    groups = checkpoint.metadata(folder)["layers"]
    edit(folder / "checkpoint.json", layers=[group | {part: group[part] | changes} for group in groups])


def tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors, and the digest with them."""
    found = load_file(folder / "checkpoint.safetensors")
    change(found)
    files.write_tensors(folder / "checkpoint.safetensors", found)
    edit(folder / "checkpoint.json", digest=files.sha256(folder / "checkpoint.safetensors"))


def longer(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda found: found.update({name: torch.cat([found[name], found[name][:1]])})


HUGE = {"kind": "split", "sizes": [2**40, 1], "within": {"kind": "per_tensor"}, "axis": 1}
BREAKS = {
    "no tensors": lambda folder: (folder / "checkpoint.safetensors").unlink(),
    "no json": lambda folder: (folder / "checkpoint.json").unlink(),
    "torn tensors": lambda folder: (folder / "checkpoint.safetensors").write_bytes(
        (folder / "checkpoint.safetensors").read_bytes()[:-100]
    ),
    "torn json": lambda folder: (folder / "checkpoint.json").write_text((folder / "checkpoint.json").read_text()[:-100]),
    "changed byte": lambda folder: (folder / "checkpoint.safetensors").write_bytes(
        (folder / "checkpoint.safetensors").read_bytes()[:-1] + b"?"
    ),
    "other format": lambda folder: edit(folder / "checkpoint.json", format=99),
    "json of another kind": lambda folder: (folder / "checkpoint.json").write_text("[1, 2]"),
    "lost key": lambda folder: edit(folder / "checkpoint.json", layers=[{"names": ["conv_in"]}]),
    "other network": lambda folder: edit(
        folder / "checkpoint.json", architecture=checkpoint.metadata(folder)["architecture"] | {"block_out_channels": [8, 32]}
    ),
    "other bits": lambda folder: edit(
        folder / "checkpoint.json",
        layers=[group | {"weight": group["weight"] | {"bits": 8}} for group in checkpoint.metadata(folder)["layers"]],
    ),
    "function": lambda folder: edit(folder / "checkpoint.json", architecture={"_target_": "os.getcwd"}),
    "class of another kind": lambda folder: edit(folder / "checkpoint.json", architecture={"_target_": "pathlib.Path"}),
    "nested": lambda folder: (folder / "checkpoint.json").write_text("[" * 100_000),
    "not UTF-8": lambda folder: (folder / "checkpoint.json").write_bytes(b"\xff\xfe\xff"),
    "flipped digit": lambda folder: (folder / "checkpoint.json").write_text(
        (folder / "checkpoint.json").read_text().replace('"norm_num_groups": 4', '"norm_num_groups": 2')
    ),
    "other dtype": lambda folder: edit(folder / "checkpoint.json", dtype="load"),
    "half a bit": lambda folder: schemes(folder, "weight", bits=4.5),
    "weights in huge parts": lambda folder: schemes(folder, "weight", granularity=HUGE),
    "inputs in huge parts": lambda folder: schemes(folder, "act", granularity=HUGE),
    "packed too long": lambda folder: tensors(folder, longer("quantized.weight")),
    "scales too long": lambda folder: tensors(folder, longer("quantized.act_scale")),
    "no packed weights": lambda folder: tensors(folder, lambda found: found.pop("quantized.weight")),
    "one tensor more": lambda folder: tensors(folder, lambda found: found.update(more=torch.zeros(1))),
    "missing class": lambda folder: edit(folder / "checkpoint.json", architecture={"_target_": "diffusers.NoSuchModel"}),
}


@pytest.mark.parametrize("damage", BREAKS)
def test_damage_is_reported_in_one_line(saved: Path, damage: str) -> None:
    BREAKS[damage](saved)
    with pytest.raises(UserError) as error:
        checkpoint.load(saved)
    assert "checkpoint" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:checkpoint .* has no digest of its own")
def test_no_flipped_bit_goes_unnoticed(saved: Path) -> None:
    """Outside of a store, where no manifest says what the files were."""
    expected = checkpoint.metadata(saved)
    del expected[files.SEAL]
    for name in ("checkpoint.json", "checkpoint.safetensors"):
        raw = (saved / name).read_bytes()
        for at in range(0, len(raw), len(raw) // 50):
            (saved / name).write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
            try:
                found = checkpoint.metadata(saved)  # a bit of the layout, of the digest's own name, or of the other file
                assert {key: found[key] for key in expected} == expected
                checkpoint.load(saved)
            except UserError as error:
                assert "cannot be read" in str(error)
            else:
                assert name == "checkpoint.json"
        (saved / name).write_bytes(raw)
    checkpoint.load(saved)


def test_within_a_store_the_manifest_counts(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    network = quantized(tiny_unet, 4, 8)

    def compute(folder: Path) -> dict[str, float]:
        checkpoint.save(folder / "checkpoint", network, tiny_architecture)
        return {"seconds": 1.0, "peak_memory_mb": 1.0}

    saved = Store(tmp_path).make("quantization-0123456789abcdef", compute, {}).folder / "checkpoint"
    assert torch.equal(output(checkpoint.load(saved)), output(network))
    checkpoint.save(saved, quantized(UNet2DModel(**tiny_unet.config), 8, 8), tiny_architecture)  # whole, but another
    with pytest.raises(UserError, match=r"quantization-\w+ is corrupt \(checkpoint/checkpoint\..* is not what manifest"):
        checkpoint.load(saved)


def test_an_older_checkpoint_is_read_and_said_to_be_unchecked(saved: Path) -> None:
    content = checkpoint.metadata(saved)
    del content[files.SEAL]
    (saved / "checkpoint.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"checkpoint\.json has no digest of its own, only the tensors are checked"):
        checkpoint.load(saved)


def test_only_finished_networks_are_saved(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    network = quantized(tiny_unet, 4, 8)
    next(quantizer for _, quantizer in activation_quantizers(network)).mode = "off"
    with pytest.raises(ValueError, match="is not on"):
        checkpoint.save(tmp_path, network, tiny_architecture)
    set_activation_mode(network, "on")
    next(layer for _, layer in quantized_layers(network)).weight_int = None
    with pytest.raises(ValueError, match="not quantized yet"):
        checkpoint.save(tmp_path, network, tiny_architecture)
    assert not list(tmp_path.iterdir())
