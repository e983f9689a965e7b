"""Which examples a step sees: every relation in its turn, the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import cycle, retain_cycle


def fact(relation: str, split: str) -> Fact:
    return Fact("s", relation, "a", ("b",), split, ("p",))


FACTS = (
    fact("capital", "forget"),
    *(fact("capital", "retain") for _ in range(5)),
    *(fact("currency", "retain") for _ in range(50)),
    fact("anthem", "retain"),
)
RETAIN = [Example((1, 2), 1, index, 0) for index, own in enumerate(FACTS) if own.split == "retain"]


def drawn(count: int, seed: int) -> list[Example]:
    return list(islice(retain_cycle(FACTS, RETAIN, random.Random(seed)), count))


def test_a_cycle_gives_everything_once_before_anything_twice() -> None:
    source = cycle(range(7), random.Random(0))
    rounds = [list(islice(source, 7)) for _ in range(20)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 15
    assert [list(islice(cycle(range(7), random.Random(0)), 7)), rounds[0]] == [rounds[0]] * 2


def test_relations_take_turns_and_forgotten_ones_come_three_times() -> None:
    relations = [FACTS[example.fact].relation for example in drawn(5 * 25, seed=0)]
    assert relations[:10] == ["anthem", "capital", "capital", "capital", "currency"] * 2
    assert Counter(relations) == {"anthem": 25, "capital": 75, "currency": 25}


def test_every_example_of_a_relation_has_its_turn() -> None:
    found = drawn(5 * 50, seed=0)
    currencies = [example.fact for example in found if FACTS[example.fact].relation == "currency"]
    assert sorted(currencies) == list(range(6, 56))
    capitals = [example.fact for example in found if FACTS[example.fact].relation == "capital"]
    assert Counter(capitals) == {index: 30 for index in range(1, 6)}


def test_the_seed_decides() -> None:
    assert drawn(40, seed=1) == drawn(40, seed=1)
    assert drawn(40, seed=1) != drawn(40, seed=2)


def test_nothing_to_draw_from_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(InputError, match="no example to draw from"):
        next(cycle([], random.Random(0)))
    with pytest.raises(InputError, match="no kept fact has a prompt to train on"):
        next(retain_cycle(FACTS, [], random.Random(0)))
