"""Tiny random GGUFs of several architectures with every key that transformers wants, and Hugging Face directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from gguf_forget.checkpoint.load import load_torch

WORDS = 48
_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "head_dim": 8,
}
_GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", _SIZES | {"tie_word_embeddings": False}),
    "llama-tied": ("llama", "LlamaConfig", _SIZES | {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "mistral": ("llama", "MistralConfig", _SIZES),
    "qwen2": ("qwen2", "Qwen2Config", _SIZES),
    "qwen3": ("qwen3", "Qwen3Config", _SIZES | {"head_dim": 128}),
    "phi3": ("phi3", "Phi3Config", {key: value for key, value in _SIZES.items() if key != "head_dim"}),
    "gemma2": ("gemma2", "Gemma2Config", _SIZES),
    "gemma3": ("gemma3", "Gemma3TextConfig", _SIZES),
    "gpt2": ("gpt2", "GPT2Config", _GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),
}
CONV1D = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")  # of gpt2: [inputs, outputs]


def configuration(family: str, **changes: Any) -> Any:
    _, name, settings = FAMILIES[family]
    return getattr(transformers, name)(**settings | changes)


def gguf_names(family: str, config: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name to Hugging Face's and the shape there, by gguf-py's own table."""
    kind = FAMILIES[family][0]
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == kind)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    with torch.device("meta"):
        weights = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return {names.get_name(name, (".weight", ".bias")): (name, tuple(value.shape)) for name, value in weights.items()}


def write_family(path: Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """A random F32 GGUF; ``changes``: settings of its configuration."""
    kind = FAMILIES[family][0]
    config = configuration(family, **changes)
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("Tiny")  # transformers takes one that is called mistral for another architecture
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(128 if family == "gpt2" else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if family != "gpt2":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(getattr(config, "head_dim", 8))
        writer.add_rope_freq_base(10000.0)
        writer.add_key_length(getattr(config, "head_dim", 8))
        writer.add_value_length(getattr(config, "head_dim", 8))
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{number}" for number in range(WORDS)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, (_, shape) in gguf_names(family, config).items():
        values = generator.standard_normal(shape[::-1] if kind == "gpt2" and name.endswith(CONV1D) else shape)
        norm = name.endswith("norm.weight")
        writer.add_tensor(name, (1 + 0.1 * values if norm else 0.3 * values).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_directory(folder: Path, source: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """What transformers reads from a GGUF, saved as a Hugging Face directory without a tokenizer."""
    model = transformers.AutoModelForCausalLM.from_config(configuration(family))
    model.load_state_dict(load_torch(source).state_dict())
    model.to(dtype).save_pretrained(folder, **options)
    return folder
