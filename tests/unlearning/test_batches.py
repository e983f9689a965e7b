"""Which examples a step sees: every relation in its turn, the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.batches import MatchedRetain, cycle, forget_cycle, retain_cycle


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


def test_relations_take_turns_and_forgotten_ones_come_five_times() -> None:
    relations = [FACTS[example.fact].relation for example in drawn(7 * 25, seed=0)]
    assert relations[:14] == ["anthem", *["capital"] * 5, "currency"] * 2
    assert Counter(relations) == {"anthem": 25, "capital": 125, "currency": 25}


def test_the_turns_of_near_relations_are_the_recipe_s() -> None:
    found = islice(retain_cycle(FACTS, RETAIN, random.Random(0), near=2), 12)
    assert [FACTS[example.fact].relation for example in found] == ["anthem", "capital", "capital", "currency"] * 3


def test_every_example_of_a_relation_has_its_turn() -> None:
    found = drawn(7 * 50, seed=0)
    currencies = [example.fact for example in found if FACTS[example.fact].relation == "currency"]
    assert sorted(currencies) == list(range(6, 56))
    capitals = [example.fact for example in found if FACTS[example.fact].relation == "capital"]
    assert Counter(capitals) == {index: 50 for index in range(1, 6)}


def test_the_seed_decides() -> None:
    assert drawn(40, seed=1) == drawn(40, seed=1)
    assert drawn(40, seed=1) != drawn(40, seed=2)


def test_nothing_to_draw_from_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(InputError, match="no example to draw from"):
        next(cycle([], random.Random(0)))
    with pytest.raises(InputError, match="no kept fact has a prompt to train on"):
        next(retain_cycle(FACTS, [], random.Random(0)))
    with pytest.raises(InputError, match="no fact to forget has a prompt to train on"):
        next(forget_cycle(FACTS, [], random.Random(0)))


def asked(phrasings: dict[str, int], subjects: int = 4) -> tuple[tuple[Fact, ...], list[Example]]:
    facts = tuple(fact(relation, "forget") for relation in phrasings for _ in range(subjects))
    return facts, [Example((1, 2), 1, i, p) for i, own in enumerate(facts) for p in range(phrasings[own.relation])]


def rows(phrasings: dict[str, int], count: int, seed: int = 0) -> tuple[Counter[str], list[int]]:
    facts, examples = asked(phrasings)
    found = list(islice(forget_cycle(facts, examples, random.Random(seed)), count))
    return Counter(facts[examples[row].fact].relation for row in found), found


def test_a_forgotten_relation_comes_by_the_square_root_of_its_prompts() -> None:
    relations, found = rows({"capital": 9, "capital_of": 1}, 4 * 36)
    assert relations == {"capital": 3 * 36, "capital_of": 36}
    assert Counter(found) == {**dict.fromkeys(range(36), 3), **dict.fromkeys(range(36, 40), 9)}
    first, _ = rows({"capital": 9, "capital_of": 1}, 40)
    assert first == {"capital": 30, "capital_of": 10}  # in every step, not only in the long run


def test_one_forgotten_relation_is_drawn_as_ever() -> None:
    _, found = rows({"capital": 5}, 60, seed=3)
    assert found == list(islice(cycle(range(20), random.Random(3)), 60))


def test_the_order_in_which_facts_are_listed_does_not_decide_which_relation_comes_first() -> None:
    facts, examples = asked({"b": 2, "a": 2})
    found = islice(forget_cycle(facts, examples, random.Random(0)), 6)
    assert [facts[examples[row].fact].relation for row in found] == ["a", "b"] * 3


PHRASED = (
    *(fact("capital", "forget") for _ in range(2)),
    *(fact("capital", "retain") for _ in range(6)),
    *(fact("currency", "retain") for _ in range(3)),
)
PHRASED_RETAIN = [
    Example((1, 2), 1, index, phrasing)
    for index, own in enumerate(PHRASED)
    if own.split == "retain"
    for phrasing in range(4 if own.relation == "capital" else 1)
]


def matched(seed: int = 0, near: int = 5) -> MatchedRetain:
    return MatchedRetain(PHRASED, PHRASED_RETAIN, random.Random(seed), near=near)


def forgets(*phrasings: int) -> list[Example]:
    return [Example((1, 2), 1, 0, phrasing) for phrasing in phrasings]


def test_kept_facts_are_asked_in_the_phrasings_that_the_step_forgets() -> None:
    source = matched()
    for phrasings, expected in (((3, 1), [3, 1, 3, 1, 3, 1, 3, 1, 3, 1]), ((2,), [2] * 10), ((0, 1, 2), [0, 1, 2] * 3)):
        found = source.draw(12, forgets(*phrasings))
        assert [PHRASED[example.fact].relation for example in found] == [*["capital"] * 5, "currency"] * 2
        capitals = [example.phrasing for example in found if PHRASED[example.fact].relation == "capital"]
        assert capitals == [*expected, 0][:10]


def test_every_kept_subject_of_a_phrasing_comes_once_before_any_comes_twice() -> None:
    source = matched()
    found = [example for _ in range(3) for example in source.draw(6, forgets(2)) if example.phrasing == 2]
    subjects = [example.fact for example in found]
    assert len(subjects) == 15
    assert sorted(subjects[:6]) == sorted(subjects[6:12]) == list(range(2, 8))
    assert len(set(subjects[12:])) == 3


def test_a_phrasing_that_no_kept_fact_has_is_left_out_and_without_any_all_phrasings_come() -> None:
    source = matched()
    assert {example.phrasing for example in source.draw(5, forgets(9, 1))} == {1}
    drawn = [example for _ in range(8) for example in source.draw(6, forgets(9))]
    assert Counter(example.phrasing for example in drawn if PHRASED[example.fact].relation == "capital").keys() == {
        0,
        1,
        2,
        3,
    }


def test_the_seed_decides_matched_examples_too() -> None:
    one, again, other = (matched(seed) for seed in (1, 1, 2))
    draws = [[each.draw(12, forgets(0, 3)) for _ in range(2)] for each in (one, again, other)]
    assert draws[0] == draws[1] != draws[2]


def test_matching_needs_something_to_keep() -> None:
    with pytest.raises(InputError, match="no kept fact has a prompt to train on"):
        MatchedRetain(FACTS, [], random.Random(0))
