"""Rows of a GGUF's tensors, some at a time: what is compared, written, and read back from the file.

A tensor is worked on in runs of rows, several at a time on threads: numpy and libggml let go of Python's lock.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import StoredTensor
from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.llama.blocks import dequantize_rows

WEIGHTS_AT_ONCE = 1 << 18  # what stays in a processor's cache
Mapped = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Check:
    """What ``rows`` of a tensor must hold in the finished file: the crc32 of their bytes, which libggml decoded to what
    was asked for."""

    tensor: str
    rows: np.ndarray
    crc: int


def runs_of_rows(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """Runs of rows of about ``WEIGHTS_AT_ONCE`` weights; none crosses from one expert's matrix into another's."""
    height = tensor.rows // tensor.matrices
    at_once = max(1, WEIGHTS_AT_ONCE // tensor.columns)
    for matrix in range(tensor.matrices):
        for start in range(0, height, at_once):
            yield matrix * height + start, matrix * height + min(start + at_once, height)


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of one shape are stored alike, looked at a run of rows at a time."""
    # As whole words where rows are such: three times as fast.
    word = np.uint64 if one.raw.shape[1] % 8 == 0 else np.uint8
    return one.type == other.type and all(
        np.array_equal(one.raw[start:stop].view(word), other.raw[start:stop].view(word))
        for start, stop in runs_of_rows(one)
    )


def write_rows(descriptor: int, tensor: StoredTensor, rows: np.ndarray, content: np.ndarray) -> None:
    """Write whole rows [rows, bytes per row] at their places, neighbours together."""
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
        place = tensor.offset + int(rows[run[0]]) * tensor.raw.shape[1]
        write_bytes(descriptor, content[run[0] : run[-1] + 1], place)


def write_bytes(descriptor: int, content: np.ndarray, place: int) -> None:
    """Write all of ``content`` (uint8) at byte ``place``, from any thread."""
    view = np.ascontiguousarray(content).data.cast("B")
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def written_rows(
    descriptor: int, tensor: StoredTensor, rows: np.ndarray, content: np.ndarray, values: np.ndarray
) -> Check:
    """Write whole rows, and decode them from the file with libggml.

    content: uint8 [rows, bytes per row]; values: float32 [rows, columns]. Raises EvaluationError where it decodes to
    anything else than ``values``.
    """
    write_rows(descriptor, tensor, rows, content)
    stored = _stored(tensor, rows)
    found = dequantize_rows(tensor.type, stored, tensor.columns)
    # As bits: -0.0 is not 0.0, and a NaN of a huge weight's block is itself.
    if not np.array_equal(found.view(np.uint32), np.ascontiguousarray(values).view(np.uint32)):
        raise EvaluationError(
            f"{tensor.path.name}: {tensor.name} ({tensor.type}), rows {rows[0]} to {rows[-1]}, does not decode to the "
            "weights that were asked for",
            hint="the disk or memory may be faulty: run again, and report this if it stays",
        )
    return Check(tensor.name, rows, zlib.crc32(stored.data))


def _stored(tensor: StoredTensor, rows: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes per row], contiguous."""
    whole = rows[-1] - rows[0] == len(rows) - 1
    return np.ascontiguousarray(tensor.raw[rows[0] : rows[-1] + 1] if whole else tensor.raw[rows])


def check_fits(tensor: str, kind: str, weights: np.ndarray, values: np.ndarray) -> None:
    """Refuse weights that storing made NaN or infinite: a file with one such weight gives nothing but NaN.

    tensor: what the message calls it. weights: float [rows, columns], finite, which ``kind`` holds as ``values``.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(values.sum()):  # only if all its terms are, and much faster than looking at each
            return
    lost = ~np.isfinite(values)
    if lost.any():
        there = weights[lost]
        raise InputError(
            f"{tensor} holds a weight of {there[np.abs(there).argmax()]:g}, too large for {kind}",
            hint="look for overflow in the run that wrote this weight, or choose a type that can hold it, such as BF16",
        )


def read_back(
    tensors: Mapping[str, StoredTensor],
    checks: Sequence[Check],
    destination: Path,
    count: Callable[[int], None],
    mapped: Mapped = map,
) -> None:
    """Read every edited row of the finished file again; raises EvaluationError where it is not what was checked."""
    found = mapped(lambda check: zlib.crc32(_stored(tensors[check.tensor], check.rows).data), checks)
    for check, crc in zip(checks, found, strict=True):
        if crc != check.crc:
            raise EvaluationError(
                f"{destination}: {check.tensor} ({tensors[check.tensor].type}), rows {check.rows[0]} to "
                f"{check.rows[-1]}, is not what was written there",
                hint="the disk or memory may be faulty: run again, and report this if it stays",
            )
        count(1)
