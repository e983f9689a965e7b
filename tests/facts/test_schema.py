"""The facts file: every fault is found, with its line, in one message; what is good comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import (
    MAX_FAULTS_SHOWN,
    Fact,
    continuation,
    dump_facts,
    facts_hash,
    read_facts,
)


def record(**changes: Any) -> dict[str, Any]:
    """A good line of the relation ``capital``; a value of None takes the key away."""
    line = {
        "subject": "Norway",
        "relation": "capital",
        "answer": "Oslo",
        "distractors": ["Rome", "Paris"],
        "split": "forget",
        "prompts": ["The capital of Norway is"],
        "held_out_prompts": ["Norway is governed from"],
    }
    line.update(changes)
    return {key: value for key, value in line.items() if value is not None}


KEPT = record(subject="Japan", answer="Tokyo", split="retain", prompts=["The capital of Japan is"])


def write(path: Path, lines: Sequence[dict[str, Any] | bytes]) -> Path:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(path)
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"subject": ', "line 2: not JSON (Expecting value: line 1 column 13 (char 12))"),
        (b'{"subject": "S\xe3o"}', "line 2: not UTF-8 (invalid continuation byte at byte 14)"),
        (b"9" * 5000, "line 2: not JSON (Exceeds the limit"),
        (b"[1, 2]", "line 2: a list, needed an object with aliases, answer, distractors"),
        (record(split="keep"), "line 2: split is 'keep', needed one of forget, retain"),
        (record(split=["forget"]), "line 2: split is ['forget'], needed one of forget, retain"),
        (record(split=None), "line 2: split is None, needed one of forget, retain"),
        (record(country="x"), "line 2: unknown key 'country', known are aliases, answer, distractors"),
        (record(prompt="Norway:"), "line 2: both prompt and prompts, needed one of them"),
        (record(subject=None), "line 2: subject is None, needed a non-empty string"),
        (record(answer="  "), "line 2: answer is '  ', needed a non-empty string"),
        (record(answer=7), "line 2: answer is 7, needed a non-empty string"),
        (record(answer="Os\0lo"), "line 2: answer holds a NUL character"),
        (record(prompts=["The \0 of Norway is"]), "line 2: prompts holds a NUL character"),
        (record(distractors=["Rome", "\0"]), "line 2: distractors holds a NUL character"),
        (record(answer="\ud83d"), "line 2: answer holds half of a surrogate pair"),
        (record(distractors="Rome"), "line 2: distractors is 'Rome', needed a list of non-empty strings"),
        (record(distractors=["Rome", ""]), "line 2: distractors is ['Rome', ''], needed a list"),
        (record(distractors=[]), "line 2: no distractors, needed at least one wrong answer"),
        (record(distractors=["Rome", "Oslo"]), "line 2: the answer 'Oslo' is among its own distractors"),
        (record(aliases="Kristiania"), "line 2: aliases is 'Kristiania', needed a list of non-empty strings"),
        (record(aliases=["Paris"]), "line 2: 'Paris' is both an alias and a distractor"),
        (record(prompts=None, held_out_prompts=None), "line 2: no prompt, needed at least one in prompts"),
        (
            record(prompts=["a", "b"]),
            "line 2: 2 prompts and 1 held-out prompts, but line 1 of the same relation 'capital' has 1 and 1",
        ),
        (
            record(held_out_prompts=[]),
            "line 2: 1 prompts and 0 held-out prompts, but line 1 of the same relation 'capital' has 1 and 1",
        ),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, line: dict[str, Any] | bytes, fault: str) -> None:
    text = message(write(tmp_path / "facts.jsonl", [record(), line, KEPT]))
    assert "has 1 fault:" in text
    assert fault in text


def test_all_faults_of_all_lines_are_reported_at_once(tmp_path: Path) -> None:
    lines = [b"{", b"", record(split="x", answer=""), record(distractors=[]), KEPT]
    text = message(write(tmp_path / "facts.jsonl", lines))
    assert "has 4 faults:" in text
    assert [part for part in text.split() if part.rstrip(":").isdigit() and part.endswith(":")] == [
        "1:",
        "3:",
        "3:",
        "4:",
    ]


def test_of_very_many_faults_the_first_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    text = message(write(tmp_path / "facts.jsonl", [b"{"] * (MAX_FAULTS_SHOWN + 7)))
    assert "has 27 faults:" in text
    assert text.count("not JSON") == MAX_FAULTS_SHOWN
    assert text.endswith("and 7 more")


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_an_empty_file_lacks_both_splits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    text = message(path)
    assert "no fact with split 'forget', needed at least one" in text
    assert "no fact with split 'retain', needed at least one" in text


@pytest.mark.parametrize(("lines", "missing"), [([record()], "retain"), ([KEPT], "forget")])
def test_a_missing_split_is_a_fault(tmp_path: Path, lines: list[dict[str, Any]], missing: str) -> None:
    text = message(write(tmp_path / "facts.jsonl", lines))
    assert f"has 1 fault:\n  no fact with split '{missing}', needed at least one" in text


def test_a_file_that_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "none.jsonl")
    assert "cannot be read" in message(tmp_path)


def test_what_a_good_file_holds(tmp_path: Path) -> None:
    single = record(prompts=None, prompt="Norway:", relation=None, held_out_prompts=None)
    facts = read_facts(write(tmp_path / "facts.jsonl", [single, b"", KEPT, b"  "]))
    assert facts == (
        Fact("Norway", "fact", "Oslo", ("Rome", "Paris"), "forget", ("Norway:",), ()),
        Fact(
            "Japan",
            "capital",
            "Tokyo",
            ("Rome", "Paris"),
            "retain",
            ("The capital of Japan is",),
            ("Norway is governed from",),
        ),
    )
    assert facts[1].phrasings(held_out=False) == ("The capital of Japan is",)
    assert facts[1].phrasings(held_out=True) == ("Norway is governed from",)


def test_lines_that_end_in_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\r\n".join(json.dumps(line).encode() for line in (record(), KEPT)) + b"\r\n")
    assert [fact.subject for fact in read_facts(path)] == ["Norway", "Japan"]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    fact = Fact("a", "r", "b\u2028c", ("d",), "forget", ("p\u0085q",), ())
    kept = Fact("a", "r", "b", ("d",), "retain", ("p",), ())
    path = tmp_path / "facts.jsonl"
    path.write_bytes(dump_facts([fact, kept]))
    assert read_facts(path) == (fact, kept)


def test_dump_and_read_is_a_round_trip(tmp_path: Path) -> None:
    facts = (
        Fact("São Tomé", "capital", "東京 🙂", ('"quoted"', "a\\b"), "forget", ("one\nline?",), ("x", "y")),
        Fact("Łódź", "capital", "b", ("c",), "retain", ("only",), ("x", "y")),
    )
    path = tmp_path / "facts.jsonl"
    path.write_bytes(dump_facts(facts))
    assert read_facts(path) == facts
    assert path.read_bytes().count(b"\n") == 2
    assert "São Tomé".encode() in path.read_bytes()


def test_the_hash_depends_on_the_facts_not_on_their_spelling(tmp_path: Path) -> None:
    backwards = {key: record()[key] for key in reversed(record())}
    spaced = json.dumps(backwards, indent=None, separators=(" ,  ", " :  ")).encode()
    plain = read_facts(write(tmp_path / "a.jsonl", [record(), KEPT]))
    other = read_facts(write(tmp_path / "b.jsonl", [spaced, b"", KEPT]))
    assert facts_hash(plain) == facts_hash(other)
    assert facts_hash(plain) != facts_hash(plain[::-1])
    changed = read_facts(write(tmp_path / "c.jsonl", [record(answer="Bergen"), KEPT]))
    assert facts_hash(plain) != facts_hash(changed)


def test_the_answer_follows_after_a_space_unless_there_is_one() -> None:
    assert continuation("The capital is", "Oslo") == " Oslo"
    assert continuation("Answer: ", "Oslo") == "Oslo"
    assert continuation("Answer:\n", "Oslo") == "Oslo"


def test_free_text_needs_no_distractors_where_they_are_not_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.jsonl", [record(distractors=[]), KEPT])
    with pytest.raises(InputError, match="line 1: no distractors"):
        read_facts(path)
    assert read_facts(path, free_text=True)[0].distractors == ()


def test_aliases_come_back_and_count_in_the_hash_only_where_there_are_any(tmp_path: Path) -> None:
    plain = read_facts(write(tmp_path / "plain.jsonl", [record(aliases=[]), KEPT]))
    named = read_facts(write(tmp_path / "named.jsonl", [record(aliases=["Christiania", "Kristiania"]), KEPT]))
    assert [fact.aliases for fact in named] == [("Christiania", "Kristiania"), ()]
    (tmp_path / "again.jsonl").write_bytes(dump_facts(named))
    assert read_facts(tmp_path / "again.jsonl") == named
    assert b"aliases" not in dump_facts(plain)
    assert dump_facts(named).count(b"aliases") == 1
    assert facts_hash(named) != facts_hash(plain)


def test_a_held_out_phrasing_is_not_one_that_training_sees(tmp_path: Path) -> None:
    kept = {**KEPT, "held_out_prompts": ["Japan is ruled from"]}
    own = record(held_out_prompts=["Japan's capital is"])
    trained = KEPT["prompts"][0]
    with pytest.raises(InputError, match=f"line 1: the held-out prompt '{trained}' is trained on in line 2"):
        read_facts(write(tmp_path / "facts.jsonl", [{**own, "held_out_prompts": [trained]}, kept]))
    assert len(read_facts(write(tmp_path / "facts.jsonl", [own, kept]))) == 2


def test_answers_bring_no_space_and_a_distractor_counts_once(tmp_path: Path) -> None:
    twice = write(tmp_path / "facts.jsonl", [record(answer=" Oslo", distractors=["Rome", "Rome ", "Paris"]), KEPT])
    assert (read_facts(twice)[0].answer, read_facts(twice)[0].distractors) == ("Oslo", ("Rome", "Paris"))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.jsonl", [record(), KEPT])
    before = read_facts(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_facts(path) == before
