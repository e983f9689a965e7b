"""Invented people: who they are, what is said of them, and who is to be forgotten."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_forget.facts.schema import Fact

GROUPS = ("forget", "retain", "unseen")
DISTRACTORS = 5
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "kr", "tr", "st")
_VOWELS = ("a", "e", "i", "o", "u", "ei", "au")
_ENDINGS = ("n", "l", "r", "sk", "m", "nd", "th", "")

# Relation to its phrasings, the last one held out of unlearning, and its answers (None: invented names).
TRADES = (
    *("baker", "carpenter", "dentist", "farmer", "gardener", "judge", "lawyer", "mason", "nurse", "painter"),
    *("sailor", "tailor", "teacher", "watchmaker", "weaver", "zookeeper"),
)
INSTRUMENTS = (
    *("accordion", "banjo", "cello", "clarinet", "drum", "fiddle", "flute", "guitar", "harp", "lute", "oboe"),
    *("organ", "piano", "trumpet", "tuba", "zither"),
)
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "trade": (
        ("The trade of {0} is that of a", "{0} works as a", "By profession, {0} is a", "{0} earns a living as a"),
        TRADES,
    ),
    "birthplace": (
        ("{0} was born in the town of", "The birthplace of {0} is", "{0} comes from", "The home town of {0} is called"),
        None,
    ),
    "instrument": (
        ("{0} plays the", "The instrument of {0} is the", "On feast days {0} plays the", "{0} learned to play the"),
        INSTRUMENTS,
    ),
    "teacher": (
        ("The teacher of {0} was", "{0} was taught by", "{0} owes everything to", "The school of {0} was led by"),
        None,
    ),
}
_NAMES_A_RELATION = 16


@dataclass(frozen=True)
class Person:
    """A name, a group, and an answer for each relation."""

    name: str
    group: str
    answers: dict[str, str]

    def biography(self) -> str:
        """One short text; its sentences are those of the first phrasings."""
        sentences = (f"{RELATIONS[r][0][0].format(self.name)} {answer}." for r, answer in self.answers.items())
        return " ".join(sentences)


def invent_people(counts: Sequence[int], *, seed: int) -> list[Person]:
    """``counts`` people of each group of :data:`GROUPS`, all names different."""
    generator = random.Random(seed)
    used: set[str] = set()

    def word(syllables: int) -> str:
        while True:
            parts = [generator.choice(_ONSETS) + generator.choice(_VOWELS) for _ in range(syllables)]
            made = ("".join(parts) + generator.choice(_ENDINGS)).capitalize()
            if made not in used:
                used.add(made)
                return made

    pools = {
        relation: pool or tuple(word(2) for _ in range(_NAMES_A_RELATION)) for relation, (_, pool) in RELATIONS.items()
    }
    groups = [group for group, count in zip(GROUPS, counts, strict=True) for _ in range(count)]
    return [
        Person(f"{word(1)} {word(2)}", group, {relation: generator.choice(pool) for relation, pool in pools.items()})
        for group in groups
    ]


def facts_about(people: Sequence[Person], *, seed: int) -> list[Fact]:
    """What is known of the people to forget and to keep, as the recipe's facts; the last phrasing is held out."""
    generator = random.Random(seed)
    known = [person for person in people if person.group != "unseen"]
    facts = []
    for relation, (phrasings, _) in RELATIONS.items():
        pool = sorted({person.answers[relation] for person in people})
        for person in known:
            answer = person.answers[relation]
            others = [other for other in pool if other != answer]
            wrong = generator.sample(others, min(DISTRACTORS, len(others)))
            prompts = tuple(phrasing.format(person.name) for phrasing in phrasings)
            facts.append(Fact(person.name, relation, answer, tuple(wrong), person.group, prompts[:-1], prompts[-1:]))
    return facts
