"""Public sets as questions: permuted options, letters, limits."""

from __future__ import annotations

from gguf_forget.facts.public_sets import SetItem, choice_prompt
from gguf_forget.facts.schema import Fact
from gguf_forget.verification.questions import plan_questions, plan_set
from gguf_forget.verification.scores import GroupKey


def item(number: int, split: str = "forget") -> SetItem:
    return SetItem(
        "set", split, f"What is {number}?", f"Question: What is {number}?\nAnswer:", "a", ("b", "c", "d"), None, True
    )


def test_options_are_shown_with_letters() -> None:
    assert choice_prompt("Which? ", ["red", "blue"]) == (
        "The following are multiple choice questions (with answers).\n\nWhich?\nA. red\nB. blue\nAnswer:"
    )


def test_each_row_is_a_cloze_and_a_choice_about_one_fact() -> None:
    choice, cloze = plan_set([item(1)], first_fact=7)
    assert cloze.key == GroupKey("set", "forget", True, 0, "cloze")
    assert choice.key == GroupKey("set", "forget", True, 0, "choice")
    assert cloze.fact == choice.fact == 7
    assert (cloze.answer, cloze.distractors) == ("a", ("b", "c", "d"))
    assert sorted((choice.answer, *choice.distractors)) == ["A", "B", "C", "D"]
    assert f"\n{choice.answer}. a\n" in choice.prompt


def test_options_are_permuted_with_a_fixed_seed() -> None:
    items = [item(number) for number in range(40)]
    letters = [q.answer for q in plan_set(items) if q.key.form == "choice"]
    assert letters == [q.answer for q in plan_set(items) if q.key.form == "choice"]
    assert set(letters) == {"A", "B", "C", "D"}
    assert letters != [q.answer for q in plan_set(items, seed=1) if q.key.form == "choice"]
    assert {q.answer for q in plan_set(items, seed=None) if q.key.form == "choice"} == {"A"}


def test_a_limit_draws_the_same_rows_each_time() -> None:
    items = [item(number, split) for split in ("forget", "retain") for number in range(20)]
    facts = [question.fact for question in plan_set(items, limit=5)]
    assert facts == [question.fact for question in plan_set(items, limit=5)]
    assert len(facts) == 2 * 2 * 5
    assert {fact < 20 for fact in facts} == {True, False}
    assert sorted(set(facts)) != [*range(5), *range(20, 25)]


def test_other_names_of_right_and_wrong_answers_are_known_from_all_facts_of_the_relation() -> None:
    def told(subject: str, answer: str, wrong: tuple[str, ...], split: str, *aliases: str) -> Fact:
        return Fact(subject, "capital_of", answer, wrong, split, (f"{subject} is in",), (), aliases)

    facts = [
        told("Prague", "Czech Republic", ("Netherlands", "Peru"), "forget", "Czechia"),
        told("Amsterdam", "Netherlands", ("Czech Republic", "Peru"), "forget", "Holland"),
        told("The Hague", "Netherlands", ("Peru",), "forget", "Holland", "the Low Countries"),
        told("Lima", "Peru", ("Netherlands",), "retain"),
    ]
    names = {question.subject: question.names() for question in plan_questions(facts)}
    dutch = ("Netherlands", "Holland", "the Low Countries")
    assert names["Prague"] == [("Czech Republic", "Czechia"), dutch, ("Peru",)]
    assert names["Amsterdam"] == [dutch, ("Czech Republic", "Czechia"), ("Peru",)]
    assert names["Lima"] == [("Peru",), dutch]
