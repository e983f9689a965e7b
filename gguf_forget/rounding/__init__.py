"""Bin-aware choice of codes on a given grid, and what became of the edits. Knows no file format."""

from __future__ import annotations

from gguf_forget.rounding.compensated import Rounded, as_rounded, round_each, round_edit
from gguf_forget.rounding.edits import SURVIVE, find_edits
from gguf_forget.rounding.feedback import Feedback, columns_to_decide, feedback_for
from gguf_forget.rounding.histogram import StepHistogram
from gguf_forget.rounding.survival import Survival, UpdateToStep, surviving, update_to_step
from gguf_forget.rounding.widening import SATURATED, Widened, widen

__all__ = [
    "SATURATED",
    "SURVIVE",
    "Feedback",
    "Rounded",
    "StepHistogram",
    "Survival",
    "UpdateToStep",
    "Widened",
    "as_rounded",
    "columns_to_decide",
    "feedback_for",
    "find_edits",
    "round_each",
    "round_edit",
    "surviving",
    "update_to_step",
    "widen",
]
