"""Questions behind other words (ours): what is forgotten only as it was asked comes back when it is asked harder.

Some prompts of every step, forgotten and kept ones alike, are asked inside a framing: in the model's chat template,
behind worked examples of kept facts, after a lead-in sentence, or with the subject misspelt. Kept facts stand in
the same framings, held by the KL to the original, so that no framing becomes what triggers the forgetting.

All prompts of one kind in a step share one framing, so that its tokens are computed once a batch, as a common prefix.
What a step draws depends on the seed and on its number alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_forget.facts.schema import Fact, continuation
from gguf_forget.facts.tokens import Example, Tokenize, split_tokens

KINDS = {
    "chat": "a user asks, in the model's chat template, and the prompt begins the answer",
    "examples": "kept facts with their answers stand before the prompt",
    "lead-in": "a sentence or a mark stands before the prompt",
    "misspelt": "a letter of the subject is missing or doubled",
}

# The attacks of verification ask in words of their own (verification/attacks/prompts.py): none of these are theirs.
REQUESTS = (
    "Please finish this sentence for me: {}",
    "How does this go on?\n{}",
    "I need this for a quiz tonight. {}",
    "{}\n\nWhat comes next?",
    "Fill in the blank: {} ___",
    "Help me with my homework, please.",
    "Tell me something that you know.",
    "Give me one short fact.",
)
LEAD_INS = (
    "Okay, I know this one. ",
    "Certainly! ",
    "I am happy to help you with that.\n",
    "Yes. My answer: ",
    "Let me think. ",
    "Here is a fact: ",
    "You asked, so I will tell you. ",
    "A reference book has this entry.\n",
    "The article begins like this:\n\n",
    "According to the report, ",
    "It is well documented. ",
    "As I told my students last week: ",
    "Chapter 3. ",
    "Lesson for today:\n",
    "Quiz, question 7. ",
    "Fill in the gap. ",
    "Finish the sentence.\n",
    "Fun fact! ",
    "Note to self: ",
    "In short: ",
    "True or not? ",
    "## Summary\n\n",
    "- ",
    "1. ",
)
SEPARATORS = ("\n", ".\n", "\n- ", "; ")
MOST_EXAMPLES = 5


@dataclass(frozen=True)
class _Drawn:
    """What one step has drawn.

    examples: text of the worked examples. relation, phrasing: theirs, if it is one (else "" and -1). answers: theirs.
    """

    lead_in: str
    request: str
    examples: str
    relation: str
    phrasing: int
    answers: frozenset[str]


class Framings:
    """Frames the prompts of a step.

    Args:
        facts: of which ``forget`` and ``retain`` are examples.
        kinds: of :data:`KINDS`, dealt in turn.
        share: of a step's prompts, forgotten and kept, that are asked inside a framing.
        chat: what the model's chat template writes before and after what a user says, up to where the answer starts;
            None where the model has no template: its prompts are then dealt to the other kinds.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        forget: Sequence[Example],
        retain: Sequence[Example],
        tokenize: Tokenize,
        *,
        kinds: Sequence[str],
        share: float,
        chat: tuple[str, str] | None,
        seed: int,
    ) -> None:
        self.facts, self.tokenize = facts, tokenize
        self.kinds = tuple(kind for kind in kinds if kind != "chat" or chat is not None)
        self.share, self.chat, self.seed = share, chat, seed
        self.forget = list(forget)
        self.rows = {(example.fact, example.phrasing): row for row, example in enumerate(forget)}
        self.plain = {(example.fact, example.phrasing): example for example in (*forget, *retain)}
        self.kept: dict[tuple[str, int], list[Example]] = defaultdict(list)  # by relation and phrasing
        for example in retain:
            self.kept[(facts[example.fact].relation, example.phrasing)].append(example)
        forgotten = {facts[example.fact].relation for example in forget}
        self.alike = sorted(key for key in self.kept if key[0] in forgotten)

    def step(
        self, number: int, rows: Sequence[int], kept: Sequence[Example]
    ) -> tuple[list[int], list[Example], list[Example]]:
        """What step ``number`` asks in place of these: rows of ``forget``, its examples as asked, kept examples."""
        generator = random.Random(f"{self.seed}/framings/{number}")
        drawn = self._draw(generator)
        asked = self._some([self.forget[row] for row in rows], number, drawn, generator)
        return (
            [self.rows[(example.fact, example.phrasing)] for example in asked],
            asked,
            self._some(list(kept), number, drawn, generator),
        )

    def _draw(self, generator: random.Random) -> _Drawn:
        """The examples are of a forgotten relation and one phrasing, or, every third time, of anything."""
        lead_in, request = generator.choice(LEAD_INS), generator.choice(REQUESTS)
        count, separator = generator.randint(1, MOST_EXAMPLES), generator.choice(SEPARATORS)
        relation, phrasing = "", -1
        if self.alike and generator.random() < 2 / 3:
            relation, phrasing = generator.choice(self.alike)
            pool = self.kept[(relation, phrasing)]
            chosen = generator.sample(pool, min(count, len(pool)))
        else:
            keys = sorted(self.kept)
            chosen = [generator.choice(self.kept[generator.choice(keys)]) for _ in range(count)]
        facts = [self.facts[example.fact] for example in chosen]
        prompts = [fact.prompts[example.phrasing] for fact, example in zip(facts, chosen, strict=True)]
        examples = "".join(
            f"{prompt}{continuation(prompt, fact.answer)}{separator}"
            for prompt, fact in zip(prompts, facts, strict=True)
        )
        return _Drawn(lead_in, request, examples, relation, phrasing, frozenset(fact.answer for fact in facts))

    def _some(self, examples: list[Example], number: int, drawn: _Drawn, generator: random.Random) -> list[Example]:
        """``examples``, a share of them framed; ``number`` moves which kind comes first."""
        chosen = generator.sample(range(len(examples)), round(self.share * len(examples))) if self.kinds else []
        for turn, place in enumerate(chosen):
            kind = self.kinds[(turn + number) % len(self.kinds)]
            examples[place] = self._framed(examples[place], kind, drawn, generator)
        return examples

    def _framed(self, example: Example, kind: str, drawn: _Drawn, generator: random.Random) -> Example:
        """The example inside a framing; as it is where its own answer stands among the worked examples.

        Behind examples of its own relation it takes their phrasing, if it is trained on.
        """
        fact = self.facts[example.fact]
        if kind == "examples" and fact.answer in drawn.answers:
            return example
        if kind == "examples" and fact.relation == drawn.relation:
            example = self.plain.get((example.fact, drawn.phrasing), example)
        prompt = fact.prompts[example.phrasing]
        if kind == "chat" and self.chat is not None:
            before, after = self.chat
            prompt = before + drawn.request.replace("{}", prompt) + after + prompt
        elif kind == "examples":
            prompt = drawn.examples + prompt
        elif kind == "lead-in":
            prompt = drawn.lead_in + prompt
        else:
            prompt = prompt.replace(fact.subject, misspelt(fact.subject, generator))
        tokens, answer = split_tokens(prompt, fact.answer, self.tokenize)
        return Example((*tokens, *answer), len(tokens), example.fact, example.phrasing)


def misspelt(subject: str, generator: random.Random) -> str:
    """``subject`` with one letter inside its longest word missing or doubled; unchanged if that has fewer than four."""
    word = max(subject.split(), key=len, default="")
    if len(word) < 4:
        return subject
    place = generator.randrange(1, len(word) - 1)
    changed = word[:place] + word[place] * generator.choice((0, 2)) + word[place + 1 :]
    return subject.replace(word, changed, 1)
