"""Asking one file: cloze options, rank candidates, greedy answers and plain text, all through llama.cpp.

A question is scored as a cloze: Σ natural-log probability of the answer's tokens after the prompt, for the
right answer and for each distractor, every option by itself. The order of the options is never shown to the
model, so there is nothing to permute.

Each kind is one call of the scorer with all prompts at once: llama.cpp computes a prompt once for all that
follows it. What comes back is one number a token, never a row of the vocabulary.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from gguf_forget.errors import EvaluationError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import split_tokens
from gguf_forget.verification.metrics import contains_answer
from gguf_forget.verification.scores import (
    DECIMALS,
    FileScores,
    GroupKey,
    Item,
    RankTable,
    item_hash,
    recompute,
)


class ScoresTokens(Protocol):
    """What is needed of a :class:`~gguf_forget.llama.scorer.Scorer`."""

    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def continuation_log_probabilities(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[np.ndarray]]: ...
    def sequence_log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...
    def generate_greedy(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class Question:
    """One phrasing of one fact. ``candidates``, some of them options too, are for the rank score."""

    key: GroupKey
    fact: int
    prompt: str
    answer: str
    distractors: tuple[str, ...]
    candidates: tuple[str, ...]


def plan_questions(
    facts: Sequence[Fact],
    *,
    retain_items: int | None = None,
    rank_candidates: int = 0,
    ranked_phrasings: int | None = None,
    trained_phrasings: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """Every phrasing of every fact to forget, and of a seeded sample of those to keep; groups one by one.

    Args:
        retain_items: most subjects asked about in each phrasing of a kept relation, another sample for each
            phrasing; None: all.
        rank_candidates: most subjects, and so most candidates, of the rank score of a kept relation; below 2
            none is taken. Forgotten relations are always ranked in full.
        ranked_phrasings: most trained phrasings of a forgotten relation that are ranked, the first ones; None: all.
            Held-out phrasings always are.
        trained_phrasings: most trained phrasings of a relation that are asked, the first ones; None: all.
            Held-out phrasings are always asked.
        seed: of the samples. The same facts, caps and seed give the same questions for every file.
    """
    relations: dict[tuple[str, str], list[int]] = {}
    for index, fact in enumerate(facts):
        relations.setdefault((fact.relation, fact.split), []).append(index)
    questions: list[Question] = []
    for (relation, split), members in relations.items():
        for held_out in (False, True):
            count = max(len(facts[index].phrasings(held_out)) for index in members)
            if not held_out and trained_phrasings is not None:
                count = min(count, trained_phrasings)
            for phrasing in range(count):
                key = GroupKey(relation, split, held_out, phrasing)
                asked = [i for i in members if phrasing < len(facts[i].phrasings(held_out))]
                ranked = asked if held_out or ranked_phrasings is None or phrasing < ranked_phrasings else []
                if split == "retain":
                    order = random.Random(f"{seed}/{key}").sample(asked, len(asked))
                    asked = sorted(order[:retain_items])
                    ranked = [i for i in order[:retain_items][:rank_candidates] if rank_candidates > 1]
                candidates = tuple(dict.fromkeys(facts[i].answer for i in sorted(ranked)))
                questions += [
                    Question(
                        key,
                        i,
                        facts[i].phrasings(held_out)[phrasing],
                        facts[i].answer,
                        facts[i].distractors,
                        candidates if i in ranked and len(candidates) > 1 else (),
                    )
                    for i in asked
                ]
    return questions


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
    """Ask the file everything.

    Greedy answers are asked for forgotten facts only, with ``generate_held_out`` to held-out phrasings too.
    ``progress`` hears what is about to be done. The other options are those of :func:`plan_questions`: with
    none of them set, every question is asked in full.

    Raises:
        InputError: a prompt or answer that tokenizes to nothing or across their border, or does not fit.
        EvaluationError: llama.cpp failed or gave values that are not finite; or a text chunk of one token.
    """
    tell = progress or (lambda _: None)
    questions = plan_questions(
        facts,
        retain_items=retain_items,
        rank_candidates=rank_candidates,
        ranked_phrasings=ranked_phrasings,
        trained_phrasings=trained_phrasings,
        seed=seed,
    )
    prompts, answers = _encode(questions, scorer)

    tell(f"scoring {sum(map(len, answers))} answers to {len(questions)} questions")
    continuations = [list(mine.values()) for mine in answers]
    scored = scorer.continuation_log_probabilities(prompts, continuations)
    sums = [
        dict(zip(mine, (round(float(part.sum()), DECIMALS) for part in parts), strict=True))
        for mine, parts in zip(answers, scored, strict=True)
    ]
    items = [
        Item(
            *question.key,
            fact=question.fact,
            sha256=item_hash(question.prompt, question.answer),
            option_log_probabilities=tuple(mine[text] for text in (question.answer, *question.distractors)),
            option_tokens=tuple(len(tokens[text]) for text in (question.answer, *question.distractors)),
            right=0,
        )
        for question, mine, tokens in zip(questions, sums, answers, strict=True)
    ]

    asked = [
        index
        for index, question in enumerate(questions)
        if question.key.split == "forget" and (generate_held_out or not question.key.held_out)
    ]
    tell(f"generating {len(asked)} greedy answers")
    generated = scorer.generate_greedy([prompts[index] for index in asked], max_new_tokens=max_new_tokens)
    for index, tokens in zip(asked, generated, strict=True):
        text = scorer.detokenize(tokens)
        items[index] = replace(
            items[index],
            generated_sha256=hashlib.sha256(text.encode()).hexdigest(),
            contained=contains_answer(text, questions[index].answer),
        )

    tell(f"reading {sum(map(len, measure_chunks))} tokens of text")
    if any(len(chunk) < 2 for chunk in measure_chunks):
        raise EvaluationError("a text chunk has fewer than 2 tokens: nothing in it can be predicted")
    nats = [-value for value in scorer.sequence_log_probabilities(measure_chunks)]

    ranks = _rank_tables(questions, sums)
    return FileScores(
        items=tuple(items),
        ranks=ranks,
        chunk_nats=tuple(round(float(value.sum()), DECIMALS) for value in nats),
        chunk_tokens=tuple(len(value) for value in nats),
        groups=recompute(items, ranks),
    )


def _encode(questions: Sequence[Question], scorer: ScoresTokens) -> tuple[list[list[int]], list[dict[str, list[int]]]]:
    """Each question's prompt tokens, and its answers: text to tokens, options and candidates once each."""
    prompts: list[list[int]] = []
    answers: list[dict[str, list[int]]] = []
    for question in questions:
        known: dict[str, list[int]] = {}

        def tokenize(text: str, known: dict[str, list[int]] = known) -> list[int]:
            if text not in known:  # the prompt itself is asked for with every answer
                known[text] = scorer.tokenize(text)
            return known[text]

        texts = dict.fromkeys((question.answer, *question.distractors, *question.candidates))
        split = {text: split_tokens(question.prompt, text, tokenize) for text in texts}
        prompts.append(split[question.answer][0])
        answers.append({text: tokens for text, (_, tokens) in split.items()})
    return prompts, answers


def _rank_tables(questions: Sequence[Question], sums: Sequence[dict[str, float]]) -> tuple[RankTable, ...]:
    rows: dict[GroupKey, list[int]] = {}
    for index, question in enumerate(questions):
        if question.candidates:
            rows.setdefault(question.key, []).append(index)
    return tuple(
        RankTable(
            *key,
            facts=tuple(questions[i].fact for i in members),
            right=tuple(questions[i].candidates.index(questions[i].answer) for i in members),
            log_probabilities=tuple(tuple(sums[i][text] for text in questions[i].candidates) for i in members),
        )
        for key, members in rows.items()
    )
