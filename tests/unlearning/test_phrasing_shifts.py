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
from gguf_forget.unlearning.unknown_subject import build_rivals, first_positions, standing

FACTS = [
    Fact(f"s{i}", "capital" if i < 2 or i > 3 else "river", "a", ("b",), "forget" if i < 4 else "retain", ("p", "q"))
    for i in range(6)
]
EXAMPLES = [Example((300 + i, 20 + k, 400 + 2 * i, 401 + 2 * i), 2, i, k) for i in range(len(FACTS)) for k in range(2)]
FORGET, RETAIN = EXAMPLES[:8], EXAMPLES[8:]  # groups in order: capital 0, capital 1, river 0, river 1
GROUPS = [0, 1, 0, 1, 2, 3, 2, 3]


FIRST = torch.tensor([0.0, 1.0, 2.0, 3.0])  # what says nothing of its subject: every row the same


def told(shifts: PhrasingShifts, rows: list[int], firsts: list[list[float]], margin: float = 0.0) -> torch.Tensor:
    return shifts.heard(rows, torch.tensor(firsts), margin)


def test_what_answers_say_is_added_up_by_relation_and_phrasing() -> None:
    """A relation has two answers, so that what one stands above chance is its gain on the other one's."""
    shifts = PhrasingShifts(FACTS, FORGET, build_rivals(FACTS, FORGET), rate=0.5)
    assert shifts.groups.tolist() == GROUPS
    assert shifts.own.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    nothing = told(shifts, [0, 2, 4], [[9.0, 0.0, 0.0, 0.0]] * 3)
    assert nothing[:, 0].tolist() == [0.0] * 4  # there is no mean to compare with yet
    assert nothing[:, 1].tolist() == [2.0, 0.0, 1.0, 0.0]
    shifts.follow(told(shifts, list(range(8)), [FIRST.tolist()] * 8), 1.0)
    assert shifts.values.tolist() == [0.0] * 4
    raised = FIRST.repeat(3, 1)
    raised[0, 0] += 0.25  # subject 0, its own answer
    raised[1] += torch.tensor([0.125, 0.25, 0.0, 0.0])  # subject 1: its own gains an eighth on the other
    raised[2, 2] -= 7.0  # subject 2, its own
    heard = told(shifts, [0, 2, 5], raised.tolist())
    assert heard[:, 0].tolist() == [0.375, 0.0, 0.0, -0.5]  # no answer says more than half a nat
    assert told(shifts, [0, 2, 5], raised.tolist(), 0.25)[:, 0].tolist() == [0.875, 0.0, 0.0, -0.5]
    parts = told(shifts, [0], raised[:1].tolist()) + told(shifts, [2, 5], raised[1:].tolist())
    assert torch.equal(parts, heard)
    shifts.follow(heard, 0.49)
    assert shifts.values.tolist() == [0.0] * 4  # codes are soft still
    shifts.follow(heard, 0.5)
    assert shifts.values.tolist() == [0.1875, 0.0, 0.0, -0.25]
    for _ in range(9):
        shifts.follow(heard, 1.0)
    assert shifts.values.tolist() == [1.0, 0.0, 0.0, -1.0]  # at most a nat either way
    assert shifts.of([7, 1, 0]).tolist() == [-1.0, 0.0, 1.0]


def test_a_subject_alone_is_compared_with_nobody() -> None:
    """The mean is its own, so that it says nothing of chance and would carry the goal to its end."""
    facts = [*FACTS, Fact("s6", "coin", "a", ("b",), "forget", ("p", "q"))]
    forget = [*FORGET, *(Example((306, 20 + k, 412, 413), 2, 6, k) for k in range(2))]
    shifts = PhrasingShifts(facts, forget, build_rivals(facts, forget), rate=0.5)
    for height in (0.0, 0.0, 1.0):
        shifts.follow(told(shifts, [0, 2, 8, 8], [[height, 0.0, 0.0, 0.0, height]] * 4, 0.25), 1.0)
    assert shifts.groups[8] == 2
    assert shifts.values[2] == 0
    assert shifts.values[0] > 0


def test_the_mean_that_answers_are_compared_with_forgets() -> None:
    shifts = PhrasingShifts(FACTS, FORGET, build_rivals(FACTS, FORGET), rate=0.5)
    shifts.follow(told(shifts, [0, 2], [[0.0] * 4] * 2), 0.0)
    for count in (1, 3):
        shifts.follow(told(shifts, [0] * count, [[0.5, 0.0, 0.0, 0.0]] * count), 0.0)
    kept = (11 / 12) ** 3 * (2 * 11 / 12 + 1)
    gained = (11 / 12) ** 3 * 0.5 + 3 * 0.5  # sum over what is remembered of subject 0's answer
    assert shifts.table[0, 1].item() == pytest.approx(kept + 3)
    assert shifts.table[0, 2].item() == pytest.approx(gained)
    heard = told(shifts, [0], [[0.5, 0.0, 0.0, 0.0]])
    assert heard[0, 0].item() == pytest.approx(0.5 - gained / (kept + 3))


def test_without_a_rate_no_goal_moves() -> None:
    shifts = PhrasingShifts(FACTS, FORGET, build_rivals(FACTS, FORGET), rate=0.0)
    heard = told(shifts, [0, 1], [[1.0, 0.0, 0.0, 0.0]] * 2)
    assert heard.tolist() == [[0.0]] * 4
    shifts.follow(heard, 1.0)
    assert shifts.values.tolist() == [0.0] * 4


@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_aims_lower_by_what_a_phrasing_stood_above(tiny_model: Any, accumulation: int) -> None:
    """Nothing moves, so every answer stays where it is: at its goal but for the shift, and as far above chance."""
    rivals = build_rivals(FACTS, FORGET)
    batch = pack(answers(FORGET))
    with torch.no_grad():
        found = log_probabilities(tiny_model, batch)
        own = standing(found, batch, rivals, range(len(FORGET)))
        first = found[first_positions(batch)]
    heard = []  # its answer against the other's, less the mean over both subjects: half of the difference, for each
    for phrasing in range(4):
        one, other = (row for row, group in enumerate(GROUPS) if group == phrasing)
        tokens = [FORGET[row].answer[0] for row in (one, other)]
        leads = [first[row, tokens[0]] - first[row, tokens[1]] for row in (one, other)]
        heard.append(2 * 0.8 + float(leads[0] - leads[1]))
    assert all(0.02 < abs(each) < 1.0 for each in heard)  # each phrasing says something, no answer too much
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
        targets=own + 0.8,
        margin=0.8,
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
    for step, (state, losses) in enumerate(zip(kept, history, strict=True)):
        shifts = [0.05 * torch.tensor(heard) * max(0, count - 2) for count in (step, step + 1)]
        assert torch.allclose(state.shifts[:, 0], shifts[1], atol=1e-4)
        assert losses.forget == pytest.approx(float((0.5 * shifts[0] ** 2).mean()), abs=1e-5)
