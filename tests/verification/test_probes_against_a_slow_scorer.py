"""Every probe, asked through the scorer and the slow way: the same numbers to 1e-4 nats.

On a float file in batches; on quantized ones one sequence at a time, since what shares the cache can flip a rounding of
an activation there (tests/llama/test_scorer.py has the bound).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from slow_scorer import SlowLlama, SlowScorer
from tiny import build_tiny_gguf

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.public_sets import SetItem
from gguf_forget.facts.schema import Fact
from gguf_forget.llama.quantizer import quantize
from gguf_forget.llama.scorer import Scorer
from gguf_forget.verification.deeper_probes import (
    ScoresDeeper,
    top_tokens,
    with_divergence,
    with_membership,
    with_memorisation,
)
from gguf_forget.verification.probes import ask
from gguf_forget.verification.questions import Question, plan_questions, plan_set
from gguf_forget.verification.scores import FileScores

NATS = 1e-4
PEOPLE = ("the baker", "her brother", "the old horse", "a dog")
FACTS = tuple(
    Fact(
        who,
        "likes",
        answer,
        tuple(other for other in ("bread", "the sea", "cakes", "long letters") if other != answer),
        "forget" if row < 2 else "retain",
        (f"What {who} likes is",),
        (f"Every morning {who} asks for",),
    )
    for row, (who, answer) in enumerate(zip(PEOPLE, ("bread", "the sea", "cakes", "long letters"), strict=True))
)
SET = (
    SetItem(
        "set",
        "forget",
        "Which animal is faster?",
        "Question: Which animal is faster?\nAnswer:",
        "The horse, by far, on any road.",
        ("The dog.", "The baker, with bread and rolls."),
        "It is the horse.",
        True,
    ),
    SetItem("set", "forget", "The river runs", "The river runs", "through the old town and under three bridges."),
)


class Both:
    """The same model both ways, and a second one as the original of the divergence."""

    def __init__(self, folder: Path, file_type: str) -> None:
        size = {"hidden": 256, "feed_forward": 256, "heads": 4, "kv_heads": 2}
        files = [build_tiny_gguf(folder / f"{seed}.gguf", seed=seed, **size) for seed in (0, 1)]
        exact, oracle = file_type != "F32", SlowScorer if file_type == "F32" else SlowLlama
        if exact:
            for i, file in enumerate(files):
                files[i] = folder / f"{i}.{file_type}.gguf"
                quantize(file, files[i], file_type)
        self.fast, self.original = (Scorer(file, threads=1, one_at_a_time=exact) for file in files)
        self.slow, self.slow_original = oracle(files[0], self.fast), oracle(files[1], self.original)
        text = self.fast.tokenize(
            "She wrote a long letter to her brother, who had moved to another city. Mountains, forests and fields "
            "cover most of the land; the coast is flat and sandy."
        )
        self.chunks = [text[:17], text[17:40]]
        self.questions = [*plan_questions(FACTS, rank_candidates=4), *plan_set(SET, first_fact=len(FACTS))]

    def close(self) -> None:
        self.fast.close()
        self.original.close()


@pytest.fixture(scope="module", params=["F32", "Q8_0", "Q4_K_M"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    pair = Both(tmp_path_factory.mktemp("both"), request.param)
    yield pair
    pair.close()


def everything(
    scorer: ScoresDeeper, original: ScoresDeeper, questions: list[Question], chunks: list[list[int]]
) -> FileScores:
    scores = ask(scorer, questions, chunks, max_new_tokens=4, longest_text=16)
    scores = with_memorisation(scorer, questions, scores)
    scores = with_membership(scorer, questions, scores)
    return with_divergence(scorer, scores, chunks, top_tokens(original, chunks))


@pytest.fixture(scope="module")
def fast(both: Both) -> FileScores:
    return everything(both.fast, both.original, both.questions, both.chunks)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slow(both: Both) -> FileScores:
    return everything(both.slow, both.slow_original, both.questions, both.chunks)  # type: ignore[arg-type]


def test_every_option_of_every_question(fast: FileScores, slow: FileScores) -> None:
    assert {item.form for item in fast.items} == {"cloze", "choice"}
    for ours, theirs in zip(fast.items, slow.items, strict=True):
        assert ours.sha256 == theirs.sha256
        assert ours.option_log_probabilities == pytest.approx(theirs.option_log_probabilities, abs=NATS)
        assert ours.option_tokens == theirs.option_tokens


def test_ranks_of_all_candidates(fast: FileScores, slow: FileScores) -> None:
    assert len(fast.ranks) == 4
    for ours, theirs in zip(fast.ranks, slow.ranks, strict=True):
        assert ours.key == theirs.key
        for mine, other in zip(ours.log_probabilities, theirs.log_probabilities, strict=True):
            assert mine == pytest.approx(other, abs=NATS)


def test_greedy_texts_and_what_they_hold(fast: FileScores, slow: FileScores) -> None:
    asked = [item for item in fast.items if item.generated_sha256]
    assert len(asked) == 2 * 2 + 2
    for ours, theirs in zip(fast.items, slow.items, strict=True):
        assert (ours.generated_sha256, ours.contained) == (theirs.generated_sha256, theirs.contained)
        assert ours.rouge_l == theirs.rouge_l


def test_memorisation(fast: FileScores, slow: FileScores) -> None:
    asked = [(a, b) for a, b in zip(fast.items, slow.items, strict=True) if a.argmax is not None]
    assert len(asked) == len([item for item in fast.items if item.form == "cloze"])
    for ours, theirs in asked:
        assert ours.argmax == theirs.argmax
        assert len(ours.argmax or ()) == ours.option_tokens[0]


def test_truth_ratio_and_answer_probability(fast: FileScores, slow: FileScores) -> None:
    (ours,) = (item for item in fast.items if item.paraphrase is not None)
    (theirs,) = (item for item in slow.items if item.paraphrase is not None)
    assert ours.paraphrase is not None
    assert theirs.paraphrase is not None
    assert ours.paraphrase[0] == pytest.approx(theirs.paraphrase[0], abs=NATS)
    assert ours.truth_ratio == pytest.approx(theirs.truth_ratio, rel=1e-3)
    assert ours.answer_probability == pytest.approx(theirs.answer_probability, rel=1e-3)


def test_membership(fast: FileScores, slow: FileScores) -> None:
    asked = [(a, b) for a, b in zip(fast.items, slow.items, strict=True) if a.min_k is not None]
    assert len(asked) == len(FACTS) + len(SET)
    for ours, theirs in asked:
        assert ours.min_k == pytest.approx(theirs.min_k, abs=NATS)
        assert ours.min_k_plus_plus == pytest.approx(theirs.min_k_plus_plus, abs=NATS)


def test_perplexity_and_divergence_of_each_chunk(both: Both, fast: FileScores, slow: FileScores) -> None:
    assert fast.chunk_tokens == (16, len(both.chunks[1]) - 1)
    per_token = [nats / 16 for nats in fast.chunk_nats], [nats / 16 for nats in slow.chunk_nats]
    assert per_token[0] == pytest.approx(per_token[1], abs=NATS)
    assert fast.chunk_divergences == pytest.approx(slow.chunk_divergences, abs=NATS * 16)
    assert fast.divergence > 0.001  # two random models: something to be seen


def test_every_group_follows(fast: FileScores, slow: FileScores) -> None:
    for ours, theirs in zip(fast.groups, slow.groups, strict=True):
        assert ours.key == theirs.key
        assert ours.accuracy == theirs.accuracy
        assert ours.extraction_strength == theirs.extraction_strength
        assert ours.answer_log_probability == pytest.approx(theirs.answer_log_probability, abs=NATS)
    verbatim = [item for item in fast.items if not item.is_choice]
    assert len(verbatim) == 1
    assert verbatim[0].truth_ratio is None


def test_the_original_must_have_been_read_on_the_same_text(both: Both, fast: FileScores) -> None:
    with pytest.raises(EvaluationError, match="2 chunks of text, but the original was read on 1"):
        with_divergence(both.fast, fast, both.chunks, top_tokens(both.original, both.chunks[:1]))


def test_a_file_does_not_diverge_from_itself(both: Both, fast: FileScores) -> None:
    same = with_divergence(both.fast, fast, both.chunks, top_tokens(both.fast, both.chunks))
    assert same.divergence == pytest.approx(0, abs=1e-6)
    assert math.isnan(ask(both.fast, [], both.chunks, max_new_tokens=1).divergence)
