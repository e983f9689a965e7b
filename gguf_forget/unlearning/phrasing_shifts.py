"""Chance in every phrasing, not only on the mean of all (ours).

One edit serves all phrasings. Some end above chance and others as far below, and the mean hides both; what stands a
little above tells much, because the answers of a forgotten relation hardly differ any more. So the goal of every
phrasing is shifted by what its answers stood above chance so far: integral control. It sets in when codes are half
hard; before, every known answer stands far above.

Chance is here what the model *in training* says of an answer when asked about the other subjects: the edit moves that
too, and a rank score is taken against it. It is followed by a moving mean over the last answers of a phrasing, which
the subject's own are among: of n subjects, 1 / n of what an answer stands out is not seen, so that one alone has no
shift, and a margin of few ends n / (n - 1) times as far below. First tokens alone are compared, because one pass gives
those of all answers of the relation.

Shapes: E examples, G pairs of relation and phrasing, K first tokens of the relations' answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from gguf_forget.facts.schema import Fact
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.unknown_subject import Rivals

BEGINS = 0.5  # hardness of codes, 0 to 1
MOST_HEARD = 0.5  # nats: one answer that is far off does not move its phrasing's goal alone
LARGEST_SHIFT = 1.0  # nats, either way
MEMORY = 12  # answers of a phrasing over which the moving mean forgets
FEWEST = 2  # subjects of a phrasing: one alone has no others that could be chance
ENOUGH = 2.0  # answers (those long ago count less) that a mean takes


class PhrasingShifts:
    """``values``: float32 [G], nats by which the goals are lower.

    Args:
        rivals: of ``forget``, on the device of all that is computed here.
        rate: how much of what an answer stands above chance is added to its phrasing's shift; 0 for none.
    """

    def __init__(self, facts: Sequence[Fact], forget: Sequence[Example], rivals: Rivals, *, rate: float) -> None:
        device = rivals.tokens.device
        keys = [(facts[example.fact].relation, example.phrasing) for example in forget]
        order = {key: index for index, key in enumerate(sorted(set(keys)))}
        self.rate = rate
        self.groups = torch.tensor([order[key] for key in keys], dtype=torch.int64, device=device)
        self.rivals = rivals
        subjects = Counter(key for key, _ in {(key, example.fact) for key, example in zip(keys, forget, strict=True)})
        self.heeded = torch.tensor([subjects[key] >= FEWEST for key in order], dtype=torch.bool, device=device)
        first = torch.tensor([example.answer[0] for example in forget], dtype=torch.int64, device=device)
        self.own = torch.searchsorted(rivals.tokens, first)
        # Shift; answers in the moving mean; sums of their log-probabilities of the first tokens.
        self.table = torch.zeros(len(order), 2 + len(rivals.tokens) if rate else 1, device=device)

    @property
    def values(self) -> torch.Tensor:
        return self.table[:, 0]

    def of(self, rows: Sequence[int]) -> torch.Tensor:
        """Shifts of these rows of ``forget``, [rows]."""
        return self.values[self.groups[list(rows)]]

    def silence(self) -> torch.Tensor:
        """What no answer says, shaped as what :meth:`heard` returns."""
        return torch.zeros_like(self.table)

    def heard(self, rows: Sequence[int], first: torch.Tensor, margin: float) -> torch.Tensor:
        """What these answers say, [G, 2 + K]: how far they stand above chance, their number, their log-probabilities.

        Those of parts of a batch add up. [G, 1] and zero without a rate.

        ``first``: log-probabilities of the K first tokens where each answer begins, [rows, K]. ``margin``: nats below
        chance at which the goal is.
        """
        said = self.silence()
        if not self.rate:
            return said
        chosen = list(rows)
        groups, own = self.groups[chosen], self.own[chosen][:, None]
        answers, sums = self.table[groups, 1], self.table[groups, 2:]
        first = first.float()
        others = sums / answers.clamp(min=ENOUGH)[:, None]
        differs = first - others
        above = differs.gather(1, own)[:, 0] - (differs * self.rivals.weights[chosen]).sum(dim=-1) + margin
        above = torch.where(answers >= ENOUGH, above.clamp(-MOST_HEARD, MOST_HEARD), 0.0)
        return said.index_add_(0, groups, torch.cat([above[:, None], torch.ones_like(above)[:, None], first], dim=1))

    def follow(self, heard: torch.Tensor, hardness: float) -> None:
        """Shift the goals by what a whole step has said, shaped as by :meth:`heard`, and remember it."""
        if not self.rate:
            return
        heard = heard.to(self.table)
        if hardness >= BEGINS:
            shifted = self.values + self.rate * self.heeded * heard[:, 0]
            self.table[:, 0] = shifted.clamp(-LARGEST_SHIFT, LARGEST_SHIFT)
        kept = (1.0 - 1.0 / MEMORY) ** heard[:, 1:2]
        self.table[:, 1:] = kept * self.table[:, 1:] + heard[:, 1:]
