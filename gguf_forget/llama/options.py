"""llama-quantize's options, and how they reach ``llama_model_quantize``."""

from __future__ import annotations

import ctypes
import difflib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UnsupportedError

BUFFER_BYTES = 256 << 20  # rows of one tensor that llama.cpp holds at a time; the bytes it writes do not depend on it
_NEVER_STORED = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")  # llama.cpp aborts when asked to quantize to them
_TEXT_LIMIT = 127  # llama.cpp's key overrides hold no longer string


@dataclass(frozen=True)
class Importance:
    """An importance matrix: for every tensor the mean square of each input, float32 [experts * columns]."""

    path: Path
    values: Mapping[str, np.ndarray] = field(repr=False)
    datasets: tuple[str, ...] = ()
    chunks: int = 0

    def of(self, name: str, columns: int, experts: int) -> np.ndarray | None:
        """float32 [experts, columns] of a tensor; None where nothing is said of it, or of another shape.

        Where the shape is another, llama.cpp goes without for the token embeddings, and refuses elsewhere.
        """
        values = self.values.get(name)
        return values.reshape(experts, columns) if values is not None and values.size == experts * columns else None


@dataclass(frozen=True)
class QuantizeOptions:
    """The meaning is llama-quantize's own; types are ggml type names, upper case or lower."""

    importance: Importance | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()  # (regular expression that a name must contain, type)
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    metadata: tuple[tuple[str, str | int], ...] = ()  # keys to add; strings of at most 127 bytes

    def check(self) -> None:
        """Raises InputError for an unknown type, one that nothing is stored in, or no regular expression in UTF-8."""
        for kind in (self.output_tensor_type, self.token_embedding_type, *(kind for _, kind in self.tensor_types)):
            if kind is not None:
                _target_id(kind)
        for pattern, kind in self.tensor_types:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # sets in sets, which are Python's concern alone
                    re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"--tensor-type {pattern}={kind}: {pattern!r} is no regular expression", cause=str(error)
                ) from error
            try:
                pattern.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"--tensor-type {pattern!r}={kind}: the pattern is no UTF-8",
                    cause=error.reason,
                    hint="give it in the encoding of the terminal, UTF-8",
                ) from error

    def apply(self, parameters: Any, module: Any) -> list[Any]:
        """Set the fields of a ``llama_model_quantize_params``; keep what is returned alive while it is used.

        Raises InputError for an unknown type, UnsupportedError where this llama.cpp has no such option.
        """
        _set(parameters, "pure", self.pure, needed=self.pure)
        _set(parameters, "max_buf_size", BUFFER_BYTES, needed=False)
        for name in ("output_tensor_type", "token_embedding_type"):
            kind = getattr(self, name)
            if kind is not None:
                _set(parameters, name, _target_id(kind), needed=True)
        kept: list[Any] = []
        if self.tensor_types:
            override = module.llama_model_tensor_override
            patterns = [override(pattern.lower().encode(), _target_id(kind)) for pattern, kind in self.tensor_types]
            kept.append((override * (len(patterns) + 1))(*patterns))  # the last, all zero, ends the list
            _set(parameters, "tt_overrides", kept[-1], needed=True)
        if self.importance is not None:
            kept += self._importance(parameters, module, self.importance)
        keys = self.keys()
        if keys:
            kept.append(self._keys(parameters, module, keys))
        return kept

    def keys(self) -> dict[str, bytes | int]:
        """What the file says besides the original's keys: what llama-quantize says of an importance matrix, and
        ``metadata``. Numbers are stored in 32 bits."""
        keys: dict[str, str | int] = {}
        if self.importance is not None:
            keys["quantize.imatrix.file"] = str(self.importance.path)
            if self.importance.datasets:
                keys["quantize.imatrix.dataset"] = self.importance.datasets[0]
            keys["quantize.imatrix.entries_count"] = len(self.importance.values)
            if self.importance.chunks > 0:
                keys["quantize.imatrix.chunks_count"] = self.importance.chunks
        keys |= dict(self.metadata)
        return {key: value if isinstance(value, int) else _stored_text(value) for key, value in keys.items()}

    def _importance(self, parameters: Any, module: Any, importance: Importance) -> list[Any]:
        entry = module.llama_model_imatrix_data
        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in importance.values.items()}
        floats = ctypes.POINTER(ctypes.c_float)
        entries = [entry(name.encode(), values.ctypes.data_as(floats), values.size) for name, values in arrays.items()]
        data = (entry * (len(entries) + 1))(*entries)
        _set(parameters, "imatrix", data, needed=True)
        return [arrays, data]

    def _keys(self, parameters: Any, module: Any, keys: dict[str, bytes | int]) -> Any:
        overrides = (module.llama_model_kv_override * (len(keys) + 1))()
        for override, (key, value) in zip(overrides, keys.items(), strict=False):
            override.key = key.encode()
            if isinstance(value, int):
                override.tag, override.value.val_i64 = module.LLAMA_KV_OVERRIDE_TYPE_INT, value
            else:
                override.tag = module.LLAMA_KV_OVERRIDE_TYPE_STR
                override.value.val_str = value
        _set(parameters, "kv_overrides", overrides, needed=True)
        return overrides


def _stored_text(text: str) -> bytes:
    """As much of a text as llama.cpp stores, in whole characters: readers refuse a file with half a one.

    What cannot be encoded, as of a path that is no UTF-8, becomes a question mark.
    """
    cut = text.encode(errors="replace")[:_TEXT_LIMIT]
    return cut.decode(errors="ignore").encode().split(b"\0")[0]


def _set(parameters: Any, name: str, value: Any, *, needed: bool) -> None:
    if hasattr(parameters, name):
        setattr(parameters, name, value)
    elif needed:
        raise UnsupportedError(
            f"the installed llama-cpp-python has no quantization option {name}", hint="install the tested version"
        )


def type_id(name: str) -> int:
    """The number of a ggml type, by its name in any case; InputError for an unknown one."""
    from gguf import GGMLQuantizationType

    known = GGMLQuantizationType.__members__
    if name.upper() not in known:
        close = difflib.get_close_matches(name.upper(), known, n=1)
        raise InputError(
            f"unknown tensor type {name!r}, needed a ggml type such as Q8_0 or Q6_K",
            hint=f"did you mean {close[0]}?" if close else None,
        )
    return int(known[name.upper()])


def _target_id(name: str) -> int:
    """:func:`type_id` of a type that weights can be quantized to."""
    number = type_id(name)
    if name.upper() in _NEVER_STORED:
        raise InputError(f"tensor type {name!r} is none that weights are stored in", hint="such as Q8_0 or Q6_K")
    return number
