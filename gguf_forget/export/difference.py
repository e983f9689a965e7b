"""What differs between two GGUFs: tensors and codes moved, how far in steps, metadata.

Files are read a run of rows at a time. Before an export the same comparison, given a file type and the options it will
be made with, says how large the updates are against the steps of the grid they will ship on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import READABLE, StoredTensor, stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export.patch import check_finite, edit_of
from gguf_forget.export.rows import runs_of_rows, same_bytes
from gguf_forget.export.shipped_grid import ShippedGrid, shipped_grids
from gguf_forget.grids import CODECS
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import DEFAULT
from gguf_forget.rounding import StepHistogram

LONGEST_VALUE = 80


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is in both files and not the same in both. Counts of weights; None where it does not apply.

    moved: codes that differ, or weights where there are no codes. up, down: moved codes by the direction of the
    weight. shifts: how many codes moved by how many steps of code. regridded: sub-blocks whose scale or offset
    differs; their codes cannot be compared and count as moved only where they differ as numbers.
    grid: the type of the tensor in the file type that was asked for; None where none was, where the tensor is not in
    full precision in both files, or the type has no steps that can be measured.
    median_update: the median |update| in steps of the grid ``grid``; step_to_update: its inverse, the factor by which
    a step is larger than the median update ("Forgetting That Sticks", arXiv 2605.15138, finds 47 to 828). updates: all
    of them, lower edge of a bin in steps (eight bins to a power of two) to their number.
    """

    tensor: str
    type_before: str
    type_after: str
    weights: int
    moved: int
    largest: float | None  # change of one weight
    up: int | None = None
    down: int | None = None
    shifts: dict[int, int] | None = None
    regridded: int | None = None
    grid: str | None = None
    median_update: float | None = None
    step_to_update: float | None = None
    updates: dict[float, int] | None = None


@dataclass(frozen=True)
class Difference:
    only_before: list[str]
    only_after: list[str]
    tensors: list[TensorDifference]
    same: int  # tensors equal byte for byte
    metadata_added: dict[str, str]
    metadata_removed: dict[str, str]
    metadata_changed: dict[str, tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def difference(
    before: Path,
    after: Path,
    *,
    file_type: str | None = None,
    options: QuantizeOptions = DEFAULT,
    called: tuple[Path, Path] | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Difference:
    """Compare two GGUFs (the first file of a split one each).

    file_type, options: also measure the updates of full-precision tensors (F32, F16, BF16, Q8_0) against the grid on
    which llama.cpp would put the first file in that type. called: what messages call the two files. ``advance`` is
    called once a tensor of the first. Raises InputError for files that cannot be read, tensors of unlike shape, weights
    that are NaN or infinite, or a file type or options with which llama.cpp would make no file.
    """
    one, other = stored_tensors(before), stored_tensors(after)
    grids = {} if file_type is None else shipped_grids(before, one, file_type, options)
    found, same = [], 0
    for name in one:
        advance(1)
        if name not in other:
            continue
        if one[name].shape != other[name].shape:
            names = called or (before, after)
            raise InputError(
                f"tensor {name} is {list(one[name].shape)} in {names[0]}, {list(other[name].shape)} in {names[1]}: "
                "one shape is needed",
                hint="give two files of the same model",
            )
        if same_bytes(one[name], other[name]):
            same += 1
        else:
            found.append(_compare(one[name], other[name], grids.get(name)))
    metadata = [_metadata(before), _metadata(after)]
    return Difference(
        only_before=sorted(one.keys() - other.keys()),
        only_after=sorted(other.keys() - one.keys()),
        tensors=found,
        same=same,
        metadata_added={key: value for key, value in metadata[1].items() if key not in metadata[0]},
        metadata_removed={key: value for key, value in metadata[0].items() if key not in metadata[1]},
        metadata_changed={
            key: (value, metadata[1][key])
            for key, value in metadata[0].items()
            if key in metadata[1] and metadata[1][key] != value
        },
    )


def _compare(one: StoredTensor, other: StoredTensor, grid: ShippedGrid | None) -> TensorDifference:
    if one.type == other.type and one.type in CODECS:
        codes = _codes(one, other)
        if grid is None:
            return codes
        measured = _updates(one, other, grid)
        return replace(
            codes,
            grid=measured.grid,
            median_update=measured.median_update,
            step_to_update=measured.step_to_update,
            updates=measured.updates,
        )
    if one.type in READABLE and other.type in READABLE:
        return _updates(one, other, grid)
    # Of unlike types, or a type without a codec, only that they differ can be said.
    weights = one.rows * one.columns
    return TensorDifference(one.name, one.type, other.type, weights, weights, None)


def _codes(one: StoredTensor, other: StoredTensor) -> TensorDifference:
    codec = CODECS[one.type]
    shifts: Counter[int] = Counter()
    up = down = regridded = 0
    largest = 0.0
    for start, stop in runs_of_rows(one):
        a, b = one.raw[start:stop], other.raw[start:stop]
        rows = np.flatnonzero((a != b).any(axis=1))
        if not rows.size:
            continue
        first, second = codec.decode(a[rows]), codec.decode(b[rows])
        with np.errstate(invalid="ignore"):  # an infinite scale, refused next
            values_before, values_after = first.values(), second.values()
        check_finite(one, values_before)
        check_finite(other, values_after)
        change = values_after - values_before
        shift = second.codes - first.codes
        values, counts = np.unique(shift[shift != 0], return_counts=True)
        shifts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        regridded += int(((first.scale != second.scale) | (first.offset != second.offset)).sum())
        up += int(((shift != 0) & (change > 0)).sum())
        down += int(((shift != 0) & (change < 0)).sum())
        largest = max(largest, float(np.abs(change).max()))
    return TensorDifference(
        one.name,
        one.type,
        other.type,
        one.rows * one.columns,
        sum(shifts.values()),
        largest,
        up=up,
        down=down,
        shifts=dict(sorted(shifts.items())),
        regridded=regridded,
    )


def _updates(one: StoredTensor, other: StoredTensor, grid: ShippedGrid | None) -> TensorDifference:
    steps = StepHistogram()
    moved, largest = 0, 0.0
    for start, stop in runs_of_rows(one):
        delta = edit_of(one, other, start, stop, noise=None)
        moved += int(np.count_nonzero(delta))
        largest = max(largest, float(np.abs(delta).max(initial=0)))
        rows = np.flatnonzero((delta != 0).any(axis=1))
        if grid is not None and rows.size:
            blocks = grid.blocks(start, stop, rows)
            index = np.flatnonzero(delta[rows] != 0)
            change = delta[rows].ravel()[index]
            steps.add(change, grid.codec.at(blocks, index).steps(change))
    median = steps.quantile(0.5)
    return TensorDifference(
        one.name,
        one.type,
        other.type,
        one.rows * one.columns,
        moved,
        largest,
        grid=None if grid is None else grid.codec.name,
        median_update=median,
        step_to_update=None if median is None else 1 / median,
        updates=None if grid is None else steps.filled(),
    )


def _metadata(path: Path) -> dict[str, str]:
    """Key to value as text; of a long one its length and hash."""
    file = GgufFile(path)
    result = {}
    for key in file.reader.fields:
        if key.startswith(("GGUF.", "split.")):  # the header's own counts; how many files hold the model
            continue
        value = file.value(key)
        text = str(value)
        if len(text) > LONGEST_VALUE:
            size = f"{len(value):,} entries" if isinstance(value, list) else f"{len(text):,} characters"
            text = f"{size}, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        result[key] = text
    return result
