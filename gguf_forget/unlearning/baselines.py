"""Published unlearning methods with their published defaults, all given the same facts: name -> function.

Every function takes a :class:`.dense.DenseWork` and returns a trained copy of the original in full precision. None
knows the grid that the weights will ship in. Rates are per step of AdamW, weights of terms are plain factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gguf_forget.errors import InputError
from gguf_forget.unlearning import objectives
from gguf_forget.unlearning.dense import DenseWork, Masks, token_log_probabilities, train_dense
from gguf_forget.unlearning.masks import circuit_weights, salient_rows
from gguf_forget.unlearning.misdirection import representation_misdirection
from gguf_forget.unlearning.scoring import Batch, answer_log_probability


def _ascent(log_probs: torch.Tensor, asked: Batch, _original: torch.Tensor | None) -> torch.Tensor:
    return objectives.gradient_ascent(token_log_probabilities(log_probs, asked))


def _likelihood(log_probs: torch.Tensor, kept: Batch, _original: torch.Tensor | None) -> torch.Tensor:
    return objectives.likelihood(token_log_probabilities(log_probs, kept))


def _divergence(log_probs: torch.Tensor, _kept: Batch, original: torch.Tensor | None) -> torch.Tensor:
    assert original is not None  # asked for with needs_original
    return objectives.divergence(original, log_probs)


def gradient_ascent(work: DenseWork, *, learning_rate: float = 1e-5, epochs: int = 5) -> Any:
    """GA (TOFU, arXiv 2401.06121, section 4): rate 1e-5, weight decay 0.01, 5 epochs; nothing is kept."""
    return train_dense(work, _ascent, None, epochs=epochs, learning_rate=learning_rate, weight_decay=0.01)


def gradient_difference(work: DenseWork, *, learning_rate: float = 1e-5, epochs: int = 5) -> Any:
    """GradDiff (TOFU, arXiv 2401.06121, section 4): GA plus the likelihood of kept answers, equally weighted."""
    return train_dense(work, _ascent, _likelihood, epochs=epochs, learning_rate=learning_rate, weight_decay=0.01)


def negative_preference(
    work: DenseWork,
    *,
    learning_rate: float = 1e-5,
    epochs: int = 10,
    beta: float = 0.1,
    weight_decay: float = 0.01,
    masks: Masks | None = None,
) -> Any:
    """NPO with KL on kept facts (arXiv 2404.05868, section 3 and appendix): beta 0.1, rate 1e-5, 10 epochs."""

    def term(log_probs: torch.Tensor, asked: Batch, original: torch.Tensor | None) -> torch.Tensor:
        assert original is not None  # asked for with needs_original
        known = answer_log_probability(original, asked)
        return objectives.negative_preference(answer_log_probability(log_probs, asked), known, beta=beta)

    return train_dense(
        work,
        term,
        _divergence,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        needs_original=True,
        masks=masks,
    )


def simple_preference(
    work: DenseWork,
    *,
    learning_rate: float = 1e-5,
    epochs: int = 10,
    beta: float = 4.5,
    forget_weight: float = 0.125,
    delta: float = 0.0,
) -> Any:
    """SimNPO (arXiv 2410.07163, section 5; TOFU forget10 in the authors' repository).

    beta 4.5, the forget term weighted 0.125 beside the likelihood of kept answers, no margin, rate 1e-5, weight decay
    0.01, 10 epochs.
    """

    def term(log_probs: torch.Tensor, asked: Batch, _original: torch.Tensor | None) -> torch.Tensor:
        lengths = torch.bincount(asked.rows, minlength=asked.sequences)
        answer = answer_log_probability(log_probs, asked)
        return forget_weight * objectives.simple_preference(answer, lengths, beta=beta, delta=delta)

    return train_dense(work, term, _likelihood, epochs=epochs, learning_rate=learning_rate, weight_decay=0.01)


def salient_row_preference(
    work: DenseWork, *, learning_rate: float = 1e-4, epochs: int = 10, percentile: float = 90.0
) -> Any:
    """SURE (arXiv 2410.16454, section 5): NPO with KL, only in rows above the 90th percentile of the forget gradient.

    Its point is a large learning rate made bearable by the mask. The authors search the rate for every task; ten times
    NPO's is ours.
    """
    masks = salient_rows(work.original, work.forget, percentile=percentile)
    return negative_preference(work, learning_rate=learning_rate, epochs=epochs, masks=masks)


def circuit_ascent(work: DenseWork, *, learning_rate: float = 1e-5, epochs: int = 5) -> Any:
    """Surgical GA: gradient ascent on the circuit's weights alone, the others put back after every step.

    The baseline of "Forgetting That Sticks" (arXiv 2605.15138); settings of GA, for want of published ones.
    """
    if work.circuit is None:
        raise InputError("gradient ascent inside a circuit: found no circuit, needed its neurons of every layer")
    masks = circuit_weights(work.original, work.circuit)
    return train_dense(work, _ascent, None, epochs=epochs, learning_rate=learning_rate, weight_decay=0.01, masks=masks)


BASELINES: dict[str, Callable[[DenseWork], Any]] = {
    "ga": gradient_ascent,
    "graddiff": gradient_difference,
    "npo": negative_preference,
    "simnpo": simple_preference,
    "rmu": representation_misdirection,
    "sure": salient_row_preference,
    "surgical_ga": circuit_ascent,
}
