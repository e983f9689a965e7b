"""Teaching a model some lives by heart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gguf_forget.facts.schema import continuation
from gguf_forget.facts.tokens import Tokenize, split_tokens
from gguf_forget.unlearning.scoring import Sequences, log_probabilities, pack
from invented_facts_benchmark.people import RELATIONS, Person

LEARNING_RATE = 3e-3
WARM_UP_SHARE = 0.1


def lessons(people: Sequence[Person], tokenize: Tokenize) -> list[Sequences]:
    """One for each person: every phrasing of every relation, its answer scored, and the biography, all of it scored."""
    found = []
    for person in people:
        tokens: list[tuple[int, ...]] = []
        scored: list[tuple[int, ...]] = []
        for relation, (phrasings, _) in RELATIONS.items():
            for phrasing in phrasings:
                prompt, answer = split_tokens(phrasing.format(person.name), person.answers[relation], tokenize)
                tokens.append((*prompt, *answer))
                scored.append(tuple(range(len(prompt) - 1, len(prompt) + len(answer) - 1)))
        text = tuple(tokenize(person.biography()))
        tokens.append(text)
        scored.append(tuple(range(len(text) - 1)))
        found.append(Sequences(tuple(tokens), tuple(scored)))
    return found


def taught_texts(people: Sequence[Person]) -> list[str]:
    """The same as text, for a vocabulary."""
    texts = [person.biography() for person in people]
    for person in people:
        for relation, (phrasings, _) in RELATIONS.items():
            prompts = [phrasing.format(person.name) for phrasing in phrasings]
            texts += [prompt + continuation(prompt, person.answers[relation]) for prompt in prompts]
    return texts


def teach(
    model: Any,
    taught: Sequence[Sequences],
    *,
    passes: int,
    people_a_step: int,
    seed: int,
    progress: Callable[..., None],
) -> float:
    """Train ``model`` in place, each person ``passes`` times; the mean loss of the last pass, nats a token."""
    model.requires_grad_(True)
    generator = random.Random(seed)
    order = [i for _ in range(passes) for i in generator.sample(range(len(taught)), len(taught))]
    steps = math.ceil(len(order) / people_a_step)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    losses = []
    for step in range(steps):
        # Up in a line, down in a half cosine.
        down = 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / (steps - warm_up)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / warm_up) * down
        chosen = order[step * people_a_step : (step + 1) * people_a_step]
        batch = pack(sum((taught[i] for i in chosen[1:]), taught[chosen[0]]))
        optimizer.zero_grad(set_to_none=True)
        loss = -log_probabilities(model, batch).gather(-1, batch.targets[:, None]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        progress(1, f"loss {losses[-1]:.3f}")
    model.requires_grad_(False)
    last = losses[-max(1, len(taught) // people_a_step) :]
    return sum(last) / len(last)
