"""The range search over all weights of a model: batched, against a loop over channels and candidates as public code has it."""

import math

import torch
from torch import Tensor

from benchmarks.subject import Subject
from benchmarks.timing import interleaved, ratios, seconds
from qdexp.quant import network as networks
from qdexp.quant.ranges import NormSearch, estimate
from qdexp.quant.scheme import PerChannel, Scheme

HEADER = ["range search over all weights", "batched, s (CPU)", "loop, s (CPU)", "ratio", "ratio of CPU times", "same range"]

Layers = list[tuple[Tensor, Scheme]]
Ranges = list[tuple[Tensor, Tensor]]
"""(lo, hi) of each layer, [channels] each."""


def batched(layers: Layers) -> Ranges:
    """All channels and candidates of a layer at once."""
    return [estimate(weight, scheme, NormSearch()) for weight, scheme in layers]


def looped(layers: Layers) -> Ranges:
    """One channel and one candidate after the other."""
    return [_by_channel(weight, scheme, NormSearch()) for weight, scheme in layers]


def _by_channel(weight: Tensor, scheme: Scheme, search: NormSearch) -> tuple[Tensor, Tensor]:
    found = [torch.stack(_best(channel, scheme, search)) for channel in weight]
    lo, hi = torch.stack(found).unbind(1)
    return lo, hi


def _best(channel: Tensor, scheme: Scheme, search: NormSearch) -> tuple[Tensor, Tensor]:
    lowest, highest = channel.min().clamp_max(0), channel.max().clamp_min(0)
    best, least = (lowest, highest), math.inf
    for shrink in search.candidates:
        lo, hi = lowest * shrink, highest * shrink
        scale = (hi - lo) / scheme.qmax
        zero_point = (-lo / scale).round()
        integers = ((channel / scale).round() + zero_point).clamp(0, scheme.qmax)
        error = ((integers - zero_point) * scale - channel).abs().pow(search.p).sum()
        if error < least:
            best, least = (lo, hi), float(error)
    return best


def weights(subject: Subject) -> Layers:
    """The weights that the config quantizes, each channel with an asymmetric grid of the layer's bits."""
    full = subject.full()
    network, _ = subject.rounded(full)
    schemes = {name: layer.weight_scheme for name, layer in networks.quantized_layers(network)}
    chosen = [(name, scheme) for name, scheme in schemes.items() if scheme is not None]
    return [(full.get_parameter(f"{name}.weight"), Scheme(scheme.bits, PerChannel(0))) for name, scheme in chosen]


def agreement(ours: Ranges, theirs: Ranges) -> float:
    """The share of channels that got the same range both ways, but for the last bits."""
    same = [torch.isclose(one[end], other[end]) for one, other in zip(ours, theirs, strict=True) for end in (0, 1)]
    return float(torch.cat(same).float().mean())


def run(subject: Subject, repetitions: int) -> list[list[str]]:
    """The row of the table."""
    layers = weights(subject)
    found: dict[str, Ranges] = {}
    ours, theirs = interleaved(
        repetitions,
        subject.device,
        lambda: found.update(ours=batched(layers)),
        lambda: found.update(theirs=looped(layers)),
    )
    channels, candidates = sum(len(weight) for weight, _ in layers), len(NormSearch().candidates)
    what = f"{channels:,} channels of {len(layers)} layers, {candidates} candidates"
    return [[what, seconds(ours), seconds(theirs), *ratios(theirs, ours), f"{agreement(found['ours'], found['theirs']):.2%}"]]
