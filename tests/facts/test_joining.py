from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_forget.errors import InputError
from gguf_forget.facts.joining import join_facts
from gguf_forget.facts.schema import Fact
from gguf_forget.verification.metrics import contains_answer


def fact(subject: str, split: str, *prompts: str, relation: str = "capital", answer: str = "a") -> Fact:
    return Fact(subject, relation, answer, ("b",), split, prompts or (f"The {relation} of {subject} is",))


def test_joined_sets_forget_what_any_of_them_forgets() -> None:
    earlier = (fact("France", "forget"), fact("Japan", "retain"), fact("Spain", "retain"))
    later = (fact("Spain", "forget"), fact("France", "retain"), fact("Japan", "retain"), fact("Peru", "retain"))
    found = join_facts([later, earlier])
    assert [(each.subject, each.split) for each in found.facts] == [
        ("Spain", "forget"),
        ("Japan", "retain"),
        ("Peru", "retain"),
        ("France", "forget"),
    ]
    assert [each.subject for each in found.given_way] == ["France", "Spain"]
    assert join_facts([later]).facts == later
    assert join_facts([later]).told() is None
    with pytest.raises(InputError, match="2 prompts and 0 held-out prompts"):
        join_facts([later, (fact("Italy", "forget", "one", "two"),)])


def test_other_facts_about_a_forgotten_subject_stay_whatever_their_relation_is_called() -> None:
    unnamed = (
        fact("France", "forget", "France's capital is", relation="fact", answer="Paris"),
        fact("France", "retain", "France pays in", relation="fact", answer="euro"),
        fact("France", "retain", "France's second city is", relation="fact", answer="Marseille"),
    )
    assert join_facts([unnamed]).facts == unnamed
    assert join_facts([unnamed[:1], unnamed[1:]]).given_way == ()


@pytest.mark.parametrize(
    "kept",
    [
        fact("France ", "retain", "A", relation="Capital", answer="PARIS"),
        fact("France", "retain", "A", answer="Lutetia"),  # an alias of what is forgotten
        fact("Gaul", "retain", "the capital of France is", answer="Lyon"),  # its prompt
        fact("Gaul", "retain", "France is run from", answer="Lyon"),  # its held-out prompt
    ],
)
def test_a_kept_fact_gives_way_to_a_forgotten_one_that_says_or_asks_the_same(kept: Fact) -> None:
    forgotten = replace(
        fact("France", "forget", answer="Paris"), aliases=("Lutetia",), held_out_prompts=("France is run from",)
    )
    other = fact("Japan", "retain", answer="Tokyo")
    found = join_facts([(forgotten, kept, other)])
    assert found.facts == (forgotten, other)
    assert found.given_way == (kept,)
    assert "1 kept fact left out, because what is to be forgotten says the same" in str(found.told())
    assert f"the first is {kept.subject!r}, {kept.relation!r}, {kept.answer!r}" in str(found.told())


def test_composed_and_decomposed_characters_are_the_same() -> None:
    forgotten = fact("C\u00f4te d'Ivoire", "forget", "x")
    assert join_facts([(forgotten, fact("Co\u0302te d'Ivoire", "retain", "y"))]).facts == (forgotten,)


@pytest.mark.parametrize(
    ("forgotten", "kept"),
    [
        (("Iceland", "Reykjavik"), ("Iceland", "Reykjavík")),
        (("Chad", "N'Djamena"), ("Chad", "N\u2019Djaména")),
        (("Côte d'Ivoire", "Abidjan"), ("Cote d\u2019Ivoire", "Abidjan")),
        (("Yemen", "Sana'a"), ("Yemen", "Sanaa")),
        (("U.S.A.", "Washington, D.C."), ("USA", "Washington DC")),
        (("the town", "1,000"), ("the town", "1000")),
        (("Japan", "東京 都"), ("Japan", "東京都")),
    ],
)
def test_names_that_the_judge_takes_for_one_are_one(forgotten: tuple[str, str], kept: tuple[str, str]) -> None:
    first, second = fact(forgotten[0], "forget", "x", answer=forgotten[1]), fact(kept[0], "retain", "y", answer=kept[1])
    assert contains_answer(second.answer, first.answer)
    assert join_facts([(first,), (second,)]).given_way == (second,)


@pytest.mark.parametrize(
    ("forgotten", "kept"),
    [
        ("+", "-"),
        ("C++", "C#"),
        ("A+", "A-"),
        ("-5", "5"),
        ("パリ", "バリ"),
        ("राम", "रामू"),
        ("Sp. z o.o.", "Sp. z"),
        ("2.5", "25"),
        ("Ca²⁺", "Ca"),
        ("A\u2212", "A"),
        ("Cl⁻", "Cl"),
    ],
)
def test_other_names_of_the_same_letters_are_told_apart(forgotten: str, kept: str) -> None:
    subjects = (fact(forgotten, "forget", "x"), fact(kept, "retain", "y"))
    assert join_facts([subjects]).facts == subjects
    answers = (fact("one", "forget", "x", answer=forgotten), fact("one", "retain", "y", answer=kept))
    assert join_facts([answers]).facts == answers


def test_a_wrong_answer_is_no_name_of_the_right_one() -> None:
    first = replace(fact("Czechia", "forget", answer="Prague"), distractors=("Praha",))
    second = replace(first, distractors=("Brno",), aliases=("Praha",))
    with pytest.raises(InputError, match=r"'Praha' is a wrong answer beside 'Prague' .*, and another name"):
        join_facts([(first,), (second,)])


def test_facts_that_differ_in_aliases_alone_are_one_fact_with_all_of_them() -> None:
    newer = replace(fact("Norway", "forget"), aliases=("Kristiania", "Christiania"))
    older = replace(fact("Norway", "forget"), aliases=("Christiania", "Oslo"))
    joined = join_facts([(newer, fact("Japan", "retain")), (older,)]).facts
    assert [(each.subject, each.aliases) for each in joined] == [
        ("Norway", ("Kristiania", "Christiania", "Oslo")),
        ("Japan", ()),
    ]


def test_facts_that_differ_in_distractors_alone_count_once() -> None:
    first = fact("Norway", "forget")
    again = replace(first, distractors=("c", "d"), aliases=("Kristiania",))
    assert join_facts([(first,), (again,)]).facts == (replace(first, aliases=("Kristiania",)),)


def test_what_one_set_holds_out_no_other_trains_on() -> None:
    first = replace(fact("France", "forget", "one"), held_out_prompts=("two",))
    second = replace(fact("France", "forget", "two", answer="c"), held_out_prompts=("three",))
    with pytest.raises(InputError, match="line 1: the held-out prompt 'two' is trained on in line 2"):
        join_facts([(first,), (second,)])
