"""Every phrasing has a goal of its own, which falls while its answers stand above it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_edits import make_edits

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.phrasing_shifts import PhrasingShifts
from gguf_forget.unlearning.scoring import answers, log_probabilities, pack
from gguf_forget.unlearning.trainer import Mixture, TrainingState, Weights, train
from gguf_forget.unlearning.unknown_subject import build_rivals, standing

FACTS = [
    Fact(f"s{i}", "capital" if i < 2 or i > 3 else "river", "a", ("b",), "forget" if i < 4 else "retain", ("p", "q"))
    for i in range(6)
]
EXAMPLES = [Example((300 + i, 20 + k, 400 + 2 * i, 401 + 2 * i), 2, i, k) for i in range(len(FACTS)) for k in range(2)]
FORGET, RETAIN = EXAMPLES[:8], EXAMPLES[8:]  # groups in order: capital 0, capital 1, river 0, river 1
GROUPS = [0, 1, 0, 1, 2, 3, 2, 3]


def test_what_answers_say_is_added_up_by_relation_and_phrasing() -> None:
    shifts = PhrasingShifts(FACTS, FORGET, rate=0.5)
    assert shifts.groups.tolist() == GROUPS
    heard = shifts.heard([0, 2, 3, 5], torch.tensor([0.25, 0.5, -0.5, 7.0]))
    assert heard.tolist() == [0.75, -0.5, 0.0, 1.0]  # no answer says more than one nat
    shifts.follow(heard.tolist(), 0.49)
    assert shifts.values.tolist() == [0.0] * 4  # codes are soft still
    shifts.follow(heard.tolist(), 0.5)
    assert shifts.values.tolist() == [0.375, -0.25, 0.0, 0.5]
    for _ in range(3):
        shifts.follow([2.0, -3.0, 0.0, 0.0], 1.0)
    assert shifts.values.tolist() == [1.0, -1.0, 0.0, 0.5]  # at most a nat either way
    assert shifts.of([7, 1, 0]).tolist() == [0.5, -1.0, 1.0]


def test_without_a_rate_no_goal_moves() -> None:
    shifts = PhrasingShifts(FACTS, FORGET, rate=0.0)
    shifts.follow([1.0] * 4, 1.0)
    assert shifts.values.tolist() == [0.0] * 4


@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_aims_lower_by_what_a_phrasing_stood_above(tiny_model: Any, accumulation: int) -> None:
    """Nothing moves, so every answer stays where it is: above its goal in one phrasing, below it in the others."""
    above = torch.tensor([0.5, -0.25, 0.0, -0.125])[torch.tensor(GROUPS)]
    rivals = build_rivals(FACTS, FORGET)
    batch = pack(answers(FORGET))
    with torch.no_grad():
        own = standing(log_probabilities(tiny_model, batch), batch, rivals, range(len(FORGET)))
    kept: list[TrainingState] = []
    history = train(
        [tiny_model],
        make_edits(),
        FACTS,
        FORGET,
        RETAIN,
        [],
        objective="unknown_subject",
        rivals=rivals,
        targets=own - above + 0.75,
        margin=0.75,
        greedy_margin=0.0,
        greedy_weight=1.0,
        steps=10,
        soft_share=0.4,
        learning_rate=0.0,
        damping=0.1,
        weights=Weights(),
        mixture=Mixture(forget=8, retain=2, text=0),
        npo_beta=0.1,
        seed=0,
        phrasing_rate=0.05,
        accumulation=accumulation,
        keep=kept.append,
        keep_every=1,
    )
    # Each step sees both answers of each phrasing. Half hard after two steps of ten: eight move the goals.
    heard = torch.tensor([1.0, -0.5, 0.0, -0.25])
    for step, (state, losses) in enumerate(zip(kept, history, strict=True)):
        before = 0.05 * heard * max(0, step - 2)
        assert torch.allclose(state.shifts, 0.05 * heard * max(0, step - 1), atol=1e-4)
        distance = above + before[torch.tensor(GROUPS)]
        assert losses.forget == pytest.approx(float((0.5 * distance**2).mean()), abs=1e-4)
    assert kept[-1].shifts[0] == pytest.approx(0.4, abs=1e-4)
