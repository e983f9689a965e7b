"""Corrupted prompts: the same phrasing about another subject, of equal token length.

Activation patching compares a prompt that names the subject with one that does not; both need the same length
so that positions correspond ("How to use and interpret activation patching", arXiv 2404.15255, section 2).

How a fact's prompt is corrupted:

another subject     the same phrasing of another fact of the relation whose prompt has as many tokens.
another question    multiple choice (the prompt ends in "Answer:", all answers are single letters): ``subject`` is the
                    question's own text, and another question's text of as many tokens takes its place, before the same
                    options. The letters and options stay, so that what differs is what the question asks for, and not
                    how a letter is chosen.
mean embedding      where neither exists: the embeddings of the subject's tokens become the mean embedding of the other
                    subjects' tokens.

An answer without distractors is free text, and is judged by the log-probability of all its tokens. So is one whose
distractors all begin with its own first token, as years do where the tokenizer parts the space from the digits.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.facts.subjects import subject_characters, subject_tokens
from gguf_forget.facts.tokens import Example, Tokenize, split_tokens
from gguf_forget.facts.turns import dealt


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
    """What :func:`build_pairs` made, and counts of what it could not make."""

    pairs: tuple[Pair, ...]
    unpaired: int  # phrasings without another subject, or of whose relation every answer begins alike
    unlocated: int = 0  # phrasings that need the subject's place, where it cannot be found
    other_subject: int = 0  # pairs by kind of corruption
    other_question: int = 0
    mean_embedding: int = 0

    @property
    def free_text(self) -> int:
        return sum(bool(pair.answer_tokens) for pair in self.pairs)

    def counts(self) -> dict[str, int]:
        """Every count by its name, for reports."""
        return {
            "pairs": len(self.pairs),
            "other_subject": self.other_subject,
            "other_question": self.other_question,
            "mean_embedding": self.mean_embedding,
            "free_text": self.free_text,
            "unpaired": self.unpaired,
            "unlocated": self.unlocated,
        }


def is_multiple_choice(fact: Fact, prompt: str) -> bool:
    """Whether the prompt lists options and asks for a letter, as WMDP and MMLU do."""
    letters = (fact.answer, *fact.distractors)
    return (
        len(letters) > 1
        and prompt.rstrip().endswith("Answer:")
        and all(len(text) == 1 and "A" <= text <= "Z" for text in letters)
    )


class _Pool:
    """The examples that partners come from, by relation and phrasing, and where each names its subject."""

    def __init__(
        self, facts: Sequence[Fact], pool: Sequence[Example], tokenize: Tokenize, *, mean_embedding: bool
    ) -> None:
        self.facts = facts
        self.mean_embedding = mean_embedding
        self.tokenize = tokenize
        self._members: dict[tuple[str, int], list[Example]] = defaultdict(list)
        self._spans: dict[tuple[int, int], tuple[int, int] | None] = {}
        for example in pool:
            self._members[(facts[example.fact].relation, example.phrasing)].append(example)

    def others(self, example: Example) -> list[Example]:
        """Examples of the same relation and phrasing about something else."""
        fact = self.facts[example.fact]
        members = self._members[(fact.relation, example.phrasing)]
        return [other for other in members if self.facts[other.fact].subject != fact.subject]

    def span(self, example: Example) -> tuple[int, int] | None:
        """Token positions of the example's subject."""
        key = (example.fact, example.phrasing)
        if key not in self._spans:
            fact = self.facts[example.fact]
            self._spans[key] = subject_tokens(fact.prompts[example.phrasing], fact.subject, self.tokenize)
        return self._spans[key]


def _other_question(example: Example, pool: _Pool, generator: random.Random) -> tuple[int, ...] | None:
    """The example's prompt with another question's text of equal token length before the same options."""
    fact = pool.facts[example.fact]
    prompt = fact.prompts[example.phrasing]
    place = subject_characters(prompt, fact.subject)
    if place is None:
        return None
    # Some tokenizers read a question's mark and the line's end as one token: nothing is asked of where tokens end.
    partners = pool.others(example)
    for other in generator.sample(partners, len(partners)):
        tokens = pool.tokenize(prompt[: place[0]] + pool.facts[other.fact].subject + prompt[place[1] :])
        if len(tokens) == len(example.prompt):
            return tuple(tokens)
    return None


def build_pairs(
    facts: Sequence[Fact],
    examples: Sequence[Example],
    tokenize: Tokenize,
    *,
    pool: Sequence[Example],
    seed: int,
    limit: int | None = None,
    mean_embedding: bool = True,
) -> Pairs:
    """One pair for each example that can be corrupted (see the module's docstring), and counts of the others.

    ``limit`` draws that many examples (seeded), of each relation what :func:`dealt` says. Partners are drawn from
    ``pool`` (normally the examples of both splits), seeded; a partner's answer must begin with another token than the
    clean one's (for free text: be another answer), or the pair would not tell the two apart. In multiple choice the
    partner's letter says nothing about the options shown, and is not asked for. Without ``mean_embedding`` an example
    without a partner of equal length is left out.
    """
    generator = random.Random(seed)
    members = _Pool(facts, pool, tokenize, mean_embedding=mean_embedding)
    chosen = list(examples)
    if limit is not None and limit < len(chosen):
        chosen = _drawn(facts, chosen, limit, generator)
    made = [_pair(example, members, generator) for example in chosen]
    count = Counter(kind for kind, _ in made)
    return Pairs(tuple(pair for _, pair in made if pair), **{name: count[name] for name in COUNTED})


def _drawn(facts: Sequence[Fact], examples: Sequence[Example], count: int, generator: random.Random) -> list[Example]:
    """``count`` of the examples, in their order."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        places[facts[example.fact].relation].append(place)
    wanted = dealt({relation: len(own) for relation, own in places.items()}, count)
    found = [place for relation, own in sorted(places.items()) for place in generator.sample(own, wanted[relation])]
    return [examples[place] for place in sorted(found)]


def _pair(example: Example, pool: _Pool, generator: random.Random) -> tuple[str, Pair | None]:
    """The pair and its kind, or None and why there is none: one of ``COUNTED``."""
    fact = pool.facts[example.fact]
    prompt = fact.prompts[example.phrasing]
    firsts = {split_tokens(prompt, wrong, pool.tokenize)[1][0] for wrong in fact.distractors}
    distractors = tuple(sorted(firsts - {example.answer[0]}))
    free = not distractors
    others = pool.others(example)
    corrupted: tuple[int, ...] | None
    if is_multiple_choice(fact, prompt):
        kind, corrupted = "other_question", _other_question(example, pool, generator)
    else:
        others = [o for o in others if (o.answer != example.answer if free else o.answer[0] != example.answer[0])]
        equal = [o.prompt for o in others if o.answer_start == example.answer_start and o.prompt != example.prompt]
        kind, corrupted = "other_subject", generator.choice(equal) if equal else None
    span: tuple[int, int] | None = None
    stand_ins: tuple[int, ...] = ()
    if corrupted is None:
        if not others or not pool.mean_embedding:
            return "unpaired", None
        kind, corrupted = "mean_embedding", example.prompt
        span, stand_ins = pool.span(example), _subject_tokens(others, pool)
        if span is None or not stand_ins:
            return "unlocated", None
    following = example.answer[:-1] if free else ()
    return kind, Pair(
        clean=example.prompt + following,
        corrupted=corrupted + following,
        answer=example.answer[0],
        distractors=distractors,
        fact=example.fact,
        span=span,
        stand_ins=stand_ins,
        answer_tokens=example.answer if free else (),
    )


COUNTED = ("unpaired", "unlocated", "other_subject", "other_question", "mean_embedding")


def _subject_tokens(examples: Sequence[Example], pool: _Pool) -> tuple[int, ...]:
    """The tokens by which these examples name their subjects, one after the other; those not located are left out."""
    spans = [(example, pool.span(example)) for example in examples]
    return tuple(token for example, span in spans if span for token in example.prompt[span[0] : span[1]])
