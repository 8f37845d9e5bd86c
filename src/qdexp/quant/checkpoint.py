"""A quantized network on disk, as small as its bits.

    checkpoint.json         format, architecture, schemes, memory format, digest of the other file
    checkpoint.safetensors  everything else

What quantization adds is joined into five tensors, since a tensor's entry in the file costs about a hundred bytes:

    quantized.weight             uint8, every layer's integers less qmin, packed at that layer's bits, layer after layer
    quantized.weight_scale       float32 [groups of all layers]
    quantized.weight_zero_point  uint8 [groups of all layers]; int32 where one lies outside 0 .. 255
    quantized.act_scale          float32 [groups of all activation quantizers with an observed range]
    quantized.act_zero_point     uint8, likewise

in definition order of the layers. Biases, norms and layers left in floating point keep their own names and dtypes.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qdexp import files
from qdexp.errors import UserError
from qdexp.quant.affine import QParams
from qdexp.quant.attention import QuantizedAttentionProcessor, quantize_attention
from qdexp.quant.layers import ActivationQuantizer, QuantizedLayer, to_quantized
from qdexp.quant.network import activation_quantizers, attentions, quantized_layers
from qdexp.quant.packing import pack, packed_bytes, unpack
from qdexp.quant.scheme import Scheme

FOLDER = "checkpoint"
"""Of a checkpoint in the folder of a stage's result."""
FORMAT = 1
JSON, TENSORS = "checkpoint.json", "checkpoint.safetensors"


def save(
    folder: Path | str,
    network: nn.Module,
    architecture: Mapping[str, Any],
) -> None:
    """Write a converted and calibrated network.

    architecture: `{"_target_": "diffusers.UNet2DModel", **constructor arguments}`, JSON values only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(network)
    files.write_tensors(folder / TENSORS, tensors)
    content = {
        "format": FORMAT,
        "architecture": dict(architecture),
        "dtype": str(_dtype(network)).removeprefix("torch."),
        "channels_last": _is_channels_last(network),
        "layers": _grouped((name, {"weight": x.weight_scheme, "act": _act_scheme(x)}) for name, x in quantized_layers(network)),
        "attentions": _grouped((name, _schemes(x)) for name, x in _processors(network)),
        "digest": files.sha256(folder / TENSORS),
    }
    files.write_text(folder / JSON, json.dumps(content, indent=1))


def load(folder: Path | str) -> nn.Module:
    """The network saved in `folder`, on the CPU, in eval mode: its outputs are bit-equal. Raises UserError."""
    folder = Path(folder)
    content = metadata(folder)
    try:
        if files.sha256(folder / TENSORS) != content["digest"]:
            raise ValueError(f"{TENSORS} does not match the digest in {JSON}")
        network = _instantiate(content["architecture"]).eval()
        nn.Module.to(network, getattr(torch, content["dtype"]))  # diffusers' own `to` logs a warning at every dtype
        for name, schemes in _ungrouped(content["layers"]):
            to_quantized(network.get_submodule(name), schemes["weight"], schemes["act"])
        for name, schemes in _ungrouped(content["attentions"]):
            softmax = schemes.get("softmax", schemes.get("softmax_with_grid"))
            quantize_attention(network.get_submodule(name), schemes["act"], softmax, known="softmax" in schemes)
        _fill(network, load_file(folder / TENSORS))
        return network.to(memory_format=torch.channels_last) if content["channels_last"] else network
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise _broken(folder, " ".join(str(error).split())) from error


def metadata(folder: Path | str) -> dict[str, Any]:
    """The content of checkpoint.json. Raises UserError."""
    path = Path(folder) / JSON
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path.parent, f"{JSON}: {error}") from error


def size_bytes(folder: Path | str) -> int:
    """Bytes on disk."""
    return sum((Path(folder) / name).stat().st_size for name in (JSON, TENSORS))


def nominal_bytes(parameters: int, bits: int) -> float:
    """parameters * bits / 8, the size that papers print: no scales, no layers of other widths, no biases apart."""
    return parameters * bits / 8


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, layer in quantized_layers(network):
        if layer.weight_scheme is None:
            continue
        if layer.weight_int is None or layer.weight_qparams is None:
            raise ValueError(f"the weight of {name} is not quantized yet")
        parts["weight"].append(pack(layer.weight_int.int() - layer.weight_scheme.qmin, layer.weight_scheme.bits))
        parts["weight_scale"].append(layer.weight_qparams.scale)
        parts["weight_zero_point"].append(layer.weight_qparams.zero_point)
    for name, quantizer in activation_quantizers(network):
        if quantizer.mode != "on":
            raise ValueError(f"the activation quantizer {name} is not on")
        if not quantizer.fixed:
            parts["act_scale"].append(quantizer.scale)
            parts["act_zero_point"].append(quantizer.zero_point)
    joined = {f"quantized.{name}": torch.cat(tensors) for name, tensors in parts.items()}
    joined |= {name: _narrow(values) for name, values in joined.items() if name.endswith("_zero_point")}
    contents = {name: tensor.detach().cpu() for name, tensor in (joined | network.state_dict()).items()}
    # copies: a module that is registered under two names has one memory for both, which safetensors refuses
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in contents.items()}


def _dtype(network: nn.Module) -> torch.dtype:
    """Of the parameters, or of the quantized weights where no other parameter is left."""
    return next(chain(network.parameters(), (layer.weight for _, layer in quantized_layers(network)))).dtype


def _narrow(values: Tensor) -> Tensor:
    """Integers as bytes if all of them are."""
    fits = bool(((values >= 0) & (values < 256)).all())
    return values.to(torch.uint8 if fits else torch.int32)


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_tensors`."""
    cursors = {name: _Cursor(tensors.pop(name)) for name in list(tensors) if name.startswith("quantized.")}
    for _, layer in quantized_layers(network):
        scheme = layer.weight_scheme
        if scheme is not None:
            count, shape = layer.weight.numel(), layer.weight.shape
            values = unpack(cursors["quantized.weight"].take(packed_bytes(count, scheme.bits)), scheme.bits, count)
            groups = sum(scheme.granularity.groups(shape))
            layer.set_weight((values + scheme.qmin).to(scheme.dtype).view(shape), _take_qparams(cursors, "weight", groups))
    for _, quantizer in activation_quantizers(network):
        if not quantizer.fixed:
            quantizer.set_qparams(_take_qparams(cursors, "act", len(quantizer.scale)))
        quantizer.mode = "on"
    network.load_state_dict(tensors, assign=True)


def _take_qparams(cursors: Mapping[str, "_Cursor"], kind: str, groups: int) -> QParams:
    scale, zero_point = (cursors[f"quantized.{kind}_{name}"].take(groups) for name in ("scale", "zero_point"))
    return QParams(scale, zero_point.int())


class _Cursor:
    """Reads a joined tensor part by part."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.position = tensor, 0

    def take(self, count: int) -> Tensor:
        start, self.position = self.position, self.position + count
        if self.position > len(self.tensor):
            raise ValueError("a tensor is shorter than the schemes say")
        return self.tensor[start : self.position].clone()


def _processors(network: nn.Module) -> Iterable[tuple[str, QuantizedAttentionProcessor]]:
    named = ((name, attention.processor) for name, attention in attentions(network))
    return ((name, processor) for name, processor in named if isinstance(processor, QuantizedAttentionProcessor))


def _schemes(processor: QuantizedAttentionProcessor) -> dict[str, Scheme | None]:
    """By their names in checkpoint.json, where a softmax with a grid of its own, kept like any other, goes by another name."""
    observed = isinstance(processor.probability, ActivationQuantizer) and not processor.probability.fixed
    return {"act": processor.act, "softmax_with_grid" if observed else "softmax": processor.softmax}


def _act_scheme(layer: QuantizedLayer) -> Scheme | None:
    quantizer = layer.input_quantizer
    return quantizer.scheme if isinstance(quantizer, ActivationQuantizer) else None


def _grouped(named: Iterable[tuple[str, Mapping[str, Scheme | None]]]) -> list[dict[str, Any]]:
    """Modules with equal schemes together: [{**schemes, "names": [...]}, ...]."""
    groups: dict[tuple[tuple[str, Scheme | None], ...], list[str]] = defaultdict(list)
    for name, schemes in named:
        groups[tuple(schemes.items())].append(name)
    return [
        {key: scheme and scheme.to_dict() for key, scheme in schemes} | {"names": names} for schemes, names in groups.items()
    ]


def _ungrouped(groups: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, dict[str, Scheme | None]]]:
    for group in groups:
        schemes = {key: scheme and Scheme.from_dict(scheme) for key, scheme in group.items() if key != "names"}
        for name in group["names"]:
            yield name, schemes


def _instantiate(architecture: Mapping[str, Any]) -> nn.Module:
    """Only classes of networks are called: a checkpoint must not be able to run anything else."""
    arguments = dict(architecture)
    target = arguments.pop("_target_")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"checkpoint architecture {target!r} cannot be imported: install the package it comes from") from None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"checkpoint architecture {target!r} is not a torch.nn.Module class: the checkpoint is not ours")
    return cls(**arguments)


def _is_channels_last(network: nn.Module) -> bool:
    """Whether any weight lies in memory with its channels last (those of 1x1 convolutions do either way)."""
    weights = (layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return any(not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def _broken(folder: Path, why: str) -> UserError:
    return UserError(f"checkpoint {folder} cannot be read ({why}): quantize again")
