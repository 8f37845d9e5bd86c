"""The network that a checkpoint describes, built without believing it: a class by its name, and its arguments.

    {"_target_": "diffusers.UNet2DModel", "sample_size": 32, ...}

A checkpoint may come from anybody. So what it names is first compared as text: with diffusers' models and those of qdexp, or
with what the caller trusts. Before that nothing is imported, called or opened, and nothing is ever evaluated: an argument is a
plain value, or another such description, at any depth; Hydra's other keys and its interpolations mean nothing here.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

import diffusers.models
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qdexp.errors import UserError

TARGET = "_target_"
OWN = (
    "qdexp.models.bimodal.BimodalUNet2DModel",
    "qdexp.models.networks.ClassUNet2DConditionModel",
    "qdexp.models.networks.HeadsUNet2DModel",
    "qdexp.models.networks.PixArtModel",
)
"""qdexp's networks. Those of diffusers are what it says its models are."""

_RESERVED = re.compile(r"_[a-z]+_")
_PATH = re.compile(r"[/\\~]|^\.|\.[A-Za-z]\w*$")
"""The mark of a path that the name of a kind of layer has not: a separator, or an ending."""
_HOMES = ("diffusers.models.", "qdexp.models.")
_OVERHEAD = 2**26
"""Bytes that any constructor may take beside its parameters."""
_FEW = 10_000
"""Tensors likewise."""


def is_listed(name: str) -> bool:
    """Whether anybody's checkpoint may name the class ``name``: by the text alone."""
    package, _, kind = name.rpartition(".")
    return name in OWN or (package in ("diffusers", "diffusers.models") and kind in diffusers.models.__all__)


def named(architecture: Mapping[str, Any]) -> frozenset[str]:
    """The texts in a description that are more than plain values: names of classes, and what may be paths of files."""
    return frozenset(text for _, text in _named(architecture))


def check_plain(architecture: Mapping[str, Any]) -> None:
    """Raises UserError where a description says more than a class and its arguments, so that no checkpoint can keep it."""
    for part in _parts(architecture):
        for key in part:
            if _RESERVED.fullmatch(key) and key != TARGET:
                raise UserError(f"{key} in the architecture {architecture.get(TARGET)}: a checkpoint keeps classes and their "
                                f"arguments alone; leave {key} out")  # fmt: skip


def build(architecture: Mapping[str, Any], trust: Collection[str], stored: int, entries: int) -> nn.Module:
    """The described network.

    Args:
        architecture: JSON values.
        trust: Names of classes, and paths among the arguments, that are allowed beside the listed classes.
        stored: Bytes that all the checkpoint's tensors take in full precision. A constructor that takes much more is stopped.
        entries: How many tensors and layers the checkpoint has; likewise.

    Raises:
        UserError: The description names what is neither listed nor trusted, a class that cannot be imported, or no network.
        ValueError: It is no description, or of another network than that of the tensors.
    """
    if not isinstance(architecture.get(TARGET), str):
        raise ValueError(f"the architecture has no {TARGET}")
    check_plain(architecture)
    unknown = {text: key for key, text in _named(architecture) if not (text in trust or (key == TARGET and is_listed(text)))}
    if unknown:
        told = ", ".join(f"{key}={text}" for text, key in unknown.items())
        raise UserError(f"it names what may run code or open files: {told}; if you trust that, load it by "
                        f"qdexp.load(..., trust={list(unknown)})")  # fmt: skip
    with _Budget(3 * stored + _OVERHEAD, 8 * entries + _FEW):
        network = _make(architecture, trust)
    if not isinstance(network, nn.Module):
        raise UserError(f"{architecture[TARGET]} makes no torch.nn.Module: it is no network")
    return network


def _named(architecture: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """``(key, text)`` of what is more than plain."""
    for part in _parts(architecture):
        if TARGET in part:
            yield TARGET, str(part[TARGET])
        for key, value in part.items():
            if key != TARGET:
                yield from ((key, text) for text in (key, *_texts(value)) if _PATH.search(text))


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings in a JSON value, outer ones first."""
    if isinstance(value, Mapping):
        yield value
    for inner in _inner(value):
        yield from _parts(inner)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a JSON value, those in its mappings aside."""
    if isinstance(value, str):
        yield value
    elif not isinstance(value, Mapping):
        for inner in _inner(value):
            yield from _texts(inner)


def _inner(value: Any) -> Collection[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _make(value: Any, trust: Collection[str]) -> Any:
    """A JSON value with its descriptions, inner ones first, replaced by what they describe."""
    if isinstance(value, Mapping):
        made = {key: _make(inner, trust) for key, inner in value.items() if key != TARGET}
        return imported(value[TARGET], trust)(**made) if TARGET in value else made
    return [_make(inner, trust) for inner in value] if isinstance(value, list | tuple) else value


def imported(name: str, trust: Collection[str] = ()) -> Any:
    """Import the class or function ``name``; a name that is only listed must be a class of networks defined where it says, else
    UserError."""
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name} cannot be imported ({error}): install what it comes from, or fix PYTHONPATH") from error
    if name in trust or (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(_HOMES)):
        return found
    raise UserError(f"{name} is no class of networks")


class _Budget(TorchDispatchMode):
    """Stops a constructor that takes more memory, in sum, or makes more tensors than are allowed: before it has them, since
    what an operation returns is known from its shadow on the meta device."""

    def __init__(self, memory: int, tensors: int) -> None:
        super().__init__()
        self.memory, self.tensors = memory, tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(argument.alias_info for argument in (*func._schema.returns, *func._schema.arguments)):
            for tensor in _shadow(func, args, kwargs):
                self.memory -= tensor.numel() * tensor.element_size()
                self.tensors -= 1
            if self.memory < 0 or self.tensors < 0:
                raise ValueError("the architecture is far larger than the tensors in the file")
        return func(*args, **kwargs)


def _shadow(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The result of an operation, without memory; empty where it depends on values."""
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    try:
        made = func(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return []  # nor has it any memory yet: the operation itself is about to say what is wrong
    return [tensor for tensor in pytree.tree_leaves(made) if isinstance(tensor, torch.Tensor)]
