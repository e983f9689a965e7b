"""Models that the table does not describe are refused, by name and reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_families import FAMILIES, LLAMA_LIKE, family
from torch import nn

from gguf_forget.checkpoint.architecture import ARCHITECTURES, attributable
from gguf_forget.checkpoint.components import components
from gguf_forget.errors import UnsupportedError

EXPERTS: dict[str, Any] = {
    "mixtral": transformers.MixtralConfig(**LLAMA_LIKE, num_local_experts=2),
    "qwen2_moe": transformers.Qwen2MoeConfig(**LLAMA_LIKE, num_experts=2, moe_intermediate_size=8),
    "qwen3_moe": transformers.Qwen3MoeConfig(**LLAMA_LIKE, num_experts=2, moe_intermediate_size=8),
    "olmoe": transformers.OlmoeConfig(**LLAMA_LIKE, num_experts=2),
    "deepseek_v3": transformers.DeepseekV3Config(n_routed_experts=4),
}


def test_every_architecture_of_the_table_has_a_tiny_model() -> None:
    assert {name.split("-")[0] for name in FAMILIES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_those_of_the_configuration(name: str) -> None:
    model = family(name)
    parts, config = components(model), model.config
    assert len(parts.layers) == config.num_hidden_layers
    assert parts.heads == config.num_attention_heads == 4
    assert parts.groups == getattr(config, "num_key_value_heads", 4)
    assert parts.hidden == 24
    assert parts.neurons == (96 if name == "gpt2" else 40)
    assert parts.parallel == (name == "gpt_neox-parallel")
    for layer in parts.layers:
        outputs = [output for projection in layer.projections for output in projection.outputs]
        assert len(outputs) == len(set(outputs)) == parts.heads + 2 * parts.groups
        assert layer.attention_output.matrix.shape == (24, parts.heads * parts.head_size)


@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_of_experts_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"architecture '{name}' is a mixture of experts"):
        attributable(EXPERTS[name])


def test_a_mixture_of_experts_under_another_name_is_refused() -> None:
    config = transformers.LlamaConfig(**LLAMA_LIKE)
    config.num_local_experts = 8
    with pytest.raises(UnsupportedError, match=r"mixture of experts \(num_local_experts = 8\)"):
        attributable(config)


@pytest.mark.parametrize("kind", ["OPTConfig", "FalconConfig", "Gemma3Config", "Phi3Config"])
def test_what_is_not_in_the_table_is_refused(kind: str) -> None:
    config = getattr(transformers, kind)()
    if kind == "Phi3Config":
        attributable(config)
    else:
        with pytest.raises(UnsupportedError, match="is not supported, needed one of gemma2, gemma3_text, gpt2"):
            attributable(config)


def test_gemma_that_looks_ahead_is_refused() -> None:
    model = family("gemma3_text")
    model.config.use_bidirectional_attention = True
    with pytest.raises(UnsupportedError, match="with use_bidirectional_attention = True is not supported"):
        components(model)


def test_weights_in_unexpected_places_are_refused() -> None:
    model = family("llama")
    model.model.layers[1].mlp.adapter = nn.Linear(24, 24)
    with pytest.raises(UnsupportedError, match=r"has weights in model.layers.1.mlp.adapter \(1 unexpected"):
        components(model)


def test_an_adapter_around_a_map_is_refused() -> None:
    model = family("qwen3")
    attention = model.model.layers[0].self_attn
    attention.q_proj = nn.Sequential(attention.q_proj, nn.Linear(32, 32))
    with pytest.raises(UnsupportedError, match=r"has weights in model.layers.0.self_attn.q_proj.0 \(2 unexpected"):
        components(model)


def test_cross_attention_is_refused() -> None:
    config = transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9, add_cross_attention=True)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(UnsupportedError, match=r"weights in transformer.h.0.crossattention"):
        components(model)


def test_missing_weights_are_refused() -> None:
    model = family("phi3")
    model.model.layers[0].post_attention_layernorm = nn.Identity()
    with pytest.raises(UnsupportedError, match=r"no weights in model.layers.0.post_attention_layernorm \(1 modules"):
        components(model)


def test_weights_of_another_shape_are_refused() -> None:
    """As a quantizer packs them: the same module, two numbers in one."""
    model = family("mistral")
    down = model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(torch.zeros(480, 1, dtype=torch.float64), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"down_proj has a weight of shape \[480, 1\] .* needed \[24, any\]"):
        components(model)
