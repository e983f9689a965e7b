"""gguf-py's reader, without a Python call for every token of the vocabulary.

A vocabulary is two or three arrays of some 50,000 strings or numbers, and gguf-py reads each element through
several slices of a ``numpy.memmap``: seconds a file, and a run opens dozens. Here the map is sliced as a plain
array and an array of strings or numbers is read in one loop. Everything else, and every check, is gguf-py's.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType

_ARRAY_HEADER = 12  # uint32 type of the elements, uint64 their number


class QuickReader(GGUFReader):
    """Same fields, parts and tensors as ``gguf.GGUFReader``; raises ValueError for a file that is cut short."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The whole file, uint8; a view that keeps the memory map open."""
        return self._plain

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._plain = np.asarray(mapped)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        header = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        types = [GGUFValueType.ARRAY, *([item] if count else [])]
        start = orig_offs + _ARRAY_HEADER
        if item is GGUFValueType.STRING:
            end, parts = self._strings(start, count)
            return end - orig_offs, header + parts, list(range(3, 3 + 2 * count, 2)), types
        scalar = self.gguf_scalar_to_np.get(item)
        if scalar is None:  # arrays in arrays
            return super()._get_field_parts(orig_offs, raw_type)
        values = self._get(start, scalar, count)
        if len(values) != count:
            raise ValueError(f"an array of {count} elements at byte {orig_offs} goes past the end of the file")
        parts = [values[index : index + 1] for index in range(count)]
        return _ARRAY_HEADER + values.nbytes, header + parts, list(range(2, 2 + count)), types

    def _strings(self, offset: int, count: int) -> tuple[int, list[np.ndarray]]:
        """Byte after the last string, and for each string its length and its bytes as views of the file."""
        data, size, swapped = self._plain, len(self._plain), self.byte_order == "S"
        order = "<u8" if (sys.byteorder == "little") != swapped else ">u8"
        parts: list[np.ndarray] = []
        for index in range(count):
            length = data[offset : offset + 8]
            if offset + 8 > size:
                raise ValueError(f"string {index} of {count} at byte {offset} goes past the end of the file")
            length = length.view(order)
            end = offset + 8 + int(length[0])
            if end > size:
                raise ValueError(f"string {index} of {count} at byte {offset} goes past the end of the file")
            parts += (length, data[offset + 8 : end])
            offset = end
        return offset, parts


class OutlineReader(QuickReader):
    """Without the elements of arrays (the vocabulary), which take longer to read than all else together.

    Such a field has no data; the field of any other kind, and every tensor, is as in :class:`QuickReader`.
    """

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        if item is not GGUFValueType.STRING and (scalar := self.gguf_scalar_to_np.get(item)) is not None:
            size = _ARRAY_HEADER + count * np.dtype(scalar).itemsize
        elif item is GGUFValueType.STRING:
            size = self._end_of_strings(orig_offs + _ARRAY_HEADER, count) - orig_offs
        else:  # arrays in arrays
            return super()._get_field_parts(orig_offs, raw_type)
        if orig_offs + size > len(self._plain):
            raise ValueError(f"an array of {count} elements at byte {orig_offs} goes past the end of the file")
        return size, [], [], [GGUFValueType.ARRAY, item]

    def _end_of_strings(self, offset: int, count: int) -> int:
        length = struct.Struct("<Q" if (sys.byteorder == "little") != (self.byte_order == "S") else ">Q")
        data = self._plain.data
        try:
            for _ in range(count):
                offset += 8 + length.unpack_from(data, offset)[0]
        except (struct.error, OverflowError) as error:
            raise ValueError(f"a string at byte {offset} goes past the end of the file") from error
        return offset


@contextmanager
def quick_gguf() -> Iterator[None]:
    """While open, whoever imports gguf's reader or name map gets these: transformers parses a file three times
    for a model, and builds the name map anew for every module."""
    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = QuickReader, functools.cache(name_map)  # type: ignore[misc]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map  # type: ignore[misc]
