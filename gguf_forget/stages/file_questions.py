"""The questions for files of unknown making: from facts files and public sets on disk."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.facts.joining import Key, asked_key, fact_keys, join_facts, said_keys
from gguf_forget.facts.public_sets import SetItem, read_set
from gguf_forget.facts.schema import Fact, is_fact, read_facts
from gguf_forget.recipe import VerifySection
from gguf_forget.verification.questions import Question, plan_questions, plan_set

OWN_KEYS = {"prompts", "held_out_prompts"}  # only lines of a facts file have these
RANKED_PHRASINGS = 1  # trained ones; with all candidates after every subject they cost most of the time


@dataclass(frozen=True)
class Asked:
    """What the files are asked, and where it comes from.

    Attributes:
        summary: for the report: a record a file, with hash and counts.
        left_out: kept facts that are not asked about, in a sentence, if there are any.
    """

    questions: tuple[Question, ...]
    summary: tuple[dict[str, Any], ...]
    left_out: str | None = None


def read_questions(
    forget: Sequence[Path], retain: Sequence[Path], options: VerifySection, *, limit: int | None
) -> Asked:
    """Rows that name no split are to be forgotten in ``forget``; all of ``retain`` are to be kept.

    Facts files are joined as a run joins them: the answers of all of a relation are each other's candidates, and what
    one file forgets no other keeps. Rows of public sets have no candidates, so that what both forget is refused.

    Raises:
        InputError: a file is at fault, files do not fit together, or nothing is to be forgotten.
    """
    given = [(split, path) for split, paths in (("forget", forget), ("retain", retain)) for path in paths]
    of_facts = [place for place, (_, path) in enumerate(given) if _is_facts_file(path)]
    sets = [_facts(*given[place]) for place in of_facts]
    joined = join_facts(sets)
    facts = joined.facts
    sources = _sources(facts, sets)
    questions = plan_questions(
        facts,
        retain_items=options.retain_items,
        ranked_phrasings=RANKED_PHRASINGS,
        trained_phrasings=options.trained_phrasings,
    )
    asked = Counter(of_facts[sources[question.fact]] for question in questions)
    forgotten = {fact.relation for fact in facts if fact.split == "forget"}
    rows_of = {place: _rows(*each) for place, each in enumerate(given) if place not in of_facts}
    known = {key for fact in facts if fact.split == "forget" for key in fact_keys(fact)}
    known |= {key for items in rows_of.values() for item in items if item.split == "forget" for key in _keys(item)}
    left_out = [joined.told(named=False)]  # reports tell no fact
    first = len(facts)
    summary = []
    for place, (_, path) in enumerate(given):
        if place in of_facts:
            rows, count = len(sets[of_facts.index(place)]), asked[place]
        else:
            items = _without_forgotten(rows_of[place], known)
            if len(items) < len(rows_of[place]):
                left_out.append(
                    f"{len(rows_of[place]) - len(items)} rows of {path.name} left out, which are to be forgotten"
                )
            both = {item.relation for item in items if item.split == "forget"} & forgotten
            if both:
                raise InputError(
                    f"{path} and a facts file both forget the relation {min(both)!r}, needed another name in one",
                    hint="rows without a relation are called as their file; rename it",
                )
            own = plan_set(items, first_fact=first, limit=limit)
            questions += own
            rows, count = len(items), len(own)
            first += rows
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        summary.append({"file": path.name, "sha256": digest, "rows": rows, "questions": count})
    if not any(question.key.split == "forget" for question in questions):
        raise InputError(
            f"nothing in {', '.join(map(str, (*forget, *retain)))} is to be forgotten",
            hint="give the facts that were to be forgotten with --facts",
        )
    return Asked(tuple(questions), tuple(summary), "; ".join(filter(None, left_out)) or None)


def _without_forgotten(items: Sequence[SetItem], known: Set[Key]) -> tuple[SetItem, ...]:
    """Rows of a public set but those that are kept, and say or ask the same as what is to be forgotten."""
    return tuple(item for item in items if item.split == "forget" or known.isdisjoint(_keys(item)))


def _keys(item: SetItem) -> Iterator[Key]:
    yield asked_key(item.prompt)
    if item.about is not None:
        yield from said_keys(item.about, item.relation, (item.answer, *item.aliases))


def _facts(split: str, path: Path) -> tuple[Fact, ...]:
    read = read_facts(path, needed=(), free_text=True)
    return read if split == "forget" else tuple(replace(fact, split="retain") for fact in read)


def _rows(split: str, path: Path) -> tuple[SetItem, ...]:
    read = read_set(path, split)
    return read if split == "forget" else tuple(replace(item, split="retain") for item in read)


def _sources(joined: Sequence[Fact], sets: Sequence[Sequence[Fact]]) -> list[int]:
    """For each joined fact the first of the sets that it is in."""
    first: dict[Fact, int] = {}
    for place, facts in enumerate(sets):
        for fact in facts:
            first.setdefault(replace(fact, aliases=()), place)
    return [first[replace(fact, aliases=())] for fact in joined]


def _is_facts_file(path: Path) -> bool:
    """Whether a line has a key that only facts have, or every line would do as a fact with one ``prompt``.

    Such lines could be rows of a set as well; as facts they are ranked among all answers, which rows are not.
    """
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    whole = []
    try:
        with path.open("rb") as file:
            for line in filter(bytes.strip, file):
                record = json.loads(line.removeprefix(codecs.BOM_UTF8))
                if isinstance(record, dict) and OWN_KEYS & record.keys():
                    return True
                whole.append(is_fact(record))
    except (ValueError, RecursionError):
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be read", cause=str(error)) from error
    return bool(whole) and all(whole)
