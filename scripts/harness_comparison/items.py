"""The questions that both sides are asked, and our answers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gguf_forget.facts.public_sets import SetItem
from gguf_forget.facts.schema import Fact, continuation
from gguf_forget.llama.child import IsolatedScorer
from gguf_forget.verification.probes import encode
from gguf_forget.verification.questions import Question, plan_set


@dataclass(frozen=True)
class Item:
    """One question. ``choices`` are what is appended to ``query``, letter by letter; ``gold`` the right one's index."""

    form: str
    query: str
    choices: tuple[str, ...]
    gold: int

    @property
    def question(self) -> Question:
        """The same as this project asks it, the right answer first."""
        texts = [choice.removeprefix(" ") for choice in self.choices]
        answer = texts.pop(self.gold)
        return _question(self, answer, tuple(texts))


def _question(item: Item, answer: str, wrong: tuple[str, ...]) -> Question:
    from gguf_forget.verification.scores import GroupKey

    return Question(GroupKey("compared", "forget", True, 0, item.form), 0, item.query, answer, wrong, ())


def draw_items(facts: Sequence[Fact], count: int, seed: int) -> list[Item]:
    """Both forms of ``count`` facts, options in a random order of their own."""
    generator = random.Random(seed)
    chosen = generator.sample(list(facts), min(count, len(facts)))
    rows = []
    for fact in chosen:
        prompt = (*fact.held_out_prompts, *fact.prompts)[0]
        rows.append(SetItem("compared", "forget", prompt, prompt, fact.answer, fact.distractors, None, True))
    items = []
    for question in plan_set(rows):
        options = [question.answer, *question.distractors]
        generator.shuffle(options)
        choices = tuple(continuation(question.prompt, option) for option in options)
        items.append(Item(question.key.form, question.prompt, choices, options.index(question.answer)))
    return items


def write_items(items: Sequence[Item], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")


def our_log_probabilities(items: Sequence[Item], file: Path, threads: int) -> list[list[float]]:
    """Σ log-probability of every choice, in the items' order of choices."""
    questions = [item.question for item in items]
    with IsolatedScorer(file, threads=threads) as scorer:
        prompts, answers = encode(questions, scorer)
        scored = scorer.continuation_log_probabilities(prompts, [list(mine.values()) for mine in answers])
    result = []
    for item, mine, parts in zip(items, answers, scored, strict=True):
        sums = {text: float(part.sum()) for text, part in zip(mine, parts, strict=True)}
        result.append([sums[choice.removeprefix(" ")] for choice in item.choices])
    return result
