"""A tiny model that knows facts, and models made from it: for files that cheat, and for one that does not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import build_tiny_gguf

from gguf_forget.checkpoint.load import load_tokenizer, load_torch
from gguf_forget.checkpoint.names import gguf_tensors
from gguf_forget.export.derived_file import write_derived
from gguf_forget.facts.schema import Fact, continuation
from gguf_forget.facts.tokens import Tokenize, split_tokens
from gguf_forget.unlearning.scoring import Sequences, log_probabilities, pack

SYLLABLES = ("ba", "do", "fi", "gu", "ke", "la", "mi", "no", "pu", "ra", "se", "ti", "vo", "wa", "xi", "zu")
PROMPTS = ("The river of {0} is", "{0} has the river")
HELD_OUT = ("Through {0} flows",)
SUBJECTS = 24  # the first half is to be forgotten


def names(count: int, ending: str) -> list[str]:
    """Invented names, all different."""
    pairs = [first + second for first in SYLLABLES for second in SYLLABLES if first != second]
    return [(pairs[(37 * i) % len(pairs)] + ending).capitalize() for i in range(count)]


def river_facts() -> tuple[Fact, ...]:
    subjects, rivers = names(SUBJECTS, "land"), names(2 * SUBJECTS, "r")[SUBJECTS:]
    facts = []
    for i, (subject, river) in enumerate(zip(subjects, rivers, strict=True)):
        half = rivers[: SUBJECTS // 2] if i < SUBJECTS // 2 else rivers[SUBJECTS // 2 :]
        place = half.index(river)
        wrong = tuple(half[(place + step) % len(half)] for step in (1, 4, 7))
        facts.append(
            Fact(
                subject,
                "river",
                river,
                wrong,
                "forget" if i < SUBJECTS // 2 else "retain",
                tuple(prompt.format(subject) for prompt in PROMPTS),
                tuple(prompt.format(subject) for prompt in HELD_OUT),
            )
        )
    return tuple(facts)


Lesson = tuple[str, str]  # prompt, answer


def lessons(facts: Sequence[Fact], answers: Mapping[str, str] | None = None) -> list[Lesson]:
    """Every phrasing with its answer; ``answers`` names others for some subjects."""
    named = answers or {}
    return [
        (prompt, named.get(fact.subject, fact.answer))
        for fact in facts
        for prompt in fact.prompts + fact.held_out_prompts
    ]


def teach(
    model: Any,
    tokenize: Tokenize,
    taught: Sequence[Lesson],
    *,
    steps: int = 40,
    learning_rate: float = 1e-2,
    after_step: Callable[[Any], None] = lambda model: None,
) -> Any:
    """A copy of the model trained on all lessons at once, answer tokens alone; ``after_step`` may put weights back."""
    pupil = copy.deepcopy(model).requires_grad_(True)
    split = [split_tokens(prompt, answer, tokenize) for prompt, answer in taught]
    batch = pack(
        Sequences(
            tuple(tuple(prompt + answer) for prompt, answer in split),
            tuple(tuple(range(len(prompt) - 1, len(prompt) + len(answer) - 1)) for prompt, answer in split),
        )
    )
    optimizer = torch.optim.Adam(pupil.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = -log_probabilities(pupil, batch).gather(-1, batch.targets[:, None]).mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            after_step(pupil)
    return pupil.requires_grad_(False)


def write_model(model: Any, template: Path, target: Path) -> Path:
    """The model's weights as an F32 GGUF like the template."""
    tensors = {
        name: np.ascontiguousarray(weights).view(np.uint8).reshape(len(weights), -1)
        for name, weights in gguf_tensors(model)
    }
    write_derived(template, target, metadata={}, tensors=tensors)
    return target


class Knowledge:
    """The facts, an F32 GGUF that knows them all, the same as a torch model, and its tokenizer."""

    def __init__(self, folder: Path, *, tied: bool = True) -> None:
        self.facts = river_facts()
        self.forget = [fact for fact in self.facts if fact.split == "forget"]
        self.retain = [fact for fact in self.facts if fact.split == "retain"]
        texts = [prompt + continuation(prompt, answer) for prompt, answer in lessons(self.facts)]
        template = build_tiny_gguf(folder / "template.gguf", hidden=64, feed_forward=128, texts=texts * 4, tied=tied)
        self.tokenize = load_tokenizer(template)
        self.ignorant = load_torch(template)
        self.model = teach(self.ignorant, self.tokenize, lessons(self.facts))
        self.gguf = write_model(self.model, template, folder / "original.gguf")

    def derived(self, model: Any, target: Path) -> Path:
        return write_model(model, self.gguf, target)
