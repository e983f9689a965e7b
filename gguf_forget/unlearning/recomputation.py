"""Gradient checkpointing (Chen et al., arXiv 1604.06174): time for memory, the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from gguf_forget.checkpoint.architecture import decoder_layers


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """While open, a layer keeps its inputs alone, and the backward pass, inside this too, computes the rest again.

    transformers' own switch works in training mode only, which the model is never in: nothing here is random.
    """
    layers = decoder_layers(model)
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
