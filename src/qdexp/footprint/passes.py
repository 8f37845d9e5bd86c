"""Bytes of networks and of their passes, by a model's architecture, each traced once a process.

Raises UserError, as ``describe`` does, where a network cannot run on shapes alone.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qdexp import models
from qdexp.config import Model
from qdexp.errors import UserError
from qdexp.folding import fold
from qdexp.live import Live, own_bytes
from qdexp.metrics.extractor import Extractor
from qdexp.models.conditions import Condition, example_condition
from qdexp.models.describe import describe, per_architecture
from qdexp.models.first_stage import Decoder
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.blocks import Batch
from qdexp.quant.network import set_activation_mode
from qdexp.quant.ranges import Observer, RangeEstimator
from qdexp.quant.scheme import PerTensor, Scheme
from qdexp.sampling.conditions import Asked
from qdexp.sampling.sampler import to_images
from qdexp.sampling.shards import DECODED

FLOAT = 4
"""Bytes of a number in float32."""
HELD = 8
"""Tensors like x_t that schedulers hold beside a pass, at most: multistep solvers remember their last outputs."""
SEARCHED = 2**24
"""Numbers that a range search looks at at a time on a GPU."""


class _Fused(TorchFunctionMode):
    """Torch's attention by a kernel, as on any device that computes: on the meta device it would be written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return _attended(*args, **kwargs)
        return func(*args, **kwargs)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel of CPUs, which works on the meta device: [..., heads, tokens, d], masks too, as it wants them."""
    lead = query.shape[:-3]
    mask = None if attn_mask is None else attn_mask.to(query.dtype).expand(*lead, *attn_mask.shape[-3:]).flatten(0, -4)
    parts = (one.flatten(0, -4) if len(lead) > 1 else one.reshape(-1, *one.shape[-3:]) for one in (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found: Tensor = kernel(*parts, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]
    return found.reshape(*query.shape[:-1], value.shape[-1])


@contextmanager
def tracing(network: nn.Module | None = None, cuda: bool = False, option: str = "model.network") -> Iterator[Live]:
    """Counts what is made within; ``cuda``: as CUDA computes it, whose kernel of quantization is less frugal than ours.

    Raises UserError for what the network of ``option`` raises.
    """
    quantizers = [] if network is None or not cuda else [m for m in network.modules() if isinstance(m, ActivationQuantizer)]
    handles = [quantizer.register_forward_hook(_fused_rounding) for quantizer in quantizers]
    try:
        with _Fused(), Live() as live:
            yield live
    except Exception as error:  # whatever the forward of anybody's network does not like about shapes without values
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{option}: it cannot run on shapes alone ({why})") from error
    finally:
        for handle in handles:
            handle.remove()


def _fused_rounding(quantizer: ActivationQuantizer, args: tuple[Tensor, ...], _: Tensor) -> None:
    """The output of a fused rounding and its mask of finite elements: see ``qdexp.quant.affine.fused``."""
    if quantizer.mode == "on" and not args[0].requires_grad and not quantizer.scale.requires_grad:
        torch.empty(args[0].nbytes + args[0].numel(), dtype=torch.uint8, device="meta")


@per_architecture
def full(model: Model) -> nn.Module:
    """The full-precision network on the meta device."""
    network = models.skeleton(model).to("meta").eval().requires_grad_(False)
    fold(network)
    return network


@per_architecture
def network_bytes(model: Model, quantized: bool) -> int:
    """The bytes of parameters and buffers; quantized weights count as floats, as integers, and with their grids."""
    return own_bytes(describe(model).network if quantized else full(model))


def condition_of(network: nn.Module, model: Model, rows: int) -> Condition:
    return example_condition(network, rows, model.example)


def batch_of(network: nn.Module, model: Model, rows: int) -> Batch:
    """Rows that the network can be called with, as the calibration set holds them."""
    x_t, t = torch.zeros(rows, *model.shape, device="meta"), torch.zeros(rows, dtype=torch.int64, device="meta")
    condition = condition_of(network, model, rows)
    return (x_t, t, condition) if condition else (x_t, t)


@per_architecture
def row_bytes(model: Model) -> int:
    """The bytes of one row of the calibration set."""
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(batch_of(full(model), model, 1)))


@per_architecture
@torch.no_grad()
def pass_bytes(model: Model, rows: int, branches: int, quantized: bool, copies: bool) -> int:
    """The peak of a call of the sampler with ``rows`` rows: one pass for each branch of guidance, with their conditions.
    ``quantized``: all activations are; ``copies``: by a kernel that is less frugal than that of integers on a CPU, as CUDA's is
    and those of groups, tokens and floating point numbers."""
    network = describe(model).network if quantized else full(model)
    set_activation_mode(network, "on")
    with tracing(network, copies) as live:
        conditions = tuple(condition_of(network, model, rows) for _ in range(branches))
        x_t, t = batch_of(network, model, rows)[:2]
        Asked(conditions, guidance=2.0).estimate(network, x_t, t)
    return live.peak


@dataclass(frozen=True)
class Decoded:
    """The bytes of a first stage and of its passes, and the shape [c, h, w] of the images."""

    network: int
    peak: int
    shape: tuple[int, ...]


def decoded(model: Model, rows: int) -> Decoded:
    """The memory of making images of ``rows`` latents, ``DECODED`` at a time. Raises UserError where it cannot run on shapes
    alone."""
    assert model.first_stage is not None
    return _decoded(json.dumps(model.first_stage.network, sort_keys=True), tuple(model.shape), rows)


@cache
@torch.no_grad()
def _decoded(target: str, shape: tuple[int, ...], rows: int) -> Decoded:
    network = models.skeleton_of(json.loads(target), "model.first_stage.network").to("meta").eval()
    decoder = Decoder(network.requires_grad_(False), 1.0)
    with tracing(option="model.first_stage.network") as live:
        image = decoder.decode(torch.zeros(DECODED, *shape, device="meta"))
    parts = -(-rows // DECODED)
    with tracing() as joined:
        to_images(torch.cat([torch.zeros_like(image) for _ in range(parts)]))
    return Decoded(own_bytes(network), max(live.peak + parts * image.nbytes, joined.peak), tuple(image.shape[1:]))


@cache
def extractor_bytes(extractor: Extractor, shape: tuple[int, ...]) -> tuple[int, int]:
    """The bytes of an extractor, and of its features for a batch of images of this shape."""
    network = extractor.build().to("meta")
    with torch.no_grad(), Live() as live:
        network(torch.zeros(extractor.batch, *shape, dtype=torch.uint8, device="meta"))
    return own_bytes(network), live.peak


def search_bytes(estimator: RangeEstimator, cuda: bool) -> int:
    """The bytes that a range search of a large tensor takes beside it; next to nothing on a CPU, which sees it in small pieces.

    Raises Exception where the estimator needs values.
    """
    if not cuda:
        return 0
    x, scheme = torch.zeros(1, SEARCHED, device="meta"), Scheme(8, PerTensor())
    observer = Observer(estimator, scheme, (1,))
    with torch.no_grad(), Live() as live:
        for _ in range(observer.passes):
            observer.observe(x)
            observer.end_pass()
        observer.range()
    return live.peak


def or_none(trace: Callable[[], int]) -> int | None:
    """The result of a trace, or None where it cannot be traced."""
    try:
        return trace()
    except Exception:  # of networks and estimators of anybody's
        return None
