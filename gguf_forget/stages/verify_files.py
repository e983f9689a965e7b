"""Judging files that anyone made: the original and every file asked the same questions, attacked, and gated."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf_forget.checkpoint.comparison import changed_tensors, chat_template_differs, vocabulary_difference
from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import digest_of, files_of
from gguf_forget.errors import EvaluationError, GgufForgetError, InputError, LlamaError, UnsupportedError
from gguf_forget.facts.text import builtin_documents, chunks, file_documents
from gguf_forget.llama.child import IsolatedScorer, run_in_child
from gguf_forget.llama.quantizer import FILE_TYPES, lacks_importance, quantize
from gguf_forget.llama.scorer import Scorer
from gguf_forget.progress import Progress
from gguf_forget.recipe import VerifySection
from gguf_forget.stages.attack_file import Target, attack_file
from gguf_forget.stages.file_questions import Asked
from gguf_forget.verification.deeper_probes import (
    TopTokens,
    top_tokens,
    with_divergence,
    with_membership,
    with_memorisation,
)
from gguf_forget.verification.evidence import Attack, Evidence, FileEvidence
from gguf_forget.verification.gates import FULL_PRECISION, GateLimits
from gguf_forget.verification.probes import ask
from gguf_forget.verification.scores import FileScores

UNKNOWN_TYPE = "unknown"
CHUNK_LENGTH = 256  # tokens of one stretch of plain text


@dataclass(frozen=True)
class Settings:
    """How files are asked.

    Attributes:
        attacks: "none", "quick" or "full".
        text: a plain text file for perplexity and divergence; None: the built-in text.
        gpu_layers: layers given to GPUs, where llama.cpp was built for one.
        tensor_split: each GPU's share of them; empty: llama.cpp decides.
        exact: ask one sequence at a time, see :class:`~gguf_forget.llama.scorer.Scorer`.
        isolated: run llama.cpp in a child process, so that a file on which it aborts is one that could not be
            evaluated, and not the end of the run.
    """

    options: VerifySection = field(default_factory=VerifySection)
    limits: GateLimits = field(default_factory=GateLimits)
    headline: tuple[str, ...] | None = None
    attacks: str = "none"
    text: Path | None = None
    gpu_layers: int = 0
    tensor_split: tuple[float, ...] = ()
    exact: bool = False
    isolated: bool = True


@dataclass(frozen=True)
class _File:
    """A file given, as its header describes it."""

    path: Path
    gguf: GgufFile
    file_type: str

    @property
    def full_precision(self) -> bool:
        return self.file_type in FULL_PRECISION


def file_type_of(file: GgufFile) -> str:
    """The file's type by its own metadata, such as ``Q4_K_M``; "unknown" where it names none that is known."""
    number = file.value("general.file_type")
    return next((name for name, value in FILE_TYPES.items() if value == number), UNKNOWN_TYPE)


def check_files(files: Sequence[Path], original: Path, text: Path | None = None) -> None:
    """Read every header, and the plain text where one is given, before anything slow begins.

    Raises:
        InputError: a file is missing, no GGUF or no text, or is named twice.
    """
    for path in (original, *files):
        if not path.is_file():
            raise InputError(f"no such model file: {path}", hint="give the path of a GGUF file")
        _ = GgufFile(path).reader
        files_of(path)  # all parts of a split one are there
    twice = {path for path in files if list(files).count(path) > 1}
    if twice:
        raise InputError(f"{min(twice)} is named twice, needed each file once")
    if text is not None:
        file_documents(text, "measure")


def gather_evidence(
    files: Sequence[Path], original: Path, asked: Asked, settings: Settings, progress: Progress
) -> tuple[Evidence, list[str]]:
    """Ask everything; returns the evidence and remarks for the reader.

    A file that llama.cpp cannot load, that gives values that are not finite, or of a type that the original cannot be
    brought to, is recorded with that problem, so that the other files are still judged; the first two of the original
    end the run.

    Raises:
        InputError: as :func:`check_files`, or too little disk space for the originals' quantizations.
        EvaluationError: the original cannot be asked.
    """
    check_files(files, original, settings.text)
    base = _File(original, GgufFile(original), file_type_of(GgufFile(original)))
    given = [_File(path, gguf, file_type_of(gguf)) for path, gguf in ((path, GgufFile(path)) for path in files)]
    labels = _labels(given)
    remarks = ["asked one sequence at a time (--exact)"] if settings.exact else []
    originals: dict[str, FileScores] = {}
    results: list[FileEvidence] = []
    with tempfile.TemporaryDirectory(prefix="gguf-forget-") as folder:
        work = Path(folder)
        for kind in dict.fromkeys(_compared_with(file) for file in given):
            try:
                stock = _stock(base, kind, work, progress)
            except (InputError, LlamaError) as error:
                if not lacks_importance(error):
                    raise
                problem = (
                    f"the original cannot be quantized to {kind} without an importance matrix, so nothing can be "
                    f"compared: give the original of this type as --against"
                )
                results += [
                    _not_asked(file, label, problem)
                    for file, label in zip(given, labels, strict=True)
                    if _compared_with(file) == kind
                ]
                continue
            progress.note(f"asking the original ({kind}) through llama.cpp")
            originals[kind], text = _ask_original(stock, asked, settings)
            for file, label in zip(given, labels, strict=True):
                if _compared_with(file) == kind:
                    found = _ask_file(file, label, stock, asked, text, settings, progress)
                    results.append(found)
                    if found.scores is not None and chat_template_differs(file.gguf, base.gguf):
                        remarks.append(f"{label}: its chat template is not the original's")
            if stock != original:
                stock.unlink()
    order = {label: place for place, label in enumerate(labels)}
    results.sort(key=lambda result: order[result.label])
    return Evidence(tuple(results), originals, settings.limits, settings.headline), remarks


def _labels(files: Sequence[_File]) -> list[str]:
    """The type where it is one file's alone, else the file's name, else its path."""
    types = [file.file_type for file in files]
    names = [file.path.name for file in files]
    return [
        kind if types.count(kind) == 1 and kind != UNKNOWN_TYPE else name if names.count(name) == 1 else str(file.path)
        for file, kind, name in zip(files, types, names, strict=True)
    ]


def _compared_with(file: _File) -> str:
    return file.file_type if file.file_type != UNKNOWN_TYPE else "as given"


def _stock(base: _File, kind: str, work: Path, progress: Progress) -> Path:
    """The original in the type of the file it is compared with; itself where it has that type."""
    if kind in ("as given", base.file_type):
        return base.path
    progress.note(f"quantizing the original to {kind} for comparison")
    target = work / f"original.{kind}.gguf"
    run_in_child(quantize, base.path, target, kind, allow_requantize=True)
    return target


def _open(path: Path, settings: Settings) -> IsolatedScorer | Scorer:
    opened = IsolatedScorer if settings.isolated else Scorer
    return opened(
        path,
        threads=settings.options.threads or None,
        gpu_layers=settings.gpu_layers,
        tensor_split=settings.tensor_split,
        one_at_a_time=settings.exact,
    )


@dataclass(frozen=True)
class _Text:
    """Chunks of plain text as token ids, and what the original expected in them."""

    chunks: list[list[int]]
    tops: list[TopTokens]
    ends: frozenset[int]  # tokens that end a text


def _chunks(scorer: IsolatedScorer | Scorer, settings: Settings) -> list[list[int]]:
    documents = file_documents(settings.text, "measure") if settings.text else builtin_documents("measure")
    count = max(1, settings.options.perplexity_tokens // CHUNK_LENGTH)
    return chunks(documents, scorer.tokenize, length=CHUNK_LENGTH, count=count, seed=0)


def _scores(scorer: IsolatedScorer | Scorer, asked: Asked, chunked: list[list[int]], settings: Settings) -> FileScores:
    questions = asked.questions
    scores = ask(scorer, questions, chunked, max_new_tokens=settings.options.max_new_tokens)
    scores = with_memorisation(scorer, questions, scores)
    return with_membership(scorer, questions, scores)


def _ask_original(path: Path, asked: Asked, settings: Settings) -> tuple[FileScores, _Text]:
    try:
        with _open(path, settings) as scorer:
            chunked = _chunks(scorer, settings)
            return _scores(scorer, asked, chunked, settings), _Text(
                chunked, top_tokens(scorer, chunked), frozenset(scorer.end_of_generation)
            )
    except LlamaError as error:
        raise EvaluationError(f"the original cannot be asked: {error.message}", cause=error.cause) from error


def _ask_file(
    file: _File, label: str, stock: Path, asked: Asked, text: _Text, settings: Settings, progress: Progress
) -> FileEvidence:
    scores: FileScores | None = None
    problem: str | None = None
    attacks: tuple[Attack, ...] = ()
    try:
        difference = vocabulary_difference(file.gguf, GgufFile(stock))
    except InputError as error:  # a key of its own that is no text
        difference = _in_words(error)
    if difference is not None:
        problem = f"its vocabulary is not the original's: {difference}"
    else:
        progress.note(f"asking {label} through llama.cpp")
        started = time.monotonic()
        try:
            with _open(file.path, settings) as scorer:
                _check_ends(frozenset(scorer.end_of_generation), text.ends)
                plain = _scores(scorer, asked, text.chunks, settings)
                scores = with_divergence(scorer, plain, text.chunks, text.tops)
            seconds = time.monotonic() - started
            attacks = _attacks(file, label, stock, asked, scores, seconds, settings, progress)
        except (EvaluationError, LlamaError, UnsupportedError) as error:
            problem = _in_words(error)
    changed = changed_tensors(file.gguf, GgufFile(stock))
    return replace(_not_asked(file, label, problem), tensors_changed=changed, scores=scores, attacks=attacks)


def _not_asked(file: _File, label: str, problem: str | None) -> FileEvidence:
    return FileEvidence(
        label=label,
        **_identity(file.path),
        file_type=file.file_type,
        full_precision=file.full_precision,
        compared_with=_compared_with(file),
        tensors_changed=None,
        scores=None,
        problem=problem,
    )


def _check_ends(own: frozenset[int], originals: frozenset[int]) -> None:
    """A file whose answers' first tokens count as the end of a text says nothing, and so tells nothing.

    Raises EvaluationError for other tokens than the original's.
    """
    if own != originals:
        raise EvaluationError(
            f"its texts end at the tokens {sorted(own)}, the original's at {sorted(originals)}",
            hint="give both the same eos, eot, eom and fim tokens",
        )


def _attacks(
    file: _File,
    label: str,
    stock: Path,
    asked: Asked,
    scores: FileScores,
    seconds: float,
    settings: Settings,
    progress: Progress,
) -> tuple[Attack, ...]:
    if settings.attacks == "none":
        return ()
    target = Target(file.path, stock, file.file_type, label, seconds, scores)
    return attack_file(
        target,
        asked.questions,
        full=settings.attacks == "full",
        max_new_tokens=settings.options.max_new_tokens,
        open_scorer=lambda path: _open(path, settings),
        progress=progress,
    )


def _in_words(error: GgufForgetError) -> str:
    return error.message if error.cause is None else f"{error.message} ({error.cause})"


def facts_summary(asked: Asked) -> Mapping[str, Any]:
    return {"files": list(asked.summary), "questions": len(asked.questions)}


def _identity(path: Path) -> dict[str, Any]:
    """Name, bytes and sha256 of a model file, all its parts where it is split."""
    parts = files_of(path)
    return {"name": path.name, "bytes": sum(part.stat().st_size for part in parts), "sha256": digest_of(parts)}


def inputs_of(original: Path, settings: Settings) -> dict[str, Any]:
    """What every file is compared with, by hashes: the original, and the plain text of perplexity and divergence."""
    documents = file_documents(settings.text, "measure") if settings.text else builtin_documents("measure")
    text = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    return {
        "original": _identity(original),
        "text": {"name": settings.text.name if settings.text else "built-in", "sha256": text},
    }
