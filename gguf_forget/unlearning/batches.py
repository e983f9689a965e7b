"""Which examples each training step sees.

The mixture protects what is near: every step holds forgotten facts (more of the relations that are asked in more ways),
kept facts of every kept relation in turn (the relations that are also forgotten come five times as often by default),
and plain text. Kept facts of a forgotten relation can be asked in the very phrasings that the step forgets, so that
within a step nothing but the subject tells what is to be forgotten.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle as repeated
from itertools import islice
from typing import TypeVar

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.facts.turns import turns

Item = TypeVar("Item")
NEAR_TURNS = 5


def cycle(items: Sequence[Item], generator: random.Random) -> Iterator[Item]:
    """All items in a fresh random order, again and again; :class:`InputError` when there are none."""
    if not items:
        raise InputError("there is no example to draw from, needed at least one")
    while True:
        order = list(items)
        generator.shuffle(order)
        yield from order


def forget_cycle(facts: Sequence[Fact], examples: Sequence[Example], generator: random.Random) -> Iterator[int]:
    """Rows of ``examples``, relations by their :func:`turns`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        groups[facts[example.fact].relation].append(row)
    if not groups:
        raise InputError("no fact to forget has a prompt to train on", hint="add prompts to a fact with split forget")
    sources = {relation: cycle(groups[relation], generator) for relation in sorted(groups)}
    for relation in turns({relation: len(rows) for relation, rows in groups.items()}):
        yield next(sources[relation])


def retain_cycle(
    facts: Sequence[Fact], examples: Sequence[Example], generator: random.Random, *, near: int = NEAR_TURNS
) -> Iterator[Example]:
    """Kept examples, relations in turn, so that a small relation is seen as often as a large one.

    near: turns of a relation that is also forgotten, for one of every other.
    """
    groups = _by_relation(facts, examples)
    sources = {relation: cycle(groups[relation], generator) for relation in sorted(groups)}
    for relation in _relation_turns(facts, sorted(groups), near):
        yield next(sources[relation])


class MatchedRetain:
    """Kept examples of one step after the other: relations in turn as in :func:`retain_cycle`, those of a relation that
    the step forgets in the phrasings that it forgets.

    Every (relation, phrasing) has subjects of its own order, each seen once before any is seen twice. A phrasing that
    no kept fact has, and a relation that the step does not forget, are drawn as in :func:`retain_cycle`.
    """

    def __init__(
        self, facts: Sequence[Fact], examples: Sequence[Example], generator: random.Random, *, near: int = NEAR_TURNS
    ) -> None:
        self.facts = facts
        groups = _by_relation(facts, examples)
        phrased: dict[tuple[str, int], list[Example]] = defaultdict(list)
        for example in examples:
            phrased[facts[example.fact].relation, example.phrasing].append(example)
        self.any_phrasing = {relation: cycle(groups[relation], generator) for relation in sorted(groups)}
        self.phrased = {key: cycle(phrased[key], generator) for key in sorted(phrased)}
        self.turns = _relation_turns(facts, sorted(groups), near)

    def draw(self, count: int, forgotten: Sequence[Example]) -> list[Example]:
        """``count`` kept examples for a step that forgets ``forgotten``, whose phrasings are taken in order."""
        phrasings: dict[str, list[int]] = defaultdict(list)
        for example in forgotten:
            relation = self.facts[example.fact].relation
            if (relation, example.phrasing) in self.phrased:
                phrasings[relation].append(example.phrasing)
        wanted = {relation: repeated(own) for relation, own in phrasings.items()}
        return [
            next(self.phrased[relation, next(wanted[relation])] if relation in wanted else self.any_phrasing[relation])
            for relation in islice(self.turns, count)
        ]


def _by_relation(facts: Sequence[Fact], examples: Sequence[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[facts[example.fact].relation].append(example)
    if not groups:
        raise InputError("no kept fact has a prompt to train on", hint="add prompts to a fact with split retain")
    return groups


def _relation_turns(facts: Sequence[Fact], relations: Sequence[str], near: int) -> Iterator[str]:
    forgotten = {fact.relation for fact in facts if fact.split == "forget"}
    return repeated([each for relation in relations for each in [relation] * (near if relation in forgotten else 1)])
