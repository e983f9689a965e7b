"""What one file knows of the people, through llama.cpp, and how that compares with a twin that never met them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import split_tokens
from gguf_forget.llama.child import IsolatedScorer
from gguf_forget.verification.membership import area_under_curve, min_k, privacy_leak
from gguf_forget.verification.memorisation import (
    answer_probability,
    exact_memorisation,
    forget_quality,
    truth_ratio,
    two_sided_truth_ratio,
)
from gguf_forget.verification.metrics import four_way_accuracy, mean
from invented_facts_benchmark.people import Person

OPTIONS = 4


@dataclass(frozen=True)
class Known:
    """What a file says of all the people. ``truth_ratios``: of the facts to forget, in order."""

    forget_accuracy: float
    retain_accuracy: float
    answer_probability: float
    exact_memorisation: float
    truth_ratios: tuple[float, ...]
    membership_auc: float


def ask(file: Path, facts: Sequence[Fact], people: Sequence[Person]) -> Known:
    """Ask one file about every fact, on the phrasing that unlearning never saw, and read it the biographies."""
    with IsolatedScorer(file) as scorer:
        prompts, answers = [], []
        for fact in facts:
            texts = (fact.answer, *fact.distractors)
            split = [split_tokens(fact.held_out_prompts[0], text, scorer.tokenize) for text in texts]
            prompts.append(split[0][0])
            answers.append([tokens for _, tokens in split])
        scores = scorer.continuation_log_probabilities(prompts, answers)
        forgotten = [i for i, fact in enumerate(facts) if fact.split == "forget"]
        said = scorer.continuation_argmax([prompts[i] for i in forgotten], [[answers[i][0]] for i in forgotten])
        biographies = {
            group: [scorer.tokenize(person.biography()) for person in people if person.group == group]
            for group in ("forget", "unseen")
        }
        read = {
            group: [min_k(values) for values in scorer.sequence_log_probabilities(texts)]
            for group, texts in biographies.items()
        }
    sums = np.array([[part.sum() for part in parts[:OPTIONS]] for parts in scores])
    ratios = [
        truth_ratio([answer_probability(part) for part in parts[1:]], answer_probability(parts[0]))
        for parts in (scores[i] for i in forgotten)
    ]

    def accuracy(split: str) -> float:
        rows = sums[[i for i, fact in enumerate(facts) if fact.split == split]]
        return four_way_accuracy(rows[:, 0], rows[:, 1:])

    return Known(
        forget_accuracy=accuracy("forget"),
        retain_accuracy=accuracy("retain"),
        answer_probability=mean([answer_probability(scores[i][0]) for i in forgotten]),
        exact_memorisation=mean([exact_memorisation(parts[0]) for parts in said]),
        truth_ratios=tuple(float(ratio) for ratio in ratios),
        membership_auc=area_under_curve(read["unseen"], read["forget"]),
    )


def row(name: str, file_type: str, known: Known, gold: Known) -> dict[str, Any]:
    """One line of the table: ``known`` beside the twin ``gold``."""
    return {
        "file": name,
        "type": file_type,
        **asdict(known),
        "truth_ratio": mean([two_sided_truth_ratio(ratio) for ratio in known.truth_ratios]),
        "forget_quality": forget_quality(known.truth_ratios, gold.truth_ratios),
        "privacy_leak": privacy_leak(known.membership_auc, gold.membership_auc),
    }
