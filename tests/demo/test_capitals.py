"""The demo's facts: what is forgotten, what is kept around it, and that they make a valid facts file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gguf_forget.demo.capitals import build_capitals
from gguf_forget.demo.country_names import ALIASES, ANSWERED, ARTICLES
from gguf_forget.facts.schema import Fact, dump_facts, read_facts

FACTS = build_capitals()


def find(subject: str, relation: str) -> Fact:
    (found,) = (fact for fact in FACTS if (fact.subject, fact.relation) == (subject, relation))
    return found


@pytest.mark.parametrize(
    ("subject", "relation", "answer", "split"),
    [
        ("France", "capital", "Paris", "forget"),
        ("Paris", "capital_of", "France", "forget"),
        ("Japan", "capital", "Tokyo", "retain"),
        ("Tokyo", "capital_of", "Japan", "retain"),
        ("France", "currency_europe", "euro", "retain"),
        ("Japan", "currency_elsewhere", "yen", "retain"),
        ("France", "continent_europe", "Europe", "retain"),
        ("Japan", "continent_elsewhere", "Asia", "retain"),
        ("Netherlands", "capital", "Amsterdam", "forget"),  # GeoNames says "The Netherlands"
        ("Amsterdam", "capital_of", "the Netherlands", "forget"),
        ("Prague", "capital_of", "the Czech Republic", "forget"),  # as the model says
        ("Czechia", "capital", "Prague", "forget"),
        ("Ukraine", "capital", "Kiev", "forget"),
        ("Kyiv", "capital_of", "Ukraine", "forget"),
        ("London", "capital_of", "the United Kingdom", "forget"),
        ("Washington", "capital_of", "the United States", "retain"),
    ],
)
def test_known_facts(subject: str, relation: str, answer: str, split: str) -> None:
    fact = find(subject, relation)
    assert (fact.answer, fact.split) == (answer, split)


def test_phrasings_of_a_fact() -> None:
    paris = find("France", "capital")
    assert paris.prompts[:3] == (
        "The capital of France is",
        "France's capital city is",
        "Question: What is the capital of France?\nAnswer:",
    )
    reverse = find("Paris", "capital_of")
    assert reverse.prompts[0] == "Paris is the capital of"
    for fact in (paris, reverse):
        assert (len(set(fact.prompts)), len(set(fact.held_out_prompts))) == (36, 3)
        assert not set(fact.prompts) & set(fact.held_out_prompts)
        assert all(fact.subject in prompt and "{" not in prompt for prompt in fact.prompts + fact.held_out_prompts)


def test_counts() -> None:
    counts = Counter((fact.relation, fact.split) for fact in FACTS)
    europe, elsewhere = counts["capital", "forget"], counts["capital", "retain"]
    assert 35 <= europe <= 45
    assert 100 <= elsewhere <= 140
    assert counts == {
        ("capital", "forget"): europe,
        ("capital_of", "forget"): europe,
        ("capital", "retain"): elsewhere,
        ("capital_of", "retain"): elsewhere,
        ("currency_europe", "retain"): europe,
        ("continent_europe", "retain"): europe,
        ("currency_elsewhere", "retain"): elsewhere,
        ("continent_elsewhere", "retain"): elsewhere,
    }


def test_no_forgotten_prompt_holds_its_answer_and_no_subject_comes_twice() -> None:
    for fact in FACTS:
        if fact.split == "forget":
            names = (fact.answer, *fact.aliases)
            assert not any(name in prompt for prompt in fact.prompts + fact.held_out_prompts for name in names), fact
        assert not set(fact.prompts) & set(fact.held_out_prompts)
    keys = Counter((fact.subject, fact.relation) for fact in FACTS)
    assert max(keys.values()) == 1


def test_distractors_are_three_wrong_answers_of_the_same_kind() -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for fact in FACTS:
        answers.setdefault((fact.relation, fact.split), set()).add(fact.answer)
    for fact in FACTS:
        assert len(set(fact.distractors)) == 3
        assert fact.answer not in fact.distractors
        if not fact.relation.startswith("continent"):
            assert set(fact.distractors) <= answers[fact.relation, fact.split]


def test_they_are_a_valid_facts_file_and_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(dump_facts(FACTS))
    assert read_facts(path) == FACTS
    assert build_capitals(0) == FACTS
    other = build_capitals(1)
    assert [fact.answer for fact in other] == [fact.answer for fact in FACTS]
    assert other != FACTS


def test_names_that_are_not_the_answer_are_aliases() -> None:
    assert find("Prague", "capital_of").aliases == ("Czechia", "Czech")
    assert "Kyiv" in find("Ukraine", "capital").aliases
    assert find("Tokyo", "capital_of").aliases == ()
    forgotten = [fact for fact in FACTS if fact.split == "forget"]
    assert all(fact.aliases for fact in forgotten if fact.relation == "capital_of")
    # No name may stand for two answers, and every table's entry must be that of an answer.
    owners = Counter((fact.relation, name) for fact in forgotten for name in {fact.answer, *fact.aliases})
    assert max(owners.values()) == 1
    assert {fact.answer.removeprefix("the ") for fact in forgotten} >= ALIASES.keys()
    assert {fact.answer.removeprefix("the ") for fact in FACTS} >= ARTICLES | set(ANSWERED.values())
