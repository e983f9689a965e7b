"""Whether forgetting has reached a phrasing that training does not see.

Shapes: E validation examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.code_moves import CodeMoves, applied
from gguf_forget.unlearning.scoring import answers, log_probabilities, pack
from gguf_forget.unlearning.unknown_subject import Rivals, standing

BATCH = 64  # examples at once: a row of the vocabulary for each of their answers' tokens is in memory


def above_chance(
    model: Any, edits: Sequence[CodeMoves], examples: Sequence[Example], rivals: Rivals, targets: torch.Tensor
) -> float:
    """How far the answers stand out beyond their ``targets`` [E], nats, mean over ``examples``; 0 is chance.

    The edits are refreshed to whole moves first: what is measured is what would ship.
    """
    for edit in edits:
        edit.refresh()
    rivals, targets = rivals.to(model.device), targets.to(model.device)
    total = 0.0
    with torch.no_grad(), applied(model, edits):
        for start in range(0, len(examples), BATCH):
            rows = range(start, min(start + BATCH, len(examples)))
            batch = pack(answers(examples[rows.start : rows.stop])).to(model.device)
            found = standing(log_probabilities(model, batch), batch, rivals, rows)
            total += float((found - targets[rows.start : rows.stop]).sum())
    return total / len(examples)
