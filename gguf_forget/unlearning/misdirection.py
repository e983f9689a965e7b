"""RMU: hidden states of what is to be forgotten are led to a random direction (Li et al., WMDP, arXiv 2403.03218).

Shapes: B sequences, T tokens, d = d_model.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from gguf_forget.checkpoint.architecture import attributable, mlps
from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.facts.tokens import pad
from gguf_forget.unlearning.batches import cycle
from gguf_forget.unlearning.dense import DenseWork
from gguf_forget.unlearning.objectives import misdirection


def layer_states(model: Any, sequences: Sequence[Sequence[int]], layer: int) -> torch.Tensor:
    """Output of ``layer`` at every token of every sequence, padding left out, [tokens, d]."""
    found: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    ids, mask = map(torch.from_numpy, pad(sequences))
    block = model.get_submodule(attributable(model.config).layer.format(layer))
    handle = block.register_forward_hook(keep)
    try:
        model.base_model(ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return found[0][mask.bool()]


def representation_misdirection(
    work: DenseWork,
    *,
    layer: int = 7,
    trained_layers: int = 3,
    steering: float = 6.5,
    alpha: float = 1200.0,
    learning_rate: float = 5e-5,
    weight_decay: float = 0.01,
    batches: int = 150,
    batch: int = 4,
) -> Any:
    """RMU with the published settings for Zephyr-7B (arXiv 2403.03218, appendix B, and the authors' repository).

    The down projections of layer 7 and the two before it are trained; kept is plain text. In a model of fewer layers
    the last but one takes the place of layer 7.

    Raises:
        InputError: no plain text. EvaluationError: a loss that is not finite.
    """
    if not work.text:
        raise InputError("RMU keeps the hidden states of plain text: found none, needed at least one chunk")
    generator = random.Random(work.seed)
    forget_source, text_source = cycle(work.forget, generator), cycle(work.text, generator)
    model = copy.deepcopy(work.original)
    blocks = mlps(model)
    layer = min(layer, max(0, len(blocks) - 2))
    weights = [block.down.weight for block in blocks[max(0, layer - trained_layers + 1) : layer + 1]]
    for weight in weights:
        weight.requires_grad_(True)
    direction = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(work.seed))
    target = steering * direction / direction.norm()
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    for step in range(work.steps if work.steps is not None else batches):
        asked = [example.tokens for example in islice(forget_source, batch)]
        kept = list(islice(text_source, batch))
        with torch.no_grad():
            reference = layer_states(work.original, kept, layer)
        optimizer.zero_grad(set_to_none=True)
        loss = misdirection(
            layer_states(model, asked, layer), target, layer_states(model, kept, layer), reference, alpha=alpha
        )
        if not math.isfinite(float(loss.detach())):
            raise EvaluationError(f"training diverged at step {step + 1}: loss {float(loss.detach())}")
        loss.backward()
        optimizer.step()
        work.progress(1)
    return model.requires_grad_(False)
