"""What is asked beside the answers' probabilities: memorisation, membership, and distance from the original.

Each function takes the scores of :func:`.probes.ask` and returns them with more measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.divergence import truncated_divergence
from gguf_forget.verification.membership import min_k, min_k_plus_plus
from gguf_forget.verification.probes import ScoresTokens, encode
from gguf_forget.verification.questions import Question
from gguf_forget.verification.scores import DECIMALS, FileScores, recompute

TOP_TOKENS = 64  # of each position of the text, kept for the divergence


class TopTokens(Protocol):
    """What the scorer expected at each position; see :class:`~gguf_forget.llama.scorer.TopLogProbabilities`."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def log_probabilities(self) -> np.ndarray: ...
    @property
    def mean(self) -> np.ndarray: ...
    @property
    def variance(self) -> np.ndarray: ...


class ScoresDeeper(ScoresTokens, Protocol):
    """What is needed of a :class:`~gguf_forget.llama.scorer.Scorer` here."""

    def continuation_argmax(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> Sequence[Sequence[np.ndarray]]: ...
    def top_log_probabilities(self, sequences: Sequence[Sequence[int]], *, k: int) -> Sequence[TopTokens]: ...


def with_memorisation(scorer: ScoresDeeper, questions: Sequence[Question], scores: FileScores) -> FileScores:
    """For the right answer of every cloze, whether each of its tokens is the teacher-forced argmax."""
    chosen = [i for i, question in enumerate(questions) if question.key.form == "cloze"]
    prompts, answers = encode([questions[i] for i in chosen], scorer)
    right = [[mine[questions[i].answer]] for i, mine in zip(chosen, answers, strict=True)]
    items = list(scores.items)
    for i, parts in zip(chosen, scorer.continuation_argmax(prompts, right), strict=True):
        items[i] = replace(items[i], argmax=tuple(bool(match) for match in parts[0]))
    return replace(scores, items=tuple(items), groups=recompute(items, scores.ranks))


def with_membership(scorer: ScoresDeeper, questions: Sequence[Question], scores: FileScores) -> FileScores:
    """Min-K % and Min-K %++ of prompt and answer as one text, for the first cloze of each fact."""
    first: dict[int, int] = {}
    for i, question in enumerate(questions):
        if question.key.form == "cloze":
            first.setdefault(question.fact, i)
    chosen = list(first.values())
    prompts, answers = encode([questions[i] for i in chosen], scorer)
    texts = [prompt + mine[questions[i].answer] for i, prompt, mine in zip(chosen, prompts, answers, strict=True)]
    values = scorer.sequence_log_probabilities(texts)
    expected = scorer.top_log_probabilities(texts, k=1)
    items = list(scores.items)
    for i, value, top in zip(chosen, values, expected, strict=True):
        items[i] = replace(
            items[i],
            min_k=round(min_k(value), DECIMALS),
            min_k_plus_plus=round(min_k_plus_plus(value, top.mean, top.variance), DECIMALS),
        )
    return replace(scores, items=tuple(items), groups=recompute(items, scores.ranks))


def top_tokens(scorer: ScoresDeeper, chunks: Sequence[Sequence[int]]) -> list[TopTokens]:
    """The 64 most probable tokens at each position of each chunk: what is kept of the original's distributions."""
    return list(scorer.top_log_probabilities(chunks, k=TOP_TOKENS))


def with_divergence(
    scorer: ScoresDeeper, scores: FileScores, chunks: Sequence[Sequence[int]], original: Sequence[TopTokens]
) -> FileScores:
    """Truncated KL from the original (its :func:`top_tokens` on the same chunks) to this file, for each chunk."""
    if len(original) != len(chunks):
        raise EvaluationError(f"{len(chunks)} chunks of text, but the original was read on {len(original)}")
    sums = [
        truncated_divergence(theirs.tokens, theirs.log_probabilities, mine.tokens, mine.log_probabilities).sum()
        for theirs, mine in zip(original, top_tokens(scorer, chunks), strict=True)
    ]
    return replace(scores, chunk_divergences=tuple(round(float(value), DECIMALS) for value in sums))
