"""What edge scores do not depend on, and what scorers refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_families import FAMILIES, LLAMA_LIKE, family

from gguf_forget.circuit import edges as module
from gguf_forget.circuit.edges import score_edges
from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.nodes import score_nodes
from gguf_forget.errors import InputError, UnsupportedError
from gguf_forget.facts.corruption import Pair

PAIRS = (
    Pair((3, 20, 31), (4, 20, 31), 42, (50, 51), 0),
    Pair((7, 8, 9, 10, 11, 12), (7, 8, 33, 34, 11, 12), 11, (12, 13), 1),
    Pair((13,), (14,), 11, (12,), 2),
    Pair((13, 25, 26, 27), (14, 25, 26, 27), 11, (12,), 3),
)
SCORERS = [score_edges, score_nodes, score_neurons]


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox-sequential"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_batch_size_and_order_change_nothing(name: str, scorer: Callable[..., Any]) -> None:
    model = family(name)
    expected = scorer(model, PAIRS, batch_size=4)
    for batch_size in (1, 2, 3, 100):
        found = scorer(model, PAIRS[::-1], batch_size=batch_size)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-8, atol=1e-15)
        assert found.completeness_residual == pytest.approx(expected.completeness_residual, rel=1e-6)
    assert torch.equal(expected.absolute, expected.scores.abs())


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
@pytest.mark.parametrize("per_position", [False, True])
def test_few_positions_and_few_runs_at_a_time_change_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, per_position: bool
) -> None:
    model = family(name)
    expected = score_edges(model, PAIRS, per_position=per_position)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1500)  # two positions of the smaller model
    monkeypatch.setattr(module, "RUNS_HELD", 2)
    found = score_edges(model, PAIRS, per_position=per_position)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-8, atol=1e-15)
    if per_position:
        torch.testing.assert_close(found.positions, expected.positions, rtol=1e-8, atol=1e-15)


def test_positions_before_the_prompts_differ_score_nothing() -> None:
    found = score_edges(family("llama"), PAIRS[1:2], per_position=True)
    assert found.positions is not None
    assert found.positions.shape[0] == 6
    assert not found.positions[:2].any()
    assert found.positions[2:].flatten(1).any(dim=1).all()


def test_prompts_that_do_not_differ_score_nothing() -> None:
    same = Pair((3, 20, 31), (3, 20, 31), 42, (50, 51), 0)
    for scorer in SCORERS:
        found = scorer(family("gpt2"), [same], integration_steps=1, per_position=True)
        assert not found.scores.any()
        assert found.metric_gap == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_models_in_float32_and_bfloat16_score_alike(name: str) -> None:
    """With transformers' own norms and attention, against the same weights in float64."""
    double = family(name)
    kind, settings = FAMILIES[name]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))
    model.load_state_dict(double.state_dict())
    expected = score_edges(double, PAIRS).scores
    scale = float(expected.abs().max())
    assert float((score_edges(model.float(), PAIRS).scores - expected).abs().max()) < 1e-5 * scale
    half = score_edges(model.bfloat16(), PAIRS).scores.flatten()
    assert float(torch.corrcoef(torch.stack([half, expected.flatten()]))[0, 1]) > 0.99


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": ()}, "there are no pairs to score"),
        ({"integration_steps": 0}, "integration_steps is 0 and batch_size is 8, needed at least 1 each"),
        ({"batch_size": 0}, "integration_steps is 5 and batch_size is 0"),
        ({"variant": "input"}, "the variant is 'input', needed one of inputs, activations"),
    ],
)
def test_arguments_that_score_nothing_are_refused(
    scorer: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"pairs": PAIRS, "integration_steps": 5, "batch_size": 8} | changes
    with pytest.raises(InputError, match=message):
        scorer(family("llama"), **arguments)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_mixture_of_experts_is_refused(scorer: Callable[..., Any]) -> None:
    config = transformers.MixtralConfig(**LLAMA_LIKE, num_local_experts=2)
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        scorer(transformers.MixtralForCausalLM(config), PAIRS)
