"""The chance-level target (ours): what the original says when it does not know who is asked about.

For the first answer token: the original's prediction for the same phrasing, averaged over other subjects of the
relation. For the later tokens of the answer: the same, after the answer's earlier tokens. A model that matches this
target answers as if the subject carried no information; pushing the answer below it would tell an observer what it
was.

Shapes: S scored positions of one example, V vocabulary.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.scoring import answer_batch, log_probabilities


def unknown_subject_targets(
    model: Any,
    facts: Sequence[Fact],
    forget: Sequence[Example],
    pool: Sequence[Example],
    *,
    first_token_subjects: int,
    later_token_subjects: int,
    seed: int,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> list[torch.Tensor]:
    """Log-probabilities float32 [S, V] for each example of ``forget``.

    ``pool``: examples whose subjects stand in, those of the same relation and phrasing are used; the example's own
    fact and others with the same answer are left out of the later tokens' average. First-token averages are shared
    by all examples of a relation and phrasing.
    """
    generator = random.Random(seed)
    pools: dict[tuple[str, int], list[Example]] = defaultdict(list)
    for example in pool:
        pools[(facts[example.fact].relation, example.phrasing)].append(example)

    @torch.no_grad()
    def average(examples: Sequence[Example], scored: slice) -> torch.Tensor:
        """log of the mean probability over ``examples``, whose answers have equal length; [scored, V]"""
        total: torch.Tensor | None = None
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            log_probs = log_probabilities(model, answer_batch(part))
            probs = log_probs.exp().reshape(len(part), -1, log_probs.shape[-1])[:, scored].sum(dim=0)
            total = probs if total is None else total + probs
        assert total is not None
        return (total / len(examples)).clamp_min(1e-30).log()

    firsts: dict[tuple[str, int], torch.Tensor] = {}
    targets = []
    for example in forget:
        key = (facts[example.fact].relation, example.phrasing)
        others = [other for other in pools[key] if other.fact != example.fact]
        if not others:
            others = [example]
        if key not in firsts:
            drawn = generator.sample(others, min(first_token_subjects, len(others)))
            shortened = [Example((*o.prompt, o.answer[0]), o.answer_start, o.fact, o.phrasing) for o in drawn]
            firsts[key] = average(shortened, slice(0, 1))
        rows = [firsts[key]]
        if len(example.answer) > 1:
            drawn = generator.sample(others, min(later_token_subjects, len(others)))
            swapped = [
                Example((*o.prompt, *example.answer), o.answer_start, o.fact, o.phrasing) for o in drawn
            ]
            rows.append(average(swapped, slice(1, None)))
        targets.append(torch.cat(rows))
        progress(1)
    return targets
