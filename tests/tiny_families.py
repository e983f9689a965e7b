"""Tiny random models of every architecture that attribution reads, computing in float64 throughout."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask

VOCABULARY = 60
LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 10, "sliding_window": 3, "final_logit_softcapping": 1.5}
GPT_NEOX = {key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"} | {"num_hidden_layers": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA_LIKE | {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", LLAMA_LIKE | {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 3}),
    "mistral": ("MistralConfig", LLAMA_LIKE | {"head_dim": 8, "sliding_window": 3}),
    "qwen2": ("Qwen2Config", LLAMA_LIKE),
    "qwen3": ("Qwen3Config", LLAMA_LIKE | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", LLAMA_LIKE | GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma3_text": ("Gemma3TextConfig", LLAMA_LIKE | GEMMA),
    "phi3": ("Phi3Config", LLAMA_LIKE),
    "olmo2": ("Olmo2Config", LLAMA_LIKE | {"num_hidden_layers": 3}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": 1},
    ),
    "gpt_neox-parallel": ("GPTNeoXConfig", GPT_NEOX | {"use_parallel_residual": True}),
    "gpt_neox-sequential": ("GPTNeoXConfig", GPT_NEOX | {"use_parallel_residual": False}),
}


class DoubleNorm(nn.Module):
    """RMSNorm in float64; those of transformers compute in float32 whatever comes in."""

    def __init__(self, weight: torch.Tensor, epsilon: float, *, plus_one: bool) -> None:
        super().__init__()
        self.weight, self.epsilon, self.plus_one = nn.Parameter(weight), epsilon, plus_one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = 1 + self.weight if self.plus_one else self.weight
        return weight * x / (x.pow(2).mean(dim=-1, keepdim=True) + self.epsilon).sqrt()


def double_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in float64; the eager one takes its softmax in float32."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    logits = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return ((logits + mask).softmax(dim=-1) @ value).transpose(1, 2), None


transformers.AttentionInterface.register("double", double_attention)
AttentionMaskInterface.register("double", eager_mask)


def family(name: str) -> Any:
    """The model called ``name`` in :data:`FAMILIES`: float64, evaluation mode, no gradients, all weights random."""
    kind, settings = FAMILIES[name]
    config = getattr(transformers, kind)(**settings)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
            plus_one = type(module).__name__.startswith("Gemma")
            model.set_submodule(path, DoubleNorm(module.weight.detach(), epsilon, plus_one=plus_one))
    for path, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        matrix = weight.ndim == 2
        plus_one = not matrix and isinstance(model.get_submodule(path.rpartition(".")[0]), DoubleNorm)
        weight.data = noise * (0.25 if matrix else 0.2)
        if plus_one or (path.endswith("weight") and not matrix):
            weight.data += 0.0 if name.startswith("gemma") else 1.0
    model.config._attn_implementation = "double"
    return model.eval().requires_grad_(False)
