"""The backend ``int8``: whole networks of both families, what it refuses, and what it leaves."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from backend_networks import NEEDS_VNNI, quantized_network
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor, nn

import qdexp
from qdexp.backends import Int8
from qdexp.backends.integer.attention import IntegerAttention
from qdexp.backends.integer.layers import IntegerLayer
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.quant.blocks import Batch, call
from qdexp.quant.network import quantized_layers

pytestmark = NEEDS_VNNI

CellOf = Callable[..., Cell]
NETWORKS = ("ddpm_fashion", "dit_fashion")


@torch.inference_mode()
def output(network: nn.Module, batch: Batch) -> Tensor:
    made: Tensor = call(network, batch)[0]
    return made


@torch.inference_mode()
def outputs_of_layers(network: nn.Module, lowered: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """By the names of its layers what each computes, simulated and lowered, from the input that it has in ``network``."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def compare(name: str, _: nn.Module, args: tuple[Tensor, ...], expected: Tensor) -> None:
        found[name] = expected, lowered.get_submodule(name)(*args)

    handles = [layer.register_forward_hook(partial(compare, name)) for name, layer in quantized_layers(network)]
    call(network, batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_layer_by_layer_it_computes_what_the_simulated_network_does(name: str, bits: int) -> None:
    """Floating point alone sums in another order. A single level more or less in one place would be 1e-4 of the largest output
    of the smallest layers, and a zero point that is forgotten many times all of it."""
    network, batch = quantized_network(name, bits, min(8, 2 * bits))
    lowered = Int8().lower(deepcopy(network))
    layers = dict(quantized_layers(lowered.network))
    assert all(isinstance(layer, IntegerLayer) for layer in layers.values())
    found = outputs_of_layers(network, lowered.network, batch)
    assert found.keys() == layers.keys()
    for name, (expected, made) in found.items():
        assert made.shape == expected.shape, name
        size = float(expected.abs().max())
        assert float((made - expected).abs().max()) <= 2e-5 * size, name


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)])
def test_whole_networks_differ_as_simulated_ones_do(name: str, bits: tuple[int, int]) -> None:
    """A last bit that differs moves a value to the next level here and there: so it does in the simulated network, run in
    batches of one row, with another layout in memory, or with last bits of its layers' outputs drawn anew."""
    network, batch = quantized_network(name, *bits)
    expected = output(network, batch)
    x_t, t, named = batch
    alone = [(x_t[i : i + 1], t[i : i + 1], {key: value[i : i + 1] for key, value in named.items()}) for i in range(len(x_t))]
    others = [torch.cat([output(network, row) for row in alone])]
    others.append(output(deepcopy(network).to(memory_format=torch.contiguous_format), batch))
    others += [output(network, batch) for _ in shaken(network, 4)]
    found = output(Int8().lower(deepcopy(network)).network, batch)
    between = [float((other - expected).norm() / expected.norm()) for other in others]
    assert float((found - expected).norm() / expected.norm()) <= 2 * max(between)


def shaken(network: nn.Module, times: int) -> Iterator[None]:
    """While it is iterated over, each layer's output has an error of one last bit of its largest value."""

    def shake(_: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y + torch.randn_like(y) * y.abs().max() * torch.finfo(y.dtype).eps

    handles = [layer.register_forward_hook(shake) for _, layer in quantized_layers(network)]
    yield from [None] * times
    for handle in handles:
        handle.remove()


def test_attention_alone() -> None:
    """The products' sums are exact, so that nothing but the softmax may differ in a last bit."""
    network, batch = quantized_network("dit_fashion", 8, 8)
    name = "transformer_blocks.1.attn1"
    inputs: list[Any] = []
    site = network.get_submodule(name)
    handle = site.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
    output(network, batch)
    handle.remove()
    lowered = Int8().lower(deepcopy(network))
    assert name not in lowered.left
    assert any(isinstance(module, IntegerAttention) for module in lowered.network.get_submodule(name).modules())
    ((args, kwargs),) = inputs
    with torch.inference_mode():
        expected, found = (one.get_submodule(name)(*args, **kwargs) for one in (network, lowered.network))
    assert (found - expected).norm() <= 1e-2 * expected.norm()
    assert (found - expected).abs().median() <= 1e-5 * expected.abs().max()


def test_it_goes_into_a_pipeline_by_its_name(finished: CellOf) -> None:
    cell = finished("quant=w8a8")
    folder = cell.out / "store"
    (checkpoint,) = (path for path in folder.glob("act-*/checkpoint"))
    network = qdexp.load(checkpoint, backend="int8")
    assert any(isinstance(layer, IntegerLayer) for layer in network.modules())

    def images(backend: str) -> Tensor:
        pipeline = DDIMPipeline(qdexp.load(checkpoint, backend=backend), DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(batch_size=2, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
        return torch.from_numpy(made.images)

    expected, found = images("simulated"), images("int8")
    assert (found - expected).abs().mean() < 1e-2


def test_a_cell_draws_with_it(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    timed = ("metric=[standard,latency]", "metric.latency.repetitions=5", "metric.latency.warmup=1")
    cell = cell_of("backend=int8", "quant=w8a8", "inspection.rows=4", *timed)
    record = cell.run()
    assert all(record["metrics"][name] > 0 for name in ("latency_ms", "latency_batch_ms", "memory_mb", "memory_network_mb"))
    assert record["axes"]["backend"] == "int8"
    assert "left to simulated arithmetic" not in capsys.readouterr().out
    other = cell_of("quant=w8a8", "inspection.rows=4", f"out={cell.out}").run()
    assert other["keys"]["act"] == record["keys"]["act"]
    assert other["keys"]["samples"] != record["keys"]["samples"]
    assert record["metrics"]["noise_error"] == pytest.approx(other["metrics"]["noise_error"], rel=0.2)


@pytest.mark.parametrize("options", ["quant=w8a8_dynamic", "quant=w4a4 quant.act.time=groups quant.act.groups=2"])
def test_grids_that_depend_on_the_call(options: str, cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    """The network's error is about as large as in simulated arithmetic; what a convolution reads per pixel is left there."""
    errors = {}
    for backend in ("simulated", "int8"):
        record = cell_of(f"backend={backend}", *options.split()).run()
        errors[backend] = record["metrics"]["noise_error"]
    assert errors["int8"] == pytest.approx(errors["simulated"], rel=0.3)
    assert ("a scale for each place of an image" in capsys.readouterr().out) == ("dynamic" in options)


def test_what_it_leaves_is_told_with_its_share(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of("backend=int8", "quant=w8a8", "quant.layers={conv_in: {act_bits: 32}}", "method=ptq")
    cell.run()
    told = re.search(
        r"left to simulated arithmetic, the input is in .*: conv_in \((.*)% of the MACs\)", capsys.readouterr().out
    )
    assert told is not None
    assert 0.1 < float(told.group(1)) < 5


REFUSED = {
    "quant=w4a32": "quant.act_bits=32: backend=int8 multiplies integers of at most 8 bits",
    "quant=w32a8": "quant.weight_bits=32: ",
    "quant=fp8": "quant.weight.number=e4m3: ",
    "quant=mxfp4": "quant.weight.number=e2m1: ",
    "quant=int4_g64": "quant.weight.granularity=per_group: ",
}


@pytest.mark.parametrize(("options", "told"), REFUSED.items())
def test_formats_that_no_kernel_multiplies_are_refused_before_any_work(cell_of: CellOf, options: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        cell_of("backend=int8", *options.split())
    assert str(caught.value).startswith(told)
    assert "backend=simulated" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_precision_is_never_refused(cell_of: CellOf) -> None:
    assert cell_of("backend=int8", "method=fp", "quant=fp8").axes["backend"] == "none"


def test_a_cpu_without_the_instructions_is_refused_unless_forced(
    cell_of: CellOf, monkeypatch: pytest.MonkeyPatch, tiny_unet: nn.Module
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    cell = "backend=int8", "quant=w8a8", "seed=7"  # of which no check has passed yet
    for refused in (lambda: cell_of(*cell), lambda: Int8().lower(tiny_unet)):
        with pytest.raises(UserError, match=r"^backend.force=false: this CPU has no AVX512-VNNI, .*backend.force=true$"):
            refused()
    assert cell_of(*cell, "backend.force=true")


def test_a_torch_without_the_kernels_is_refused_even_if_forced(tiny_unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^backend=int8: this torch has no integer kernels of oneDNN; give backend=simulated$"):
        Int8(force=True).lower(tiny_unet)


def test_a_network_without_integers_is_refused(tiny_unet: nn.Module) -> None:
    with pytest.raises(UserError, match=r"^backend=int8: no layer .* has integers of at most 8 bits"):
        Int8().lower(tiny_unet)
