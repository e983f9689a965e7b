"""The facts file: one JSON object a line, one line a fact.

A line holds ``subject``, ``relation``, ``answer``, ``distractors`` (wrong answers of the same kind),
``split`` (``forget`` or ``retain``), ``prompts`` (phrasings that training may see; ``prompt`` for a single
one), ``held_out_prompts`` (phrasings that only verification sees) and ``aliases`` (what else would give the
answer away: its other names, read for in what a file writes, never trained on). All facts of one relation list
their phrasings in the same order, in both splits: phrasing *k* of one subject is the corrupted form of
phrasing *k* of another.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError

SPLITS = ("forget", "retain")
MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Fact:
    """One fact with its phrasings; ``prompts`` are trained on, ``held_out_prompts`` never are."""

    subject: str
    relation: str
    answer: str
    distractors: tuple[str, ...]
    split: str
    prompts: tuple[str, ...]
    held_out_prompts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def phrasings(self, held_out: bool) -> tuple[str, ...]:
        return self.held_out_prompts if held_out else self.prompts


def continuation(prompt: str, answer: str) -> str:
    """The text that follows ``prompt``: the answer, after a space unless the prompt ends in white space."""
    return answer if prompt[-1:].isspace() else f" {answer}"


def character_faults(value: str, key: str) -> list[str]:
    """What no tokenizer can read in ``value``, in words that name ``key``."""
    faults = []
    if "\0" in value:
        faults.append(f"{key} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        faults.append(f"{key} holds half of a surrogate pair, which no tokenizer can read")
    return faults


def _text(record: dict[str, Any], key: str, faults: list[str], where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        faults.append(f"{where}: {key} is {value!r}, needed a non-empty string")
        return ""
    faults += [f"{where}: {fault}" for fault in character_faults(value, key)]
    return value


def _texts(record: dict[str, Any], key: str, faults: list[str], where: str) -> tuple[str, ...]:
    value = record.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        faults.append(f"{where}: {key} is {value!r}, needed a list of non-empty strings")
        return ()
    faults += [f"{where}: {fault}" for item in value for fault in character_faults(item, key)]
    return tuple(value)


KEYS = {"subject", "relation", "answer", "aliases", "distractors", "split", "prompt", "prompts", "held_out_prompts"}


def _fact(record: Any, faults: list[str], where: str, *, free_text: bool) -> Fact | None:
    before = len(faults)
    if not isinstance(record, dict):
        faults.append(f"{where}: a {type(record).__name__}, needed an object with {', '.join(sorted(KEYS))}")
        return None
    for key in sorted(set(record) - KEYS):
        faults.append(f"{where}: unknown key {key!r}, known are {', '.join(sorted(KEYS))}")
    if "prompt" in record and "prompts" in record:
        faults.append(f"{where}: both prompt and prompts, needed one of them")
    if "prompt" in record:
        record = {**record, "prompts": [record["prompt"]]}
    if "relation" not in record:
        record = {**record, "relation": "fact"}
    subject, relation, answer = (_text(record, key, faults, where) for key in ("subject", "relation", "answer"))
    distractors, prompts, held_out, aliases = (
        _texts(record, key, faults, where) for key in ("distractors", "prompts", "held_out_prompts", "aliases")
    )
    split = record.get("split")
    if split not in SPLITS:
        faults.append(f"{where}: split is {split!r}, needed one of {', '.join(SPLITS)}")
    if not prompts and not held_out and len(faults) == before:
        faults.append(f"{where}: no prompt, needed at least one in prompts")
    # What stands before an answer is put there; a wrong one that stands twice is one chance to be wrong.
    answer, distractors = answer.strip(), tuple(dict.fromkeys(text.strip() for text in distractors))
    if answer and answer in distractors:
        faults.append(f"{where}: the answer {answer!r} is among its own distractors")
    faults += [f"{where}: {name!r} is both an alias and a distractor" for name in aliases if name in distractors]
    if not distractors and not free_text and len(faults) == before:
        faults.append(f"{where}: no distractors, needed at least one wrong answer of the same kind")
    if len(faults) > before:
        return None
    return Fact(subject, relation, answer, distractors, str(split), prompts, held_out, aliases)


def is_fact(record: Any) -> bool:
    """Whether a line of a facts file may hold ``record``."""
    return _fact(record, [], "", free_text=True) is not None


def phrasing_faults(facts: Sequence[Fact], lines: Sequence[int]) -> list[str]:
    """Unequal numbers of phrasings in one relation and split, and held-out phrasings that training sees."""
    faults: list[str] = []
    first: dict[tuple[str, str], int] = {}
    for index, fact in enumerate(facts):
        other = first.setdefault((fact.relation, fact.split), index)
        counts = len(fact.prompts), len(fact.held_out_prompts)
        expected = len(facts[other].prompts), len(facts[other].held_out_prompts)
        if counts != expected:
            faults.append(
                f"line {lines[index]}: {counts[0]} prompts and {counts[1]} held-out prompts, but line "
                f"{lines[other]} of the same relation {fact.relation!r} has {expected[0]} and {expected[1]}"
            )
    trained = {prompt: line for fact, line in zip(facts, lines, strict=True) for prompt in fact.prompts}
    faults += [
        f"line {line}: the held-out prompt {prompt!r} is trained on in line {trained[prompt]}"
        for fact, line in zip(facts, lines, strict=True)
        for prompt in fact.held_out_prompts
        if prompt in trained
    ]
    return faults


def read_facts(path: Path, *, needed: Sequence[str] = SPLITS, free_text: bool = False) -> tuple[Fact, ...]:
    """Read a facts file with a fact of each split ``needed``; all faults are reported in one :class:`InputError`.

    ``free_text`` allows facts without distractors, which attribution can use and the 4-way questions cannot.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"facts file {path} does not exist", hint="check the path in [facts]") from None
    except OSError as error:
        raise InputError(f"facts file {path} cannot be read", cause=str(error)) from error
    faults: list[str] = []
    facts: list[Fact] = []
    lines: list[int] = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
            continue
        except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
            faults.append(f"{where}: not JSON ({error})")
            continue
        fact = _fact(record, faults, where, free_text=free_text)
        if fact is not None:
            facts.append(fact)
            lines.append(number)
    if not faults:
        faults += phrasing_faults(facts, lines)
    if not faults:
        for split in needed:
            if not any(fact.split == split for fact in facts):
                faults.append(f"no fact with split {split!r}, needed at least one")
    if faults:
        shown = "\n  ".join(faults[:MAX_FAULTS_SHOWN])
        more = f"\n  and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
        raise InputError(
            f"facts file {path} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:\n  {shown}{more}",
            hint="one JSON object a line with subject, answer, distractors, split and prompts",
        )
    return tuple(facts)


def dump_facts(facts: Iterable[Fact]) -> bytes:
    """The facts as the bytes of a facts file: one sorted JSON object a line, UTF-8; no aliases, no such key."""
    records = ({key: value for key, value in asdict(fact).items() if key != "aliases" or value} for fact in facts)
    lines = (json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records)
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def facts_hash(facts: Iterable[Fact]) -> str:
    """SHA-256 of :func:`dump_facts`, so that the order of keys or spacing in the file does not matter."""
    return hashlib.sha256(dump_facts(facts)).hexdigest()
