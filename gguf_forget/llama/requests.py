"""What every question to a model has in common: checks before it, one error after it, news in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from ..errors import EvaluationError, InputError
from .session import Session

# Called with the number of sequences done and their total: (0, total) first, (total, total) last.
Progress = Callable[[int, int], None]


def check_tokens(session: Session, name: str, tokens: Sequence[int], *, limit: int | None, least: int = 1) -> None:
    """Raise :class:`InputError` for too few or too many tokens, or one outside the vocabulary."""
    if len(tokens) < least:
        raise InputError(f"{name} is empty, needed: at least one token")
    if limit is not None and len(tokens) > limit:
        raise InputError(
            f"{name} has {len(tokens)} tokens, at most {max(limit, 0)} fit in {session.cells} cells",
            hint="shorten it, or open the model with more cells",
        )
    size = session.vocabulary.size
    for token in tokens:
        if not 0 <= token < size:
            raise InputError(f"{name} holds token {token}, needed: 0 to {size - 1}")


def not_finite(session: Session, name: str) -> NoReturn:
    """Raise the error for a request whose scores are not finite, and leave nothing of them in the cache."""
    session.wipe()
    raise EvaluationError(
        f"{name}: {session.path} gives values that are not finite",
        hint="the weights overflow or hold NaN: check the file before judging it",
    )
