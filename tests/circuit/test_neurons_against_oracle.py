"""EAP-IG scores against a forward pass written out by hand: one pair and step at a time, nothing padded.

Shapes: T tokens, d_model, H heads, K key-value heads, D head size, d_ff, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_fixtures import in_double

from gguf_forget.circuit.neurons import NeuronScores, score_neurons
from gguf_forget.facts.corruption import Pair

PAIRS = (
    Pair((300, 20, 31), (301, 20, 31), 42, (50, 51), 0),
    Pair((7, 8, 9, 10, 11, 12), (7, 8, 99, 98, 11, 12), 60, (61, 62, 63), 1),
    Pair((200,), (210,), 5, (6,), 2),
    Pair((300, 20, 33, 34), (300, 25, 33, 34), 42, (50, 52), 3),
    Pair((120, 121, 122, 123, 124), (130, 121, 122, 123, 124), 9, (70, 80, 90), 4),
)


def rms_norm(x: torch.Tensor, module: Any) -> torch.Tensor:
    return module.weight * x / (x.pow(2).mean(dim=-1, keepdim=True) + module.epsilon).sqrt()


def rotate(x: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary position embedding of [T, heads, D]: entries i and i + D/2 turn by position * base^(-2i/D)."""
    tokens, _, size = x.shape
    half = size // 2
    angles = torch.arange(tokens).double()[:, None] * base ** (-2 * torch.arange(half).double() / size)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # [T, 1, D/2]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(x: torch.Tensor, module: Any, config: Any) -> torch.Tensor:
    tokens, size = len(x), config.head_dim
    base = config.rope_parameters["rope_theta"]
    q = rotate((x @ module.q_proj.weight.T).reshape(tokens, -1, size), base)  # [T, H, D]
    k = rotate((x @ module.k_proj.weight.T).reshape(tokens, -1, size), base)  # [T, K, D]
    v = (x @ module.v_proj.weight.T).reshape(tokens, -1, size)
    heads = []
    for head in range(q.shape[1]):
        group = head * k.shape[1] // q.shape[1]
        logits = q[:, head] @ k[:, group].T / size**0.5
        logits = logits.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf)
        heads.append(logits.softmax(dim=-1) @ v[:, group])
    return torch.cat(heads, dim=-1) @ module.o_proj.weight.T


def forward(model: Any, embeddings: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits at the last token [V], and each layer's inputs of the down projection, L x [T, d_ff]."""
    x, neurons = embeddings, []
    for layer in model.model.layers:
        x = x + attention(rms_norm(x, layer.input_layernorm), layer.self_attn, model.config)
        h = rms_norm(x, layer.post_attention_layernorm)
        gate, up = h @ layer.mlp.gate_proj.weight.T, h @ layer.mlp.up_proj.weight.T
        neurons.append(gate * torch.sigmoid(gate) * up)
        x = x + neurons[-1] @ layer.mlp.down_proj.weight.T
    return rms_norm(x[-1], model.model.norm) @ model.lm_head.weight.T, neurons


def metric(logits: torch.Tensor, pair: Pair) -> torch.Tensor:
    return logits[pair.answer] - sum(logits[wrong] for wrong in pair.distractors) / len(pair.distractors)


def oracle(model: Any, pairs: tuple[Pair, ...], steps: int) -> NeuronScores:
    """The definition in the module's docstring, term by term."""
    layers, width = model.config.num_hidden_layers, model.config.intermediate_size
    scores = torch.zeros(layers, width, dtype=torch.float64)
    embedding_score, gap = 0.0, 0.0
    table = model.model.embed_tokens.weight
    for pair in pairs:
        clean, corrupted = table[list(pair.clean)], table[list(pair.corrupted)]
        clean_logits, clean_neurons = forward(model, clean)
        corrupted_logits, corrupted_neurons = forward(model, corrupted)
        gap += float(metric(clean_logits, pair) - metric(corrupted_logits, pair)) / len(pairs)
        for step in range(steps):
            alpha = (step + 0.5) / steps
            start = (corrupted + alpha * (clean - corrupted)).requires_grad_(True)
            logits, neurons = forward(model, start)
            gradients = torch.autograd.grad(metric(logits, pair), [start, *neurons])
            share = 1 / (steps * len(pairs))
            embedding_score += float(((clean - corrupted) * gradients[0]).sum()) * share
            for layer in range(layers):
                difference = clean_neurons[layer] - corrupted_neurons[layer]
                scores[layer] += (difference * gradients[layer + 1]).sum(dim=0) * share
    return NeuronScores(scores, embedding_score, gap, len(pairs))


@pytest.mark.parametrize("steps", [1, 5])
def test_scores_equal_the_slow_oracle(tiny_double: Any, steps: int) -> None:
    found = score_neurons(tiny_double, PAIRS, integration_steps=steps, batch_size=3)
    expected = oracle(tiny_double, PAIRS, steps)
    assert found.scores.dtype == torch.float64
    assert found.scores.shape == (2, 512)
    assert float(expected.scores.abs().min()) > 0
    relative = (found.scores - expected.scores).abs() / expected.scores.abs()
    assert float(relative.max()) < 1e-6
    assert found.embedding_score == pytest.approx(expected.embedding_score, rel=1e-9)
    assert found.metric_gap == pytest.approx(expected.metric_gap, rel=1e-9)
    assert found.pairs == 5
    assert found.completeness_residual == pytest.approx(expected.completeness_residual, rel=1e-6)


def test_float32_scores_are_close_to_the_oracle(tiny_model: Any, tiny_double: Any) -> None:
    found = score_neurons(tiny_model, PAIRS)
    expected = oracle(tiny_double, PAIRS, 5).scores
    assert float((found.scores - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_batch_size_changes_nothing(tiny_double: Any, batch_size: int) -> None:
    found = score_neurons(tiny_double, PAIRS, batch_size=batch_size)
    expected = score_neurons(tiny_double, PAIRS, batch_size=3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-9, atol=1e-15)


def test_the_order_of_the_pairs_changes_nothing(tiny_double: Any) -> None:
    found = score_neurons(tiny_double, PAIRS[::-1], batch_size=2)
    expected = score_neurons(tiny_double, PAIRS, batch_size=2)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-9, atol=1e-15)


def test_with_many_steps_the_embedding_s_score_is_the_whole_gap(tiny_double: Any) -> None:
    """Completeness of integrated gradients; the midpoint rule converges with the square of the steps."""
    residuals = [
        score_neurons(tiny_double, PAIRS, integration_steps=steps).completeness_residual for steps in (4, 64, 256)
    ]
    assert residuals[1] < 0.01
    assert residuals[2] < residuals[1] / 8 < residuals[0] / 8


def test_a_planted_neuron_scores_highest(tiny_model: Any) -> None:
    """One neuron fires on the clean last token alone and writes the answer's direction: it decides L."""
    clean, corrupted, answer, wrong = 300, 301, 42, 50
    model = in_double(tiny_model)
    table = model.model.embed_tokens.weight.data
    layer, neuron = 1, 137
    mlp = model.model.layers[layer].mlp
    reads = table[clean] - table[corrupted]
    mlp.gate_proj.weight.data[neuron] = 4 * reads / reads.norm()
    mlp.up_proj.weight.data[neuron] = 4 * reads / reads.norm()
    mlp.down_proj.weight.data[:, neuron] = 0.2 * (table[answer] - table[wrong])
    pairs = [Pair((10, 20, clean), (10, 20, corrupted), answer, (wrong,), 0)]
    found = score_neurons(model, pairs, integration_steps=8)
    ranked = found.scores.flatten().argsort(descending=True)
    assert int(ranked[0]) == layer * 512 + neuron
    assert float(found.scores[layer, neuron]) > 5 * float(found.scores.flatten()[ranked[1]])
    mlp.down_proj.weight.data[:, neuron] *= -1  # now it argues against the answer
    assert int(score_neurons(model, pairs, integration_steps=8).scores.argmin()) == layer * 512 + neuron


def state(model: Any) -> tuple[Any, ...]:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.no_grad():
        logits = model(torch.tensor([[300, 20, 31, 7]])).logits
    flags = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in model.parameters()]
    return hooks, flags, gradients, model.training, logits.numpy().tobytes()


@pytest.mark.parametrize("trainable", [False, True])
def test_the_model_is_left_as_it_was(tiny_model: Any, trainable: bool) -> None:
    model = copy.deepcopy(tiny_model).requires_grad_(trainable)
    before = state(model)
    told: list[int] = []
    score_neurons(model, PAIRS, integration_steps=2, batch_size=2, progress=told.append)
    assert told == [2, 2, 1]
    assert state(model) == before


def test_the_model_is_left_as_it_was_when_something_breaks(tiny_model: Any) -> None:
    before = state(tiny_model)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_neurons(tiny_model, PAIRS, integration_steps=1, progress=interrupt)
    beyond = Pair((300, 100_000), (300, 20), 42, (50,), 0)
    with pytest.raises(IndexError):
        score_neurons(tiny_model, [*PAIRS, beyond], integration_steps=1, batch_size=2)
    assert state(tiny_model) == before
