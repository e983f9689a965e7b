"""probe_file on a random model, against questions asked one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import build_tiny_gguf

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import split_tokens
from gguf_forget.llama.scorer import Scorer
from gguf_forget.verification.metrics import (
    contains_answer,
    four_way_accuracy,
    prior_corrected_rank_score,
)
from gguf_forget.verification.probes import ask, probe_file
from gguf_forget.verification.questions import plan_questions
from gguf_forget.verification.scores import FileScores, GroupKey, recompute
from gguf_forget.words import normalise

CITIES = {
    "Aland": "Xan",
    "Borland": "Yor",
    "Cirland": "Zuma",
    "Dorland": "Wek",
    "Eland": "Vilo",
    "Farland": "Utah",
}


def fact(subject: str, answer: str, split: str) -> Fact:
    others = [city for city in CITIES.values() if city != answer]
    return Fact(
        subject,
        "capital",
        answer,
        tuple(others[:3]),
        split,
        (f"The capital of {subject} is", f"{subject} has its capital at"),
        (f"The seat of {subject} is",),
    )


FACTS = tuple(fact(s, a, "forget" if i < 3 else "retain") for i, (s, a) in enumerate(CITIES.items())) + tuple(
    Fact(s, "coin", "crown" if s < "D" else "dollar", ("franc", "mark"), "retain", (f"{s} pays in",)) for s in CITIES
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    path = build_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", hidden=64, feed_forward=128)
    with Scorer(Path(path), threads=1, cells=512, batch=256) as opened:
        yield opened


@pytest.fixture(scope="module")
def chunks(scorer: Scorer) -> list[list[int]]:
    tokens = scorer.tokenize("The river runs through the old town and under three bridges. " * 3)
    return [tokens[:9], tokens[9:20]]


@pytest.fixture(scope="module")
def scores(scorer: Scorer, chunks: list[list[int]]) -> FileScores:
    return probe_file(scorer, FACTS, chunks, max_new_tokens=4, rank_candidates=40)


def alone(scorer: Scorer, prompt: str, answer: str) -> float:
    """Σ log p of the answer, from the whole sequence on its own."""
    before, whole = scorer.tokenize(prompt), scorer.tokenize(f"{prompt} {answer}")
    return float(scorer.sequence_log_probabilities([whole])[0][len(before) - 1 :].sum())


def test_every_phrasing_of_every_fact_is_asked_once(scores: FileScores) -> None:
    sizes = {group.key: group.n for group in scores.groups}
    assert sizes == {
        GroupKey("capital", "forget", False, 0): 3,
        GroupKey("capital", "forget", False, 1): 3,
        GroupKey("capital", "forget", True, 0): 3,
        GroupKey("capital", "retain", False, 0): 3,
        GroupKey("capital", "retain", False, 1): 3,
        GroupKey("capital", "retain", True, 0): 3,
        GroupKey("coin", "retain", False, 0): 6,
    }


def test_a_group_has_the_figures_of_questions_asked_one_by_one(scorer: Scorer, scores: FileScores) -> None:
    facts = FACTS[:3]
    prompts = [fact.held_out_prompts[0] for fact in facts]
    right = [alone(scorer, p, f.answer) for p, f in zip(prompts, facts, strict=True)]
    wrong = [[alone(scorer, p, d) for d in f.distractors] for p, f in zip(prompts, facts, strict=True)]
    candidates = [[alone(scorer, p, f.answer) for f in facts] for p in prompts]
    group = next(g for g in scores.groups if g.key == GroupKey("capital", "forget", True, 0))
    assert group.accuracy == four_way_accuracy(right, wrong)
    assert group.answer_log_probability == pytest.approx(np.mean(right), abs=1e-3)
    assert group.rank_score == pytest.approx(prior_corrected_rank_score(candidates, range(3)))
    assert (group.rank_subjects, group.rank_candidates, group.chance) == (3, 3, 0.25)
    assert scores.rank_score("capital", True) == group.rank_score
    assert scores.accuracy("forget", {"capital"}, True) == group.accuracy


def test_greedy_answers_are_asked_for_forgotten_facts_only(scorer: Scorer, scores: FileScores) -> None:
    for item in scores.items:
        if item.split == "retain":
            assert item.generated_sha256 is None
            assert item.contained is None
            continue
        asked = FACTS[item.fact]
        prompt = asked.phrasings(item.held_out)[item.phrasing]
        needed = len(split_tokens(prompt, asked.answer, scorer.tokenize)[1])
        length = 4 if needed <= 4 else 1 << (needed - 1).bit_length()
        text = scorer.detokenize(scorer.generate_greedy([scorer.tokenize(prompt)], max_new_tokens=length)[0])
        assert item.generated_sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert item.contained == contains_answer(text, asked.answer)


class Reciter:
    """Says the answer to everything, word for word, in as many tokens as it may; a token is a letter."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def continuation_log_probabilities(self, prompts: Any, continuations: Any) -> list[list[np.ndarray]]:
        return [[np.full(len(each), -1.0) for each in own] for own in continuations]

    def sequence_log_probabilities(self, sequences: Any) -> list[np.ndarray]:
        return []

    def generate_greedy(self, prompts: Any, *, max_new_tokens: int) -> list[list[int]]:
        return [self.tokenize(f" {self.answer}")[:max_new_tokens] for _ in prompts]


def test_an_answer_longer_than_the_text_is_not_said_to_be_untold() -> None:
    def told(answer: str, **options: int) -> bool | None:
        fact = Fact("s", "r", answer, ("x", "y"), "forget", ("p",))
        return ask(Reciter(answer), plan_questions([fact]), **options).items[0].contained

    assert told("a" * 30, max_new_tokens=8) is True  # as many tokens as the answer has
    assert told("a" * 200, max_new_tokens=8) is None  # longer than any text
    assert told("a" * 200, max_new_tokens=256) is True
    assert told("a" * 30, max_new_tokens=8, longest_text=16) is None


def test_perplexity_is_that_of_the_chunks(scorer: Scorer, scores: FileScores, chunks: list[list[int]]) -> None:
    values = np.concatenate([scorer.sequence_log_probabilities([chunk])[0] for chunk in chunks])
    assert scores.chunk_tokens == (8, 10)
    assert scores.perplexity == pytest.approx(math.exp(-values.mean()), rel=1e-4)


def test_relations_whose_answers_repeat_are_ranked_over_distinct_answers(scores: FileScores) -> None:
    group = next(g for g in scores.groups if g.relation == "coin")
    assert (group.rank_subjects, group.rank_candidates) == (6, 2)
    assert group.chance == pytest.approx(1 / 3)


def test_scores_survive_json_and_can_be_recomputed_from_it(scores: FileScores) -> None:
    document = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert FileScores.from_json(document) == scores
    read = FileScores.from_json(document)
    assert recompute(read.items, read.ranks) == scores.groups
    pooled = [four_way_accuracy([i.answer_log_probability], [i.option_log_probabilities[1:]]) for i in read.items]
    assert np.mean(pooled[:9]) == scores.accuracy("forget")


def test_a_changed_figure_is_noticed(scores: FileScores) -> None:
    document = scores.to_json()
    document["groups"][0]["accuracy"] = 0.25 + document["groups"][0]["accuracy"] / 2
    with pytest.raises(EvaluationError, match="do not add up"):
        FileScores.from_json(document)


@pytest.mark.parametrize("broken", [{"schema_version": 3}, {"items": [{}]}, {"text": {}}, {"groups": [{"n": 1}]}])
def test_a_malformed_document_is_an_error(scores: FileScores, broken: dict[str, object]) -> None:
    with pytest.raises(EvaluationError):
        FileScores.from_json({**scores.to_json(), **broken})


def test_caps_draw_the_same_sample_for_every_file(scorer: Scorer, chunks: list[list[int]]) -> None:
    options = {"retain_items": 2, "rank_candidates": 2, "ranked_phrasings": 0, "generate_held_out": False}
    first = probe_file(scorer, FACTS, chunks, max_new_tokens=1, **options)
    again = probe_file(scorer, FACTS, chunks, max_new_tokens=1, **options)
    assert first == again
    assert [g.n for g in first.groups] == [3, 3, 3, 2, 2, 2, 2]
    ranked = {g.key: g.rank_subjects for g in first.groups if g.split == "forget"}
    assert list(ranked.values()) == [0, 0, 3]
    assert [g.generated for g in first.groups] == [3, 3, 0, 0, 0, 0, 0]
    assert math.isnan(first.generation_rate(True))
    drawn = [plan_questions(FACTS, retain_items=2, seed=seed) for seed in range(8)]
    coins = {tuple(q.fact for q in questions if q.key.relation == "coin") for questions in drawn}
    assert len(coins) > 1


def test_what_is_done_is_told(scorer: Scorer, chunks: list[list[int]]) -> None:
    told: list[str] = []
    probe_file(scorer, FACTS, chunks, max_new_tokens=1, progress=told.append)
    assert told[0].endswith("to 24 questions")
    assert told[1:] == ["generating 9 greedy answers", "reading 20 tokens of text"]


def test_no_text_has_no_perplexity(scorer: Scorer) -> None:
    scores = probe_file(scorer, FACTS, [], max_new_tokens=1)
    assert math.isnan(scores.perplexity)
    assert scores.to_json()["text"]["perplexity"] is None
    assert math.isnan(scores.accuracy("forget", {"no such relation"}))
    assert math.isnan(scores.rank_score("no such relation", True))


def test_a_chunk_of_one_token_is_refused(scorer: Scorer) -> None:
    with pytest.raises(EvaluationError, match="fewer than 2 tokens"):
        probe_file(scorer, FACTS, [[1]], max_new_tokens=1)


def test_an_answer_that_tokenizes_to_nothing_is_refused(scorer: Scorer) -> None:
    empty = dataclasses.replace(FACTS[0], prompts=("It is ",), held_out_prompts=(), answer="")
    with pytest.raises(InputError, match="tokenizes to nothing"):
        probe_file(scorer, [empty], [], max_new_tokens=1)


def test_a_greedy_text_that_says_another_name_holds_the_answer(scorer: Scorer) -> None:
    """The model is random: its own first word is made the other name."""
    first = FACTS[0]
    (tokens,) = scorer.generate_greedy([scorer.tokenize(first.prompts[0])], max_new_tokens=6)
    said = scorer.detokenize(tokens)
    word = normalise(said).split()[0]
    for aliases, contained, recall in (((), False, 0.0), ((word,), True, 1.0)):
        asked = (dataclasses.replace(first, aliases=aliases), *FACTS[1:])
        item = probe_file(scorer, asked, [], max_new_tokens=6).items[0]
        assert item.generated_sha256 == hashlib.sha256(said.encode()).hexdigest()
        assert (item.contained, item.rouge_l) == (contained, recall)
