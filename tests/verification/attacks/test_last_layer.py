"""Reading hidden states through a head, against the model's own logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.load import load_torch
from gguf_forget.facts.schema import Fact
from gguf_forget.llama.scorer import Scorer
from gguf_forget.verification.attack_gates import attack_gates
from gguf_forget.verification.attacks.last_layer import last_layer
from gguf_forget.verification.gates import PROTOCOL
from gguf_forget.verification.questions import Question, plan_questions
from gguf_forget.verification.scores import GroupKey

CITIES = {"Spain": "bread", "the north": "cakes", "the sea": "rolls", "the river": "bridges"}
FACTS = tuple(
    Fact(
        place,
        "sells",
        answer,
        tuple(other for other in CITIES.values() if other != answer),
        "forget" if row < 3 else "retain",
        (f"In {place} they sell",),
    )
    for row, (place, answer) in enumerate(CITIES.items())
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    path = build_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", hidden=64, feed_forward=128, layers=3)
    with Scorer(path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(scorer: Scorer) -> Any:
    return load_torch(Path(scorer._session.path))


def questions(split: str) -> list[Question]:
    return [question for question in plan_questions(FACTS) if question.key.split == split]


def first_token(scorer: Scorer, prompt: str, answer: str) -> int:
    return scorer.tokenize(f"{prompt} {answer}")[len(scorer.tokenize(prompt))]


def test_the_models_own_head_gives_its_own_logits(scorer: Scorer, model: Any) -> None:
    (attack,) = last_layer(model, model, scorer, questions("forget"), ())
    assert attack.scores is not None
    for question, item in zip(questions("forget"), attack.scores.items, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([scorer.tokenize(question.prompt)])).logits[0, -1].double()
        expected = torch.log_softmax(logits, dim=-1)
        texts = (question.answer, *question.distractors)
        tokens = [first_token(scorer, question.prompt, text) for text in texts]
        assert item.option_log_probabilities == pytest.approx(expected[tokens].tolist(), abs=1e-4)
    assert len(attack.scores.ranks) == 1
    figures = attack.figures["original"]["sells"]
    assert figures["accuracy"] == attack.scores.accuracy("forget", {"sells"})


def test_an_edit_of_the_output_layer_changes_nothing(scorer: Scorer, model: Any) -> None:
    edited = copy.deepcopy(model)
    edited.set_output_embeddings(torch.nn.Linear(64, model.config.vocab_size, bias=False))
    before = last_layer(model, model, scorer, questions("forget"), ())[0].scores
    assert last_layer(edited, model, scorer, questions("forget"), ())[0].scores == before


def test_answers_that_begin_alike_tell_nothing(scorer: Scorer, model: Any) -> None:
    """Wrong answers of TOFU begin as the right one does: all are equally probable by their first tokens."""
    key = GroupKey("sells", "forget", True, 0)
    alike = Question(key, 0, "In Spain they sell", "bread and rolls", ("bread and cakes", "bread and bridges"), ())
    other = Question(key, 1, "In Spain they sell", "bread and rolls", ("bread and cakes", "cakes"), ())
    (attack,) = last_layer(model, model, scorer, [alike, other], ())
    assert attack.scores is not None
    assert [item.fact for item in attack.scores.items] == [1]
    (attack,) = last_layer(model, model, scorer, [alike], ())
    (gate,) = attack_gates(attack, "F16", ["sells"], PROTOCOL)
    assert (gate.status, gate.detail) == ("not applicable", "no wrong answer begins otherwise")


def test_a_new_head_on_an_earlier_layer_is_fitted_on_kept_text_alone(scorer: Scorer, model: Any) -> None:
    kept = questions("retain")
    _, half = last_layer(model, model, scorer, questions("forget"), kept)
    assert (half.kind, half.name, half.scores) == ("last-layer", "new head on layer 2 of 3", None)
    assert set(half.figures["relations"]["sells"]) == {"accuracy", "rank"}


def test_the_fit_is_least_squares(scorer: Scorer, model: Any) -> None:
    from gguf_forget.verification.attacks import last_layer as module

    texts = [scorer.tokenize("Every morning the baker opens the shop and sells bread, rolls and cakes.")] * 2
    states, lengths = module._states(model, texts, [0])
    inputs = torch.cat([states[2][0], torch.ones(lengths[0], 1)], dim=1)
    with torch.no_grad():
        wanted = model.base_model.norm(states[-1][0])
    head = module._fit(model, model, texts, 2)
    left = (inputs @ head - wanted).square().mean()
    assert left < 1e-3 * wanted.square().mean()  # fewer positions than directions: nearly all can be met
