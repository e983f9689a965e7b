"""The estimate of memory: by hand, and beside what a forward pass really leaves for the backward pass."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_edits import make_edits
from torch.autograd.graph import saved_tensors_hooks

from gguf_forget.checkpoint.attention import differentiable_attention
from gguf_forget.unlearning.code_moves import applied
from gguf_forget.unlearning.memory import activation_memory, training_memory
from gguf_forget.unlearning.recomputation import recomputed
from gguf_forget.unlearning.scoring import Batch, Sequences, pack


def test_by_hand() -> None:
    found = training_memory(parameters=1000, bases=2, circuit_weights=10, positions=3, vocabulary=7, weight_bytes=2)
    assert found == 2 * 2 * 1000 + 4 * 14 * 10 + 4 * 4 * 3 * 7
    found = training_memory(parameters=0, bases=4, circuit_weights=10, positions=0, vocabulary=7, weight_bytes=2)
    assert found == 4 * (14 + 2 * 3) * 10


def kept_bytes(model: Any, batch: Batch, *, recompute: bool) -> int:
    """Of all storages that a forward pass leaves for the backward pass, weights and edits left out. The embeddings want
    gradients, too, so that the first layer keeps all that the others keep.
    """
    edits = make_edits()
    embedded = model.get_input_embeddings()(batch.ids).detach().requires_grad_()
    others = [*model.parameters(), *model.buffers(), *(edit.delta for edit in edits), *(edit.neurons for edit in edits)]
    known = {each.untyped_storage().data_ptr() for each in others}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        applied(model, edits),
        differentiable_attention(model),
        recomputed(model) if recompute else nullcontext(),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.base_model(
            inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
        )
    return sum(each.untyped_storage().nbytes() for pointer, each in kept.items() if pointer not in known)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_beside_what_is_kept(tiny_model: Any, precision: torch.dtype) -> None:
    model = copy.deepcopy(tiny_model).to(precision)
    batch = pack(Sequences(tuple(tuple(range(i, i + 60)) for i in (20, 90, 160)), ((58,),) * 3), shared=False)
    config = model.config
    rows, longest = batch.ids.shape
    whole, less = (
        activation_memory(
            tokens=rows * longest,
            longest=longest,
            layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_ff=config.intermediate_size,
            heads=config.num_attention_heads,
            keys_and_values=2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads,
            weight_bytes=precision.itemsize,
            recompute=recompute,
        )
        for recompute in (False, True)
    )
    assert kept_bytes(model, batch, recompute=False) == pytest.approx(whole, rel=0.03)
    # In the forward pass no layer is computed again yet; the last norm keeps its input in float32.
    inputs = less - whole // config.num_hidden_layers
    last = 4 * rows * longest * config.hidden_size
    assert kept_bytes(model, batch, recompute=True) == pytest.approx(inputs + last, rel=0.01)
