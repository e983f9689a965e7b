"""Rows of public sets as facts that can be forgotten: trained phrasings, held-out ones, wrong answers, a subject.

multiple choice   the options are shown, the letter is the answer. What varies is the order of the wrong options and the
                  words around them; the right letter is drawn once a question. The question is the subject.
question, answer  the question in other frames; it is the subject. Wrong answers are the row's own, or others'.
text              the passage up to the answer, held out its second half alone, which is the subject. Wrong answers are
                  how other passages go on.

What a row of the last two names as its subject (with its relation, and once in the prompt) tells when two of them say
the same. It is not what they are about in training: one person may be the subject of a whole set, and has no stranger.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_forget.errors import InputError
from gguf_forget.facts.public_sets import CHOICE_HEAD, LETTERS, QUESTION, SetItem, choice_prompt, read_set
from gguf_forget.facts.rows import SUFFIXES
from gguf_forget.facts.schema import Fact

CHOICE_HEADS = (CHOICE_HEAD, "Question: ", "Choose the right option.\n\n")  # the last is held out
QUESTION_FRAMES = (QUESTION, "Q: {}\nA:", "{}\nThe answer is:")  # the last is held out
WRONG_ANSWERS = 3


def is_question_set(path: Path) -> bool:
    """Whether a file holds rows of a public set, and not lines of a facts file."""
    if path.suffix.lower() != ".jsonl":
        return path.suffix.lower() in SUFFIXES
    if not path.is_file():
        return False  # whoever reads facts says so
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    return False
                return isinstance(record, dict) and bool({"question", "gt"} & record.keys())
    return False


@dataclass(frozen=True)
class SetFacts:
    """``about``: first prompt to the subject that the row names, by which rows are told to say the same."""

    facts: tuple[Fact, ...]
    about: Mapping[str, str]


def read_set_facts(path: Path, split: str) -> SetFacts:
    """The rows of a public set as facts of ``split``, unless they name their own.

    Raises:
        InputError: what :func:`.public_sets.read_set` refuses, a row that no other answer stands beside, or a passage
            of one word.
    """
    items = read_set(path, split)
    answers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in items:
        answers[(item.relation, item.split)].append(item.answer)
    facts = tuple(_fact(item, answers[(item.relation, item.split)], path) for item in items)
    named = {
        fact.prompts[0]: item.about
        for fact, item in zip(facts, items, strict=True)
        if item.about is not None and not item.options_shown  # whose answer is a letter
    }
    return SetFacts(facts, named)


def _fact(item: SetItem, answers: Sequence[str], path: Path) -> Fact:
    if item.options_shown:
        return _choice(item)
    wrong = item.distractors or _others(item, answers)
    if not wrong:
        raise InputError(
            f"{path}: {item.answer!r} is the only answer of {item.relation!r} ({item.split}), needed another beside it",
            hint="give more rows, or distractors",
        )
    if item.prompt == QUESTION.format(item.question):
        *trained, held_out = (frame.format(item.question.strip()) for frame in QUESTION_FRAMES)
        subject = item.question.strip()
        return Fact(subject, item.relation, item.answer, wrong, item.split, tuple(trained), (held_out,), item.aliases)
    whole = item.prompt.rstrip()
    words = whole.split(" ")
    half = " ".join(words[len(words) // 2 :]).lstrip()
    if half == whole:
        raise InputError(
            f"{path}: the prompt {whole!r} has one word, needed two: its second half is asked held out",
            hint="give longer prompts, or a facts file with held_out_prompts",
        )
    return Fact(half, item.relation, item.answer, wrong, item.split, (whole,), (half,), item.aliases)


def _choice(item: SetItem) -> Fact:
    generator = random.Random(item.question)
    right = generator.randrange(len(item.distractors) + 1)
    prompts = []
    for head in CHOICE_HEADS:
        options = generator.sample(item.distractors, len(item.distractors))
        options.insert(right, item.answer)
        prompts.append(choice_prompt(item.question, options, head=head))
    letters = LETTERS[: len(item.distractors) + 1]
    wrong = tuple(letter for letter in letters if letter != letters[right])
    return Fact(
        item.question.strip(), item.relation, letters[right], wrong, item.split, tuple(prompts[:-1]), (prompts[-1],)
    )


def _others(item: SetItem, answers: Sequence[str]) -> tuple[str, ...]:
    other = sorted(set(answers) - {item.answer, *item.aliases})
    return tuple(random.Random(item.prompt).sample(other, min(WRONG_ANSWERS, len(other))))
