"""Readers for the public sets' formats, from local files: each row becomes one :class:`SetItem`.

    WMDP, MMLU            question, choices (or A, B, C, D), answer (index or letter)
    TOFU                  question, answer, and for the truth ratio paraphrased_answer, perturbed_answer
    MUSE                  prompt, gt (verbatim) or question, answer (knowledge)
    plain                 prompt, answer, and as wanted distractors, aliases, subject, relation, split

WMDP: arXiv 2403.03218; MMLU: arXiv 2009.03300; TOFU: arXiv 2401.06121; MUSE: arXiv 2407.06460.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.facts.rows import Row, listed, read_rows
from gguf_forget.facts.schema import MAX_FAULTS_SHOWN, SPLITS, character_faults
from gguf_forget.facts.subjects import subject_characters

LETTERS = "ABCDEFGHIJ"
QUESTION = "Question: {}\nAnswer:"
# Sets from a hub carry the split of their own training, which says nothing here.
HUB_SPLITS = re.compile(r"(?!.*(?:retain|keep|kept|forg))(?:\w+[-_/])?(?:train|test|val|dev|hold|default|all|full).*")
CHOICE_HEAD = "The following are multiple choice questions (with answers).\n\n"  # MMLU's own first line


@dataclass(frozen=True)
class SetItem:
    """One row of a public set.

    Attributes:
        relation: the group it is counted in: the row's own ``relation``, else the file's name.
        split: ``forget`` or ``retain``.
        question: as the set words it; ``prompt`` is what the model is asked to continue.
        distractors: wrong answers; empty where the set has none.
        paraphrase: the right answer in other words, for the truth ratio.
        options_shown: whether it is also asked as a multiple choice with lettered options.
        subject: what the question is about, where the row says so.
        aliases: other names of the answer, as in a facts file.
        related: whether the row names its relation itself.
    """

    relation: str
    split: str
    question: str
    prompt: str
    answer: str
    distractors: tuple[str, ...] = ()
    paraphrase: str | None = None
    options_shown: bool = False
    subject: str | None = None
    aliases: tuple[str, ...] = ()
    related: bool = False

    @property
    def about(self) -> str | None:
        """The subject as a facts file has it: of a relation that is named as well, and once in the prompt. Else the
        column may be a field of knowledge, or whom the whole set is about."""
        if self.subject is None or not self.related or subject_characters(self.prompt, self.subject) is None:
            return None
        return self.subject


class _Fault(Exception):
    """What is wrong with one row, in words."""


def read_set(path: Path, split: str) -> tuple[SetItem, ...]:
    """Read a set; rows without a ``split`` of their own get ``split``.

    Raises:
        InputError: the file cannot be read, its first row fits no format, or rows are at fault; up to 20 faults are
            named by file and line or row.
    """
    rows = read_rows(path)
    if character_faults(path.stem, "its name"):
        raise InputError(f"{path} has a name that is no text, and its rows are called so", hint="rename it")
    build = _format(rows[0])
    items: list[SetItem] = []
    faults: list[str] = []
    for row in rows:
        try:
            _check_known(row.values)
            items.append(build(row.values, path.stem, _split(row.values, split)))
        except _Fault as fault:
            faults.append(f"{row.where}: {fault}")
    if faults:
        shown = "\n  ".join(faults[:MAX_FAULTS_SHOWN])
        more = f"\n  and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
        raise InputError(f"{path} has {len(faults)} rows at fault:\n  {shown}{more}", hint="correct or leave them out")
    return tuple(items)


def choice_prompt(question: str, options: Sequence[str], *, head: str = CHOICE_HEAD) -> str:
    """A question with its lettered options, as MMLU (arXiv 2009.03300, appendix) shows them, up to ``Answer:``."""
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"{head}{question.strip()}\n{lines}Answer:"


def _format(row: Row) -> Callable[[dict[str, Any], str, str], SetItem]:
    keys = set(row.values)
    if "question" in keys and ("choices" in keys or {"A", "B"} <= keys):
        return _multiple_choice
    if {"question", "answer"} <= keys:
        return _question_answer
    if {"prompt", "gt"} <= keys:
        return _verbatim
    if {"prompt", "answer"} <= keys:
        return _plain
    raise InputError(
        f"{row.where}: keys {listed(sorted(keys)) or 'none'} fit no known set",
        hint="needed: question, choices, answer (WMDP, MMLU); question, answer (TOFU, MUSE knowledge); prompt, gt "
        "(MUSE verbatim); or prompt, answer",
    )


def _multiple_choice(values: dict[str, Any], name: str, split: str) -> SetItem:
    question = _word(values, "question")
    lettered = "choices" not in values
    if lettered:
        letters = [letter for letter in LETTERS if letter in values]
        choices = tuple(_word(values, letter).strip() for letter in letters)
    else:
        choices = tuple(choice.strip() for choice in _words(values, "choices"))
    if not 2 <= len(choices) <= len(LETTERS):
        raise _Fault(f"{len(choices)} choices, needed 2 to {len(LETTERS)}")
    if len(set(choices)) < len(choices):
        raise _Fault("two choices are equal, so the right one cannot be told")
    right = _index(values.get("answer"), choices, lettered=lettered)
    return SetItem(
        relation=_group(values, name),
        split=split,
        question=question,
        prompt=QUESTION.format(question),
        answer=choices[right],
        distractors=choices[:right] + choices[right + 1 :],
        options_shown=True,
        **_named(values, choices[:right] + choices[right + 1 :]),
    )


def _index(answer: Any, choices: tuple[str, ...], *, lettered: bool) -> int:
    """The right choice's index, from a number, a numeral, a letter or the choice's own text.

    ``lettered``: the choices have letters of their own, so that a letter is none of their texts.
    """
    text = str(answer).strip()
    if isinstance(answer, bool) or not text:
        raise _Fault(f"answer is {answer!r}, needed an index, a letter or a choice")
    by_text = choices.index(text) if text in choices and not text.isdecimal() else -1
    # Longer numerals than that are no index of ten choices, and Python reads none of thousands of digits.
    numeral = int(text) if text.isdecimal() and len(text) < 4 else -1
    if isinstance(answer, str) and text.isdecimal() and text in choices:
        own = choices.index(text)
        if own != numeral and 0 <= numeral < len(choices):
            raise _Fault(
                f"answer {answer!r} is the text of choice {LETTERS[own]} and may be meant as an index, needed that as "
                f"a number, or a letter ({LETTERS[own]} for the text)"
            )
        by_text = own
    by_letter = LETTERS.find(text) if len(text) == 1 and "A" <= text <= LETTERS[len(choices) - 1] else -1
    if by_text >= 0 and by_letter >= 0 and by_text != by_letter and not lettered:
        raise _Fault(
            f"answer {answer!r} is the letter of {choices[by_letter]!r} and the text of choice {LETTERS[by_text]}, "
            f"needed its index, {by_letter} or {by_text}"
        )
    index = next((found for found in (by_letter, by_text, numeral) if found >= 0), -1)
    if not 0 <= index < len(choices):
        raise _Fault(
            f"answer is {answer!r}, needed 0 to {len(choices) - 1}, {LETTERS[0]} to {LETTERS[len(choices) - 1]}"
        )
    return index


def _question_answer(values: dict[str, Any], name: str, split: str) -> SetItem:
    question, answer = _word(values, "question"), _word(values, "answer").strip()
    wrong = _others(values, "perturbed_answer") or _others(values, "distractors")
    return SetItem(
        relation=_group(values, name),
        split=split,
        question=question,
        prompt=QUESTION.format(question),
        answer=answer,
        distractors=tuple(text for text in wrong if text != answer),
        paraphrase=_stripped(values, "paraphrased_answer") or _stripped(values, "paraphrase"),
        **_named(values, wrong),
    )


def _verbatim(values: dict[str, Any], name: str, split: str) -> SetItem:
    prompt = _word(values, "prompt")
    return SetItem(_group(values, name), split, prompt, prompt, _word(values, "gt").strip(), **_named(values, ()))


def _plain(values: dict[str, Any], name: str, split: str) -> SetItem:
    prompt, answer = _word(values, "prompt"), _word(values, "answer").strip()
    wrong = _others(values, "distractors")
    if answer in wrong:
        raise _Fault(f"the answer {answer!r} is among its own distractors")
    return SetItem(
        relation=_group(values, name),
        split=split,
        question=prompt,
        prompt=prompt,
        answer=answer,
        distractors=wrong,
        paraphrase=_stripped(values, "paraphrase"),
        **_named(values, wrong),
    )


def _named(values: dict[str, Any], wrong: Sequence[str]) -> dict[str, Any]:
    """What any row may name: its subject, other names of its answer, and whether it names its relation."""
    aliases = _others(values, "aliases")
    both = sorted({*aliases} & {*wrong})
    if both:
        raise _Fault(f"{both[0]!r} is both an alias and a distractor")
    return {"subject": _optional(values, "subject"), "aliases": aliases, "related": bool(_optional(values, "relation"))}


def _check_known(values: dict[str, Any]) -> None:
    """A key of a facts file that no row of a set has would be left out without a word."""
    for key in ("prompts", "held_out_prompts"):
        if values.get(key):
            raise _Fault(f"{key} belongs to a facts file, needed one: JSONL, each line with {key}")


def _split(values: dict[str, Any], default: str) -> str:
    given = values.get("split")
    split = given.strip().casefold() if isinstance(given, str) else given
    if split in SPLITS:
        return str(split)
    if not _empty(split) and not (isinstance(split, str) and HUB_SPLITS.fullmatch(split)):
        raise _Fault(f"split is {given!r}, needed {' or '.join(SPLITS)}, or none")
    return default


def _empty(value: Any) -> bool:
    """As a cell of a table is empty, by whatever reader."""
    return value is None or value == "" or value != value


def _group(values: dict[str, Any], name: str) -> str:
    return _optional(values, "relation") or name


def _word(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Fault(f"{key} is {value!r}, needed a text")
    return _readable(key, value)


def _optional(values: dict[str, Any], key: str) -> str | None:
    return _word(values, key) if values.get(key) and not _empty(values[key]) else None


def _stripped(values: dict[str, Any], key: str) -> str | None:
    """As answers are: what stands before one is put there."""
    value = _optional(values, key)
    return None if value is None else value.strip()


def _words(values: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; a cell of a CSV may hold it as JSON, and a single text counts as a list of one."""
    value = values.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else [value]
        except ValueError:
            raise _Fault(f"{key} is {value!r}, needed a JSON list of texts") from None
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in value):
        raise _Fault(f"{key} is {value!r}, needed a list of texts")
    return tuple(_readable(key, text) for text in value)


def _others(values: dict[str, Any], key: str) -> tuple[str, ...]:
    """Other answers or names, each once; none where the row has no ``key``."""
    given = values.get(key)
    if isinstance(given, (list, tuple)):
        given = [text for text in given if not _empty(text)]
    texts = () if _empty(given) else _words({key: given}, key)
    return tuple(dict.fromkeys(text.strip() for text in texts))


def _readable(key: str, value: str) -> str:
    faults = character_faults(value, key)
    if faults:
        raise _Fault(faults[0])
    return value
