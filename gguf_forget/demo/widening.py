"""The same knowledge in a wider model, so that every row fits blocks of 256 weights.

SmolLM2-135M has rows of 576: llama.cpp falls back to 32-weight blocks for most of its Q4_K tensors. Widening
the hidden size to 768 with zeros leaves the function as it is and makes every matrix a K-quant:

    hidden state  [h, 0]: new columns of the embedding and new rows of o_proj and down_proj are zero
    RMSNorm       mean square over 768 is 576/768 of that over 576: weight * sqrt(576/768), epsilon * 576/768
    new heads     zero weights: their values are zero, so is what they add

Shapes: h hidden size before, H after; head_dim stays.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.load import summarise
from gguf_forget.errors import InputError

BLOCK = 256


def widened_size(hidden: int) -> int:
    return math.ceil(hidden / BLOCK) * BLOCK


def _grow(weights: np.ndarray, rows: int, columns: int) -> np.ndarray:
    grown = np.zeros((rows, columns), dtype=np.float32)
    grown[: weights.shape[0], : weights.shape[1]] = weights
    return grown


def widen(template: Path, out: Path) -> None:
    """Write the F32 GGUF ``template`` (llama architecture) with its hidden size raised to a multiple of 256.

    Raises :class:`InputError` when heads or KV heads cannot grow in the same proportion.
    """
    import gguf

    file = GgufFile(template)
    sizes = summarise(file)
    h, wide = sizes.hidden, widened_size(sizes.hidden)
    head = h // sizes.heads
    heads, kv_heads = wide // head, sizes.kv_heads * (wide // head) // sizes.heads
    if wide % head or heads * sizes.kv_heads != kv_heads * sizes.heads:
        raise InputError(
            f"{sizes.heads} heads and {sizes.kv_heads} key-value heads of {head} cannot grow from {h} to "
            f"{wide} in the same proportion"
        )
    share = h / wide
    epsilon_key = f"{sizes.architecture}.attention.layer_norm_rms_epsilon"
    replaced: dict[str, Any] = {
        f"{sizes.architecture}.embedding_length": wide,
        f"{sizes.architecture}.attention.head_count": heads,
        f"{sizes.architecture}.attention.head_count_kv": kv_heads,
        epsilon_key: float(file.value(epsilon_key)) * share,
    }
    writer = gguf.GGUFWriter(out, sizes.architecture)
    for field in file.reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        value = replaced.get(field.name, field.contents())
        item = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=item)
    sizes_by_kind = {
        "attn_q": (heads * head, wide),
        "attn_k": (kv_heads * head, wide),
        "attn_v": (kv_heads * head, wide),
        "attn_output": (wide, heads * head),
        "ffn_gate": (sizes.feed_forward, wide),
        "ffn_up": (sizes.feed_forward, wide),
        "ffn_down": (wide, sizes.feed_forward),
        "token_embd": (sizes.vocabulary, wide),
        "output": (sizes.vocabulary, wide),
    }
    for name in file.tensors:
        weights = file.weights(name)
        kind = name.split(".")[-2]
        if kind.endswith("norm"):
            new = np.zeros(wide, dtype=np.float32)
            new[:h] = weights * np.float32(math.sqrt(share))
        elif kind in sizes_by_kind:
            new = _grow(weights, *sizes_by_kind[kind])
        else:
            new = weights.copy()
        writer.add_tensor(name, new)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
