"""A GGUF opened in llama.cpp: its vocabulary, and the batched forward pass with checked return codes.

Shapes:
    B: tokens of one call, at most ``batch``
    V: vocabulary size
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EvaluationError, InputError, LlamaError, UnsupportedError
from .library import captured_log, load

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, a constant of llama.cpp
_CELL_MULTIPLE = 256  # llama.cpp pads the context to this
_DECODE_CODES = {
    1: "no free key-value cells for the batch",
    2: "aborted",
    -1: "invalid batch",
    -2: "out of memory",
    -3: "the computation failed",
}


class Session:
    """Owns a ``llama_model`` and a ``llama_context`` with one unified key-value cache.

    Args:
        model: path of a GGUF (the first file of a split one).
        threads: CPU threads; None takes the CPUs this process may use.
        cells: key-value cells; ``batch``: tokens a forward pass; ``max_sequences``: sequences at a time,
            1 … 256. More sequences than ``batch`` or ``cells`` are never used.
        gpu_layers: layers given to a GPU, where llama.cpp was built for one.
        exact_attention: float32 cache and no flash attention, instead of llama.cpp's own defaults.

    Raises:
        InputError: no such file, or a number out of range.
        LlamaError: llama.cpp cannot load the file or allocate the context.
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
        exact_attention: bool,
    ) -> None:
        self._context: Any = None
        self._model: Any = None
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
        self.batch = min(batch, cells)
        self.max_sequences = min(max_sequences, self.batch)
        self._library = load()
        try:
            self._open(threads or _cpu_count(), gpu_layers, exact_attention)
        except BaseException:
            self.close()
            raise

    def _open(self, threads: int, gpu_layers: int, exact_attention: bool) -> None:
        library = self._library
        model_parameters = library.llama_model_default_params()
        model_parameters.n_gpu_layers = gpu_layers
        model_parameters.check_tensors = True  # a damaged block is an error here, not a strange score later
        with captured_log() as log:
            self._model = library.llama_model_load_from_file(os.fsencode(self.path), model_parameters)
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
        self._vocabulary = library.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = library.llama_vocab_n_tokens(self._vocabulary)
        parameters = library.llama_context_default_params()
        parameters.n_ctx = -(-self.cells // _CELL_MULTIPLE) * _CELL_MULTIPLE
        parameters.n_batch = parameters.n_ubatch = self.batch
        parameters.n_seq_max = self.max_sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = True  # one cell can then belong to many sequences
        parameters.no_perf = True
        if exact_attention:
            parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.type_k = parameters.type_v = library.GGML_TYPE_F32
        with captured_log() as log:
            self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise LlamaError(
                f"llama.cpp cannot create a context of {self.cells} cells for {self.path}",
                cause=log.reason(),
                hint="lower cells or batch",
            )
        self._memory = library.llama_get_memory(self._context)
        self._sequence_ids = np.arange(self.max_sequences, dtype=np.int32)

    def close(self) -> None:
        """Free the context and the model; closing twice is allowed."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._context:
            raise LlamaError(f"{self.path} was closed")

    def end_of_generation(self) -> frozenset[int]:
        """The ids of all tokens that end a generation."""
        self._check_open()
        is_end = self._library.llama_vocab_is_eog
        return frozenset(i for i in range(self.vocabulary_size) if is_end(self._vocabulary, i))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written in ``text`` count as such, as in Hugging Face tokenizers."""
        self._check_open()
        data = text.encode("utf-8")
        capacity = len(data) + 8
        while True:
            buffer = (self._library.llama_token * capacity)()
            count: int = self._library.llama_tokenize(
                self._vocabulary, data, len(data), buffer, capacity, add_special, True
            )
            if count >= 0:
                return buffer[:count]
            if -count <= capacity:
                raise LlamaError(f"llama.cpp cannot tokenize a text of {len(data)} bytes with {self.path}")
            capacity = -count

    def detokenize(self, tokens: NDArray[np.int32]) -> str:
        """The text of ``tokens``, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        self._check_open()
        array = np.ascontiguousarray(tokens, dtype=np.int32)
        capacity = 16 * len(array) + 16
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count: int = self._library.llama_detokenize(
                self._vocabulary, _pointer(array, ctypes.c_int32), len(array), buffer, capacity, False, True
            )
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", errors="replace")
            if -count <= capacity:
                raise LlamaError(f"llama.cpp cannot detokenize {len(array)} tokens with {self.path}")
            capacity = -count

    def clear(self) -> None:
        """Empty the key-value cache."""
        self._check_open()
        # Wiping the data as well would cost a pass over it. Stale values are masked out, and the callers
        # stop at the first value that is not finite, the only kind a mask does not cancel.
        self._library.llama_memory_clear(self._memory, False)

    def wipe(self) -> None:
        """Empty the key-value cache and zero its data: needed after values that are not finite."""
        self._check_open()
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

        The result is llama.cpp's own memory: read it before the next call. Token ``i`` joins the sequences
        ``first_sequence[i]`` … ``first_sequence[i] + sequence_count[i] - 1``.

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
            return np.empty((0, self.vocabulary_size), dtype=np.float32)
        logits = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(outputs, self.vocabulary_size))


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
