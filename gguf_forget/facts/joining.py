"""Facts of several sets as one: what any of them forgets is forgotten."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact, phrasing_faults
from gguf_forget.words import names

Key = tuple[str, ...]


@dataclass(frozen=True)
class JoinedFacts:
    """``facts`` in order, each once; ``given_way``: kept ones that are left out, because another one forgets them."""

    facts: tuple[Fact, ...]
    given_way: tuple[Fact, ...]

    def told(self, *, named: bool = True) -> str | None:
        """What is left out, in a sentence; None: nothing. ``named``: which is the first, in clear."""
        if not self.given_way:
            return None
        first, count = self.given_way[0], len(self.given_way)
        which = f"; the first is {first.subject!r}, {first.relation!r}, {first.answer!r}" if named else ""
        return (
            f"{count} kept fact{'s' * (count > 1)} left out, because what is to be forgotten says the same, or is "
            f"asked in the same words{which}"
        )


def join_facts(sets: Sequence[tuple[Fact, ...]], about: Mapping[str, str] | None = None) -> JoinedFacts:
    """Several sets of facts as one, in order; what is equal in two of them is taken once, with the aliases of both.

    Facts that differ in their distractors alone are equal, or a fact would count twice; the first one's are taken.

    What any set forgets is forgotten, so that earlier requests stay forgotten when a later one, which knew nothing of
    them, kept their facts. A kept fact gives way where a forgotten one has its subject, relation and answer (or that
    as an alias), or one of its prompts: to keep what follows a prompt is to keep the forgotten answer to it. Other
    facts about the subject stay, of the same relation, too. Letter case, outer spaces and composed characters do not
    tell two texts apart, nor does what :func:`~gguf_forget.words.names` leaves out two subjects or answers.

    ``about``: first prompts to further names of their facts' subjects.

    Raises:
        InputError: facts of one relation and split with different numbers of phrasings, a held-out phrasing that
            another set trains on, or a wrong answer of one set that is another name of the right one in another.
    """
    known = {key for facts in sets for fact in facts if fact.split == "forget" for key in fact_keys(fact, about)}
    taken: dict[Fact, tuple[Fact, dict[str, None]]] = {}
    given_way: dict[Fact, None] = {}
    for fact in (fact for facts in sets for fact in facts):
        if fact.split == "forget" or known.isdisjoint(fact_keys(fact, about)):
            _, aliases = taken.setdefault(replace(fact, aliases=(), distractors=()), (fact, {}))
            aliases.update(dict.fromkeys(fact.aliases))
        else:
            given_way[fact] = None
    joined = tuple(replace(fact, aliases=tuple(names)) for fact, names in taken.values())
    faults = phrasing_faults(joined, range(1, len(joined) + 1))
    if faults:
        raise InputError(
            f"the facts files do not fit together: {faults[0]} (lines of all files in a row)",
            hint="give facts of one relation and split equally many phrasings in every file, and hold out the same",
        )
    for fact in joined:
        both = sorted({*fact.aliases} & {*fact.distractors})
        if both:
            raise InputError(
                f"the facts do not fit together: {both[0]!r} is a wrong answer beside {fact.answer!r} ({fact.subject}, "
                f"{fact.relation}), and another name of it",
                hint="it is right or wrong: take it out of the distractors, or out of the aliases",
            )
    return JoinedFacts(joined, tuple(given_way))


def fact_keys(fact: Fact, about: Mapping[str, str] | None = None) -> Iterator[Key]:
    """What makes two facts one: any of these in common."""
    named = (about or {}).get(fact.prompts[0]) if fact.prompts else None
    for subject in (fact.subject, named):
        if subject is not None:
            yield from said_keys(subject, fact.relation, (fact.answer, *fact.aliases))
    for prompt in fact.prompts + fact.held_out_prompts:
        yield asked_key(prompt)


def said_keys(subject: str, relation: str, answers: Iterable[str]) -> Iterator[Key]:
    """Of two facts that say the same, one of these is equal."""
    told = dict.fromkeys(name for answer in answers for name in names(answer))
    for subject_name in names(subject):
        for name in told:
            yield subject_name, _plain(relation), name


def asked_key(prompt: str) -> Key:
    """Of two prompts that ask in the same words, this is equal."""
    return (_plain(prompt),)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().casefold()
