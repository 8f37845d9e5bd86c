import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DModel
from processes import Python
from quant_helpers import batches, output, quantized
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from qdexp import files
from qdexp.errors import UserError
from qdexp.models import checkpoint
from qdexp.quant import ActFormat, NormSearch, WeightFormat, convert, observe_activations, plan_bits
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import first_row
from qdexp.quant.network import activation_quantizers, quantized_layers, set_activation_mode
from qdexp.quant.packed import weights
from qdexp.quant.scheme import Time, TimeGroups
from qdexp.quant.timegroups import set_time
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
    "symmetric": {"weight_bits": 5, "act_bits": 7, "weight": WeightFormat(symmetric=True), "act": ActFormat(symmetric=True)},
    "weights_only": {"weight_bits": 8, "act_bits": 32},
    "split": {"weight_bits": 3, "act_bits": 6, "splits": SPLITS, "layers": {"*.1.conv1": {"weight_bits": 32}}},
    "acts_only": {"weight_bits": 32, "act_bits": 8, "softmax_bits": 32},
}
GROUPS = TimeGroups((250.5, 600.0))
READ = """
import sys, torch
from qdexp.models import checkpoint
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


@pytest.mark.parametrize("time", [GROUPS, "dynamic"])
@pytest.mark.parametrize("case", ["w4a8", "symmetric", "split", "acts_only"])
def test_grids_that_follow_the_timestep_or_the_row_are_reloaded(
    tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path, case: str, time: Time
) -> None:
    static = quantized(tiny_unet, **CASES[case])
    checkpoint.save(tmp_path / "static", static, tiny_architecture)
    network = timed(copy.deepcopy(static), time)
    checkpoint.save(tmp_path / "timed", network, tiny_architecture)
    again = checkpoint.load(tmp_path / "timed")
    assert torch.equal(output(again), output(network))
    assert not torch.equal(output(again), output(static))
    for (name, one), (other, two) in zip(network.named_buffers(), again.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(one, two)
    texts = [(tmp_path / kind / "checkpoint.json").read_text() for kind in ("static", "timed")]
    assert ['"time"' in text for text in texts] == [False, True]
    files = [load_file(tmp_path / kind / "checkpoint.safetensors") for kind in ("static", "timed")]
    counts = [len(tensors.get("quantized.act_scale", ())) for tensors in files]
    assert counts[1] == (3 * counts[0] if time == GROUPS else 0)
    checkpoint.save(tmp_path / "again", timed(again, "static"), tiny_architecture)
    for file in ("checkpoint.json", "checkpoint.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "static" / file).read_bytes()


def timed(network: nn.Module, time: Time) -> nn.Module:
    """Its grids of this kind, observed."""
    set_time(network, time)
    observe_activations(network, batches(), NormSearch())
    return network


def test_q_k_and_v_of_one_attention_have_one_scheme(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    network = quantized(tiny_unet, 4, 8)
    key: Any = network.get_submodule("mid_block.attentions.0.quantized_products.0.key")
    key.set_time("dynamic")
    key.mode = "on"
    with pytest.raises(ValueError, match="different schemes"):
        checkpoint.save(tmp_path, network, tiny_architecture)


def replayed(network: Any, sample: Callable[[], Any]) -> int:
    """How many calls a pipeline makes, each of which is equal to one with a timestep for each row, by position."""
    seen: list[Any] = []
    handle = network.register_forward_hook(lambda _, args, kwargs, y: seen.append((args, kwargs, y[0])), with_kwargs=True)
    sample()
    handle.remove()
    for args, kwargs, y in seen:
        kwargs = dict(kwargs)
        x, t = args[0], args[1] if len(args) > 1 else kwargs.pop("timestep")
        with torch.no_grad():
            assert torch.equal(network(x, torch.as_tensor(t).expand(len(x)).clone(), **kwargs)[0], y)
            assert not torch.equal(network(x, torch.zeros(len(x)), **kwargs)[0], y) or not torch.as_tensor(t).any()
    return len(seen)


@pytest.mark.parametrize("time", [GROUPS, "dynamic"])
def test_a_loaded_unet_in_a_pipeline(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path, time: Time) -> None:
    """DDIM, step by step: x_0 and eps, and x of the next timestep from both."""
    checkpoint.save(tmp_path, timed(quantized(tiny_unet, 4, 6), time), tiny_architecture)
    network: Any = checkpoint.load(tmp_path)
    scheduler = DDIMScheduler(clip_sample=False)
    pipeline = DDIMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def sample() -> Any:
        return pipeline(3, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images

    x = noise
    for t in range(800, -1, -200):
        with torch.no_grad():
            eps = network(x, torch.full((3,), t))[0]
        abar, after = (scheduler.alphas_cumprod[step] if step >= 0 else torch.tensor(1.0) for step in (t, t - 200))
        x = after.sqrt() * (x - (1 - abar).sqrt() * eps) / abar.sqrt() + (1 - after).sqrt() * eps
    expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(sample()), expected, atol=1e-4, rtol=0)
    assert replayed(network, sample) == 5


@pytest.mark.parametrize("time", [GROUPS, "dynamic"])
def test_a_loaded_transformer_in_a_pipeline_under_guidance(tmp_path: Path, time: Time) -> None:
    """Which names the timestep, and calls both branches at once."""
    architecture = {
        "num_attention_heads": 1,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 1,
        "sample_size": 4,
    }
    original: Any = DiTTransformer2DModel(**architecture, num_embeds_ada_norm=1000).eval()
    labels = [{"class_labels": torch.randint(0, 1000, (8,))} for _ in range(2)]
    t = torch.arange(8) * 125
    data = [(torch.randn(8, 4, 4, 4), t, label) for label in labels]
    adapter = Adapter(original, first_row(data[0]))
    convert(original, plan_bits(original, adapter.layers, 32, 6), adapter.sites)
    set_time(original, time)
    observe_activations(original, data, NormSearch())
    target = {"_target_": "diffusers.DiTTransformer2DModel", **architecture, "num_embeds_ada_norm": 1000}
    checkpoint.save(tmp_path, original, target)
    network: Any = checkpoint.load(tmp_path)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=4)
    pipeline = DiTPipeline(network, vae, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def sample() -> Any:
        return pipeline([1, 2], 3.0, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images

    assert replayed(network, sample) == 4


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
    (tmp_path / "read.py").write_text(READ)
    done = Python(["read.py", str(tmp_path)], tmp_path).wait()
    assert done.returncode == 0, done.stderr
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
    others = {name: value for name, value in network.state_dict().items() if name not in weights(network)}
    payload += sum(value.numel() * value.element_size() for value in others.values())
    tensors = (saved / "checkpoint.safetensors").stat().st_size
    entries = len(others) + 5
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
    "weights that follow the timestep": lambda folder: schemes(folder, "weight", time={"kind": "groups", "edges": [1.0]}),
    "groups of timesteps without scales": lambda folder: schemes(folder, "act", time={"kind": "groups", "edges": [1.0]}),
    "far more groups than scales": lambda folder: schemes(folder, "act", time={"kind": "groups", "edges": list(range(10**5))}),
    "edges that fall": lambda folder: schemes(folder, "act", time={"kind": "groups", "edges": [2.0, 1.0]}),
    "scales of dynamic grids": lambda folder: schemes(folder, "act", time={"kind": "dynamic"}),
    "another time": lambda folder: schemes(folder, "act", time={"kind": "sometimes"}),
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
