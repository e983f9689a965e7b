"""Reading a GGUF without trusting it: metadata, tensors by name, and the header's raw bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.errors import InputError

MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF opened read-only through a memory map; tensors are views into the file, never copies.

    outline: leave out what is in arrays (the vocabulary), for who wants the tensors and single values alone.
    """

    path: Path
    outline: bool = False

    @cached_property
    def reader(self) -> Any:
        """gguf-py's reader; every failure to read becomes an :class:`InputError` that names the file."""
        from gguf_forget.checkpoint.quick_reader import OutlineReader, QuickReader

        hint = "the file is cut short or damaged: compare its size and hash with the original's"
        try:
            with self.path.open("rb") as file:
                magic = file.read(4)
            if magic != MAGIC:
                raise InputError(f"{self.path} starts with {magic!r}, needed {MAGIC!r}", hint="give a GGUF file")
            with np.errstate(over="raise"):  # an offset beyond 64 bits
                reader = (OutlineReader if self.outline else QuickReader)(self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read", cause=str(error), hint="check the path") from error
        except (ValueError, IndexError, KeyError, ArithmeticError, MemoryError, RecursionError) as error:
            raise InputError(f"{self.path} is not a readable GGUF", cause=str(error), hint=hint) from error
        return reader

    @cached_property
    def tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.reader.tensors}

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value as a Python object."""
        field = self.reader.get_field(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: metadata {key} is not UTF-8", cause=str(error)) from error

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise InputError(f"{self.path}: metadata {key} is {value!r}, needed a string")
        return value

    def type_name(self, name: str) -> str:
        """The ggml type of a tensor, such as ``Q4_K``."""
        return str(self.tensor(name).tensor_type.name)

    def tensor(self, name: str) -> Any:
        try:
            return self.tensors[name]
        except KeyError:
            raise InputError(f"{self.path} has no tensor {name}") from None

    def rows(self, name: str) -> np.ndarray:
        """The raw bytes of a two-dimensional tensor, uint8 [rows, bytes per row]."""
        tensor = self.tensor(name)
        if len(tensor.shape) != 2:
            raise InputError(f"{self.path}: {name} has {len(tensor.shape)} dimensions, needed 2")
        return np.ascontiguousarray(tensor.data).view(np.uint8).reshape(int(tensor.shape[1]), -1)

    def weights(self, name: str) -> np.ndarray:
        """An F32, F16 or BF16 tensor as float32, in the order rows, columns."""
        kind = self.type_name(name)
        tensor = self.tensor(name)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if kind == "F32":
            return np.asarray(tensor.data, dtype=np.float32).reshape(shape)
        if kind == "F16":
            return np.asarray(tensor.data).view(np.float16).astype(np.float32).reshape(shape)
        if kind == "BF16":
            raw = np.ascontiguousarray(tensor.data).view(np.uint16).astype(np.uint32)
            return (raw << 16).view(np.float32).reshape(shape)
        raise InputError(f"{self.path}: {name} is {kind}, needed F32, F16 or BF16")
