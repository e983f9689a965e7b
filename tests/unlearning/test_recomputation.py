"""Gradient checkpointing on the random model: less is kept, gradients are the same, nothing of it stays behind."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_edits import make_edits
from torch.autograd.graph import saved_tensors_hooks

from gguf_forget.unlearning.code_moves import CodeMoves, applied
from gguf_forget.unlearning.recomputation import recomputed
from gguf_forget.unlearning.scoring import Sequences, answer_log_probability, log_probabilities, pack

TOKENS = tuple(range(20, 60))
BATCH = pack(Sequences((TOKENS, TOKENS[::-1]), ((38,), (38,))))


def kept_bytes_and_gradients(model: Any, *, recompute: bool) -> tuple[int, list[torch.Tensor]]:
    """What the forward pass leaves for the backward pass, and what that then finds."""
    edits: list[CodeMoves] = make_edits()
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with applied(model, edits), recomputed(model) if recompute else nullcontext():
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = answer_log_probability(log_probabilities(model, BATCH), BATCH).sum()
        answer.backward()
    return kept, [edit.latent_gradient() for edit in edits]


def test_less_is_kept_and_gradients_are_the_same(tiny_model: Any) -> None:
    whole, expected = kept_bytes_and_gradients(tiny_model, recompute=False)
    less, found = kept_bytes_and_gradients(tiny_model, recompute=True)
    assert less < 0.5 * whole
    assert any(gradient.any() for gradient in expected)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_the_layers_are_as_before_also_after_an_error(tiny_model: Any) -> None:
    def interrupted() -> None:
        with recomputed(tiny_model):
            assert all("forward" in vars(layer) for layer in tiny_model.model.layers)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any("forward" in vars(layer) for layer in tiny_model.model.layers)
