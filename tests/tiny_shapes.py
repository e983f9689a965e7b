"""Random weights under the tensor names of several architectures: enough for llama.cpp's quantizer, not to run."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

HIDDEN, INNER, WORDS, LAYERS, HEADS = 256, 512, 64, 2, 4

_ATTENTION = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (128, HIDDEN),
    "attn_v": (128, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
}
_GATED = {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
_NORMS = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
ARCHITECTURES = {
    "llama": _ATTENTION | _GATED | _NORMS,
    "qwen2": _ATTENTION | _GATED | _NORMS,
    "gemma": _ATTENTION | _GATED | _NORMS,
    "gpt2": {
        "attn_qkv": (3 * HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    | _NORMS,
}
_BIASES = {"qwen2": ("attn_q", "attn_k", "attn_v"), "gpt2": ("attn_qkv", "attn_output", "ffn_up", "ffn_down")}


def shape_weights(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensor name to float32 weights; the output is tied to the embeddings, as in small models of all of them."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (0.05 * generator.standard_normal(shape)).astype(np.float32)

    weights = {"token_embd.weight": draw(WORDS, HIDDEN), "output_norm.weight": draw(HIDDEN)}
    if architecture == "gpt2":
        weights["position_embd.weight"] = draw(128, HIDDEN)
    for layer in range(LAYERS):
        for name, shape in ARCHITECTURES[architecture].items():
            weights[f"blk.{layer}.{name}.weight"] = draw(*shape)
        for name in _BIASES.get(architecture, ()):
            weights[f"blk.{layer}.{name}.bias"] = draw(ARCHITECTURES[architecture][name][0])
    return weights


def write_shape(
    path: Path,
    architecture: str,
    weights: dict[str, np.ndarray],
    kind: str = "F32",
    split: tuple[int, int, int] | None = None,
) -> Path:
    """A GGUF; matrices as ``kind`` (F32, F16, BF16, Q8_0), all else F32. split: (number, files, tensors)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS if architecture == "gpt2" else 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_tokenizer_model("no_vocab")
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    for name, values in weights.items():
        as_kind = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        if as_kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
