"""Rows of public sets as facts: the right letter stays, what is shown around it varies, wrong answers are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import is_multiple_choice
from gguf_forget.facts.joining import join_facts
from gguf_forget.facts.set_facts import is_question_set, read_set_facts

SETS = Path(__file__).parent / "sets"


def written(folder: Path, name: str, *rows: dict[str, object]) -> Path:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / name


def test_options_are_shown_in_other_orders_and_the_letter_is_the_same() -> None:
    first, second = read_set_facts(SETS / "wmdp.json", "forget")
    assert (first.relation, first.split) == ("wmdp", "forget")
    assert first.subject == "Which of these metals is liquid at room temperature?"
    assert {first.answer, *first.distractors} == set("ABCD")
    assert len(first.distractors) == 3
    for fact, right, options in (
        (first, "Mercury", {"Iron", "Mercury", "Zinc", "Tin"}),
        (second, "Carbon dioxide", {"Oxygen", "Neon", "Helium", "Carbon dioxide"}),
    ):
        assert (len(fact.prompts), len(fact.held_out_prompts)) == (2, 1)
        for prompt in fact.prompts + fact.held_out_prompts:
            lines = dict(line.split(". ", 1) for line in prompt.splitlines() if line[1:3] == ". ")
            assert set(lines.values()) == options
            assert lines[fact.answer] == right
            assert prompt.count(fact.subject) == 1
            assert is_multiple_choice(fact, prompt)
    assert not set(first.prompts) & set(first.held_out_prompts)
    assert read_set_facts(SETS / "wmdp.json", "retain")[0].split == "retain"


def test_a_question_in_three_frames_with_its_own_wrong_answers() -> None:
    fact, _ = read_set_facts(SETS / "tofu.jsonl", "forget")
    question = "Where was the invented author Ilse Quandrow born?"
    assert fact.subject == question
    assert fact.prompts == (f"Question: {question}\nAnswer:", f"Q: {question}\nA:")
    assert fact.held_out_prompts == (f"{question}\nThe answer is:",)
    assert fact.answer == "Ilse Quandrow was born in Graz."
    assert fact.distractors == ("Ilse Quandrow was born in Linz.", "Ilse Quandrow was born in Bern.")


def test_without_wrong_answers_those_of_other_rows_stand_beside(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {i}?", "answer": f"person {i % 5}"} for i in range(10)]
    path = written(tmp_path, "people.jsonl", *rows)
    found = read_set_facts(path, "retain")
    assert found == read_set_facts(path, "retain")
    for fact in found:
        assert len(set(fact.distractors)) == 3
        assert set(fact.distractors) < {f"person {i}" for i in range(5)} - {fact.answer}
    with pytest.raises(InputError, match=r"'Graz' is the only answer of 'one' \(forget\), needed another"):
        read_set_facts(written(tmp_path, "one.jsonl", {"question": "Where?", "answer": "Graz"}), "forget")


def test_a_passage_is_held_out_by_its_second_half(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "books.jsonl",
        {"prompt": "one two three four five six ", "gt": " seven eight"},
        {"prompt": "red green blue", "gt": "white"},
    )
    first, second = read_set_facts(path, "forget")
    assert (first.prompts, first.held_out_prompts) == (("one two three four five six",), ("four five six",))
    assert (first.subject, first.answer, first.distractors) == ("four five six", "seven eight", ("white",))
    assert second.held_out_prompts == ("green blue",)


def test_a_row_keeps_its_subject_and_the_other_names_of_its_answer(tmp_path: Path) -> None:
    """Or what a row forgets would be trained on by another row that says the same in other words."""
    rows = [
        {"prompt": "The capital of France is", "answer": "Paris", "subject": "France", "aliases": ["Lutetia"]},
        {"prompt": "The seat of rule in France is", "answer": "Lutetia", "subject": "France", "split": "retain"},
        {"prompt": "The capital of Peru is", "answer": "Lima", "subject": "Peru"},
        {"prompt": "The capital of Chad is", "answer": "N'Djamena", "subject": "Chad", "split": "retain"},
        {"prompt": "It is ruled from", "answer": "Lima", "subject": "Peru", "split": "retain"},
    ]
    path = tmp_path / "capitals.json"
    path.write_text(json.dumps([{**row, "relation": "capital"} for row in rows]), encoding="utf-8")
    found = read_set_facts(path, "forget")
    assert [fact.subject for fact in found] == ["France", "France", "Peru", "Chad", "ruled from"]
    assert [fact.aliases for fact in found] == [("Lutetia",), (), (), (), ()]
    assert join_facts([found]).given_way == (found[1],)
    # A subject without a relation may be a field of knowledge, or the one person asked about.
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = read_set_facts(path, "forget")
    assert [fact.subject for fact in found[:2]] == ["of France is", "rule in France is"]


def test_one_subject_of_a_whole_relation_is_nobody_elses_stranger(tmp_path: Path) -> None:
    rows = [
        {"question": f"Where did Ann {verb}?", "answer": answer, "subject": "Ann", "relation": "Ann's life"}
        for verb, answer in (("live", "Graz"), ("work", "Linz"), ("die", "Bern"))
    ]
    found = read_set_facts(written(tmp_path, "lives.jsonl", *rows), "forget")
    assert [fact.subject for fact in found] == [row["question"] for row in rows]
    other = {"question": "Where did Eve live?", "answer": "Rome", "subject": "Eve", "relation": "Ann's life"}
    found = read_set_facts(written(tmp_path, "lives.jsonl", *rows, other), "forget")
    assert [fact.subject for fact in found] == ["Ann", "Ann", "Ann", "Eve"]


def test_facts_files_and_sets_are_told_apart(tmp_path: Path) -> None:
    for name in ("wmdp.json", "mmlu.csv", "tofu.jsonl", "muse_verbatim.json", "muse_knowledge.jsonl"):
        assert is_question_set(SETS / name)
    assert not is_question_set(written(tmp_path, "facts.jsonl", {"prompts": ["The capital of France is"]}))
    assert not is_question_set(SETS / "plain.jsonl")
    assert not is_question_set(tmp_path / "missing.jsonl")
    (tmp_path / "broken.jsonl").write_text("{broken")
    assert not is_question_set(tmp_path / "broken.jsonl")


def test_a_passage_of_one_word_has_no_half_to_hold_out(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text('{"prompt": "Alpha", "gt": "beta"}\n{"prompt": "one two", "gt": "three"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="the prompt 'Alpha' has one word, needed two"):
        read_set_facts(path, "forget")
