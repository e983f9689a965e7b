"""All tensors of a torch model under the names and in the layout of a GGUF.

llama.cpp stores the query and key projections of the llama family with the two halves of every head
interleaved: its rotary embedding rotates neighbouring pairs, Hugging Face's the two halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gguf_forget.errors import UnsupportedError

PERMUTED = {"attn_q": "heads", "attn_k": "kv_heads"}


def interleave_heads(weights: np.ndarray, heads: int) -> np.ndarray:
    """[heads * 2 * half, columns], or a bias without columns: rows (head, which half, i) to (head, i, which half)."""
    rows, *columns = weights.shape
    half = rows // heads // 2
    return np.ascontiguousarray(weights.reshape(heads, 2, half, *columns).swapaxes(1, 2).reshape(rows, *columns))


def gguf_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(GGUF name, float32 weights in the GGUF's layout) for every parameter; a tied output is given once."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = model.config
    if config.model_type != "llama":
        raise UnsupportedError(f"writing all weights of architecture {config.model_type!r} is not supported")
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads}
    tied = bool(config.tie_word_embeddings)
    for parameter, value in model.named_parameters():
        if tied and parameter == "lm_head.weight":
            continue
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnsupportedError(f"parameter {parameter} has no name in a GGUF of architecture llama")
        weights = value.detach().float().numpy()
        kind = name.split(".")[-2]
        if kind in PERMUTED:
            weights = interleave_heads(weights, heads[PERMUTED[kind]])
        yield name, weights
