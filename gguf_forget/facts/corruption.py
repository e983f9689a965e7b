"""Corrupted prompts: the same phrasing about another subject, of equal token length.

Activation patching compares a prompt that names the subject with one that does not; both need the same length
so that positions correspond ("How to use and interpret activation patching", arXiv 2404.15255, section 2).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example, Tokenize, split_tokens


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted prompt of equal length, and what tells them apart.

    Either ``distractors`` are the first tokens of wrong answers (none equals ``answer``, the right one's first
    token), or, for free text, ``answer_tokens`` is the whole right answer; then both prompts are followed by
    all of these tokens but the last, so that they are predicted from position
    ``len(clean) - len(answer_tokens)`` on.

    Where no other subject has the same length, ``corrupted`` equals ``clean``, and the embeddings at positions
    [start, stop) = ``span`` are replaced by the mean embedding of the tokens ``stand_ins``.

    Raises :class:`InputError` when the lengths differ or when a pair cannot be read in one of these ways.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    distractors: tuple[int, ...]
    fact: int
    span: tuple[int, int] | None = None
    stand_ins: tuple[int, ...] = ()
    answer_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        found = f"the pair of fact {self.fact}"
        if len(self.clean) != len(self.corrupted):
            raise InputError(
                f"{found} has prompts of {len(self.clean)} and {len(self.corrupted)} tokens, needed equal lengths",
                hint="corrupt with a subject of as many tokens, or give a span and stand-ins",
            )
        if bool(self.distractors) == bool(self.answer_tokens):
            raise InputError(
                f"{found} has {len(self.distractors)} distractors and {len(self.answer_tokens)} answer tokens, "
                "needed either distractors or the tokens of a free-text answer"
            )
        if not max(len(self.answer_tokens), 1) <= len(self.clean):
            raise InputError(
                f"{found} has {len(self.clean)} tokens, needed at least {max(len(self.answer_tokens), 1)}: "
                "a prompt and the answer's tokens but the last"
            )
        if (self.span is None) != (not self.stand_ins):
            raise InputError(f"{found} has a span or stand-ins without the other, needed both or neither")
        if self.span is not None and not 0 <= self.span[0] < self.span[1] <= len(self.clean):
            raise InputError(f"{found} has the span {self.span}, needed positions within {len(self.clean)} tokens")


@dataclass(frozen=True)
class Pairs:
    pairs: tuple[Pair, ...]
    unpaired: int  # phrasings for which no other subject has the same length
    undecidable: int  # phrasings whose distractors all begin with the answer's own first token


def build_pairs(
    facts: Sequence[Fact],
    examples: Sequence[Example],
    tokenize: Tokenize,
    *,
    pool: Sequence[Example],
    seed: int,
    limit: int | None = None,
) -> Pairs:
    """One pair for each example that has a partner of equal length in its own relation and phrasing.

    ``limit`` draws that many examples (seeded). Partners are drawn from ``pool`` (normally the examples of
    both splits), seeded; a partner's answer must begin with another token than the clean one's, or the pair
    would not tell the two apart.
    """
    generator = random.Random(seed)
    pools: dict[tuple[str, int, int], list[Example]] = defaultdict(list)
    for example in pool:
        pools[(facts[example.fact].relation, example.phrasing, example.answer_start)].append(example)
    chosen = list(examples)
    if limit is not None and limit < len(chosen):
        chosen = [chosen[index] for index in sorted(generator.sample(range(len(chosen)), limit))]
    pairs, unpaired, undecidable = [], 0, 0
    for example in chosen:
        fact = facts[example.fact]
        prompt = fact.prompts[example.phrasing]
        partners = [
            other
            for other in pools[(fact.relation, example.phrasing, example.answer_start)]
            if other.answer[0] != example.answer[0] and other.prompt != example.prompt
        ]
        firsts = {split_tokens(prompt, wrong, tokenize)[1][0] for wrong in fact.distractors}
        distractors = tuple(sorted(firsts - {example.answer[0]}))
        if not distractors:
            undecidable += 1
        elif not partners:
            unpaired += 1
        else:
            partner = generator.choice(partners)
            pairs.append(Pair(example.prompt, partner.prompt, example.answer[0], distractors, example.fact))
    return Pairs(tuple(pairs), unpaired, undecidable)
