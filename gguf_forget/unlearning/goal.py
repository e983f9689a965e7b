"""What a step forgets towards: chance, with a goal for each phrasing, or NPO's preference.

Shapes: E examples; S and V as in scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gguf_forget.unlearning.objectives import chance_level, negative_preference
from gguf_forget.unlearning.phrasing_shifts import PhrasingShifts
from gguf_forget.unlearning.scoring import Batch, answer_log_probability, greedy_lead, log_probabilities
from gguf_forget.unlearning.unknown_subject import Rivals, first_positions, standing


@dataclass(frozen=True)
class Goal:
    """The forget term.

    Attributes:
        objective, margin, greedy_margin, npo_beta: see :func:`.trainer.train`.
        greedy_weight: how often an answer that must lose counts, in this step.
        targets: float32 [E], nats. shifts: those of the phrasings' goals.
    """

    objective: str
    rivals: Rivals
    targets: torch.Tensor
    shifts: PhrasingShifts
    margin: float
    greedy_margin: float
    greedy_weight: float
    npo_beta: float

    def known(self, reference: Any, part: Batch) -> torch.Tensor | None:
        """What NPO compares with. Asked for before any edit is applied: the reference may be the model itself."""
        if self.objective != "npo" or not part.sequences:
            return None
        return answer_log_probability(log_probabilities(reference, part), part)

    def loss(
        self, found: torch.Tensor, part: Batch, rows: Sequence[int], known: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The term, one scalar, and what its answers say to the shifts, see :meth:`.PhrasingShifts.heard`.

        ``found``: log-probabilities at ``part``'s scored positions, [S, V]. ``rows``: its examples among all E.
        """
        if known is not None:
            loss = negative_preference(answer_log_probability(found, part), known, beta=self.npo_beta)
            return loss, self.shifts.silence()
        with torch.no_grad():
            excess = greedy_lead(found, part) + self.greedy_margin if self.greedy_margin else None
        stands = standing(found, part, self.rivals, rows)
        loss = chance_level(
            stands,
            self.targets[list(rows)] - self.shifts.of(rows),
            margin=self.margin,
            excess=excess,
            excess_weight=self.greedy_weight,
        )
        first = found.detach()[first_positions(part)][:, self.rivals.tokens]
        return loss, self.shifts.heard(rows, first, self.margin)
