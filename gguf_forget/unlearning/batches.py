"""Which examples each training step sees.

The mixture protects what is near: every step holds forgotten facts (more of the relations that are asked in more ways),
kept facts of every kept relation in turn (the relations that are also forgotten come five times as often by default),
and plain text.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
    forgotten = {fact.relation for fact in facts if fact.split == "forget"}
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[facts[example.fact].relation].append(example)
    if not groups:
        raise InputError("no kept fact has a prompt to train on", hint="add prompts to a fact with split retain")
    sources: list[Iterator[Example]] = []
    for relation in sorted(groups):
        source = cycle(groups[relation], generator)
        sources += [source] * (near if relation in forgotten else 1)
    while True:
        for source in sources:
            yield next(source)
