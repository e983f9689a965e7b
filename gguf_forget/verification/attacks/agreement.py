"""Whether torch reads a file as llama.cpp does, before an attack speaks of the one by the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gguf_forget.unlearning.scoring import Sequences, answer_log_probability, log_probabilities, pack
from gguf_forget.verification.agreement import mean_absolute_difference
from gguf_forget.verification.probes import ScoresTokens, encode
from gguf_forget.verification.questions import Question


def difference_in_torch(model: Any, scorer: ScoresTokens, questions: Sequence[Question]) -> float:
    """Mean difference of the right answers' log-probabilities, nats. Raises EvaluationError where there is none."""
    prompts, answers = encode(questions, scorer)
    right = [mine[question.answer] for question, mine in zip(questions, answers, strict=True)]
    ours = scorer.continuation_log_probabilities(prompts, [[each] for each in right])
    theirs = []
    for prompt, answer in zip(prompts, right, strict=True):
        tokens = (*prompt, *answer)
        batch = pack(Sequences((tokens,), (tuple(range(len(prompt) - 1, len(tokens) - 1)),)))
        with torch.no_grad():
            theirs.append(float(answer_log_probability(log_probabilities(model, batch), batch)[0]))
    return mean_absolute_difference([float(parts[0].sum()) for parts in ours], theirs)
