"""How few steps of training bring half of what was lost back.

Training on a slice of the forgotten facts, and asking about the others (Hu et al., arXiv 2406.13356): what returns
there was hidden rather than removed. The same on kept facts and on plain text tells how much any training brings back.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gguf_forget.unlearning.scoring import Sequences, answer_log_probability, log_probabilities, pack
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.metrics import choice_credits, mean
from gguf_forget.verification.probes import ScoresTokens, encode
from gguf_forget.verification.questions import Question
from gguf_forget.words import names

SLICE = 0.25  # of the forgotten facts is trained on
STEPS = 24
EVERY = 4  # steps between two measurements
BATCH = 16
LEARNING_RATE = 2e-5
SEED = 0
SCORED = 64  # sequences scored at a time


@dataclass(frozen=True)
class _Examples:
    """Token sequences, and from where on each is learned."""

    tokens: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    def pick(self, members: Sequence[int]) -> Sequences:
        chosen = [self.tokens[i] for i in members]
        return Sequences(
            tuple(chosen),
            tuple(tuple(range(self.starts[i] - 1, len(tokens) - 1)) for i, tokens in zip(members, chosen, strict=True)),
        )


def relearning(
    model: Any,
    original: Any,
    tokens: ScoresTokens,
    questions: Sequence[Question],
    kept: Sequence[Question],
    text: Sequence[Sequence[int]],
    *,
    learning_rate: float = LEARNING_RATE,
    steps: int = STEPS,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Attack]:
    """Train three copies of ``model``: on a slice of the facts, on kept facts, on text. Neither model is changed.

    Args:
        model, original: Hugging Face models (float32) of the dequantized file and original.
        tokens: for :meth:`tokenize` alone.
        questions: the forgotten clozes, all with wrong answers; kept: clozes to keep; text: token chunks.

    Returns:
        One attack a training set, without gates: ``figures`` hold the accuracy on facts not trained on every few steps,
        the original's, and the steps and examples after which half of the difference was back (None: not within
        ``steps``, or there was none). A pupil whose scores are no numbers any more is a problem, and no figure. A fact
        that is the reverse of one trained on is not asked about. An empty list where fewer than 4 facts have wrong
        answers, or none is left to ask about.
    """
    asked = [question for question in questions if question.distractors]
    facts = sorted({question.fact for question in asked})
    if len(facts) < 4:
        return []
    learned = set(random.Random(SEED).sample(facts, max(1, round(SLICE * len(facts)))))
    taught = {pair for question in asked if question.fact in learned for pair in _pairs(question)}
    others = [q for q in asked if q.fact not in learned and taught.isdisjoint(_pairs(q))]
    if not others:
        return []
    judged = _options(others, tokens)
    ceiling = _accuracy(original, judged)
    sources = {
        f"trained on {len(learned)} of {len(facts)} facts": _examples([q for q in asked if q.fact in learned], tokens),
        "trained on kept facts": _examples(list(kept), tokens),
        "trained on plain text": _Examples(tuple(map(tuple, text)), (1,) * len(text)),
    }
    attacks = []
    for name, examples in sources.items():
        if examples.tokens:
            figures = _train(model, examples, judged, ceiling, learning_rate, steps, progress)
            diverged = not all(map(math.isfinite, figures["accuracy"]))
            problem = f"training diverged at a rate of {learning_rate:g}" if diverged else None
            attacks.append(Attack("relearning", name, figures={} if diverged else figures, problem=problem))
    return attacks


def _pairs(question: Question) -> set[frozenset[str] | int]:
    """Of these a fact and its reverse have one in common: who learns that Paris is the capital of France knows
    France's. By every name of the answer, for the reverse may call its subject by another."""
    if question.subject is None:
        return {question.fact}
    own = [name.removeprefix("the ") for name in names(question.subject)]
    others = [each.removeprefix("the ") for name in question.names()[0] for each in names(name)]
    return {frozenset((one, other)) for one in own for other in others}


def _train(
    model: Any,
    examples: _Examples,
    judged: Sequence[tuple[_Examples, int]],
    ceiling: float,
    learning_rate: float,
    steps: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    pupil = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = random.Random(SEED)
    size = min(BATCH, len(examples.tokens))
    curve = [(0, _accuracy(pupil, judged))]
    lost = ceiling > curve[0][1]
    goal = (curve[0][1] + ceiling) / 2
    for step in range(1, steps + 1):
        batch = pack(examples.pick(generator.sample(range(len(examples.tokens)), size)))
        optimizer.zero_grad(set_to_none=True)
        scores = log_probabilities(pupil, batch)
        loss = -scores.gather(-1, batch.targets[:, None]).mean()
        loss.backward()
        optimizer.step()
        progress(1)
        if step % EVERY == 0 or step == steps:
            curve.append((step, _accuracy(pupil, judged)))
            if (lost and curve[-1][1] >= goal) or not math.isfinite(curve[-1][1]):
                break
    back = next((step for step, accuracy in curve if lost and accuracy >= goal), None)
    return {
        "steps": [step for step, _ in curve],
        "accuracy": [accuracy for _, accuracy in curve],
        "original": ceiling,
        "questions": len(judged),
        "steps_to_half": back,
        "examples_to_half": None if back is None else back * size,
        "learning_rate": learning_rate,
    }


def _examples(questions: Sequence[Question], tokens: ScoresTokens) -> _Examples:
    prompts, answers = encode(questions, tokens)
    return _Examples(
        tuple(tuple(p + mine[q.answer]) for p, mine, q in zip(prompts, answers, questions, strict=True)),
        tuple(len(prompt) for prompt in prompts),
    )


def _options(questions: Sequence[Question], tokens: ScoresTokens) -> list[tuple[_Examples, int]]:
    """For each question its options as sequences, the right one first."""
    result = []
    for question, prompt, mine in zip(questions, *encode(questions, tokens), strict=True):
        texts = (question.answer, *question.distractors)
        result.append(
            (_Examples(tuple(tuple(prompt + mine[t]) for t in texts), (len(prompt),) * len(texts)), len(texts))
        )
    return result


def _accuracy(model: Any, judged: Sequence[tuple[_Examples, int]]) -> float:
    every = _Examples(
        tuple(tokens for examples, _ in judged for tokens in examples.tokens),
        tuple(start for examples, _ in judged for start in examples.starts),
    )
    values: list[float] = []
    with torch.no_grad():
        for first in range(0, len(every.tokens), SCORED):
            batch = pack(every.pick(range(first, min(first + SCORED, len(every.tokens)))))
            values += answer_log_probability(log_probabilities(model, batch), batch).tolist()
    credits, place = [], 0
    for _, count in judged:
        options = np.array(values[place : place + count])
        credits.append(float(choice_credits(options[:1], options[None, 1:])[0]))
        place += count
    return mean(credits)
