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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import (
    Batch,
    Sequences,
    answer_log_probability,
    answers,
    log_probabilities,
    pack,
)

MOST_POSITIONS = 1024  # scored at once: for each of them a row of the vocabulary is in memory


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

    def to(self, device: torch.device) -> Rivals:
        return Rivals(self.tokens.to(device), self.weights.to(device))


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


def first_positions(batch: Batch) -> torch.Tensor:
    """Where among the scored positions each answer begins, int64 [sequences]."""
    return torch.searchsorted(batch.rows, torch.arange(batch.sequences, device=batch.rows.device))


def standing(log_probs: torch.Tensor, batch: Batch, rivals: Rivals, chosen: Sequence[int]) -> torch.Tensor:
    """How far each answer stands out, nats, [sequences]; ``chosen``: their rows in ``rivals``."""
    others = (log_probs[first_positions(batch)][:, rivals.tokens] * rivals.weights[chosen]).sum(dim=-1)
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
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """The target of :func:`standing` for every example of ``forget``, float32 [E], nats.

    ``pool``: examples whose subjects stand in, each once; those of the same relation and phrasing are used, never the
    example's own: one more is drawn than is averaged over, so that it can be left out. The first token is
    averaged over more subjects than the later ones, which cost a pass for each answer.
    """
    generator = random.Random(seed)
    rivals = rivals.to(model.device)
    asking: dict[tuple[str, int], dict[tuple[str, tuple[int, ...]], Example]] = defaultdict(dict)
    for example in pool:  # who has several answers is asked once
        who = facts[example.fact].subject, example.prompt
        asking[(facts[example.fact].relation, example.phrasing)].setdefault(who, example)
    pools = {key: list(each.values()) for key, each in asking.items()}
    asked: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, example in enumerate(forget):
        asked[(facts[example.fact].relation, example.phrasing)].append(row)

    @torch.no_grad()
    def scored(sequences: Sequences) -> Iterator[tuple[torch.Tensor, Batch]]:
        """Log-probabilities at every scored position, [positions, V], and their batch, part by part."""
        longest = max(map(len, sequences.scored), default=0)
        size = max(1, min(batch_size, MOST_POSITIONS // max(1, longest)))
        for start in range(0, len(sequences), size):
            part = slice(start, start + size)
            batch = pack(Sequences(sequences.tokens[part], sequences.scored[part])).to(model.device)
            yield log_probabilities(model, batch), batch

    def stranger(other: Example, row: int) -> bool:
        """Another answer of the same subject tells of it, too."""
        return facts[other.fact].subject != facts[forget[row].fact].subject

    def drawn_for(key: tuple[str, int], rows: Sequence[int], count: int) -> list[Example]:
        """One more than ``count``, and a stranger to each row, if there is any."""
        drawn = generator.sample(pools[key], min(count + 1, len(pools[key])))
        for row in rows:
            if not any(stranger(other, row) for other in drawn):
                drawn += [other for other in pools[key] if stranger(other, row)][:1]
        return drawn

    targets = torch.zeros(len(forget))
    for key, rows in asked.items():
        drawn = drawn_for(key, rows, first_token_subjects)
        firsts = answers([_with_answer(other, other.answer[:1]) for other in drawn])
        found = torch.cat([log_probs for log_probs, _ in scored(firsts)])  # [subjects, V]
        for row in rows:
            others = [i for i, other in enumerate(drawn) if stranger(other, row)][:first_token_subjects]
            if not others:
                raise _nobody_else(facts[forget[row].fact], forget[row].phrasing)
            average = found[others].mean(dim=0)  # [V]
            targets[row] = average[forget[row].answer[0]] - (average[rivals.tokens] * rivals.weights[row]).sum()

        stand_ins = drawn_for(key, rows, later_token_subjects)
        owners: list[int] = []
        later = answers([])
        for row in rows:
            answer = forget[row].answer
            strangers = [other for other in stand_ins if stranger(other, row)][:later_token_subjects]
            if len(answer) > 1:
                together = answers([_with_answer(other, answer) for other in strangers])
                later += Sequences(together.tokens, tuple(places[1:] for places in together.scored))
                owners += [row] * len(strangers)
        if owners:
            sums = torch.cat([answer_log_probability(log_probs, batch).cpu() for log_probs, batch in scored(later)])
            counts = torch.bincount(torch.tensor(owners), minlength=len(forget))
            targets += torch.zeros(len(forget)).index_add(0, torch.tensor(owners), sums) / counts.clamp(min=1)
        progress(len(rows))
    return targets


def _nobody_else(fact: Fact, phrasing: int) -> InputError:
    return InputError(
        f"nobody else is asked about {fact.relation!r} as in {fact.prompts[phrasing]!r}, needed at least one other "
        "subject: chance is what the model says of others",
        hint="add facts of the same relation with the same phrasings, or set unlearn.objective to npo and "
        "unlearn.validation_phrasing to -1, which ask nobody else",
    )
