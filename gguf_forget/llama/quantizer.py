"""Quantizing a GGUF with llama.cpp's own quantizer, and asking it which type each tensor would get.

The policy (which tensor gets which type in a mix such as Q4_K_M) lives in llama.cpp and changes there. It is
never written again here: :func:`plan` reads it from a dry run of the very function that :func:`quantize`
calls.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import GgufForgetError, InputError, LlamaError, UnsupportedError
from .blocks import needs_importance
from .library import Log, captured_log, load
from .options import QuantizeOptions

# llama_ftype values (llama.h)
FILE_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "Q1_0": 40,
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""llama-quantize's own."""


def file_type_name(text: str) -> str:
    """A file type as llama-quantize takes it, in any case and with its short names: ``q4_k`` is Q4_K_M."""
    return _ALIASES.get(text.upper(), text.upper())


# "[  3/272] blk.0.ffn_up.weight - [ 576, 1536, 1, 1], type = f32, size =  3.38 MiB ->  0.58 MiB (q5_0)"
_DRY_RUN_LINE = re.compile(
    r"\[ *\d+/ *(?P<total>\d+)\] (?P<name>\S+) +- \[(?P<shape>[\d, ]+)\], type = +(?P<source>\w+), "
    r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<target>\w+)\))?"
)


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]  # llama.cpp's order: row length first
    source: str  # gguf type name, such as F32
    target: str

    def check(self, name: str, source: Path) -> None:
        """llama.cpp replaces a type that does not fit the rows of a tensor, but not one that was asked for by name: it
        then writes past its buffers."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        weights, _ = GGML_QUANT_SIZES[GGMLQuantizationType[self.target]]
        if self.shape[0] % weights:
            raise InputError(
                f"tensor {name} of {source} has rows of {self.shape[0]} weights, {self.target} needs a multiple of "
                f"{weights}",
                hint="ask for another type for this tensor, such as Q8_0",
            )

    def check_importance(self, name: str, source: Path, options: QuantizeOptions) -> None:
        """llama.cpp lets some tensors pass without the importances that libggml then ends the process for."""
        if self.target == self.source or not needs_importance(self.target):
            return
        given = options.importance
        if given is None or given.of(name, self.shape[0], math.prod(self.shape[2:])) is None:
            lack = "none is given" if given is None else f"{given.path} has none of its size for it"
            raise InputError(
                f"tensor {name} of {source} would be {self.target}, which needs an importance matrix: {lack}",
                hint="give this model's with --imatrix, or choose a larger type",
            )

    def size(self, kind: str) -> int:
        """Bytes of the tensor in type ``kind``."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        return math.prod(self.shape) // weights * size


@dataclass(frozen=True)
class FilePlan:
    """What a quantization would write: the type of every tensor (gguf's name, such as ``Q6_K``), and bytes in all."""

    types: dict[str, str]
    bytes: int


DEFAULT = QuantizeOptions()


def least_bytes(file_type: str, weights: int) -> int:
    """Bytes that ``weights`` take at least in a file of that type, unless options say otherwise.

    0 where the name does not say what the coarsest blocks are, as of IQ mixtures.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = re.sub(r"_(XS|S|M|L|MOE)$", "", file_type) if file_type not in _known() else file_type
    if kind not in _known() or kind.startswith("IQ"):
        return 0
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return weights // block * size


def _known() -> Container[str]:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType.__members__


def plan_file(source: Path, file_type: str, options: QuantizeOptions = DEFAULT) -> FilePlan:
    """As :func:`plan`, with the size of the file (to the padding of header and tensors)."""
    options.check()
    _check_source(source, file_type)
    tensors = _dry_run(source, file_type, options)
    for name, tensor in tensors.items():
        tensor.check(name, source)
        tensor.check_importance(name, source, options)
    return FilePlan({name: tensor.target for name, tensor in tensors.items()}, _size(source, tensors))


def plan(source: Path, file_type: str, options: QuantizeOptions = DEFAULT) -> dict[str, str]:
    """Tensor name → the type (gguf's name, such as ``Q6_K``) that llama.cpp would give it in ``file_type``.

    No weight is read. Tensors that are never quantized keep the type they have.

    Raises:
        InputError: unknown file type; ``source`` missing, cut short or no GGUF.
        UnsupportedError: an architecture that this llama.cpp does not know.
        LlamaError: llama.cpp is missing, or its dry run cannot be understood.
    """
    return plan_file(source, file_type, options).types


def quantize(
    source: Path,
    destination: Path,
    file_type: str,
    *,
    threads: int = 0,
    allow_requantize: bool = False,
    options: QuantizeOptions = DEFAULT,
    durable: bool = True,
    planned: FilePlan | None = None,
) -> None:
    """Write ``source`` as ``file_type`` to ``destination``, which appears whole or not at all.

    The result is opened again: every tensor must have the type that the plan named, and lie inside the file.

    Args:
        threads: CPU threads; 0 takes all.
        allow_requantize: also convert tensors that are quantized already (their rounding is kept, and a
            second one added).
        durable: wait until the disk has it; False for who goes on to write into the file and waits then.
        planned: what :func:`plan_file` said of the same source, type and options, for who has asked already.

    Raises:
        InputError: unknown file type; ``source`` missing, cut short or no GGUF; ``destination`` is the
            source or lies in no directory; too little free disk space.
        UnsupportedError: an architecture that this llama.cpp does not know.
        LlamaError: llama.cpp is missing or failed; its message is in ``cause``.
    """
    _check_source(source, file_type)
    _check_destination(source, destination)
    if threads < 0:
        raise InputError(f"threads is {threads}, needed: 0 (all) or more")
    planned = planned or plan_file(source, file_type, options)
    _check_space(destination, planned)
    with _beside(destination, durable=durable) as partial:
        code, log = _run(
            source,
            partial,
            file_type,
            dry_run=False,
            threads=threads,
            allow_requantize=allow_requantize,
            options=options,
        )
        reason = log.reason()
        if code != 0:
            raise LlamaError(
                f"llama.cpp could not quantize {source} to {file_type} (code {code})",
                cause=reason,
                hint=_failure_hint(reason, destination),
            )
        check_result(partial, destination, file_type, planned)


def _check_source(source: Path, file_type: str) -> None:
    if file_type not in FILE_TYPES:
        close = difflib.get_close_matches(file_type.upper(), FILE_TYPES, n=1)
        raise InputError(
            f"unknown file type {file_type!r}, needed: one of {', '.join(FILE_TYPES)}",
            hint=f"did you mean {close[0]}?" if close else None,
        )
    if not source.is_file():
        raise InputError(f"no such model file: {source}", hint="give the path of a GGUF file")


def _check_destination(source: Path, destination: Path) -> None:
    if not destination.parent.is_dir():
        raise InputError(f"no such directory: {destination.parent}", hint="create it first")
    if destination.is_dir():
        raise InputError(f"{destination} is a directory, needed: the name of a file")
    if destination.exists() and os.path.samefile(source, destination):
        raise InputError(f"{destination} is the source itself", hint="give another name for the result")


def _size(source: Path, tensors: dict[str, _Tensor]) -> int:
    """Bytes of the file that ``source`` becomes."""
    # The header (vocabulary, chat template) is copied; its size is what the source has beyond its tensors.
    header = max(0, source.stat().st_size - sum(t.size(t.source) for t in tensors.values()))
    return header + sum(t.size(t.target) for t in tensors.values())


def _check_space(destination: Path, planned: FilePlan) -> None:
    free = shutil.disk_usage(destination.parent).free
    if planned.bytes > free:
        raise InputError(
            f"not enough disk space in {destination.parent}: {planned.bytes:,} bytes needed, {free:,} free",
            hint="free some space, or choose another directory or a smaller file type",
        )


def check_result(partial: Path, destination: Path, file_type: str, planned: FilePlan) -> None:
    """Raise LlamaError unless llama.cpp can open ``partial`` (``destination`` in messages), its types as planned."""
    # llama.cpp writes through a stream that does not report every failed write (full disk, quota).
    try:
        written = {name: tensor.source for name, tensor in _dry_run(partial, file_type).items()}
    except (InputError, UnsupportedError, LlamaError) as error:
        raise LlamaError(
            f"{destination} came out incomplete: llama.cpp cannot open it",
            cause=error.cause or error.message,
            hint="check the free disk space and any quota",
        ) from error
    for name in sorted(planned.types.keys() | written.keys()):
        if planned.types.get(name) != written.get(name):
            raise LlamaError(
                f"tensor {name} of {destination} is {written.get(name)}, planned: {planned.types.get(name)}"
            )


def lacks_importance(error: GgufForgetError) -> bool:
    """Whether :func:`quantize` or :func:`plan_file` failed for want of an importance matrix, whoever says so."""
    return "importance matrix" in f"{error.message} {error.cause}"


def lacks_fallback(error: GgufForgetError) -> bool:
    """Whether they failed because rows are no multiple of the type's blocks, and there is no other type for them."""
    return "no tensor type fallback" in str(error.cause)


def _failure_hint(reason: str | None, destination: Path) -> str | None:
    if reason and "imatrix" in reason and "size" in reason:
        return "give the importance matrix of this very model"
    if reason and "imatrix" in reason:
        return "this type needs an importance matrix (--imatrix), or choose a larger one"
    if reason and "requantizing" in reason:
        return "start from an F32, F16 or BF16 file, or allow requantizing"
    if reason and ("iostream" in reason or "write" in reason):
        free = shutil.disk_usage(destination.parent).free
        return f"check the disk: {free:,} bytes free in {destination.parent}; a quota may be lower"
    return None


def _dry_run(source: Path, file_type: str, options: QuantizeOptions = DEFAULT) -> dict[str, _Tensor]:
    """What llama.cpp would do with every tensor of ``source``, from the log of its dry run."""
    from gguf import GGMLQuantizationType

    code, log = _run(source, source, file_type, dry_run=True, threads=0, allow_requantize=True, options=options)
    if code != 0:
        reason = log.reason()
        if reason and "unknown model architecture" in reason:
            raise UnsupportedError(f"llama.cpp does not know the architecture of {source}", cause=reason)
        if reason and "regex" in reason:
            patterns = ", ".join(pattern for pattern, _ in options.tensor_types)
            raise InputError(
                f"llama.cpp takes one of these for no regular expression: {patterns}",
                cause=reason,
                hint="its patterns are those of ECMAScript",
            )
        raise InputError(
            f"llama.cpp cannot read {source}",
            cause=reason,
            hint="the file is no GGUF, or is cut short: compare its size with the original's",
        )
    tensors: dict[str, _Tensor] = {}
    total = 0
    for line in _DRY_RUN_LINE.finditer(log.text):
        total = int(line["total"])
        source_type = line["source"].upper()
        target_type = (line["target"] or line["source"]).upper()
        for kind in (source_type, target_type):
            if kind not in GGMLQuantizationType.__members__:
                raise UnsupportedError(f"tensor {line['name']} of {source}: unknown type {kind}")
        shape = tuple(int(size) for size in line["shape"].split(","))
        tensors[line["name"]] = _Tensor(shape, source_type, target_type)
    if not tensors or len(tensors) != total:
        raise LlamaError(
            f"llama.cpp's dry run on {source} named {len(tensors)} tensors of {total}",
            hint="this version of llama-cpp-python may log differently: install the tested version",
        )
    return tensors


def _run(
    source: Path,
    destination: Path,
    file_type: str,
    *,
    dry_run: bool,
    threads: int,
    allow_requantize: bool,
    options: QuantizeOptions,
) -> tuple[int, Log]:
    """One call of ``llama_model_quantize``: its return code (0 is success) and its log."""
    library = load()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[file_type]
    parameters.nthread = threads
    parameters.allow_requantize = allow_requantize
    parameters.dry_run = dry_run
    kept = options.apply(parameters, library)
    with captured_log() as log:
        code = library.llama_model_quantize(os.fsencode(source), os.fsencode(destination), parameters)
    del kept  # llama.cpp is done with the arrays that the parameters point to
    return int(code), log


@contextlib.contextmanager
def _beside(destination: Path, *, durable: bool) -> Iterator[Path]:
    """A temporary name in the destination's directory; renamed to it on success, removed on failure."""
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        yield partial
        try:
            if durable:
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(partial, destination)
        except OSError as error:
            raise LlamaError(
                f"cannot finish {destination}", cause=str(error), hint="check the free disk space"
            ) from error
    finally:
        partial.unlink(missing_ok=True)
