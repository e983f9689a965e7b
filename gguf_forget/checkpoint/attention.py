"""Attention for gradients on a processor, where torch's own is slow backwards.

Torch's fused attention takes much longer backwards than forwards there, and its plain one computes all of both passes
in float32, on keys and values that it repeats for every head that shares them. Here only the scores and their softmax
are float32; everything else is in what the model computes in, and heads that share keys and values are one head with
more queries.

Shapes: R rows of T tokens; H heads in G groups that share keys and values; D head width, D_v of the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NAME = "gguf_forget_differentiable"


class _Attention(torch.autograd.Function):
    """query: [R, G, N, D], N = T times the heads of a group; key: [R, G, T, D]; value: [R, G, T, D_v];
    mask: bool [R or 1, 1, T, T], True where a token may look."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
        fine = torch.promote_types(query.dtype, torch.float32)
        scores = (query.to(fine) * scale) @ key.to(fine).transpose(-1, -2)
        hidden = (~mask).to(fine).mul_(torch.finfo(fine).min / 2)  # added ten times as fast as filled in
        scores.unflatten(2, (-1, mask.shape[-2])).add_(hidden[:, :, None])
        shares = scores.softmax(dim=-1).to(query.dtype)
        found = shares @ value
        ctx.save_for_backward(query, key, value, shares, found)
        ctx.scale = scale
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, shares, found = ctx.saved_tensors
        (gradient,) = gradients
        fine = torch.promote_types(gradient.dtype, torch.float32)
        mean = (gradient.to(fine) * found).sum(dim=-1, keepdim=True)  # of the shares' gradients, weighed by them
        of_scores = shares * ((gradient @ value.transpose(-1, -2)) - mean.to(gradient.dtype))
        return (
            (of_scores @ key).mul_(ctx.scale),
            (of_scores.transpose(-1, -2) @ query).mul_(ctx.scale),
            shares.transpose(-1, -2) @ gradient,
            None,
            None,
        )


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float) -> Any:
    """softmax(scale * query key^T) value, [R, T, H, D_v].

    query: [R, H, T, D]; key: [R, G, T, D]; value: [R, G, T, D_v]; mask: bool [R or 1, 1, T, T], True where a token
    may look. One that may look nowhere, padding, gets the mean of all values.
    """
    rows, heads, tokens, _ = query.shape
    groups = key.shape[1]
    together = query.reshape(rows, groups, heads // groups * tokens, -1)
    found = _Attention.apply(together, key, value, mask, scale)
    return found.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous()


def _in_place_of_torchs(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **others: Any
) -> tuple[Any, None]:
    """Has the signature of transformers' attention functions."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask = attention_mask
    tokens = query.shape[2]
    if mask is None and tokens == key.shape[2]:  # what transformers leaves to torch's own causal mask
        causal = others.get("is_causal")
        if getattr(module, "is_causal", True) if causal is None else causal:
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()[None, None]
    more = any(others.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if mask is None or mask.dtype != torch.bool or more or others.get("dropout"):
        found: tuple[Any, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, mask, scale), None


@contextmanager
def differentiable_attention(model: Any) -> Iterator[None]:
    """While open, ``model`` computes its attention by :func:`attention`, if it is on a processor and would else use
    torch's."""
    own = model.config._attn_implementation
    if model.device.type != "cpu" or own != "sdpa":
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _in_place_of_torchs)
    AttentionMaskInterface.register(_NAME, sdpa_mask)  # else windows and padding would go unmasked
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = own
