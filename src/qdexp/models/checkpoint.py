"""A quantized network on disk, as small as its bits.

    checkpoint.json         format, architecture, schemes, memory format, digests of the other file and of its own content
    checkpoint.safetensors  everything else

What quantization adds is joined into a few tensors, see `qdexp.quant.packed`. Biases, norms and layers left in floating point
keep their own names and dtypes; a buffer that is not persistent goes by `not_persistent.NAME`, and only where the constructor
does not make it again.
"""

import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qdexp import device as devices
from qdexp import entries, files
from qdexp.errors import UserError
from qdexp.folding import fold
from qdexp.models import architecture as architectures
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.attention import QuantizedSite, quantize_attention, quantized_sites
from qdexp.quant.context import share
from qdexp.quant.formats import FLOAT, along, input_axis
from qdexp.quant.granularity import PerGroup, PerTensor, Split, whole
from qdexp.quant.layers import QuantizedLayer, is_whole, to_quantized
from qdexp.quant.low_rank import LowRank, largest_rank
from qdexp.quant.network import quantized_layers
from qdexp.quant.packed import WEIGHT, fill, packed_tensors, weights
from qdexp.quant.products import ACT, ATTENTION, LEFT, PROBABILITY
from qdexp.quant.scheme import Scheme, TimeGroups
from qdexp.quant.transforms import Transform, from_dict, to_dict

FOLDER = "checkpoint"
"""The folder of a checkpoint in the folder of a stage's result."""
FORMAT = 1
JSON, TENSORS = "checkpoint.json", "checkpoint.safetensors"
DRAWN = "not_persistent."
BESIDE = ("parts", "transforms", "rank")
"""The properties of a module that are known beside its schemes."""
PRODUCTS = {(), ATTENTION, (ACT, ACT), (ACT, PROBABILITY), (PROBABILITY, ACT), (PROBABILITY, PROBABILITY)}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


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
    packed, dequantized = packed_tensors(network), weights(network)
    others = {name: value for name, value in network.state_dict().items() if name not in dequantized}
    tensors = packed | others | _drawn(network, architecture)
    # copies: a module that is registered under two names has one memory for both, which safetensors refuses
    copies = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    files.write_tensors(folder / TENSORS, copies)
    content = {
        "format": FORMAT,
        "architecture": dict(architecture),
        "dtype": str(_dtype(network)).removeprefix("torch."),
        "channels_last": _is_channels_last(network),
        "layers": _grouped((name, _layer_schemes(x), _beside(x)) for name, x in quantized_layers(network)),
        "attentions": _grouped((name, _site_schemes(x), {"parts": x.products}) for name, x in quantized_sites(network).items()),
        "digest": files.sha256(folder / TENSORS),
    }
    files.write_sealed(folder / JSON, content)


def load(folder: Path | str, trust: Collection[str] = ()) -> nn.Module:
    """The network saved in `folder`, on the CPU, in eval mode: its outputs are bit-equal.

    Neither files that anybody may have written nor ones that a disk has changed do harm: no code runs but that of diffusers'
    and qdexp's networks, and of what `trust` names; a changed bit is found; and the memory taken is that of the tensors in the
    file, in full precision. Raises UserError.
    """
    folder = Path(folder)
    entries.check_part(folder)
    content = metadata(folder)
    if files.SEAL not in content:
        warnings.warn(f"checkpoint {folder}: {JSON} has no digest of its own, only the tensors are checked", stacklevel=2)
    try:
        if entries.digest(folder / TENSORS) != content["digest"]:
            raise ValueError(f"{TENSORS} does not match the digest in {JSON}")
        return _load(content, load_file(folder / TENSORS), trust)
    except UserError as error:
        raise UserError(f"checkpoint {folder}: {error}") from error
    except Exception as error:  # whatever a constructor has against its arguments
        raise _broken(folder, " ".join(f"{error or type(error).__name__}".split())) from error


def _load(content: Mapping[str, Any], tensors: dict[str, Tensor], trust: Collection[str]) -> nn.Module:
    found, sites = list(_ungrouped(content["layers"])), list(_ungrouped(content["attentions"]))
    layers, attended = ({name: schemes for name, schemes, _ in each} for each in (found, sites))
    _check_times(tensors, [*layers.values(), *attended.values()])
    stored, count = _full_bytes(tensors, layers), len(tensors) + len(layers) + len(attended)
    network = _constructed(content["architecture"], _DTYPES[content["dtype"]], trust, stored, count)
    for name, schemes, beside in found:
        layer = network.get_submodule(name)
        _check_fit(layer, schemes)
        _put_beside(to_quantized(layer, schemes["weight"], schemes["act"]), beside)
    for name, schemes, beside in sites:
        if not all(scheme is None or isinstance(scheme.granularity, PerTensor | PerGroup) for scheme in schemes.values()):
            raise ValueError(f"{name} is quantized in parts, which attention is not")
        products = [tuple(product) for product in beside.get("parts") or [ATTENTION]]  # of before there were others
        if not set(products) <= PRODUCTS:
            raise ValueError(f"{name} multiplies {products}")
        softmax = schemes.get("softmax", schemes.get("softmax_with_grid"))
        quantize_attention(network.get_submodule(name), products, schemes["act"], softmax, known="softmax" in schemes)
    share(network)
    fill(network, tensors)
    for name in [name for name in tensors if name.startswith(DRAWN)]:
        owner, _, own = name.removeprefix(DRAWN).rpartition(".")
        network.get_submodule(owner).register_buffer(own, tensors.pop(name), persistent=False)
    network.load_state_dict(weights(network) | tensors, assign=True)
    if content["channels_last"]:
        devices.to_channels_last(network)
    return network


def metadata(folder: Path | str) -> dict[str, Any]:
    """The content of checkpoint.json. Raises UserError."""
    path = Path(folder) / JSON
    try:
        content = files.read_sealed(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path.parent, f"{JSON}: {error}") from error


def size_bytes(folder: Path | str) -> int:
    """Bytes on disk."""
    return sum((Path(folder) / name).stat().st_size for name in (JSON, TENSORS))


def nominal_bytes(parameters: int, bits: int, left_out: int = 0, grids: int = 0) -> float:
    """The size that papers print: parameters * bits / 8, no layers of other widths, no biases and norms apart.

    Scales and zero points count where they belong to groups, which they make wider: in groups of 16 by a bit for each weight or
    more. One per output channel, a hundredth of that, does not, as in papers.

    Args:
        parameters: Of the network.
        bits: Of its weights.
        left_out: Weights of convolutions and products, of these parameters, that stay in full precision; they count 32 bits.
        grids: Bytes of the scales and zero points of groups, see ``qdexp.quant.packed.group_bytes``.
    """
    return ((parameters - left_out) * bits + left_out * FLOAT) / 8 + grids


def _drawn(network: nn.Module, architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """The buffers that neither the state holds nor the constructor makes again."""
    own = {name: value for name, value in network.named_buffers() if not _is_added(network, name)}
    passing = {name: value for name, value in own.items() if name not in network.state_dict()}
    again: dict[str, Tensor] = {}
    if passing:
        state = network.state_dict()
        stored, trust = sum(value.nbytes for value in state.values()), architectures.named(architecture)
        again = dict(_constructed(architecture, _dtype(network), trust, 4 * stored, len(state)).named_buffers())
    same = {name for name, value in passing.items() if name in again and _equal(again[name], value.cpu())}
    return {f"{DRAWN}{name}": value for name, value in passing.items() if name not in same}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _is_added(network: nn.Module, buffer: str) -> bool:
    owner, _, own = buffer.rpartition(".")
    module = network.get_submodule(owner)
    added = isinstance(module, ActivationQuantizer | Transform | LowRank)
    return added or (isinstance(module, QuantizedLayer) and own.startswith("weight"))


def _dtype(network: nn.Module) -> torch.dtype:
    """The dtype of the parameters, or of the quantized weights where no other parameter is left."""
    return next(chain(network.parameters(), (layer.weight for _, layer in quantized_layers(network)))).dtype


def _site_schemes(site: QuantizedSite) -> dict[str, Scheme | None]:
    """The schemes of a site by their names in checkpoint.json, where a softmax with a grid of its own has another name. The
    axis of groups, which is that of each factor's place, is left out."""
    found: dict[str, list[nn.Module]] = {ACT: [], PROBABILITY: []}
    for kind, quantizer in site.quantizers():
        found[kind].append(quantizer)
    act, softmax = ({along(_act_scheme(one), LEFT) for one in of_kind} or {None} for of_kind in found.values())
    if len(act) > 1 or len(softmax) > 1:
        raise ValueError("what one attention multiplies has different schemes")
    observed = any(isinstance(one, ActivationQuantizer) and not one.fixed for one in found[PROBABILITY])
    return {"act": act.pop(), "softmax_with_grid" if observed else "softmax": softmax.pop()}


def _layer_schemes(layer: QuantizedLayer) -> dict[str, Scheme | None]:
    return {"weight": layer.weight_scheme, "act": _act_scheme(layer.input_quantizer)}


def _act_scheme(quantizer: nn.Module) -> Scheme | None:
    return quantizer.scheme if isinstance(quantizer, ActivationQuantizer) else None


def _beside(layer: QuantizedLayer) -> dict[str, Any]:
    """The properties of a layer that its schemes do not hold: its parts, the transforms of its input, the rank of its
    branch."""
    transforms = [to_dict(cast("Transform", transform)) for transform in layer.transforms]
    return {"parts": layer.parts, "transforms": transforms, "rank": layer.branch and layer.branch.rank}


def _put_beside(layer: QuantizedLayer, beside: Mapping[str, Any]) -> None:
    """The inverse of `_beside`, all numbers still to be filled in."""
    weight, parts, rank = layer.weight, beside.get("parts"), beside.get("rank")
    layer.parts = None if parts is None else tuple(parts)
    if not is_whole(layer) and (beside.get("transforms") or rank is not None):
        raise ValueError("a convolution of several groups has other coordinates, or a branch")
    layer.transforms.extend(from_dict(each, weight.shape[1], layer.channel_dim) for each in beside.get("transforms", ()))
    if rank is not None:
        if not (type(rank) is int and 0 < rank <= largest_rank(weight)):
            raise ValueError(f"a branch has rank {rank!r} beside a weight {tuple(weight.shape)}")
        layer.branch = LowRank.empty(weight, rank)


Described = tuple[str, Mapping[str, Scheme | None], Mapping[str, Any]]
"""A module's name, its schemes, and what else is to be known of it."""


def _grouped(named: Iterable[Described]) -> list[dict[str, Any]]:
    """Modules with equal schemes together: [{**schemes, "names": [...]}, ...], beside what else is to be known of them: such
    as ``parts``, the channels of a layer that is quantized in parts, or what an attention multiplies."""
    groups: dict[str, dict[str, Any]] = {}
    for name, schemes, beside in named:
        plain = {key: scheme and scheme.to_dict() for key, scheme in schemes.items()}
        plain |= {key: value for key, value in beside.items() if value}
        groups.setdefault(json.dumps(plain), plain | {"names": []})["names"].append(name)
    return list(groups.values())


def _ungrouped(groups: Iterable[Mapping[str, Any]]) -> Iterable[Described]:
    for group in groups:
        plain = dict(group)
        names, beside = plain.pop("names"), {key: plain.pop(key) for key in BESIDE if key in plain}
        schemes = {key: scheme and Scheme.from_dict(scheme) for key, scheme in plain.items()}
        for name in names:
            yield name, schemes, beside


def _full_bytes(tensors: Mapping[str, Tensor], layers: Mapping[str, Mapping[str, Scheme | None]]) -> int:
    """The bytes of all tensors in full precision, at most."""
    bits = [scheme.bits for schemes in layers.values() if (scheme := schemes["weight"]) is not None]
    packed = len(tensors.get(WEIGHT, ()))
    others = sum(value.numel() * max(4, value.element_size()) for value in tensors.values())
    return others + (4 * packed * 8 // min(bits) if bits else 0)


def _check_times(tensors: Mapping[str, Tensor], schemes: Iterable[Mapping[str, Scheme | None]]) -> None:
    """Raises ValueError where there are more groups of timesteps than stored scales: each would take memory."""
    times = (scheme.time for each in schemes for scheme in each.values() if scheme is not None)
    if sum(len(time) for time in times if isinstance(time, TimeGroups)) > len(tensors.get("quantized.act_scale", ())):
        raise ValueError("the schemes have more groups of timesteps than there are scales")


def _check_fit(layer: nn.Module, schemes: Mapping[str, Scheme | None]) -> None:
    """Raises ValueError where a scheme cuts a layer's channels into others than it has."""
    weight: Any = layer.weight
    for kind, channels in (("weight", weight.shape[1]), ("act", weight.shape[1] * getattr(layer, "groups", 1))):
        scheme = schemes[kind]
        if scheme is None:
            continue
        parts = scheme.granularity
        group = whole(parts)
        numbers = [scheme.bits, *(parts.sizes if isinstance(parts, Split) else ())]
        if isinstance(group, PerGroup):
            numbers += [] if group.size is None else [group.size]
            axis = 1 if kind == "weight" else input_axis(layer)
            if type(group.axis) is not int or group.axis != axis:
                raise ValueError(f"a scheme has groups along the axis {group.axis!r}, not {axis}")
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"a scheme has the numbers {numbers}")
        if isinstance(parts, Split) and (parts.axis != 1 or sum(parts.sizes) != channels):
            raise ValueError(f"a scheme has parts of {parts.sizes} channels in a layer of {channels}")


def _constructed(
    architecture: Mapping[str, Any], dtype: torch.dtype, trust: Collection[str], stored: int, count: int
) -> nn.Module:
    """Construct the network in eval mode, with its weights folded; random draws of the constructor are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = architectures.build(architecture, trust, stored, count)
    fold(network)
    return nn.Module.to(network, dtype)  # diffusers' own `to` logs a warning at every dtype


def _is_channels_last(network: nn.Module) -> bool:
    """Whether any weight lies in memory with its channels last (those of 1x1 convolutions do either way)."""
    weights = (layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return any(not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def _broken(folder: Path, why: str) -> UserError:
    return UserError(f"checkpoint {folder} cannot be read ({why}): quantize again")
