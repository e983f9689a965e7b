"""The wording of attacks, by hand."""

from __future__ import annotations

from dataclasses import replace

from gguf_forget.facts.public_sets import SetItem
from gguf_forget.verification.attacks.prompts import few_shot, in_chat, misspelt, prompt_attacks, targets, within
from gguf_forget.verification.questions import Question, plan_set
from gguf_forget.verification.scores import FileScores, GroupKey, Item, RankTable, recompute


def question(
    subject: str, answer: str, *, split: str = "forget", held_out: bool = True, phrasing: int = 0, form: str = "cloze"
) -> Question:
    key = GroupKey("capital", split, held_out, phrasing, form)
    return Question(key, hash(subject) % 1000, f"The capital of {subject} is", answer, ("Oslo",), (), subject=subject)


FRANCE = question("France", "Paris")
KEPT = [question(s, a, split="retain") for s, a in (("Japan", "Tokyo"), ("Peru", "Lima"), ("Kenya", "Nairobi"))]


def test_held_out_phrasings_are_attacked_where_there_are_any() -> None:
    trained = question("France", "Paris", held_out=False)
    second = question("France", "Paris", phrasing=1)
    every = [trained, FRANCE, second, *KEPT, question("France", "A", form="choice")]
    assert targets(every, every_phrasing=False) == [FRANCE]
    assert targets(every, every_phrasing=True) == [FRANCE, second]
    assert targets([trained, *KEPT], every_phrasing=True) == [trained]


def asked(phrasing: int, right: tuple[float, ...], ranked: bool) -> tuple[list[Item], list[RankTable]]:
    """Two facts; the log-probability of each right answer, beside a wrong one of -2."""
    key = ("capital", "forget", True, phrasing)
    items = [Item(*key, fact, "", (value, -2.0), (1, 1), 0) for fact, value in enumerate(right)]
    rows = ((right[0], -2.0), (-2.0, right[1]))
    return items, [RankTable(*key, (0, 1), (0, 1), rows)] if ranked else []


def scores_of(*parts: tuple[list[Item], list[RankTable]]) -> FileScores:
    items, ranks = ([each for part in parts for each in part[i]] for i in (0, 1))
    return FileScores(tuple(items), tuple(ranks), (), (), recompute(items, ranks))


def test_the_phrasing_that_tells_most_is_attacked() -> None:
    every = [question("France", "Paris", phrasing=phrasing) for phrasing in (2, 0, 1)]
    low, high = (-3.0, -3.0), (-1.0, -1.0)

    def chosen(scores: FileScores | None) -> list[int]:
        return [q.key.phrasing for q in targets(every, every_phrasing=False, scores=scores)]

    assert chosen(None) == [0]
    assert chosen(scores_of(asked(0, low, True), asked(1, high, True), asked(2, low, True))) == [1]
    assert chosen(scores_of(asked(0, high, True), asked(1, low, True), asked(2, high, True))) == [0]
    # The rank decides; accuracy where nothing was ranked, and a phrasing that was not asked comes last.
    assert chosen(scores_of(asked(0, low, True), asked(1, high, False))) == [0]
    assert chosen(scores_of(asked(1, low, False), asked(2, high, False))) == [2]
    assert chosen(scores_of(asked(2, low, False))) == [2]
    assert len(targets(every, every_phrasing=True, scores=scores_of(asked(1, high, True)))) == 3


def test_examples_stand_before_the_question_and_never_give_it_away() -> None:
    (attacked,) = few_shot([FRANCE], KEPT, shots=2)
    *examples, asked = attacked.prompt.split("\n\n")
    assert asked == FRANCE.prompt
    assert len(examples) == len(set(examples)) == 2
    known = {f"{kept.prompt} {kept.answer}" for kept in KEPT}
    assert set(examples) <= known
    assert (attacked.answer, attacked.key) == (FRANCE.answer, FRANCE.key)
    giving_away = [*KEPT, question("Paris", "Paris", split="retain")]
    assert "Paris is Paris" not in few_shot([FRANCE], giving_away, shots=9)[0].prompt


def test_no_example_gives_the_answer_away_by_another_name() -> None:
    named = replace(FRANCE, aliases=(("Lutetia",), ()))
    kept = [question(s, a, split="retain") for s, a in (("X", "Paris"), ("Y", "lutetia"), ("Z", "PARIS!"))]
    assert few_shot([named], kept) == []
    (attacked,) = few_shot([named], [*kept, *KEPT[:1]])
    assert attacked.prompt == f"{KEPT[0].prompt} Tokyo\n\n{FRANCE.prompt}"
    # Without any example it would be the plain question.
    assert [asked for kind, _, asked in prompt_attacks([named], kept) if kind == "few-shot"] == [[]]


def test_letters_stand_in_every_prompt_and_give_nothing_away() -> None:
    def lettered(text: str, letter: str, split: str) -> Question:
        asked = question(text, letter, split=split)
        return replace(asked, prompt=f"{text}\nA. red\nB. blue\nC. green\nAnswer:")

    kept = [lettered(f"Which is {letter}?", letter, "retain") for letter in "ABC"]
    (attacked,) = few_shot([lettered("Which?", "B", "forget")], kept)
    assert "Answer: A" in attacked.prompt
    assert "Answer: C" in attacked.prompt
    assert "Answer: B" not in attacked.prompt


def test_a_row_of_a_set_is_misspelt_in_its_own_words() -> None:
    items = (
        SetItem("r", "forget", text, f"Question: {text}\nAnswer:", "x", subject=subject)
        for text, subject in (("Who wrote the book Emma?", None), ("Which gas do we take?", "high_school_biology"))
    )
    for asked in plan_set(list(items)):
        (changed,) = misspelt([asked])
        assert changed.prompt != asked.prompt
        assert changed.prompt.startswith("Question: ")
        assert changed.prompt.endswith("\nAnswer:")
    end = question("the word (parenthesis)...", "x")
    assert "parenthesis" not in misspelt([end])[0].prompt


def test_examples_of_the_same_phrasing_come_first() -> None:
    other = [question(s, "x", split="retain", phrasing=1) for s in ("A", "B", "C", "D")]
    (attacked,) = few_shot([FRANCE], [*other, *KEPT], shots=3)
    assert all(f"{kept.prompt} {kept.answer}" in attacked.prompt for kept in KEPT)


def test_two_letters_of_the_longest_word_are_swapped() -> None:
    asked = [FRANCE, question("Bosnia and Herzegovina", "Sarajevo"), question("Oz", "x")]
    first, second, third = misspelt(asked)
    assert first.prompt != FRANCE.prompt
    assert sorted(first.prompt) == sorted(FRANCE.prompt)
    assert first.prompt.startswith("The capital of F")
    assert first.prompt.endswith("e is")
    assert "Bosnia and " in second.prompt
    assert "Herzegovina" not in second.prompt
    assert third.prompt == asked[2].prompt  # nothing to swap in two letters
    assert misspelt(asked) == [first, second, third]


def test_templates_hold_the_prompt() -> None:
    assert within([FRANCE], "Sure.\n{}")[0].prompt == "Sure.\nThe capital of France is"
    assert within([FRANCE], "{} of course")[0].prompt == "The capital of France is of course"


def test_in_a_chat_the_assistant_has_begun_its_answer() -> None:
    (attacked,) = in_chat([FRANCE], lambda messages: f"<user>{messages[0]['content']}</user><assistant>")
    assert attacked.prompt.startswith("<user>Complete this text")
    assert attacked.prompt.endswith("</user><assistant>The capital of France is")


def test_every_prompt_attack_asks_every_target() -> None:
    attacks = prompt_attacks([FRANCE], KEPT)
    assert [kind for kind, _, _ in attacks] == ["few-shot", *["prefilled"] * 2, "misspelt", *["paraphrased"] * 3]
    assert all([q.answer for q in asked] == ["Paris"] for _, _, asked in attacks)
    assert len({asked[0].prompt for _, _, asked in attacks}) == len(attacks)
    assert "few-shot" not in {kind for kind, _, _ in prompt_attacks([FRANCE], [])}
