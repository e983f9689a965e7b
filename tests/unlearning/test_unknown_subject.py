"""How far an answer stands out, and its chance level, against averages written out: one pass at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import answers, log_probabilities, pack
from gguf_forget.unlearning.unknown_subject import build_rivals, standing, unknown_subject_targets


def fact(relation: str, subject: str) -> Fact:
    return Fact(subject, relation, "a", ("b",), "forget", ("p", "q"))


FACTS = [fact("capital", subject) for subject in "abcd"] + [fact("currency", subject) for subject in "abc"]
ANSWERS = [(400,), (401, 402), (403, 404, 405), (401, 406), (407,), (408, 409), (410,)]


def examples() -> list[Example]:
    """Two phrasings of every fact; prompts of 2 to 5 tokens that differ in their first token, the subject."""
    found = []
    for index, answer in enumerate(ANSWERS):
        for phrasing in range(2):
            prompt = (300 + index, *range(20 + 10 * phrasing, 21 + 10 * phrasing + index % 4))
            found.append(Example(prompt + answer, len(prompt), index, phrasing))
    return found


def log_probability(model: Any, prompt: tuple[int, ...], token: int) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[token])


def rivals_of(own: Example, split: list[Example]) -> set[int]:
    """First tokens of the other answers of the relation."""
    relation = FACTS[own.fact].relation
    return {e.answer[0] for e in split if FACTS[e.fact].relation == relation} - {own.answer[0]}


def slow_standing(model: Any, prompt: Example, own: Example, split: list[Example], place: int) -> float:
    """What answer token ``place`` of ``own`` adds to how far it stands out after another's prompt."""
    ids = (*prompt.prompt, *own.answer[:place])
    found = log_probability(model, ids, own.answer[place])
    rivals = rivals_of(own, split)
    if place == 0 and rivals:
        found -= sum(log_probability(model, ids, token) for token in rivals) / len(rivals)
    return found


def slow_target(model: Any, own: Example, split: list[Example]) -> float:
    """The mean over other subjects, token by token, one forward pass at a time."""
    total = 0.0
    for place in range(len(own.answer)):
        values = []
        for other in examples():
            same = FACTS[other.fact].relation == FACTS[own.fact].relation and other.phrasing == own.phrasing
            if same and other.fact != own.fact:
                values.append(slow_standing(model, other, own, split, place))
        total += math.fsum(values) / len(values)
    return total


FORGET = [example for example in examples() if example.fact in (1, 2, 3, 5, 6)]


def test_rivals_by_hand() -> None:
    rivals = build_rivals(FACTS, FORGET)
    assert rivals.tokens.tolist() == [401, 403, 408, 410]  # two answers begin with 401
    by_fact = {example.fact: row.tolist() for example, row in zip(FORGET, rivals.weights, strict=True)}
    assert by_fact == {1: [0, 1, 0, 0], 2: [1, 0, 0, 0], 3: [0, 1, 0, 0], 5: [0, 0, 0, 1], 6: [0, 0, 1, 0]}
    three = build_rivals(FACTS, [example for example in examples() if example.fact < 4])
    assert three.tokens.tolist() == [400, 401, 403]
    assert three.weights[0].tolist() == [0.0, 0.5, 0.5]
    assert build_rivals(FACTS, FORGET[:1]).weights.tolist() == [[0.0]]


def test_standing_is_the_answer_less_its_rivals(tiny_double: Any) -> None:
    rivals = build_rivals(FACTS, FORGET)
    picked = [4, 0, 9]
    chosen = [FORGET[index] for index in picked]
    batch = pack(answers(chosen))
    found = standing(log_probabilities(tiny_double, batch), batch, rivals, picked)
    expected = [
        sum(slow_standing(tiny_double, own, own, FORGET, place) for place in range(len(own.answer))) for own in chosen
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_targets_equal_the_slow_average(tiny_double: Any, batch_size: int) -> None:
    told: list[int] = []
    found = unknown_subject_targets(
        tiny_double,
        FACTS,
        FORGET,
        build_rivals(FACTS, FORGET),
        examples(),
        first_token_subjects=99,
        later_token_subjects=99,
        seed=0,
        batch_size=batch_size,
        progress=told.append,
    )
    expected = [slow_target(tiny_double, own, FORGET) for own in FORGET]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert told == [3, 3, 2, 2]  # relations and phrasings one by one
    assert not found.requires_grad


def test_few_subjects_are_drawn_with_the_seed(tiny_double: Any) -> None:
    def targets(seed: int) -> list[float]:
        return unknown_subject_targets(
            tiny_double,
            FACTS,
            FORGET,
            build_rivals(FACTS, FORGET),
            examples(),
            first_token_subjects=1,
            later_token_subjects=1,
            seed=seed,
        ).tolist()

    assert targets(0) == targets(0)
    assert len({tuple(targets(seed)) for seed in range(6)}) > 1


def test_another_answer_of_the_same_subject_is_no_stranger(tiny_double: Any) -> None:
    """What the original says of the subject itself is no chance level; and who has two answers is asked once."""
    facts = [*FACTS[:4], replace(FACTS[1]), *FACTS[4:]]
    own = Example((301, 20, 21, 401, 402), 3, 1, 0)
    again = Example((301, 20, 21, 405), 3, 4, 0)
    pool = [Example((300, 20, 400), 2, 0, 0), own, again, Example((302, 20, 403), 2, 2, 0)]
    found = unknown_subject_targets(
        tiny_double,
        facts,
        [own, again],
        build_rivals(facts, [own, again]),
        pool,
        first_token_subjects=99,
        later_token_subjects=99,
        seed=0,
    )
    expected = []
    for answer, rival in (((401, 402), 405), ((405,), 401)):
        values = []
        for prompt in ((300, 20), (302, 20)):
            first = log_probability(tiny_double, prompt, answer[0]) - log_probability(tiny_double, prompt, rival)
            later = [log_probability(tiny_double, (*prompt, answer[0]), token) for token in answer[1:]]
            values.append(first + sum(later))
        expected.append(sum(values) / 2)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="nobody else is asked about 'capital'"):
        unknown_subject_targets(
            tiny_double,
            facts,
            [own, again],
            build_rivals(facts, [own, again]),
            [own, again],
            first_token_subjects=4,
            later_token_subjects=4,
            seed=0,
        )


def test_a_relation_with_a_single_subject_has_no_chance_level(tiny_model: Any) -> None:
    facts = [*FACTS, fact("anthem", "a")]
    lone = Example((300, 20, 400), 2, len(FACTS), 0)
    with pytest.raises(InputError, match="nobody else is asked about 'anthem' as in 'p'"):
        unknown_subject_targets(
            tiny_model,
            facts,
            [lone],
            build_rivals(facts, [lone]),
            [*examples(), lone],
            first_token_subjects=4,
            later_token_subjects=4,
            seed=0,
        )
