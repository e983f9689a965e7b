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


def above_chance(
    model: Any, edits: Sequence[CodeMoves], examples: Sequence[Example], rivals: Rivals, targets: torch.Tensor
) -> float:
    """How far the answers stand out beyond their ``targets`` [E], nats, mean over ``examples``; 0 is chance.

    The edits are refreshed to whole moves first: what is measured is what would ship.
    """
    for edit in edits:
        edit.refresh()
    batch = pack(answers(examples)).to(model.device)
    with torch.no_grad(), applied(model, edits):
        found = standing(log_probabilities(model, batch), batch, rivals.to(model.device), range(len(examples)))
    return float((found - targets.to(model.device)).mean())
