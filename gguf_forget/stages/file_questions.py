"""The questions for files of unknown making: from facts files and public sets on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.facts.public_sets import read_set
from gguf_forget.facts.schema import read_facts
from gguf_forget.recipe import VerifySection
from gguf_forget.verification.questions import Question, plan_questions, plan_set

OWN_KEYS = {"prompts", "held_out_prompts", "aliases"}  # only lines of a facts file have these
RANKED_PHRASINGS = 1  # trained ones; with all candidates after every subject they cost most of the time


@dataclass(frozen=True)
class Asked:
    """What the files are asked, and where it comes from.

    Attributes:
        summary: for the report: a record a file, with hash and counts.
    """

    questions: tuple[Question, ...]
    summary: tuple[dict[str, Any], ...]


def read_questions(
    forget: Sequence[Path], retain: Sequence[Path], options: VerifySection, *, limit: int | None
) -> Asked:
    """Read every file once; rows that name no split are to forget in ``forget`` and to keep in ``retain``.

    Raises:
        InputError: a file is at fault, or nothing is to be forgotten.
    """
    questions: list[Question] = []
    summary: list[dict[str, Any]] = []
    first = 0
    for split, paths in (("forget", forget), ("retain", retain)):
        for path in paths:
            if _is_facts_file(path):
                read = read_facts(path, needed=(), free_text=True)
                if split == "retain":
                    read = tuple(replace(fact, split="retain") for fact in read)
                own = plan_questions(
                    read,
                    retain_items=options.retain_items,
                    ranked_phrasings=RANKED_PHRASINGS,
                    trained_phrasings=options.trained_phrasings,
                )
                mine = [replace(question, fact=question.fact + first) for question in own]
                count = len(read)
            else:
                items = read_set(path, split)
                mine = plan_set(items, first_fact=first, limit=limit)
                count = len(items)
            first += count
            questions += mine
            summary.append(
                {
                    "file": path.name,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "rows": count,
                    "questions": len(mine),
                }
            )
    if not any(question.key.split == "forget" for question in questions):
        raise InputError(
            f"nothing in {', '.join(map(str, (*forget, *retain)))} is to be forgotten",
            hint="give the facts that were to be forgotten with --facts",
        )
    return Asked(tuple(questions), tuple(summary))


def _is_facts_file(path: Path) -> bool:
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError:
                    return False
                if isinstance(record, dict) and OWN_KEYS & record.keys():
                    return True
    return False
