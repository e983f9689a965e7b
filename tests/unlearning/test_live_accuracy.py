"""4-way accuracy by first tokens, by hand and against every choice of three."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.live_accuracy import ChoiceAccuracy
from gguf_forget.unlearning.scoring import answers, pack

GROUPS = [("forget", "capital")] * 6 + [("retain", "capital")] * 2 + [("retain", "currency")]
FACTS = [Fact(f"s{i}", relation, "a", ("b",), split, ("p",)) for i, (split, relation) in enumerate(GROUPS)]
EXAMPLES = [Example((30 + i, 20, 40 + i, 50), 2, i, 0) for i in range(len(FACTS))]


def credits(chosen: list[int], log_probs: torch.Tensor) -> list[float]:
    own = [EXAMPLES[index] for index in chosen]
    return ChoiceAccuracy(FACTS, EXAMPLES).credits(log_probs, pack(answers(own)), own)


def test_every_choice_of_three_counts_alike() -> None:
    scores = torch.randn(2 * 6, 60, generator=torch.Generator().manual_seed(3))
    found = credits(list(range(6)), scores)
    for index, credit in enumerate(found):
        first = scores[2 * index]  # two answer tokens each: the first of them decides
        choices = list(combinations([40 + other for other in range(6) if other != index], 3))
        right = sum(all(first[wrong] < first[40 + index] for wrong in choice) for choice in choices)
        assert credit == pytest.approx(right / len(choices))
    assert 0 < sum(found) < 6


def test_chance_is_one_in_four() -> None:
    """An answer at each place among five others, once: the mean is a quarter."""
    scores = torch.zeros(2 * 6, 60)
    for index in range(6):
        others = [40 + other for other in range(6) if other != index]
        scores[2 * index, others[:index]] = -1.0
        scores[2 * index, others[index:]] = 1.0
    assert sum(credits(list(range(6)), scores)) / 6 == pytest.approx(0.25)


def test_a_small_relation_has_fewer_others_and_a_single_fact_none() -> None:
    scores = torch.zeros(2 * 3, 60)
    scores[0, 46], scores[2, 46] = 1.0, 1.0  # 40 to 45, the forgotten answers, are not asked beside kept ones
    scores[0, 40:46] = 9.0
    assert credits([6, 7, 8], scores) == [1.0, 0.0]
    assert credits([8], torch.zeros(2, 60)) == []
