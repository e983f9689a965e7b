"""A GGUF opened in llama.cpp: the batched forward pass with checked return codes, the cache sized to the work.

Shapes:
    B: tokens of one call, at most ``batch``
    V: vocabulary size
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EvaluationError, InputError, LlamaError, UnsupportedError
from .library import captured_log, load
from .vocabulary import Vocabulary

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, a constant of llama.cpp
_CELL_MULTIPLE = 256  # llama.cpp pads the context to this
_DECODE_CODES = {
    1: "no free key-value cells for the batch",
    2: "aborted",
    -1: "invalid batch",
    -2: "out of memory",
    -3: "the computation failed",
}


LEARNED_POSITIONS = ("gpt2", "starcoder")
"""Architectures whose positions are rows of a table in the file."""

_FLOAT_FILE_TYPES = (None, "0", "1", "32")  # unknown, F32, F16, BF16


class Session:
    """Owns a ``llama_model`` and, once there is work, a ``llama_context`` with one unified key-value cache.

    Args:
        model: path of a GGUF (the first file of a split one).
        threads: CPU threads; None takes the CPUs this process may use.
        cells: most key-value cells, see :meth:`reserve`; ``batch``: tokens a forward pass; ``max_sequences``:
            sequences at a time, 1 … 256. More sequences than ``batch`` or ``cells`` are never used.
        gpu_layers: layers given to GPUs, where llama.cpp was built for one; −1: all.
        tensor_split: each GPU's share of them, in any unit; empty: llama.cpp decides.
        exact_attention: no flash attention, instead of llama.cpp's own choice; None: so for float files, and one at a
            time.
        one_at_a_time: whether callers are to decode every sequence alone, in an empty cache.

    Raises:
        InputError: no such file, or a number out of range.
        LlamaError: llama.cpp cannot load the file.
        UnsupportedError: not a decoder with an ordinary key-value cache.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int | None,
        cells: int,
        batch: int,
        max_sequences: int,
        gpu_layers: int,
        tensor_split: Sequence[float],
        exact_attention: bool | None,
        one_at_a_time: bool,
    ) -> None:
        self._context: Any = None
        self._model: Any = None
        self._memory: Any = None
        self.path = Path(model)
        if not self.path.is_file():
            raise InputError(f"no such model file: {self.path}", hint="give the path of a GGUF file")
        for name, value, limit in (
            ("cells", cells, None),
            ("batch", batch, None),
            ("max_sequences", max_sequences, MAX_SEQUENCES),
            ("threads", 1 if threads is None else threads, None),
        ):
            if value < 1 or (limit is not None and value > limit):
                needed = "at least 1" if limit is None else f"1 to {limit}"
                raise InputError(f"{name} is {value}, needed: {needed}")
        self.cells = cells
        self.one_at_a_time = one_at_a_time
        self.batch = min(batch, cells)
        self.max_sequences = min(max_sequences, self.batch)
        self._reserved = 0
        self._threads = threads or _cpu_count()
        self._exact_attention = exact_attention
        self._library = load()
        try:
            self._open(gpu_layers, self._shares(tensor_split))
        except BaseException:
            self.close()
            raise

    def _shares(self, tensor_split: Sequence[float]) -> Any:
        devices = self._library.llama_max_devices()
        if len(tensor_split) > devices or any(not 0 <= share < math.inf for share in tensor_split):
            raise InputError(
                f"tensor_split is {list(tensor_split)}, needed: at most {devices} numbers, none below 0",
                hint="give one share for each GPU, such as 3 1",
            )
        if not any(tensor_split):
            return None
        return (ctypes.c_float * devices)(*tensor_split)

    def _open(self, gpu_layers: int, shares: Any) -> None:
        library = self._library
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        if shares is not None:
            parameters.tensor_split = shares
        parameters.check_tensors = True  # a damaged block is an error here, not a strange score later
        with captured_log() as log:
            self._model = library.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self._model:
            raise LlamaError(f"llama.cpp cannot load {self.path}", cause=log.reason())
        if (
            not library.llama_model_has_decoder(self._model)
            or library.llama_model_has_encoder(self._model)
            or library.llama_model_is_recurrent(self._model)
            or library.llama_model_is_hybrid(self._model)
        ):
            raise UnsupportedError(
                f"{self.path} is not a plain decoder: encoder-decoder, recurrent and hybrid models "
                "cannot share prefixes in the key-value cache"
            )
        if self._exact_attention is None:
            number = self._said("general.file_type")  # of llama_ftype
            self._exact_attention = self.one_at_a_time or number in _FLOAT_FILE_TYPES
        self._vocabulary = Vocabulary(self._model, self.path)
        self._sequence_ids = np.arange(self.max_sequences, dtype=np.int32)

    def _said(self, key: str) -> str | None:
        """What the file says under a key, as text of up to 63 bytes; None where it says nothing."""
        text = ctypes.create_string_buffer(64)
        found = self._library.llama_model_meta_val_str(self._model, key.encode(), text, len(text))
        return text.value.decode(errors="replace") if found >= 0 else None

    @property
    def positions(self) -> int | None:
        """The rows of the model's table of positions, which are as many as its context; None where it has no table.

        Raises:
            LlamaError: the session was closed.
        """
        self._check_open()
        if self._said("general.architecture") not in LEARNED_POSITIONS:
            return None
        return int(self._library.llama_model_n_ctx_train(self._model))

    def reserve(self, cells: int) -> None:
        """Have an empty cache of at least this many cells, at most ``cells`` of the session; never smaller again.

        Scores do not depend on the size: llama.cpp attends over the cells in use.

        Raises:
            LlamaError: llama.cpp cannot allocate it.
        """
        self._check_open()
        if cells <= self._reserved:
            # Zeroing the data as well would cost a pass over it. Stale values are masked out, and the callers
            # stop at the first value that is not finite, the only kind a mask does not cancel.
            self._library.llama_memory_clear(self._memory, False)
            return
        self._free_context()
        library = self._library
        parameters = library.llama_context_default_params()
        parameters.n_ctx = -(-cells // _CELL_MULTIPLE) * _CELL_MULTIPLE
        parameters.n_batch = parameters.n_ubatch = self.batch
        parameters.n_seq_max = self.max_sequences
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = True  # one cell can then belong to many sequences
        parameters.no_perf = True
        # Flash attention rounds keys and values to half precision by itself: a cache of it saves memory, not time.
        parameters.type_k = parameters.type_v = library.GGML_TYPE_F32
        if self._exact_attention:
            parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with captured_log() as log:
            self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise LlamaError(
                f"llama.cpp cannot create a context of {cells} cells for {self.path}",
                cause=log.reason(),
                hint="lower cells or batch",
            )
        self._reserved = int(parameters.n_ctx)
        self._memory = library.llama_get_memory(self._context)

    def _free_context(self) -> None:
        if self._context:
            self._library.llama_free(self._context)
        self._context = None
        self._reserved = 0

    def close(self) -> None:
        """Free the context and the model; closing twice is allowed."""
        self._free_context()
        if self._model:
            self._library.llama_model_free(self._model)
        self._model = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._model:
            raise LlamaError(f"{self.path} was closed")

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokens and texts of the model.

        Raises:
            LlamaError: the session was closed.
        """
        self._check_open()
        return self._vocabulary

    def wipe(self) -> None:
        """Empty the key-value cache and zero its data: needed after values that are not finite."""
        self._check_open()
        if self._context:
            self._library.llama_memory_clear(self._memory, True)

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        first_sequence: NDArray[np.int32],
        sequence_count: NDArray[np.int32],
        wanted: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Append B tokens to the cache; logits [number wanted, V] of the wanted ones, in order.

        :meth:`reserve` the cache first. The result is llama.cpp's own memory: read it before the next call. Token
        ``i`` joins the sequences ``first_sequence[i]`` … ``first_sequence[i] + sequence_count[i] - 1``.

        Raises:
            EvaluationError: llama.cpp refused the batch or failed in it.
        """
        self._check_open()
        count = len(tokens)
        columns = [np.ascontiguousarray(column, np.int32) for column in (tokens, positions, sequence_count)]
        flags = np.ascontiguousarray(wanted, dtype=np.int8)
        # Sequence ids are ranges, so every token can point into one shared 0, 1, 2, …
        addresses = self._sequence_ids.ctypes.data + 4 * np.asarray(first_sequence, dtype=np.uint64)
        addresses = np.ascontiguousarray(addresses, dtype=np.uintp)
        batch = self._library.llama_batch(
            n_tokens=count,
            token=_pointer(columns[0], ctypes.c_int32),
            pos=_pointer(columns[1], ctypes.c_int32),
            n_seq_id=_pointer(columns[2], ctypes.c_int32),
            seq_id=_pointer(addresses, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(flags, ctypes.c_int8),
        )
        with captured_log() as log:
            code = self._library.llama_decode(self._context, batch)
        if code != 0:
            self.wipe()
            raise EvaluationError(
                f"llama.cpp failed on a batch of {count} tokens of {self.path} (code {code}: "
                f"{_DECODE_CODES.get(code, 'unknown')})",
                cause=log.reason(),
            )
        outputs = int(np.count_nonzero(flags))
        if outputs == 0:
            return np.empty((0, self._vocabulary.size), dtype=np.float32)
        logits = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(outputs, self._vocabulary.size))


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
