"""Rows of public sets as facts: the right letter stays, what is shown around it varies, wrong answers are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import is_multiple_choice
from gguf_forget.facts.joining import join_facts
from gguf_forget.facts.set_facts import is_question_set, read_set_facts
from gguf_forget.progress import Progress
from gguf_forget.stages.facts import _read_all

SETS = Path(__file__).parent / "sets"


def written(folder: Path, name: str, *rows: dict[str, object]) -> Path:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / name


def test_options_are_shown_in_other_orders_and_the_letter_is_the_same() -> None:
    first, second = read_set_facts(SETS / "wmdp.json", "forget").facts
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
    assert read_set_facts(SETS / "wmdp.json", "retain").facts[0].split == "retain"


def test_a_question_in_three_frames_with_its_own_wrong_answers() -> None:
    fact, _ = read_set_facts(SETS / "tofu.jsonl", "forget").facts
    question = "Where was the invented author Ilse Quandrow born?"
    assert fact.subject == question
    assert fact.prompts == (f"Question: {question}\nAnswer:", f"Q: {question}\nA:")
    assert fact.held_out_prompts == (f"{question}\nThe answer is:",)
    assert fact.answer == "Ilse Quandrow was born in Graz."
    assert fact.distractors == ("Ilse Quandrow was born in Linz.", "Ilse Quandrow was born in Bern.")


def test_without_wrong_answers_those_of_other_rows_stand_beside(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {i}?", "answer": f"person {i % 5}"} for i in range(10)]
    path = written(tmp_path, "people.jsonl", *rows)
    found = read_set_facts(path, "retain").facts
    assert found == read_set_facts(path, "retain").facts
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
    first, second = read_set_facts(path, "forget").facts
    assert (first.prompts, first.held_out_prompts) == (("one two three four five six",), ("four five six",))
    assert (first.subject, first.answer, first.distractors) == ("four five six", "seven eight", ("white",))
    assert second.held_out_prompts == ("green blue",)


def test_rows_that_say_the_same_are_told_by_the_subject_that_they_name(tmp_path: Path) -> None:
    """Or what a row forgets would be trained on by another row that says the same in other words."""
    rows = [
        {"prompt": "The capital of France is", "answer": "Paris", "subject": "France", "aliases": ["Lutetia"]},
        {"prompt": "The seat of rule in France is", "answer": "Lutetia", "subject": "France", "split": "retain"},
        {"prompt": "The capital of Chad is", "answer": "N'Djamena", "subject": "Chad", "split": "retain"},
        {"prompt": "It is ruled from", "answer": "Paris", "subject": "France", "split": "retain"},
    ]
    path = tmp_path / "capitals.json"
    rows = [{**row, "distractors": ["Oslo"]} for row in rows]
    path.write_text(json.dumps([{**row, "relation": "capital"} for row in rows]), encoding="utf-8")
    found = read_set_facts(path, "forget")
    assert dict(found.about) == {rows[i]["prompt"]: rows[i]["subject"] for i in (0, 1, 2)}  # the last holds no subject
    assert [fact.subject for fact in found.facts][:2] == ["of France is", "rule in France is"]
    assert [fact.aliases for fact in found.facts] == [("Lutetia",), (), (), ()]
    assert join_facts([found.facts], found.about).given_way == (found.facts[1],)
    assert join_facts([found.facts]).given_way == ()
    # A subject without a relation may be a field of knowledge, or the one person asked about.
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert read_set_facts(path, "forget").about == {}
    options = [{"question": "Is X?", "choices": ["a", "b"], "answer": 0, "subject": "X", "relation": "r"}] * 2
    assert read_set_facts(written(tmp_path, "options.jsonl", *options), "forget").about == {}


def test_rows_of_one_subject_are_joined_over_files(tmp_path: Path) -> None:
    asked = {"question": "Where does Ann live?", "answer": "Graz", "subject": "Ann", "relation": "home"}
    again = {"question": "In which town is the house of Ann?", "answer": "GRAZ", "subject": "Ann", "relation": "home"}
    bob = {"question": "Where does Bob live?", "answer": "Linz", "subject": "Bob", "relation": "home"}
    forget = written(tmp_path, "forget.jsonl", {**asked, "perturbed_answer": ["Linz"]})
    keep = written(tmp_path, "keep.jsonl", again, bob)
    said: list[str] = []

    class Told(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    found = _read_all(forget, [keep], [], Told())
    assert [(fact.subject, fact.split) for fact in found] == [
        ("Where does Ann live?", "forget"),
        ("Where does Bob live?", "retain"),
    ]
    assert len(said) == 1
    assert said[0].startswith("1 kept fact left out, because what is to be forgotten says the same")


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
