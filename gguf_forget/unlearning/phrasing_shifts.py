"""Chance in every phrasing, not only on the mean of all (ours).

One edit serves all phrasings. Some end above the goal and others as far below, and the mean hides both; what stands a
little above tells much, because the answers of a forgotten relation hardly differ any more. So the goal of every
phrasing is shifted by what its answers stood above it so far: integral control, until each phrasing's mean is at its
goal. It sets in when codes are half hard; before, every known answer stands far above.

Shapes: E examples, G pairs of relation and phrasing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example

BEGINS = 0.5  # hardness of codes, 0 to 1
MOST_HEARD = 1.0  # nats: one answer that is far off does not move its phrasing's goal alone
LARGEST_SHIFT = 1.0  # nats, either way


class PhrasingShifts:
    """``values``: float32 [G], nats by which the goals are lower.

    Args:
        rate: how much of what an answer stands above its goal is added to its phrasing's shift; 0 for none.
    """

    def __init__(
        self, facts: Sequence[Fact], forget: Sequence[Example], *, rate: float, device: torch.device | None = None
    ) -> None:
        keys = [(facts[example.fact].relation, example.phrasing) for example in forget]
        order = {key: index for index, key in enumerate(sorted(set(keys)))}
        self.rate = rate
        self.groups = torch.tensor([order[key] for key in keys], dtype=torch.int64, device=device)
        self.values = torch.zeros(len(order), device=device)

    def of(self, rows: Sequence[int]) -> torch.Tensor:
        """Shifts of these rows of ``forget``, [rows]."""
        return self.values[self.groups[list(rows)]]

    def heard(self, rows: Sequence[int], above: torch.Tensor) -> torch.Tensor:
        """What these answers say, float32 [G]; those of parts of a batch add up. ``above`` the goal: nats, [rows]."""
        sums = torch.zeros_like(self.values)
        return sums.index_add_(0, self.groups[list(rows)], above.float().clamp(-MOST_HEARD, MOST_HEARD))

    def follow(self, heard: Sequence[float], hardness: float) -> None:
        """Shift the goals by what a whole step has said."""
        if self.rate and hardness >= BEGINS:
            change = torch.tensor(heard, dtype=torch.float32, device=self.values.device)
            self.values = (self.values + self.rate * change).clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
