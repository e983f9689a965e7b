"""One tensor of a quantized file: the edit found by comparison, rounded on the file's own grid, written in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import StoredTensor
from gguf_forget.errors import InputError
from gguf_forget.export.outcome import COUNTS, TensorOutcome, arrival
from gguf_forget.export.rows import Check, Mapped, check_fits, runs_of_rows, same_bytes, write_bytes, written_rows
from gguf_forget.grids import CODECS, Codec, Levels
from gguf_forget.llama.blocks import dequantize_rows, quantize_rows
from gguf_forget.rounding import (
    Feedback,
    Rounded,
    StepHistogram,
    Widened,
    as_rounded,
    columns_to_decide,
    feedback_for,
    find_edits,
    round_each,
    round_edit,
    widen,
)

FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class RoundingOptions:
    """survive: as in ``round_edit``. outside_mask: "frozen" keeps the codes of weights without an edit, "compensate"
    lets them make good the error of the others (only where a Hessian says how).
    noise: differences of at most this are no edit; None takes what storing the two files' types can have done.
    saturated: what becomes of an edit that the grid has no code for, "count" or "widen".
    aim: what the codes of edited weights are chosen for, the unlearned "weights" or the stock file's plus the "edit".
    carry: where the aim is the weights, further codes move until the edit of each row has arrived.
    """

    survive: str = "important"
    outside_mask: str = "frozen"
    noise: float | None = None
    saturated: str = "count"
    aim: str = "weights"
    carry: bool = True


@dataclass
class _Part:
    """What became of a run of rows; arrived, square: as in :class:`TensorOutcome`."""

    counts: dict[str, int]
    arrived: float
    square: float
    steps: StepHistogram = field(default_factory=StepHistogram)
    check: Check | None = None


def edit_of(original: StoredTensor, unlearned: StoredTensor, start: int, stop: int, noise: float | None) -> np.ndarray:
    """unlearned minus original, float32 [rows, columns], 0 where the difference is noise.

    Without ``noise`` that is the most by which storing the two types can have moved a weight apart: nothing where
    both are of one type. Raises InputError for weights that are NaN or infinite.
    """
    return _edit_and_weights(original, unlearned, start, stop, noise)[0]


def _edit_and_weights(
    original: StoredTensor, unlearned: StoredTensor, start: int, stop: int, noise: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`edit_of`, and the unlearned weights."""
    before, after = original.weights(start, stop), unlearned.weights(start, stop)
    with np.errstate(invalid="ignore", over="ignore"):
        delta: np.ndarray = after - before
        total = delta.sum()  # finite only if all its terms are, and much faster than looking at each
    if not np.isfinite(total) and not np.isfinite(delta).all():
        for tensor, weights in ((original, before), (unlearned, after)):
            check_finite(tensor, weights)
        raise InputError(f"the edit of tensor {original.name} overflows float32")
    bound: Any = noise
    if noise is None and original.type != unlearned.type:
        bound = original.rounding(start, stop) + unlearned.rounding(start, stop)
    if bound is not None:
        delta[np.abs(delta) <= bound] = 0
    return delta, after


def check_finite(tensor: StoredTensor, weights: np.ndarray) -> None:
    """Raises InputError where some of ``weights``, which are the tensor's, are NaN or infinite."""
    if broken := int(weights.size - np.isfinite(weights).sum()):
        raise InputError(
            f"{tensor.path}: tensor {tensor.name} holds {broken} weights that are NaN or infinite",
            hint="look for overflow in the run that wrote this model",
        )


def is_edited(original: StoredTensor, unlearned: StoredTensor, noise: float | None) -> bool:
    """Whether any weight differs by more than noise; stops at the first that does."""
    if same_bytes(original, unlearned):
        return False
    return any(edit_of(original, unlearned, *part, noise).any() for part in runs_of_rows(original))


def patch_tensor(
    descriptor: int,
    stock: StoredTensor,
    original: StoredTensor,
    unlearned: StoredTensor,
    *,
    options: RoundingOptions,
    hessian: np.ndarray | None,
    importance: np.ndarray | None,
    stored: Callable[[int], np.ndarray] | None = None,
    codes: np.ndarray | None = None,
    mapped: Mapped = map,
) -> tuple[TensorOutcome | None, list[Check]]:
    """Write the edit into ``stock``, whose file ``descriptor`` is open for writing; None where nothing is edited.

    hessian: float [columns, columns] or None. importance: float32 [experts, columns] or None; a type without a codec
    needs it, whose rows are quantized anew as llama.cpp would, and without a Hessian it is the diagonal of one, which
    counts where a grid is widened. stored: gives the stock bytes of the run of rows that begins at a row, where these
    are not in the file yet; then they are written too. codes: int16 [rows, columns], what to write if it was chosen
    before (:mod:`gguf_forget.fitting`); the counts are as for any other. mapped: ``map``, or an executor's.

    Raises InputError for a weight that the type of ``stock`` cannot hold.
    """
    codec = CODECS.get(stock.type)
    feedback = None if hessian is None or codec is None else _feedback(hessian, original, unlearned, options)
    diagonal = None if hessian is None else np.diagonal(hessian)

    def work(part: tuple[int, int]) -> _Part | None:
        start, stop = part
        blocks = stock.raw[start:stop] if stored is None else stored(start)
        delta, weights = _edit_and_weights(original, unlearned, start, stop, options.noise)
        index = np.flatnonzero(delta != 0)  # twice as fast as from the floats themselves
        touched = _differing(index // stock.columns)
        if stored is not None and touched.size < stop - start:
            write_bytes(descriptor, blocks, stock.offset + start * stock.raw.shape[1])
        if not touched.size:
            return None
        if touched.size < stop - start:
            delta, weights, blocks = delta[touched], weights[touched], blocks[touched]
            index = np.flatnonzero(delta != 0)
        matrix = start // (stock.rows // stock.matrices)
        own = None if importance is None else importance[matrix]
        if codec is None:
            new, values, done = _anew(stock, blocks, weights, delta, own)
            check_fits(f"tensor {stock.name} of {unlearned.path}", stock.type, weights, values)
        else:
            aimed = weights if options.aim == "weights" else None
            counts = own if diagonal is None else diagonal
            wider = None
            if options.saturated == "widen":
                wider = widen(codec, blocks, delta, survive=options.survive, importance=counts)
            chosen = None if codes is None else codes[start + touched]
            if feedback is None and wider is None:
                new, values, done = _each_alone(codec, blocks, index, delta, aimed, options, chosen)
            else:
                new, values, done = _together(codec, blocks, index, delta, aimed, feedback, wider, options, chosen)
        done.check = written_rows(descriptor, stock, start + touched, new, values)
        return done

    parts = [part for part in mapped(work, list(runs_of_rows(stock))) if part is not None]
    if not parts:
        return None, []
    steps = StepHistogram()
    for part in parts:
        steps.merge(part.steps)
    outcome = TensorOutcome(
        tensor=stock.name,
        type=stock.type,
        **{name: sum(part.counts[name] for part in parts) for name in COUNTS},
        median_steps=steps.quantile(0.5),
        arrived=sum(part.arrived for part in parts),
        square=sum(part.square for part in parts),
        protected=codec is not None or stock.type in FLOAT_TYPES,
    )
    return outcome, [part.check for part in parts if part.check is not None]


def _feedback(
    hessian: np.ndarray, original: StoredTensor, unlearned: StoredTensor, options: RoundingOptions
) -> Feedback | None:
    """Made once for all runs of the tensor."""
    if hessian.shape != (original.columns, original.columns):
        raise InputError(
            f"the Hessian of {original.name} has shape {list(hessian.shape)}, {[original.columns] * 2} is needed"
        )
    edited = np.ones(original.columns, dtype=bool)
    if options.outside_mask == "frozen":
        edited[:] = False
        for part in runs_of_rows(original):
            edited |= edit_of(original, unlearned, *part, options.noise).any(axis=0)
    return feedback_for(hessian, columns_to_decide(edited, edited))


def _differing(ascending: np.ndarray) -> np.ndarray:
    """Each of the numbers once, ascending."""
    return ascending[np.flatnonzero(np.diff(ascending, prepend=-1))]


def _each_alone(
    codec: Codec,
    blocks: np.ndarray,
    index: np.ndarray,
    delta: np.ndarray,
    weights: np.ndarray | None,
    options: RoundingOptions,
    chosen: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, _Part]:
    """New bytes [rows, bytes per row] and what they decode to; nothing but the edited weights is looked at.

    index: flat positions where ``delta`` [rows, columns] is not 0. weights: [rows, columns], where those are aimed at.
    chosen: codes [rows, columns], where there is nothing left to choose.
    """
    present, change = codec.at(blocks, index), delta.ravel()[index]
    before = present.values()
    edits = find_edits(present, change, survive=options.survive)
    if chosen is not None:
        went = chosen.ravel()[index] - present.codes
    elif weights is None:
        went = round_each(edits, change)
    else:
        went = round_each(edits, weights.ravel()[index] - before, carried=change if options.carry else None)
    codes, moved = present.codes + went, went != 0
    after = replace(present, codes=codes).values()
    # Codes that did not move must decode to the very weights of the stock file.
    values = dequantize_rows(codec.name, blocks, delta.shape[1])
    values.ravel()[index[moved]] = after[moved]
    part = _part(
        asked=int(edits.asked.sum()),
        landed=edits.landed(went),
        saturated=int(edits.saturated.sum()),
        moved=int(np.count_nonzero(moved)),
        moved_by_compensation=0,
        change=change,
        went=after - before,
        steps=present.steps(change),
    )
    return codec.with_codes_at(blocks, present, codes), values, part


def _together(
    codec: Codec,
    blocks: np.ndarray,
    index: np.ndarray,
    delta: np.ndarray,
    weights: np.ndarray | None,
    feedback: Feedback | None,
    wider: Widened | None,
    options: RoundingOptions,
    chosen: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, _Part]:
    """As :func:`_each_alone`, but with weights tied to each other by ``feedback``, or moved to ``wider`` grids."""
    edited = delta != 0
    target, towards, must_move = blocks, delta, None
    if wider is not None:
        # Of a sub-block with a new grid every weight is chosen anew, as if it were edited.
        target, towards, must_move = wider.blocks, wider.delta, wider.must_move
    levels = codec.decode(target)
    present, change = levels.at(index) if wider is None else codec.at(blocks, index), delta.ravel()[index]
    before = present.values()
    free = edited if feedback is not None and options.outside_mask == "frozen" else None
    if chosen is not None:
        rounded = as_rounded(levels, towards, chosen, must_move=must_move, survive=options.survive, free=free)
    else:
        wanted = towards
        if weights is not None:
            wanted = towards.copy()
            wanted.ravel()[index] = weights.ravel()[index] - levels.at(index).values()
        rounded = round_edit(
            levels,
            towards,
            wanted=wanted,
            hessian=feedback,
            free=free,
            must_move=must_move,
            survive=options.survive,
            carried=np.where(edited, towards, 0) if options.carry and weights is not None else None,
        )
    values = asked_for(codec, target, levels, rounded)
    part = _part(
        asked=rounded.asked,
        landed=rounded.landed,
        saturated=rounded.saturated,
        moved=rounded.moved,
        moved_by_compensation=rounded.moved_by_compensation,
        change=change,
        went=values.ravel()[index] - before,
        steps=present.steps(change),
    )
    if wider is not None:
        differs = values != dequantize_rows(codec.name, blocks, delta.shape[1])
        there = np.repeat(wider.regridded, codec.sub_block, axis=1)
        part.counts["moved"] = int(differs.sum())
        part.counts["widened"] = int(wider.regridded.sum())
        part.counts["regridded"] = int((differs & there & ~edited).sum())
    return codec.with_codes(target, rounded.codes), values, part


def asked_for(codec: Codec, blocks: np.ndarray, levels: Levels, rounded: Rounded) -> np.ndarray:
    """What a file must decode to once it holds the codes of ``rounded``, float32 [rows, columns].

    blocks: the bytes before, uint8 [rows, bytes per row], with their ``levels``. Codes that did not move must decode to
    the very weights that they did.
    """
    values = dequantize_rows(codec.name, blocks, levels.codes.shape[1])
    values.ravel()[rounded.moved_at] = replace(levels, codes=rounded.codes).at(rounded.moved_at).values()
    return values


def _part(change: np.ndarray, went: np.ndarray, steps: np.ndarray, **counts: int) -> _Part:
    """change, went, steps: [E], the edits, what the shipped weights are away from the stock ones, the grid's steps."""
    part = _Part({"edited": change.size, **counts, "widened": 0, "regridded": 0}, *arrival(change, went))
    part.steps.add(change, steps)
    return part


def _anew(
    stock: StoredTensor, blocks: np.ndarray, weights: np.ndarray, delta: np.ndarray, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, _Part]:
    """Rows of a type without a codec, or of floating point: as llama.cpp stores them.

    In floating point every weight is a value of its own: those without an edit keep the stock file's.
    """
    before = dequantize_rows(stock.type, blocks, stock.columns)
    is_float = stock.type in FLOAT_TYPES
    if is_float:
        weights = np.where(delta != 0, weights, before)
    new = quantize_rows(stock.type, weights, importance)
    after = dequantize_rows(stock.type, new, stock.columns)
    went = np.sign(after - before) * np.sign(delta)
    # Floating point holds every edit that is not lost in rounding; elsewhere nothing can be asked.
    landed = int((went > 0).sum()) if is_float else 0
    moved = after != before
    counts = {
        "edited": int(np.count_nonzero(delta)),
        "asked": landed,
        "landed": landed,
        "saturated": 0,
        "moved": int(moved.sum()),
        "moved_by_compensation": int((moved & (delta == 0)).sum()),
        "widened": 0,
        "regridded": 0,
    }
    return new, after, _Part(counts, *arrival(delta.ravel(), (after - before).ravel()))
