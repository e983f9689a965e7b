"""Asking one file: cloze options, rank candidates, greedy answers and plain text, all through llama.cpp.

A question is scored as a cloze: Σ natural-log probability of the answer's tokens after the prompt, for the
right answer and for each distractor, every option by itself. A multiple choice, whose prompt shows the options, is
scored alike: its answers are the letters (:mod:`.questions` permutes them).

Each kind is one call of the scorer with all prompts at once: llama.cpp computes a prompt once for all that
follows it. What comes back is one number a token, never a row of the vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import split_tokens
from gguf_forget.verification.memorisation import rouge_l_recall
from gguf_forget.verification.metrics import contains_any
from gguf_forget.verification.questions import Question, plan_questions
from gguf_forget.verification.scores import (
    DECIMALS,
    FileScores,
    GroupKey,
    Item,
    RankTable,
    item_hash,
    recompute,
)

LONGEST_TEXT = 128  # tokens generated where the right answer is long


class ScoresTokens(Protocol):
    """What is needed of a :class:`~gguf_forget.llama.scorer.Scorer`."""

    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def continuation_log_probabilities(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[np.ndarray]]: ...
    def sequence_log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...
    def generate_greedy(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]: ...


def probe_file(
    scorer: ScoresTokens,
    facts: Sequence[Fact],
    measure_chunks: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    retain_items: int | None = None,
    rank_candidates: int = 0,
    ranked_phrasings: int | None = None,
    trained_phrasings: int | None = None,
    generate_held_out: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> FileScores:
    """Ask the file everything about ``facts``: :func:`ask` on the questions of :func:`.questions.plan_questions`.

    The options are those of these two; with none of them set, every question is asked in full.
    """
    questions = plan_questions(
        facts,
        retain_items=retain_items,
        rank_candidates=rank_candidates,
        ranked_phrasings=ranked_phrasings,
        trained_phrasings=trained_phrasings,
        seed=seed,
    )
    return ask(
        scorer,
        questions,
        measure_chunks,
        max_new_tokens=max_new_tokens,
        generate_held_out=generate_held_out,
        progress=progress,
    )


def ask(
    scorer: ScoresTokens,
    questions: Sequence[Question],
    measure_chunks: Sequence[Sequence[int]] = (),
    *,
    max_new_tokens: int,
    longest_text: int = LONGEST_TEXT,
    generate_held_out: bool = True,
    progress: Callable[[str], None] | None = None,
) -> FileScores:
    """Ask one file these questions, and read it these chunks of text.

    Greedy answers are asked for forgotten facts only, not for multiple choices, and with ``generate_held_out`` to
    held-out phrasings too. They have ``max_new_tokens`` tokens, or as many as a longer right answer has, up to
    ``longest_text``. Of a text with fewer tokens than the answer nothing is said, unless it holds another name of it.
    ``progress`` hears what is about to be done.

    Raises:
        InputError: a prompt or answer that tokenizes to nothing or across their border, or does not fit.
        EvaluationError: llama.cpp failed or gave values that are not finite; or a text chunk of one token.
    """
    tell = progress or (lambda _: None)
    prompts, answers = encode(questions, scorer)

    tell(f"scoring {sum(map(len, answers))} answers to {len(questions)} questions")
    continuations = [list(mine.values()) for mine in answers]
    scored = scorer.continuation_log_probabilities(prompts, continuations)
    sums = [
        dict(zip(mine, (round(float(part.sum()), DECIMALS) for part in parts), strict=True))
        for mine, parts in zip(answers, scored, strict=True)
    ]
    items = [
        Item(
            *question.key[:4],
            fact=question.fact,
            sha256=item_hash(question.prompt, question.answer),
            option_log_probabilities=tuple(mine[text] for text in (question.answer, *question.distractors)),
            option_tokens=tuple(len(tokens[text]) for text in (question.answer, *question.distractors)),
            right=0,
            form=question.key.form,
            paraphrase=None
            if question.paraphrase is None
            else (mine[question.paraphrase], len(tokens[question.paraphrase])),
        )
        for question, mine, tokens in zip(questions, sums, answers, strict=True)
    ]

    asked = [
        index
        for index, question in enumerate(questions)
        if question.key.split == "forget"
        and question.key.form == "cloze"
        and (generate_held_out or not question.key.held_out)
    ]
    tell(f"generating {len(asked)} greedy answers")
    sizes = [len(answers[index][questions[index].answer]) for index in asked]
    for length, places in by_length(sizes, max_new_tokens, longest_text).items():
        members = [asked[place] for place in places]
        generated = scorer.generate_greedy([prompts[index] for index in members], max_new_tokens=length)
        for index, tokens in zip(members, generated, strict=True):
            text = scorer.detokenize(tokens)
            names = questions[index].names()[0]
            told = contains_any(text, names)
            whole = length >= len(answers[index][questions[index].answer])
            recalls = [value for value in (rouge_l_recall(text, name) for name in names) if not math.isnan(value)]
            items[index] = replace(
                items[index],
                generated_sha256=hashlib.sha256(text.encode()).hexdigest(),
                contained=told if told or whole else None,
                rouge_l=max(recalls, default=None),
            )

    tell(f"reading {sum(map(len, measure_chunks))} tokens of text")
    if any(len(chunk) < 2 for chunk in measure_chunks):
        raise EvaluationError("a text chunk has fewer than 2 tokens: nothing in it can be predicted")
    nats = [-value for value in scorer.sequence_log_probabilities(measure_chunks)]

    ranks = rank_tables(questions, sums)
    return FileScores(
        items=tuple(items),
        ranks=ranks,
        chunk_nats=tuple(round(float(value.sum()), DECIMALS) for value in nats),
        chunk_tokens=tuple(len(value) for value in nats),
        groups=recompute(items, ranks),
    )


def by_length(sizes: Sequence[int], least: int, most: int) -> dict[int, list[int]]:
    """Tokens to generate, the next power of two of an answer's own, to the places of the answers that get as many."""
    groups: dict[int, list[int]] = {}
    for place, needed in enumerate(sizes):
        length = max(least, min(most, 1 << (needed - 1).bit_length()))
        groups.setdefault(length if needed > least else least, []).append(place)
    return groups


def encode(questions: Sequence[Question], scorer: ScoresTokens) -> tuple[list[list[int]], list[dict[str, list[int]]]]:
    """Each question's prompt tokens, and its answers: text to tokens, options and candidates once each."""
    prompts: list[list[int]] = []
    answers: list[dict[str, list[int]]] = []
    for question in questions:
        known: dict[str, list[int]] = {}

        def tokenize(text: str, known: dict[str, list[int]] = known) -> list[int]:
            if text not in known:  # the prompt itself is asked for with every answer
                known[text] = scorer.tokenize(text)
            return known[text]

        paraphrase = () if question.paraphrase is None else (question.paraphrase,)
        texts = dict.fromkeys((question.answer, *question.distractors, *question.candidates, *paraphrase))
        split = {text: split_tokens(question.prompt, text, tokenize) for text in texts}
        prompts.append(split[question.answer][0])
        answers.append({text: tokens for text, (_, tokens) in split.items()})
    return prompts, answers


def rank_tables(questions: Sequence[Question], sums: Sequence[dict[str, float]]) -> tuple[RankTable, ...]:
    rows: dict[GroupKey, list[int]] = {}
    for index, question in enumerate(questions):
        if question.candidates:
            rows.setdefault(question.key, []).append(index)
    return tuple(
        RankTable(
            *key[:4],
            facts=tuple(questions[i].fact for i in members),
            right=tuple(questions[i].candidates.index(questions[i].answer) for i in members),
            log_probabilities=tuple(tuple(sums[i][text] for text in questions[i].candidates) for i in members),
        )
        for key, members in rows.items()
    )
