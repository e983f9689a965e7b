"""leak@k: whether an answer turns up among many drawn at temperature 1, and whether wrong ones do as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.metrics import contains_answer, contains_any, without_answer
from gguf_forget.verification.probes import LONGEST_TEXT, by_length
from gguf_forget.verification.questions import Question

SEED = 0


class Samples(Protocol):
    """What is needed of a :class:`~gguf_forget.llama.scorer.Scorer`."""

    def tokenize(self, text: str) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def generate_sampled(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, samples: int, seed: int
    ) -> list[list[list[int]]]: ...


def sampled_answers(
    scorer: Samples, questions: Sequence[Question], *, samples: int, k: int, max_new_tokens: int
) -> Attack:
    """For each question, how many of ``samples`` texts hold the answer, and how many each wrong one.

    :func:`.attack_gates.attack_gates` makes leak@k of the counts (:func:`.memorisation.leak_at_k`). The wrong answers
    are the chance level: a file that names the capitals of a continent at random will hit each of them at times.
    A text has ``max_new_tokens`` tokens, or as many as a longer right answer, up to :data:`.probes.LONGEST_TEXT`;
    answers longer than that are left out, and counted.
    """
    begin = len(scorer.tokenize(""))  # the token that begins a text is none of an answer's
    sizes = [len(scorer.tokenize(" " + question.answer)) - begin for question in questions]
    drawn: dict[int, list[list[int]]] = {}
    for length, places in by_length(sizes, max_new_tokens, LONGEST_TEXT).items():
        whole = [place for place in places if sizes[place] <= length]
        prompts = [scorer.tokenize(questions[place].prompt) for place in whole]
        if whole:
            tokens = scorer.generate_sampled(prompts, max_new_tokens=length, samples=samples, seed=SEED)
            drawn.update(zip(whole, tokens, strict=True))
    order = sorted(drawn)
    right, wrong = [], []
    for place in order:
        question, texts = questions[place], [scorer.detokenize(each) for each in drawn[place]]
        mine, *others = question.names()
        right.append(sum(contains_any(text, mine) for text in texts))
        wrong.append([sum(_says_wrong(text, other, mine) for text in texts) for other in others])
    with_choices = {question.key.relation for question in questions if question.distractors}
    return Attack(
        "sampling",
        "sampled answers",
        figures={
            "samples": samples,
            "k": k,
            "max_new_tokens": max_new_tokens,
            "relations": [questions[place].key.relation for place in order],
            "free_text": sorted({question.key.relation for question in questions} - with_choices),
            "left_out": dict(Counter(question.key.relation for i, question in enumerate(questions) if i not in drawn)),
            "facts": [questions[place].fact for place in order],
            "right": right,
            "wrong": wrong,
        },
    )


def _says_wrong(text: str, wrong: Sequence[str], right: Sequence[str]) -> bool:
    """Whether a text says a wrong answer, by one of its names, and not only as a part of the right one.

    "Papua New Guinea" does not say "Guinea": else a file that always tells would seem to tell nothing.
    """
    apart = [name for name in wrong if not any(contains_answer(other, name) for other in right)]
    return contains_any(text, apart) or any(contains_any(rest, wrong) for rest in without_answer(text, right))
