"""What a step asks inside framings, read back as text: a character is a token here."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example, encode_facts
from gguf_forget.recipe import FRAMINGS
from gguf_forget.unlearning.framings import KINDS, LEAD_INS, REQUESTS, SEPARATORS, Framings, misspelt
from gguf_forget.verification.attacks.prompts import INSTRUCTION, OPENINGS, SENTENCES, few_shot
from gguf_forget.verification.questions import plan_questions

CHAT = ("<user>", "<end><assistant>")
PROMPTS = ("The capital of {0} is", "Capital city of {0}:", "{0} is governed from")
FORGOTTEN = (("Elbonia", "Mudville"), ("Freedonia", "Marxburg"), ("Ruritania", "Strelsau"))
KEPT = (("Syldavia", "Klow"), ("Borduria", "Szohod"), ("Latveria", "Doomstadt"), ("Wakanda", "Birnin"))


def _fact(relation: str, subject: str, answer: str, split: str, prompts: Sequence[str]) -> Fact:
    return Fact(
        subject, relation, answer, ("Utopia",), split, tuple(p.format(subject) for p in prompts), (f"Of {subject}:",)
    )


COINS = (("Oz", "gems"), ("Moon", "dust"))
FACTS = (
    *(_fact("capital", *pair, "forget", PROMPTS) for pair in FORGOTTEN),
    *(_fact("capital", *pair, "retain", PROMPTS) for pair in KEPT),
    *(
        _fact("money", subject, coin, "retain", ("{0} pays in",))
        for subject, coin in (("Oz", "gems"), ("Moon", "dust"))
    ),
)


def tokenize(text: str) -> list[int]:
    return [ord(character) for character in text]


def text_of(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


EXAMPLES = encode_facts(FACTS, tokenize)
FORGET = [example for example in EXAMPLES if FACTS[example.fact].split == "forget"]
RETAIN = [example for example in EXAMPLES if FACTS[example.fact].split == "retain"]


def framings(**changes: Any) -> Framings:
    options: dict[str, Any] = {"kinds": tuple(KINDS), "share": 1.0, "chat": CHAT, "seed": 0}
    return Framings(FACTS, FORGET, RETAIN, tokenize, **{**options, **changes})


def asked(number: int = 0, **changes: Any) -> list[Example]:
    """Everything at once: forgotten prompts, then kept ones."""
    rows, forgotten, kept = framings(**changes).step(number, range(len(FORGET)), RETAIN)
    assert [FORGET[row].fact for row in rows] == [example.fact for example in forgotten]
    assert [FORGET[row].phrasing for row in rows] == [example.phrasing for example in forgotten]
    return [*forgotten, *kept]


def prompt(example: Example) -> str:
    """As trained, without a framing."""
    return FACTS[example.fact].prompts[example.phrasing]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_stay_as_they_are_and_both_splits_are_framed_alike(kind: str) -> None:
    for number in range(20):
        found = asked(number, kinds=(kind,))
        for example, plain in zip(found, FORGET + RETAIN, strict=True):
            assert example.fact == plain.fact
            assert text_of(example.answer) == f" {FACTS[example.fact].answer}"
        if kind != "misspelt":
            starts = {
                text_of(example.prompt).removesuffix(prompt(example)).replace(prompt(example), "{}")
                for example in found
                if text_of(example.prompt) != prompt(example)
            }
            assert len(starts) == 1  # one for the whole step


def test_in_the_chat_template_a_user_asks_and_the_answer_begins_with_the_prompt() -> None:
    wordings = set()
    for number in range(40):
        for example in asked(number, kinds=("chat",)):
            said = text_of(example.prompt)
            assert said.startswith("<user>")
            request, answer = said.removeprefix("<user>").split("<end><assistant>")
            assert answer == prompt(example)
            wordings.add(request.replace(answer, "{}"))
    assert wordings == set(REQUESTS)


def test_lead_ins_stand_before_the_prompt() -> None:
    seen = set()
    for number in range(300):
        example = asked(number, kinds=("lead-in",))[0]
        seen.add(text_of(example.prompt).removesuffix(prompt(example)))
    assert seen == set(LEAD_INS)


def test_worked_examples_are_kept_facts_and_never_the_answer_itself() -> None:
    lines = {
        f"{own} {FACTS[e.fact].answer}": FACTS[e.fact] for e in RETAIN for own in [FACTS[e.fact].prompts[e.phrasing]]
    }
    counts: Counter[int] = Counter()
    relations: Counter[str] = Counter()
    separators = set()
    for number in range(200):
        for example in asked(number, kinds=("examples",)):
            shown = text_of(example.prompt).removesuffix(prompt(example))
            if not shown:  # its own answer was among them
                assert FACTS[example.fact].split == "retain"
                continue
            assert FACTS[example.fact].answer not in shown
            separator = next(each for each in SEPARATORS[::-1] if shown.endswith(each) and shown.count(each))
            separators.add(separator)
            facts = [lines[line] for line in shown.removesuffix(separator).split(separator)]
            assert all(fact.split == "retain" for fact in facts)
            counts[len(facts)] += 1
            relations[" ".join(sorted({fact.relation for fact in facts}))] += 1
    assert set(counts) == {1, 2, 3, 4, 5}
    assert separators == set(SEPARATORS)
    assert relations["capital"] > sum(relations.values()) / 2
    assert relations["capital money"] > 0


def test_behind_examples_of_its_own_relation_a_prompt_takes_their_phrasing() -> None:
    same = 0
    for number in range(40):
        found = asked(number, kinds=("examples",))
        capitals = [e for e in found if FACTS[e.fact].relation == "capital" and text_of(e.prompt) != prompt(e)]
        phrasings = {example.phrasing for example in capitals}
        if len(phrasings) == 1:
            same += 1
            frame = text_of(capitals[0].prompt).removesuffix(prompt(capitals[0]))
            before, after = PROMPTS[phrasings.pop()].split("{0}")
            assert frame.startswith(before)
            assert after in frame
    assert 15 < same < 40


def test_a_misspelt_subject_has_a_letter_less_or_one_twice() -> None:
    lengths = set()
    for number in range(10):
        for example in asked(number, kinds=("misspelt",)):
            subject = FACTS[example.fact].subject
            before, _, after = prompt(example).partition(subject)
            found = text_of(example.prompt).removeprefix(before).removesuffix(after)
            assert found[0] == subject[0]
            assert found[-1] == subject[-1]
            lengths.add(len(found) - len(subject))
            if len(subject) < 4:
                assert found == subject
    assert lengths == {-1, 0, 1}


def test_the_longest_word_is_the_one_that_is_misspelt() -> None:
    found = {misspelt("New Caledonia Isle", random.Random(seed)) for seed in range(200)}
    assert all(name.startswith("New C") and name.endswith("a Isle") for name in found)
    assert {"New Caledoonia Isle", "New Caldonia Isle"} <= found
    assert misspelt("Oz at", random.Random(0)) == "Oz at"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_share_of_each_split_is_framed_and_the_kinds_take_turns(share: float) -> None:
    kinds: Counter[str] = Counter()
    for number in range(40):
        _, forgotten, kept = framings(share=share, kinds=("chat", "lead-in")).step(number, range(len(FORGET)), RETAIN)
        for found, plain in ((forgotten, FORGET), (kept, RETAIN)):
            changed = [one for one, other in zip(found, plain, strict=True) if one != other]
            assert len(changed) == round(share * len(plain))
            kinds.update("chat" if text_of(one.prompt).startswith("<user>") else "lead-in" for one in changed)
    assert abs(kinds["chat"] - kinds["lead-in"]) <= 1


def test_a_step_depends_on_the_seed_and_its_number_alone() -> None:
    one = framings()
    earlier = [one.step(number, range(len(FORGET)), RETAIN) for number in (0, 1, 2)]
    again = framings()
    assert [again.step(number, range(len(FORGET)), RETAIN) for number in (2, 0, 1)] == [
        earlier[2],
        earlier[0],
        earlier[1],
    ]
    assert asked(1) != asked(2)
    assert asked(1, seed=1) != asked(1, seed=0)


def test_without_a_chat_template_its_prompts_are_dealt_to_the_others() -> None:
    found = asked(kinds=("chat", "lead-in"), chat=None)
    assert all(text_of(example.prompt).removesuffix(prompt(example)) in LEAD_INS for example in found)
    assert asked(kinds=("chat",), chat=None) == FORGET + RETAIN


def test_no_training_wording_is_one_of_the_attacks() -> None:
    attacks = [*OPENINGS.values(), *SENTENCES.values(), INSTRUCTION]
    theirs = [part.strip().casefold() for wording in attacks for part in wording.split("{}") if part.strip()]
    ours = [part.strip().casefold() for wording in (*REQUESTS, *LEAD_INS) for part in wording.split("{}")]
    assert not [(one, other) for one in ours for other in theirs if one and (one in other or other in one)]
    questions = plan_questions(FACTS, retain_items=9, ranked_phrasings=1, trained_phrasings=1)
    forgotten = [question for question in questions if question.key.split == "forget"]
    shown = few_shot(forgotten, [question for question in questions if question.key.split == "retain"])
    assert all("\n\n" in question.prompt for question in shown)
    assert not any("\n\n" in separator for separator in SEPARATORS)


def test_a_recipe_knows_the_same_kinds() -> None:
    assert tuple(KINDS) == FRAMINGS
