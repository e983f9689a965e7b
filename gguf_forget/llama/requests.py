"""What every question to a model has in common: checks before it, one error after it, news in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from ..errors import EvaluationError, InputError
from .session import Session

# Called with the number of sequences done and their total: (0, total) first, (total, total) last.
Progress = Callable[[int, int], None]


class Room(NamedTuple):
    """The tokens that llama.cpp can take of one sequence, what bounds them, and what to do about one that has more."""

    tokens: int
    bound: str
    hint: str


def room_of(session: Session) -> Room:
    """The session's cells, or the rows of the model's table of positions where those are fewer.

    llama.cpp ends the process when it is asked for a position that the table has not.
    """
    positions = session.positions
    if positions is not None and positions < session.cells:
        return Room(positions, f"the model's {positions} positions", "shorten it")
    return Room(session.cells, f"{session.cells} cells", "shorten it, or open the model with more cells")


def check_tokens(
    session: Session, name: str, tokens: Sequence[int], *, room: Room | None, spare: int = 0, least: int = 1
) -> None:
    """Raise :class:`InputError` for too few or too many tokens, or one outside the vocabulary.

    spare: how many more, or less, than ``room`` says there may be.
    """
    if len(tokens) < least:
        raise InputError(f"{name} is empty, needed: at least one token")
    if room is not None and len(tokens) > (limit := room.tokens + spare):
        raise InputError(
            f"{name} has {len(tokens)} tokens, at most {max(limit, 0)} fit in {room.bound}", hint=room.hint
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
