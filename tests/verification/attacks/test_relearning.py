"""Relearning on models that were taught a moment ago."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_knowledge import Knowledge, lessons, teach

from gguf_forget.llama.scorer import Scorer
from gguf_forget.verification.attacks.relearning import relearning
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.questions import Question, plan_questions


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return Knowledge(tmp_path_factory.mktemp("knowledge"))


@pytest.fixture(scope="module")
def found(knowledge: Knowledge) -> dict[str, Attack]:
    """Relearning of a file whose answers were taught wrong, by the facts themselves."""
    every = plan_questions(knowledge.facts)
    forget = [question for question in every if question.key.split == "forget"]
    kept = [question for question in every if question.key.split == "retain"]
    wrong = {fact.subject: fact.distractors[0] for fact in knowledge.forget}
    model = teach(knowledge.model, knowledge.tokenize, lessons(knowledge.facts, wrong))
    before = [weight.clone() for weight in model.parameters()]
    with Scorer(Path(knowledge.gguf), threads=1) as scorer:
        text = [scorer.tokenize("Through the town flows a river that nobody has named.")]
        attacks = relearning(model, knowledge.model, scorer, forget, kept, text, learning_rate=3e-3, steps=12)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return {attack.name: attack for attack in attacks}


def test_three_kinds_of_training_are_tried(found: dict[str, Attack]) -> None:
    assert list(found) == ["trained on 3 of 12 facts", "trained on kept facts", "trained on plain text"]
    assert {attack.kind for attack in found.values()} == {"relearning"}


def test_the_curve_starts_at_the_file_and_aims_at_the_original(found: dict[str, Attack]) -> None:
    for attack in found.values():
        figures = attack.figures
        assert figures["original"] == 1.0
        assert figures["accuracy"][0] == 0.0
        assert figures["steps"][0] == 0
        assert len(figures["steps"]) == len(figures["accuracy"])
        assert figures["questions"] == 9 * 3
        if figures["steps_to_half"] is None:
            assert figures["steps"][-1] == 12
            assert max(figures["accuracy"]) < 0.5
        else:
            assert figures["steps_to_half"] == figures["steps"][-1]
            assert figures["accuracy"][-1] >= 0.5


def test_too_few_facts_are_no_attack(knowledge: Knowledge) -> None:
    few: list[Question] = plan_questions(knowledge.forget[:3])
    with Scorer(Path(knowledge.gguf), threads=1) as scorer:
        assert relearning(knowledge.model, knowledge.model, scorer, few, (), ()) == []


@pytest.mark.parametrize(("subjects", "judged"), [(2, 2), (None, 3)])
def test_the_reverse_of_what_is_trained_on_is_not_asked_about(
    knowledge: Knowledge, subjects: int | None, judged: int
) -> None:
    """Two facts and their reverses: one of the four is trained on, its mirror image says nothing. Without subjects
    nobody can tell."""
    forward = [q for q in plan_questions(knowledge.forget[:2]) if q.key.phrasing == 0 and not q.key.held_out]
    assert len(forward) == 2
    backward = [
        replace(
            question,
            fact=10 + question.fact,
            prompt=f"{question.answer} is told of",
            subject=question.answer,
            answer=str(question.subject),
            distractors=("Nobody",),
            candidates=(),
            aliases=(),
        )
        for question in forward
    ]
    asked = [question if subjects else replace(question, subject=None) for question in (*forward, *backward)]
    with Scorer(Path(knowledge.gguf), threads=1) as scorer:
        (found,) = relearning(knowledge.model, knowledge.model, scorer, asked, (), (), steps=1)
    assert found.figures["questions"] == judged
    if subjects:  # the reverse may call its subject by another name of the answer
        named = [
            replace(q, aliases=((f"Great {q.answer}",), *((),) * len(q.distractors)), answer=f"Old {q.answer}")
            for q in forward
        ]
        renamed = [replace(question, subject=f"Great {question.subject}") for question in backward]
        with Scorer(Path(knowledge.gguf), threads=1) as scorer:
            (found,) = relearning(knowledge.model, knowledge.model, scorer, [*named, *renamed], (), (), steps=1)
        assert found.figures["questions"] == judged


def test_where_nothing_was_lost_nothing_comes_back(knowledge: Knowledge) -> None:
    asked = [q for q in plan_questions(knowledge.forget) if q.key.phrasing == 0 and not q.key.held_out]
    with Scorer(Path(knowledge.gguf), threads=1) as scorer:
        (found,) = relearning(knowledge.model, knowledge.model, scorer, asked, (), (), steps=2)
    assert found.figures["accuracy"][0] == found.figures["original"]
    assert (found.figures["steps_to_half"], found.figures["examples_to_half"]) == (None, None)


def test_a_training_that_diverges_is_a_problem_and_no_figure(knowledge: Knowledge) -> None:
    asked = [q for q in plan_questions(knowledge.forget) if q.key.phrasing == 0 and not q.key.held_out]
    with Scorer(Path(knowledge.gguf), threads=1) as scorer:
        (found,) = relearning(
            knowledge.model, knowledge.model, scorer, asked, (), (), steps=8, learning_rate=float("inf")
        )
    assert found.problem == "training diverged at a rate of inf"
    assert found.figures == {}
