"""The chance-level target (ours): what the original says of an answer when asked about somebody else.

What counts is how far an answer stands out among the answers of its relation: its log-probability minus the
mean log-probability of the others' first tokens, after the same prompt. The target is that difference in the
original, averaged over *other* subjects. At the target the prompt's subject tells nothing of its answer. An
absolute target would not do: a model can reach it by making every answer of the relation less likely, and
still rank its own first.

Shapes: E examples, A answer tokens of one example, K first tokens of a relation's answers, V vocabulary.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import Batch, answer_batch, answer_log_probability, log_probabilities


def _with_answer(prompt: Example, answer: Sequence[int]) -> Example:
    return Example((*prompt.prompt, *answer), prompt.answer_start, prompt.fact, prompt.phrasing)


@dataclass(frozen=True)
class Rivals:
    """What each example's answer is compared with.

    tokens: int64 [K], first tokens of all answers. weights: float32 [E, K], uniform over the first tokens of
    the other answers of the example's relation and split; all zero where there is none.
    """

    tokens: torch.Tensor
    weights: torch.Tensor


def build_rivals(facts: Sequence[Fact], examples: Sequence[Example]) -> Rivals:
    """Rivals of ``examples``, which all are taken from the same split."""
    by_relation: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        by_relation[facts[example.fact].relation].add(example.answer[0])
    tokens = sorted(set().union(*by_relation.values()))
    weights = torch.zeros(len(examples), len(tokens))
    for row, example in enumerate(examples):
        others = by_relation[facts[example.fact].relation] - {example.answer[0]}
        for token in others:
            weights[row, tokens.index(token)] = 1.0 / len(others)
    return Rivals(torch.tensor(tokens), weights)


def standing(log_probs: torch.Tensor, batch: Batch, rivals: Rivals, chosen: Sequence[int]) -> torch.Tensor:
    """How far each answer stands out, nats, [sequences]; ``chosen``: their rows in ``rivals``."""
    first = torch.searchsorted(batch.rows, torch.arange(batch.sequences))
    others = (log_probs[first][:, rivals.tokens] * rivals.weights[chosen]).sum(dim=-1)
    return answer_log_probability(log_probs, batch) - others


def unknown_subject_targets(
    model: Any,
    facts: Sequence[Fact],
    forget: Sequence[Example],
    rivals: Rivals,
    pool: Sequence[Example],
    *,
    first_token_subjects: int,
    later_token_subjects: int,
    seed: int,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """The target of :func:`standing` for every example of ``forget``, float32 [E], nats.

    ``pool``: examples whose subjects stand in; those of the same relation and phrasing are used, never the
    example's own fact (for the first token, whose average all examples share, one fact in many is not worth a
    pass of its own). The first token is averaged over more subjects than the later ones: it is one pass for
    all examples together.
    """
    generator = random.Random(seed)
    pools: dict[tuple[str, int], list[Example]] = defaultdict(list)
    for example in pool:
        pools[(facts[example.fact].relation, example.phrasing)].append(example)

    @torch.no_grad()
    def scored(examples: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities at every answer position of ``examples``, [positions, V]"""
        return log_probabilities(model, answer_batch(examples))

    firsts: dict[tuple[str, int], torch.Tensor] = {}
    targets = []
    for row, example in enumerate(forget):
        key = (facts[example.fact].relation, example.phrasing)
        others = [other for other in pools[key] if other.fact != example.fact]
        if not others:
            fact = facts[example.fact]
            raise InputError(
                f"nobody else is asked about {fact.relation!r} as in {fact.prompts[example.phrasing]!r}, needed at "
                "least one other subject: chance is what the model says of others",
                hint="add facts of the same relation with the same phrasings, or set unlearn.objective to npo",
            )
        if key not in firsts:
            drawn = generator.sample(others, min(first_token_subjects, len(others)))
            parts = [
                scored([_with_answer(other, other.answer[:1]) for other in drawn[start : start + batch_size]])
                for start in range(0, len(drawn), batch_size)
            ]
            firsts[key] = torch.cat(parts).mean(dim=0)  # [V]
        average = firsts[key]
        target = average[example.answer[0]] - (average[rivals.tokens] * rivals.weights[row]).sum()
        if len(example.answer) > 1:
            drawn = generator.sample(others, min(later_token_subjects, len(others)))
            log_probs = scored([_with_answer(other, example.answer) for other in drawn])
            log_probs = log_probs.reshape(len(drawn), len(example.answer), -1)[:, 1:]
            later = torch.tensor(example.answer[1:])[None, :, None].expand(len(drawn), -1, 1)
            target = target + log_probs.gather(-1, later).mean(dim=0).sum()
        targets.append(target)
        progress(1)
    return torch.stack(targets)
