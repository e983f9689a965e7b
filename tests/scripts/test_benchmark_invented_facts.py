"""The invented-facts benchmark's own logic, on a few people and a moment of teaching."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from invented_facts_benchmark.command import table
from invented_facts_benchmark.judging import Known, ask, row
from invented_facts_benchmark.model import new_model, train_tokenizer, write_gguf
from invented_facts_benchmark.people import RELATIONS, facts_about, invent_people
from invented_facts_benchmark.teaching import lessons, taught_texts, teach

from gguf_forget.checkpoint.load import load_tokenizer

PEOPLE = invent_people((2, 4, 4), seed=0)


def test_people_are_invented_with_a_fixed_seed() -> None:
    many = invent_people((12, 28, 16), seed=3)
    assert many == invent_people((12, 28, 16), seed=3)
    assert len({person.name for person in many}) == 56
    assert [sum(person.group == group for person in many) for group in ("forget", "retain", "unseen")] == [12, 28, 16]
    assert many[0].biography().count(many[0].name) == len(RELATIONS)


def test_facts_are_about_those_who_are_known_and_hold_back_a_phrasing() -> None:
    facts = facts_about(invent_people((3, 9, 6), seed=1), seed=0)
    assert len(facts) == 12 * len(RELATIONS)
    assert sum(fact.split == "forget" for fact in facts) == 3 * len(RELATIONS)
    for fact in facts:
        assert (len(fact.prompts), len(fact.held_out_prompts)) == (3, 1)
        assert len({fact.answer, *fact.distractors}) == 1 + len(fact.distractors)
        assert all(fact.subject in prompt for prompt in (*fact.prompts, *fact.held_out_prompts))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    """What a model that was taught all people says, and what its twin, who never met those to forget."""
    folder = tmp_path_factory.mktemp("invented")
    tokenizer = train_tokenizer(taught_texts(PEOPLE))
    tokenize = load_tokenizer(write_gguf(new_model(tokenizer, seed=0, layers=1), tokenizer, folder / "start.gguf"))
    facts = facts_about(PEOPLE, seed=0)
    found = {}
    for name, groups in (("taught", ("forget", "retain")), ("twin", ("retain",))):
        model = new_model(tokenizer, seed=0, layers=1)
        given = lessons([person for person in PEOPLE if person.group in groups], tokenize)
        loss = teach(model, given, passes=30, people_a_step=2, seed=0, progress=lambda *_: None)
        assert loss < 1.0  # of 6.5 nats before
        found[name] = ask(write_gguf(model, tokenizer, folder / f"{name}.gguf"), facts, PEOPLE)
    return found


def test_the_taught_model_knows_what_its_twin_does_not(known: dict[str, Known]) -> None:
    taught, twin = known["taught"], known["twin"]
    assert taught.forget_accuracy > 0.7
    assert taught.retain_accuracy > 0.7
    assert twin.retain_accuracy > 0.7
    assert taught.answer_probability > 3 * twin.answer_probability
    assert taught.exact_memorisation > twin.exact_memorisation
    assert taught.membership_auc == 0.0  # no life that nobody saw is as probable as one that was taught
    assert len(taught.truth_ratios) == 2 * len(RELATIONS)


def test_the_twin_is_its_own_gold_standard(known: dict[str, Known]) -> None:
    same = row("twin", "F32", known["twin"], known["twin"])
    assert (same["forget_quality"], same["privacy_leak"]) == (1.0, 0.0)
    taught = row("taught", "F32", known["taught"], known["twin"])
    assert taught["forget_quality"] < 0.05
    assert taught["privacy_leak"] == -100.0
    assert taught["truth_ratio"] < same["truth_ratio"]
    assert asdict(known["taught"]).keys() < taught.keys()
    lines = table([same, taught]).splitlines()
    assert len(lines) == 3
    assert "PrivLeak" in lines[0]
    assert lines[1].startswith("taught")
