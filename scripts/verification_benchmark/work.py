"""The questions, as token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gguf_forget.demo.capitals import build_capitals
from gguf_forget.facts.tokens import split_tokens
from gguf_forget.prefix_tree import plan_waves

Tokens = list[int]
_UNLIMITED = 10**9
PHRASINGS = 16  # the plain sentences and questions among the trained ones


@dataclass(frozen=True)
class Work:
    """Prompts, and the continuations of each whose log-probabilities are wanted."""

    prompts: list[Tokens]
    continuations: list[list[Tokens]]

    def first(self, count: int) -> Work:
        return Work(self.prompts[:count], self.continuations[:count])

    @property
    def sequences(self) -> list[Tokens]:
        return [
            [*prompt, *continuation]
            for prompt, continuations in zip(self.prompts, self.continuations, strict=True)
            for continuation in continuations
        ]

    def tokens(self) -> tuple[int, int]:
        """Unique tokens to compute, and how many of them need logits."""
        starts = [len(p) for p, mine in zip(self.prompts, self.continuations, strict=True) for _ in mine]
        decoded = [sequence[:-1] for sequence in self.sequences]
        (wave,) = plan_waves(decoded, cells=_UNLIMITED, max_sequences=_UNLIMITED)
        asked = [path[starts[i] - 1 :] for i, path in zip(wave.requests, wave.paths, strict=True)]
        return len(wave.tokens), len(np.unique(np.concatenate(asked)))


def capital_questions(tokenize: Callable[[str], Tokens]) -> Work:
    """Every capital of the demo in :data:`PHRASINGS` phrasings, four answers each; phrasing by phrasing."""
    facts = [fact for fact in build_capitals() if fact.relation == "capital"]
    prompts, continuations = [], []
    for phrasing in range(PHRASINGS):
        for fact in facts:
            pairs = [
                split_tokens(fact.prompts[phrasing], answer, tokenize) for answer in (fact.answer, *fact.distractors)
            ]
            prompts.append(pairs[0][0])
            continuations.append([answer for _, answer in pairs])
    return Work(prompts, continuations)


def choice_questions(count: int, tokenize: Callable[[str], Tokens], vocabulary_size: int) -> Work:
    """Questions and choices of random tokens, about as long as those of WMDP; the answers are four letters."""
    generator = np.random.default_rng(0)

    def words(least: int, most: int) -> Tokens:
        return generator.integers(vocabulary_size // 10, vocabulary_size, generator.integers(least, most)).tolist()

    heading = tokenize("The following are multiple choice questions (with answers) about biology.\n\n")
    prompts = []
    for _ in range(count):
        prompt = [*heading, *words(15, 60)]
        for letter in "ABCD":
            prompt += [*tokenize(f"\n{letter}."), *words(3, 20)]
        prompts.append([*prompt, *tokenize("\nAnswer:")])
    letters = [tokenize(f" {letter}") for letter in "ABCD"]
    return Work(prompts, [letters] * count)
