"""``gguf-forget quantize``: from two models to the files that ship, or to a plan of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget import __version__
from gguf_forget.checkpoint.convert import weight_files
from gguf_forget.checkpoint.stored import digest_of, files_of
from gguf_forget.errors import InputError
from gguf_forget.export.inputs import Pair, check_models, input_files, opened_pair
from gguf_forget.export.quantize import (
    ExportOptions,
    Hessians,
    Planned,
    check_space,
    export_types,
    plan_export,
    space_needed,
)
from gguf_forget.export.scratch import scratch_directory
from gguf_forget.export.shipped_grid import check_names
from gguf_forget.export.twin import export_twin, twin_path
from gguf_forget.progress import Progress
from gguf_forget.stages.export_evidence import check_folder, write_export_evidence
from gguf_forget.stages.fit import FitData, FitOptions, fitter, plan_fit, read_fit_data
from gguf_forget.whole_file import check_folder_writable, check_output, real_path, sha256_file


@dataclass(frozen=True)
class QuantizeJob:
    """calibration: files of facts (``.jsonl``) or text; none rounds every weight by itself. provenance: whether a file
    that holds an edit gets the keys ``gguf_forget.*``. llama_cpp: a checkout whose converter is used. twin: F16 or BF16
    also writes a twin of every file (:mod:`gguf_forget.export.twin`). evidence: the folder of
    :mod:`gguf_forget.stages.export_evidence`. fit: how codes are fitted to answers; without files they stay as they are
    rounded.
    """

    original: Path
    unlearned: Path
    out: Path
    files: Mapping[str, Path]  # file type to file: ``out``, or files in the directory ``out``
    options: ExportOptions
    calibration: Sequence[Path] = field(default=())
    provenance: bool = True
    llama_cpp: Path | None = None
    twin: str | None = None
    evidence: Path | None = None
    fit: FitOptions = field(default=FitOptions())

    def twins(self) -> dict[str, Path]:
        """File type to the twin of its file; nothing where none is asked for."""
        return {} if self.twin is None else {kind: twin_path(file, self.twin) for kind, file in self.files.items()}


def quantize_model(job: QuantizeJob, progress: Progress, *, dry_run: bool) -> dict[str, Any]:
    """Do it, or only say what would be done; the document of ``--json``.

    Raises InputError for inputs, destinations and options that do not go together, before any work.
    """
    if job.options.rounding.outside_mask == "compensate" and not job.calibration:
        raise InputError(
            "--outside-mask compensate without calibration data: nothing says which weights could make good an error",
            hint="give --calibration FILE (text, or facts as JSONL), or leave --outside-mask at frozen",
        )
    if job.fit.files and (job.options.rounding.aim != "weights" or job.options.rounding.saturated != "count"):
        raise InputError(
            f"--fit with --aim {job.options.rounding.aim} and --saturated {job.options.rounding.saturated}: only with "
            "weights and count every weight has two levels to choose from",
            hint="leave out --fit, or those two options",
        )
    split = bool(job.options.split_bytes or job.options.keep_split)
    for option, asked in (("--twin", job.twin), ("--evidence", job.evidence)):
        if asked is not None and split:
            raise InputError(f"{option} of a split file cannot be made", hint=f"leave out {option}, or write one file")
    folder = next(iter(job.files.values())).parent
    # A directory for several files is made, but only once everything has been checked.
    to_be_made = folder == job.out and not os.path.exists(folder)
    work = folder.parent if to_be_made else folder
    check_folder_writable(work)
    places = [*job.files.values(), *job.twins().values()]
    if job.evidence is not None:
        check_folder(job.evidence, folder if to_be_made else None, [job.out, *places])
    check_models([job.original, job.unlearned])
    importance = job.options.quantize.importance
    others = [*job.calibration, *job.fit.files, *([] if importance is None else [importance.path])]
    sources = input_files([job.original, job.unlearned], others)
    for place in places:
        check_output(place, sources)
    with ExitStack() as stack:
        pair = stack.enter_context(_opened(job, work, progress, dry_run=dry_run))
        if importance is not None:
            check_names(importance, pair.before, job.original)
        planned = plan_export(pair, list(job.files), job.options)
        document: dict[str, Any] = {
            "schema_version": 1,
            "original": str(job.original),
            "unlearned": str(job.unlearned),
            "edited_tensors": list(planned.edited),
        }
        sequences, columns, disk = _calibration(job, pair, planned, document, progress)
        data = _fit_data(job, pair, planned, document, progress)
        disk += document["fit"]["disk"] if data is not None else 0
        if dry_run:
            document["files"] = [_planned(planned, kind, file) for kind, file in job.files.items()]
            return document
        halves = sum(2 * tensor.rows * tensor.columns for tensor in pair.before.values())
        _check_room(job, work, space_needed(planned, split=split) + disk + len(job.twins()) * halves, planned)
        if to_be_made:
            folder.mkdir()
            stack.callback(_remove_if_empty, folder)
        hessians: Hessians = lambda name: None  # noqa: E731
        if columns:
            from gguf_forget.export.calibrated import calibrated

            moments = stack.enter_context(calibrated(pair, job.unlearned, sequences, columns, work, progress))
            document["calibration"]["without"] = [name for name in columns if name not in moments]
            hessians = moments
        fit = None
        if data is not None:
            fit = fitter(
                pair,
                planned,
                data,
                job.fit,
                job.options.rounding,
                work,
                progress,
                threads=job.options.threads,
            )
        digests = _digests(job, progress) if job.provenance or job.evidence is not None else {}
        options = replace(job.options, metadata=_provenance(job, document, digests) if job.provenance else {})

        def companions(files: Mapping[str, Path], documents: Sequence[dict[str, Any]]) -> dict[Path, Path]:
            made, twins = {}, {}
            for about, (kind, path) in zip(documents, job.twins().items(), strict=False):
                twins[kind] = partial = files[kind].with_name(path.name)
                about["twin"] = export_twin(
                    pair, planned.edited, files[kind], partial, path, str(job.twin), options, progress
                )
                made[partial] = path
            if job.evidence is not None:
                scratch = stack.enter_context(scratch_directory(job.evidence.parent))
                made[_evidence(job, pair, files, twins, digests, scratch, progress)] = job.evidence
                document["evidence"] = str(job.evidence)
            return made

        document["files"] = export_types(
            pair, planned, job.files, options, progress, hessians, fit, companions, sources
        )
    return document


def _opened(job: QuantizeJob, work: Path, progress: Progress, *, dry_run: bool) -> AbstractContextManager[Pair]:
    how = job.options.quantize
    coarser = how.tensor_types or how.output_tensor_type or how.token_embedding_type
    kinds = [] if dry_run or coarser else list(job.files)
    return opened_pair(job.original, job.unlearned, work, progress, llama_cpp=job.llama_cpp, file_types=kinds)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _check_room(job: QuantizeJob, work: Path, needed: int, planned: Planned) -> None:
    """For ``needed`` bytes in ``work``, and for what the evidence takes where it goes: a stock file at a time."""
    if job.evidence is not None:
        stock = max(plan.bytes for plan in planned.files.values())
        place = job.evidence.parent if job.evidence.parent.is_dir() else work
        if os.stat(place).st_dev == os.stat(work).st_dev:
            needed += stock
        else:
            check_space(place, stock)
    check_space(work, needed)


def _calibration(
    job: QuantizeJob, pair: Pair, planned: Planned, document: dict[str, Any], progress: Progress
) -> tuple[list[list[int]], dict[str, np.ndarray], int]:
    """Token sequences, the columns of every matrix to calibrate (none: nothing is to be done), bytes of disk."""
    if not job.calibration:
        return [], {}, 0
    from gguf_forget.checkpoint.open import open_tokenizer
    from gguf_forget.export.calibrated import edited_columns, plan_calibration, read_sequences

    sequences = read_sequences(job.calibration, open_tokenizer(job.original))
    kinds = {name: {plan.types[name] for plan in planned.files.values()} for name in planned.edited}
    columns = edited_columns(pair, planned.edited, kinds, job.options.rounding)
    plan = plan_calibration(job.unlearned, sequences, columns)
    document["calibration"] = {"files": [str(file) for file in job.calibration], **plan.to_json()}
    progress.note(str(plan))
    return sequences, columns, plan.disk


def _fit_data(
    job: QuantizeJob, pair: Pair, planned: Planned, document: dict[str, Any], progress: Progress
) -> FitData | None:
    if not job.fit.files:
        return None
    from gguf_forget.checkpoint.open import open_tokenizer

    data = read_fit_data(job.fit.files, open_tokenizer(pair.original))
    if not planned.edited:
        return None
    plan = plan_fit(pair, planned, data, job.fit)
    document["fit"] = {"files": [str(file) for file in job.fit.files], **plan}
    progress.note(
        f"fitting to {plan['forget']:,} prompts to forget and {plan['retain']:,} to keep: about "
        f"{plan['memory'] / 1e9:.1f} GB of memory, {max(1, round(plan['seconds'] / 60))} min for each type"
    )
    return data


def _digests(job: QuantizeJob, progress: Progress) -> dict[str, str]:
    progress.note("hashing the models")
    return {"base": _digest(job.original), "unlearned": _digest(job.unlearned)}


def _evidence(
    job: QuantizeJob,
    pair: Pair,
    files: Mapping[str, Path],
    twins: Mapping[str, Path],
    digests: Mapping[str, str],
    scratch: Path,
    progress: Progress,
) -> Path:
    named = {"base": job.original, "unlearned": job.unlearned}
    asked = {
        "calibration_sha256": [sha256_file(path) for path in job.calibration],
        "fit_sha256": [sha256_file(path) for path in job.fit.files],
        "fit_steps": job.fit.steps if job.fit.files else None,
        "fit_kept": job.fit.kept if job.fit.files else None,
        "provenance": job.provenance,
        "twin": job.twin,
    }
    return write_export_evidence(
        pair.original,
        files,
        {role: {"name": real_path(path).name, "sha256": digests[role]} for role, path in named.items()},
        job.options,
        asked,
        scratch,
        progress,
        twins=twins,
    )


def _provenance(job: QuantizeJob, document: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, str | int]:
    """The keys of a file that holds an edit; llama.cpp takes strings of at most 127 bytes."""
    rounding = job.options.rounding
    keys: dict[str, str | int] = {
        "gguf_forget.version": __version__,
        "gguf_forget.method": "edits of another model, rounded on the original's grid",
        "gguf_forget.base_sha256": digests["base"],
        "gguf_forget.unlearned_sha256": digests["unlearned"],
        "gguf_forget.edited_tensors": len(document["edited_tensors"]),
        "gguf_forget.survive": rounding.survive,
        "gguf_forget.aim": f"{rounding.aim}, carried" if rounding.aim == "weights" and rounding.carry else rounding.aim,
        "gguf_forget.saturated": rounding.saturated,
    }
    if job.calibration:
        keys["gguf_forget.outside_mask"] = rounding.outside_mask
        keys["gguf_forget.calibration_tokens"] = document["calibration"]["tokens"]
    return keys


def _digest(model: Path) -> str:
    """SHA-256 of a file; of a model in several, that of theirs joined by line ends, in the order of their names."""
    return digest_of(weight_files(model) if model.is_dir() else files_of(model))


def _planned(planned: Planned, kind: str, file: Path) -> dict[str, Any]:
    plan = planned.files[kind]
    return {
        "type": kind,
        "file": str(file),
        "bytes": plan.bytes,
        "types": plan.types,
        "not_protected": planned.not_protected(kind),
    }
