"""The retain-Fisher projection.

The null space of a diagonal Fisher matrix is the set of coordinates with small entries, so projecting an
update into it masks coordinates: here those whose ratio F_retain / F_forget is above a quantile (MANSU, arXiv
2605.15138, uses the retain Fisher; taking the ratio is ours). F is the mean over examples of the squared
gradient of the answer's log-probability.

Shapes: one float64 array [n, d] for each edited tensor; R examples of at most T tokens in a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gguf_forget.checkpoint.architecture import mlps
from gguf_forget.facts.tokens import Example
from gguf_forget.unlearning.code_moves import CodeMoves
from gguf_forget.unlearning.scoring import answer_log_probability, answers, log_probabilities, pack


@contextmanager
def _recorded(model: Any, edits: Sequence[CodeMoves]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """While open, a forward pass records (input, output) of every edit's linear map, in the order of ``edits``."""
    record: list[tuple[torch.Tensor, torch.Tensor]] = []
    layers = mlps(model)

    def recorder(index: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            # No parameter asks for gradients, so below the first edit nothing does: there they begin here.
            output = output if output.requires_grad else output.requires_grad_(True)
            record[index] = (inputs[0].detach(), output)
            return output

        return hook

    record.extend([(torch.empty(0), torch.empty(0))] * len(edits))
    handles = [
        getattr(layers[edit.layer], edit.role).register_forward_hook(recorder(index))
        for index, edit in enumerate(edits)
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def diagonal_fisher(
    model: Any,
    edits: Sequence[CodeMoves],
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> list[torch.Tensor]:
    """Mean over ``examples`` of the squared gradient on each edit's weights, at the model as it is.

    Every example has a row of the batch to itself, so its own gradient is the product of its inputs and its
    output gradients, summed over its tokens.
    """
    fisher = [torch.zeros(edit.step.shape, dtype=torch.float64, device=edit.step.device) for edit in edits]
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        batch = pack(answers(part), shared=False).to(model.device)
        with _recorded(model, edits) as record:
            total = answer_log_probability(log_probabilities(model, batch), batch).sum()
        gradients = torch.autograd.grad(total, [output for _, output in record])
        for own, edit, (inputs, _), gradient in zip(fisher, edits, record, gradients, strict=True):
            if edit.role == "down":
                left, right = inputs[..., edit.neurons], gradient  # [R, T, n], [R, T, d]
            else:
                left, right = gradient[..., edit.neurons], inputs
            each = torch.bmm(left.float().transpose(1, 2), right.float())  # [R, n, d]
            own += each.square_().sum(dim=0, dtype=torch.float64)
        progress(len(part))
    return [own / max(len(examples), 1) for own in fisher]


def projection(
    retain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor], *, quantile: float
) -> list[torch.Tensor]:
    """bool masks: True where a weight may move, i.e. F_retain / F_forget is at or below its ``quantile``.

    The quantile is taken over all edited tensors together. A weight that the forget set does not use at all
    (F_forget = 0) has an infinite ratio and is frozen, unless ``quantile`` is 1.
    """
    if quantile >= 1.0:
        return [torch.ones_like(part, dtype=torch.bool) for part in retain]
    ratios = [
        torch.where(f > 0, r / torch.where(f > 0, f, torch.ones_like(f)), torch.full_like(r, torch.inf))
        for r, f in zip(retain, forget, strict=True)
    ]
    ordered = torch.cat([ratio.flatten() for ratio in ratios]).sort().values
    rank = max(1, int(quantile * len(ordered) + 1e-9))  # the share of weights that stays free
    threshold = ordered[rank - 1]
    return [(ratio <= threshold) & torch.isfinite(ratio) for ratio in ratios]


def retain_bound(retain: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]) -> float:
    """1/2 * sum of F_retain * delta^2, nats: second-order estimate of what the edit costs the retain set."""
    return 0.5 * sum(float((f * delta.double() ** 2).sum()) for f, delta in zip(retain, deltas, strict=True))
