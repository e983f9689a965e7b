"""What plain text needs of each MLP neuron, to first order.

Setting neuron j to zero at token t changes the text's log-likelihood L by about -a_jt dL/da_jt (the Taylor importance
of pruning, Molchanov et al., arXiv 1906.10771, section 3.1, at the level of activations). Text has no corrupted twin
that integrated gradients could go from, so that one gradient has to do.

Shapes: B chunks in a batch, T tokens, d_ff, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gguf_forget.checkpoint.components import components
from gguf_forget.circuit.hooks import frozen
from gguf_forget.circuit.interpolation import working
from gguf_forget.circuit.neurons import recorded_neurons
from gguf_forget.errors import InputError

BATCH = 4


def text_need(
    model: Any,
    chunks: Sequence[Sequence[int]],
    *,
    signed: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Sums over tokens of |a dL/da|, mean over chunks, float64 [L, d_ff], in nats. The model is left as found.

    ``chunks``: token ids, all of one length of at least 2. ``signed`` keeps the signs: what text loses without the
    neuron, where tokens that it helps and tokens that it harms cancel. Raises InputError without any chunk.
    """
    if not len(chunks):
        raise InputError("there is no plain text to score neurons on, needed at least one chunk")
    parts = components(model)
    total = np.zeros((len(parts.layers), parts.neurons))
    with frozen(model):
        for start in range(0, len(chunks), BATCH):
            own = chunks[start : start + BATCH]
            ids = torch.tensor(own, device=model.device)  # [B, T]
            embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
            with recorded_neurons(parts) as record:  # [B, T, d_ff] of every layer
                logits = working(model(inputs_embeds=embeddings, use_cache=False).logits[:, :-1])
            likelihood = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            for layer, (found, value) in enumerate(zip(torch.autograd.grad(likelihood, record), record, strict=True)):
                each = (working(value.detach()) * working(found)).double()
                total[layer] += (each if signed else each.abs()).sum(dim=(0, 1)).cpu().numpy()
            progress(len(own))
    return total / len(chunks)
