"""Attention with the softmax in the open.

    P = softmax(s Q K^T + mask),  y = W_out P V

Diffusers' own processors hand Q, K and V to a fused kernel in which P never exists. Here Q, K, V and P each pass a quantizer.
P lies in [0, 1], so its grid is known: unsigned, z = 0, scale 1 / (2^b - 1); a network that was quantized elsewhere may have
another.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.layers import quantizer_or_identity
from qdexp.quant.scheme import Scheme


class QuantizedAttentionProcessor(nn.Module):
    """A processor for diffusers' `Attention`, which holds it as its submodule `processor`.

    Takes what diffusers' default processors take: tokens [n, tokens, c] or images [n, c, h, w], optionally a context
    [n, context, c] to attend to, and an attention mask, additive (or boolean, True = attend), [n, 1 or tokens, context].
    ``known``: P has the grid of [0, 1]; else one that is set like those of Q, K and V.
    """

    def __init__(self, act: Scheme | None, softmax: Scheme | None, known: bool = True) -> None:
        super().__init__()
        self.query = quantizer_or_identity(act)
        self.key = quantizer_or_identity(act)
        self.value = quantizer_or_identity(act)
        self.probability = quantizer_or_identity(softmax, fixed_range=(0.0, 1.0) if known else None)

    def __call__(  # not `forward`: Attention reads this signature to see which arguments it may pass on
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The attention of `attn`: [n, tokens, c] or [n, c, h, w], as `hidden_states`."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        tokens = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = tokens
        else:
            context = attn.norm_encoder_hidden_states(encoder_hidden_states) if attn.norm_cross else encoder_hidden_states

        tokens = self._attend(attn, tokens, context, attention_mask)
        for module in attn.to_out:  # a Linear and a Dropout
            tokens = module(tokens)
        if residual.ndim == 4:
            tokens = tokens.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            tokens = tokens + residual
        return tokens / attn.rescale_output_factor

    def _attend(self, attn: Attention, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens [n, tokens, c] and context [n, context, c] -> [n, tokens, heads * head_dim]."""
        query, key, value = attn.to_q(tokens), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        query = self.query(query if attn.norm_q is None else attn.norm_q(query))
        key = self.key(key if attn.norm_k is None else attn.norm_k(key))
        value = self.value(value)

        if attn.upcast_attention:
            query, key = query.float(), key.float()
        scores = query @ key.transpose(-1, -2) * attn.scale
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, context.shape[1], len(tokens))
            scores = _masked(scores, mask.view(len(tokens), attn.heads, -1, mask.shape[-1]))
        if attn.upcast_softmax:
            scores = scores.float()
        probability = self.probability(scores.softmax(-1).to(value.dtype))
        return (probability @ value).transpose(1, 2).flatten(2)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def is_known(attn: Attention) -> bool:
    """Whether it computes what our processor computes, quantizers aside."""
    return type(attn.processor) in (AttnProcessor, AttnProcessor2_0, QuantizedAttentionProcessor)


def require_known(attn: Attention) -> None:
    """Raises UserError for special kinds of attention."""
    if not is_known(attn):
        kind = type(attn.processor).__name__
        raise UserError(f"attention of kind {kind} cannot be quantized: give its to_q act_bits 32 in quant.layers")


def quantize_attention(attn: Attention, act: Scheme | None, softmax: Scheme | None, known: bool = True) -> None:
    """Make `attn` compute with a processor of ours, its quantizers off. Raises UserError for special kinds of attention."""
    require_known(attn)
    processor: Any = QuantizedAttentionProcessor(act, softmax, known)
    attn.set_processor(processor.to(attn.to_q.weight.device))
