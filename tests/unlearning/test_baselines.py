"""Published methods on the random model: each forgets, in a copy, and where it says."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.baselines import (
    BASELINES,
    circuit_ascent,
    gradient_ascent,
    gradient_difference,
    negative_preference,
    salient_row_preference,
    simple_preference,
)
from gguf_forget.unlearning.dense import DenseWork
from gguf_forget.unlearning.misdirection import layer_states, representation_misdirection
from gguf_forget.unlearning.scoring import answer_log_probability, answers, log_probabilities, pack

FACTS = [Fact(f"s{i}", "capital", "a", ("b",), "forget" if i < 3 else "retain", ("p",)) for i in range(8)]
EXAMPLES = [Example((300 + i, 20, 21, 400 + 2 * i, 401 + 2 * i), 3, i, 0) for i in range(8)]
FORGET, RETAIN = EXAMPLES[:3], EXAMPLES[3:]
TEXT = [[50 + (7 * i + 3 * k) % 200 for k in range(12)] for i in range(4)]
CIRCUIT = (np.array([3, 100, 511]), np.array([0, 7]))


def work_on(model: Any, **changes: Any) -> DenseWork:
    return replace(DenseWork(model, FACTS, FORGET, RETAIN, TEXT, CIRCUIT, steps=4, batch=3), **changes)


def nats(model: Any, examples: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        batch = pack(answers(examples))
        return answer_log_probability(log_probabilities(model, batch), batch)


def changed(model: Any, original: Any) -> dict[str, torch.Tensor]:
    """Parameter's name -> where it differs, for those that do."""
    pairs = zip(model.named_parameters(), original.parameters(), strict=True)
    return {name: own != old for (name, own), old in pairs if not torch.equal(own, old)}


@pytest.mark.parametrize("name", list(BASELINES))
def test_each_forgets_in_a_copy_and_the_same_seed_gives_the_same_weights(tiny_model: Any, name: str) -> None:
    before = [parameter.clone() for parameter in tiny_model.parameters()]
    told: list[int] = []
    first = BASELINES[name](work_on(tiny_model, progress=told.append))
    assert told == [1] * 4
    assert not any(parameter.requires_grad for parameter in first.parameters())
    second = BASELINES[name](work_on(tiny_model))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    for own, original in zip(tiny_model.parameters(), before, strict=True):
        assert torch.equal(own, original)
        assert own.grad is None
    assert changed(first, tiny_model)


# The random model gives its answers 6 nats a token: there SimNPO has nothing left to do with its own beta.
@pytest.mark.parametrize(
    "method",
    [gradient_ascent, gradient_difference, negative_preference, partial(simple_preference, beta=0.1, forget_weight=1)],
)
def test_answers_become_less_likely(tiny_model: Any, method: Any) -> None:
    trained = method(work_on(tiny_model), learning_rate=1e-3)
    assert float((nats(trained, FORGET) - nats(tiny_model, FORGET)).max()) < -0.5


def test_a_retain_term_holds_what_ascent_alone_loses(tiny_model: Any) -> None:
    work = work_on(tiny_model, steps=8)
    kept = {
        method: float((nats(method(work, learning_rate=1e-3), RETAIN) - nats(tiny_model, RETAIN)).mean())
        for method in (gradient_ascent, gradient_difference, simple_preference)
    }
    assert kept[gradient_difference] > kept[gradient_ascent] + 1.0
    assert kept[simple_preference] > kept[gradient_ascent] + 1.0


@pytest.mark.parametrize(
    ("method", "published"),
    [
        (gradient_ascent, {"learning_rate": 1e-5, "epochs": 5}),
        (gradient_difference, {"learning_rate": 1e-5, "epochs": 5}),
        (negative_preference, {"learning_rate": 1e-5, "epochs": 10, "beta": 0.1, "weight_decay": 0.01}),
        (simple_preference, {"learning_rate": 1e-5, "epochs": 10, "beta": 4.5, "forget_weight": 0.125, "delta": 0.0}),
        (salient_row_preference, {"percentile": 90.0}),  # its rate is ours
        (
            representation_misdirection,
            {"layer": 7, "trained_layers": 3, "steering": 6.5, "alpha": 1200.0, "learning_rate": 5e-5, "batches": 150},
        ),
    ],
)
def test_defaults_are_the_published_ones(method: Any, published: dict[str, float]) -> None:
    parameters = inspect.signature(method).parameters
    assert {name: parameters[name].default for name in published} == published
    assert method in BASELINES.values()


def test_published_epochs_give_the_number_of_steps(tiny_model: Any) -> None:
    told: list[int] = []
    gradient_ascent(work_on(tiny_model, steps=None, batch=2, progress=told.append))
    assert len(told) == 8  # 5 epochs of 3 examples, 2 a step


def test_sure_changes_a_tenth_of_the_rows(tiny_model: Any) -> None:
    where = changed(salient_row_preference(work_on(tiny_model)), tiny_model)
    rows = {name: int(moved.reshape(len(moved), -1).any(dim=1).sum()) for name, moved in where.items()}
    total = sum(len(parameter) for parameter in tiny_model.parameters())
    assert 0.05 * total < sum(rows.values()) <= 0.11 * total


def test_surgical_ascent_changes_the_circuit_and_nothing_else(tiny_model: Any) -> None:
    trained = circuit_ascent(work_on(tiny_model), learning_rate=3e-2)
    assert float((nats(trained, FORGET) - nats(tiny_model, FORGET)).mean()) < -0.1
    where = changed(trained, tiny_model)
    assert sorted(where) == sorted(
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up", "down")
    )
    for name, moved in where.items():
        own = moved.any(dim=0) if "down" in name else moved.any(dim=1)
        assert torch.nonzero(own).flatten().tolist() == CIRCUIT[int(name.split(".")[2])].tolist()


def test_misdirection_leads_the_states_to_the_direction_and_trains_down_projections_alone(tiny_model: Any) -> None:
    work = work_on(tiny_model, steps=30)
    trained = representation_misdirection(work, learning_rate=1e-2, alpha=1.0)
    assert list(changed(trained, tiny_model)) == ["model.layers.0.mlp.down_proj.weight"]
    direction = torch.rand(256, generator=torch.Generator().manual_seed(0))
    target = 6.5 * direction / direction.norm()
    asked = [example.tokens for example in FORGET]
    with torch.no_grad():
        far, near = (float((layer_states(model, asked, 0) - target).square().mean()) for model in (tiny_model, trained))
    assert near < 0.5 * far


def test_layer_states_leave_padding_out(tiny_model: Any) -> None:
    with torch.no_grad():
        both = layer_states(tiny_model, [[5, 6, 7], [8, 9]], 0)
        alone = layer_states(tiny_model, [[8, 9]], 0)
    assert both.shape == (5, 256)
    assert torch.allclose(both[3:], alone, atol=1e-5)


def test_what_a_method_cannot_do_without_is_named(tiny_model: Any) -> None:
    with pytest.raises(InputError, match="found no circuit"):
        circuit_ascent(work_on(tiny_model, circuit=None))
    with pytest.raises(InputError, match="needed at least one chunk"):
        representation_misdirection(work_on(tiny_model, text=()))
    with pytest.raises(EvaluationError, match="training diverged at step"):
        gradient_ascent(work_on(tiny_model, steps=3), learning_rate=1e30)
