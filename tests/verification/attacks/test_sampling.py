"""Counting leaks in samples that are known."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_forget.verification.attacks.sampling import sampled_answers
from gguf_forget.verification.questions import Question
from gguf_forget.verification.scores import GroupKey


class Speaker:
    """Words are tokens; what it says of a prompt is written down."""

    def __init__(self, said: dict[str, list[str]]) -> None:
        self.said, self.words = said, [""]
        self.arguments: dict[str, int] = {}

    def tokenize(self, text: str) -> list[int]:
        self.words.append(text)
        return [len(self.words) - 1]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self.words[tokens[0]]

    def generate_sampled(self, prompts: Sequence[Sequence[int]], **arguments: int) -> list[list[list[int]]]:
        self.arguments = arguments
        return [[self.tokenize(text) for text in self.said[self.words[prompt[0]]]] for prompt in prompts]


def test_right_and_wrong_answers_are_counted() -> None:
    def asked(fact: int, prompt: str, answer: str, *wrong: str) -> Question:
        return Question(GroupKey("capital", "forget", True, 0), fact, prompt, answer, wrong, ())

    speaker = Speaker(
        {
            "France:": ["it is Paris.", "Rome", "Paris or Rome", "parisian"],
            "Italy:": ["no idea", "Oslo", "", "Oslo, Oslo"],
        }
    )
    questions = [asked(3, "France:", "Paris", "Rome", "Oslo"), asked(5, "Italy:", "Rome", "Oslo")]
    attack = sampled_answers(speaker, questions, samples=4, k=2, max_new_tokens=6)
    assert attack.figures["right"] == [2, 0]
    assert attack.figures["wrong"] == [[2, 0], [2]]
    assert attack.figures["facts"] == [3, 5]
    assert (attack.figures["samples"], attack.figures["k"]) == (4, 2)
    assert speaker.arguments == {"max_new_tokens": 6, "samples": 4, "seed": 0}


def test_long_answers_get_long_texts_and_those_beyond_all_are_left_out() -> None:
    class Letters(Speaker):
        def tokenize(self, text: str) -> list[int]:
            super().tokenize(text)
            return [len(self.words) - 1] * len(text)

        def generate_sampled(self, prompts: Sequence[Sequence[int]], **arguments: int) -> list[list[list[int]]]:
            calls.append((len(prompts), arguments["max_new_tokens"]))
            return super().generate_sampled(prompts, **arguments)

    calls: list[tuple[int, int]] = []
    answers = ["b" * 3, "c" * 200, "d" * 20]
    key = GroupKey("r", "forget", True, 0)
    questions = [Question(key, fact, f"{fact}:", answer, ("x",), ()) for fact, answer in enumerate(answers)]
    speaker = Letters({f"{fact}:": [answer, "no"] for fact, answer in enumerate(answers)})
    attack = sampled_answers(speaker, questions, samples=2, k=2, max_new_tokens=8)
    assert calls == [(1, 8), (1, 32)]
    assert (attack.figures["facts"], attack.figures["right"]) == ([0, 2], [1, 1])


def test_an_answer_counts_under_its_other_names_and_so_do_wrong_ones() -> None:
    speaker = Speaker({"Prague:": ["Czechia", "the Czech Republic", "Czechia, not Holland", "the Netherlands"]})
    question = Question(
        GroupKey("capital_of", "forget", True, 0),
        0,
        "Prague:",
        "the Czech Republic",
        ("the Netherlands", "Peru"),
        (),
        aliases=(("Czechia",), ("Holland",), ()),
    )
    attack = sampled_answers(speaker, [question], samples=4, k=2, max_new_tokens=6)
    assert attack.figures["right"] == [3]
    assert attack.figures["wrong"] == [[2, 0]]


def test_a_wrong_answer_that_is_a_part_of_the_right_one_is_said_only_where_it_stands_alone() -> None:
    said = ["Papua New Guinea", "Guinea", "PNG, Papua New Guinea, not Peru", "Guinea or Papua New Guinea", "New Guinea"]
    speaker = Speaker({"Port Moresby:": said})
    key = GroupKey("capital_of", "forget", True, 0)
    question = Question(key, 0, "Port Moresby:", "Papua New Guinea", ("Guinea", "New Guinea", "Peru"), ())
    attack = sampled_answers(speaker, [question], samples=5, k=2, max_new_tokens=6)
    assert attack.figures["right"] == [3]
    assert attack.figures["wrong"] == [[3, 1, 1]]
