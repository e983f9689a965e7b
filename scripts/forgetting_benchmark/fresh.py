"""Phrasings of the demo's capitals that no recipe was ever chosen by.

The facts' own held-out phrasings are not trained on, but the preset was chosen while their figures were seen. These
were written when it was fixed, and nothing is to be changed because of what they say: not the preset, not its trained
phrasings, not the bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gguf_forget.facts.schema import Fact

FRESH = {
    "capital": (
        "{0} is governed from",
        "My friend from {0} grew up in the capital,",
        "On the map of {0} a star marks the capital,",
        "In geography class we learned that the capital of {0} is",
    ),
    "capital_of": (
        "{0} is home to the national parliament of",
        "Someone who was born in {0} comes from the capital of",
        "The metro in {0} is the busiest in the whole of",
        "{0} (the capital of",
    ),
}


def fresh(relation: str) -> str:
    """What a relation is called where it is asked in these phrasings."""
    return f"{relation}, fresh"


def fresh_facts(facts: Sequence[Fact]) -> list[Fact]:
    """The same facts in these phrasings, held out, under the name of :func:`fresh`; of other relations none."""
    return [
        replace(
            fact,
            relation=fresh(fact.relation),
            prompts=(),
            held_out_prompts=tuple(template.format(fact.subject) for template in FRESH[fact.relation]),
        )
        for fact in facts
        if fact.relation in FRESH
    ]
