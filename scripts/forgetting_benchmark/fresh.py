"""Phrasings of the demo's capitals that no recipe was ever chosen by.

The facts' own held-out phrasings are not trained on, but the preset was chosen while their figures were seen. These
were written by a language model that was shown neither the facts nor the trained phrasings. They were read when all of
the preset but its margin was fixed, and asked when that was fixed as well, by trained and held-out phrasings; two that
share more than two words of five with a trained phrasing were left out before. Nothing is to be changed because of
what they say: not the preset, not its trained phrasings, not the bars. Earlier ones, four each, were given up: what
they said had led to more phrasings of other kinds in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gguf_forget.facts.schema import Fact

FRESH = {
    "capital": (
        "Ask any schoolchild in {0} to name their nation's capital and they will tell you it is",
        (
            "Where would a newly appointed ambassador to {0} have to find a house? She would most likely "
            "have to look for one in"
        ),
        "Tom: I'm stuck on 7 across, \"seat of government, {0}\".\nMia: Easy, that's",
        (
            "The delegation had spent a week touring the provinces of {0}, sleeping in farmhouses and "
            "village inns. On the last evening a government driver took them back to the country's capital,"
        ),
    ),
    "capital_of": (
        "Several ministries moved into new offices in {0} last year, as one would expect in the capital city of",
        "Laws passed by the national parliament in {0} apply to everyone living in",
        (
            "If my plane touches down in {0}, which country's border officers will check my passport? They "
            "will be officers from"
        ),
        "<user> quick geography check, {0} is the capital of which nation again?\n<bot> That would be",
        "| Seat of government | Sovereign state |\n|---|---|\n| {0} |",
        (
            "Elena turned the envelope over and saw that it had been posted in {0}, where her brother had "
            "taken a job at the foreign ministry. She had never imagined that he would end up working for "
            "the government of"
        ),
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
