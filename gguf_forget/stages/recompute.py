"""One rule for all reports: recompute what a verdict follows from, and say what was changed.

A report on files holds its own evidence; the report of a run has it in the folder ``evidence`` beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.export.moves import SUFFIX
from gguf_forget.report.document import build_report, content_hash
from gguf_forget.report.file_report import KIND as FILES_KIND
from gguf_forget.report.file_report import recompute_verdict
from gguf_forget.report.leaks import leaks_of
from gguf_forget.run_directory import read_json
from gguf_forget.stages import evidence as bundle
from gguf_forget.stages.report import run_verdict
from gguf_forget.verification.gates import GateLimits, Verdict
from gguf_forget.verification.scores import FileScores
from gguf_forget.whole_file import real_path, sha256_file

CHANGED = "the evidence was changed after it was written, or is another version's"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class Recomputed:
    """The verdict, the report that it is in, and where the evidence was found."""

    verdict: Verdict
    report: Mapping[str, Any]
    source: Path


def recompute(path: Path) -> Recomputed:
    """The verdict that follows from a report's evidence.

    Args:
        path: a report.json, an evidence folder, or a run directory.

    Raises:
        InputError: it is none of these, or a run's report without its evidence.
        EvaluationError: an item, hash, figure or verdict is not what follows from the rest.
    """
    if not path.is_dir():
        report = _object(path)
        if report.get("kind") == FILES_KIND:
            return Recomputed(_of_files(report), report, path)
    folder = _evidence_folder(path)
    if folder is None:
        raise InputError(
            f"{path} has no evidence beside it, needed a report.json of `verify FILE… --out`, an evidence folder or a "
            "run directory",
            hint=f"the evidence folder of a run holds {bundle.MANIFEST}",
        )
    verdict, inside = _of_run(folder)
    _check_shipped(real_path(folder).parent / "export", inside["export"])
    if path.is_file() and path.name != bundle.MANIFEST and report != inside:
        raise EvaluationError(f"{path} is not the report that the evidence in {folder} speaks of", hint=CHANGED)
    return Recomputed(verdict, inside, folder)


def _object(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except InputError as error:
        raise InputError(f"the report {path} cannot be read", cause=error.cause or error.message) from error
    if not isinstance(document, dict):
        raise InputError(f"the report {path} is a {type(document).__name__}, needed an object")
    return document


def _evidence_folder(path: Path) -> Path | None:
    """``path`` itself, its parent, or the folder ``evidence`` in either of them or beside the parent."""
    start = path if path.is_dir() else path.parent
    for folder in (start, start / "evidence", start.parent / "evidence"):
        if (folder / bundle.MANIFEST).is_file():
            return folder
    return None


def _of_files(report: Mapping[str, Any]) -> Verdict:
    try:
        verdict = recompute_verdict(report)
    except MALFORMED as error:
        raise EvaluationError("the report is malformed", cause=repr(error), hint=CHANGED) from error
    _check_hash(report, "the report")
    return verdict


def _check_hash(document: Mapping[str, Any], name: str) -> None:
    try:
        found = content_hash(document)
    except ValueError as error:
        raise EvaluationError(f"{name} holds a number that is not finite", hint=CHANGED) from error
    if found != document.get("sha256"):
        raise EvaluationError(f"{name} has sha256 {found}, but names {document.get('sha256')}", hint=CHANGED)


def read_manifest(folder: Path, *kinds: str) -> dict[str, Any]:
    """evidence.json of one of these kinds, every file it lists checked against its hash.

    Raises InputError for a folder without it or of another version, EvaluationError where a hash is not the one named.
    """
    manifest = _object(folder / bundle.MANIFEST)
    if manifest.get("kind") not in kinds or manifest.get("schema_version") != bundle.SCHEMA_VERSION:
        raise InputError(
            f"{folder / bundle.MANIFEST} is {manifest.get('kind')!r} of schema version "
            f"{manifest.get('schema_version')!r}, needed {' or '.join(map(repr, kinds))} of version "
            f"{bundle.SCHEMA_VERSION}",
            hint="only a run has a verdict; gguf-forget rebuild checks an export" if kinds == (bundle.RUN,) else None,
        )
    _check_hash(manifest, bundle.MANIFEST)
    try:
        listed = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except MALFORMED as error:
        raise EvaluationError(f"{bundle.MANIFEST} is malformed", cause=repr(error), hint=CHANGED) from error
    for name, expected in listed.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise EvaluationError(f"{bundle.MANIFEST} lists {name!r}, which is outside its folder", hint=CHANGED)
        if (found := sha256_file(folder / name)) != expected:
            raise EvaluationError(f"{folder / name} has sha256 {found}, needed {expected}", hint=CHANGED)
    return manifest


def _check_shipped(export: Path, spoken_of: Mapping[str, Any]) -> None:
    """The evidence of a run speaks of the files that the run still holds, in ``export``: of all of them, as they are.

    Raises EvaluationError where a later, unfinished run put others in their place.
    """
    for file in sorted(export.glob("unlearned.*.gguf")):
        kind = file.name.removeprefix("unlearned.").removesuffix(".gguf")
        needed = spoken_of[kind]["sha256"] if kind in spoken_of else "no such file"
        if needed != (found := sha256_file(file)):
            raise EvaluationError(
                f"{file} has sha256 {found}, but the evidence speaks of {needed}",
                hint="another recipe was run in this folder: run it to the end with gguf-forget report",
            )


def _of_run(folder: Path) -> tuple[Verdict, dict[str, Any]]:
    manifest = read_manifest(folder, bundle.RUN)
    report = _object(folder / bundle.REPORT)
    _check_hash(report, bundle.REPORT)
    try:
        scores = {
            f"{row['variant']}/{row['file_type']}": _scores(folder, f"{row['variant']}/{row['file_type']}")
            for row in report["rows"]
        }
        verdict = run_verdict(scores, *_rules(report))
        again = build_report(
            tools=report["tools"],
            model=report["model"],
            facts=report["facts"],
            scores=scores,
            verdict=verdict,
            headline=report["recipe"]["gates"]["headline"] or None,
        )
        written = {kind: record["sha256"] for kind, record in report["export"].items()}
        outputs = manifest["outputs"]
        shipped = {kind: record["shipped"]["sha256"] for kind, record in outputs.items()}
        pairs = {
            "verdict": (report["verdict"], again["verdict"]),
            "rows": (report["rows"], again["rows"]),
            "not_judged": (report["not_judged"], again["not_judged"]),
            "headline": (report["headline"], again["headline"]),
            "export": (written, shipped),
            "types": (sorted(report["recipe"]["export"]["types"]), sorted(written)),
            "moves": (
                {kind: (record["stock"]["sha256"], record["shipped"]["sha256"]) for kind, record in outputs.items()},
                {kind: bundle.moved_between(folder / bundle.MOVES / f"{kind}{SUFFIX}") for kind in outputs},
            ),
            "report_sha256": (report["sha256"], manifest["report_sha256"]),
            "scores": (
                sorted(f"{bundle.SCORES}/{bundle.score_name(row)}" for row in scores),
                sorted(name for name in manifest["files"] if name.startswith(f"{bundle.SCORES}/")),
            ),
            "sentence": (manifest["verdict"], again["verdict"]["sentence"]),
            "recipe": (_last_parts(report["recipe"]), _recipe_of(folder, report)),
            "base": (report["model"]["source_sha256"], manifest["inputs"]["base"]["sha256"]),
            "facts": (report["facts"]["sha256"], manifest["inputs"]["facts"]["sha256"]),
            "leaks": (
                _counts(report["leaks"]),
                _counts({row: leaks_of(scores[row].to_json()["items"]) for row in map("unlearned/{}".format, written)}),
            ),
        }
    except MALFORMED as error:
        raise EvaluationError("the evidence is malformed", cause=repr(error), hint=CHANGED) from error
    wrong = [name for name, (said, follows) in pairs.items() if said != follows]
    if wrong:
        raise EvaluationError(
            f"{', '.join(wrong)} of the report in {folder}: found something other than what follows from the evidence",
            hint=CHANGED,
        )
    return verdict, report


def _recipe_of(folder: Path, report: Mapping[str, Any]) -> Any:
    """The evidence's recipe, as far as the report tells it again."""
    whole = _object(folder / bundle.RECIPE)
    return _last_parts({section: whole[section] for section in report["recipe"]})


def _last_parts(value: Any) -> Any:
    """Of each path the last part alone, as the evidence has it."""
    if isinstance(value, dict):
        return {key: _last_parts(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_last_parts(member) for member in value]
    return PurePath(value).name if isinstance(value, str) and value else value


def _rules(report: Mapping[str, Any]) -> tuple[list[str], GateLimits, list[str]]:
    gates = report["recipe"]["gates"]
    limits = GateLimits(**{field.name: gates[field.name] for field in fields(GateLimits)})
    return list(report["recipe"]["export"]["types"]), limits, gates["headline"]


def _scores(folder: Path, row: str) -> FileScores:
    path = folder / bundle.SCORES / bundle.score_name(row)
    try:
        return FileScores.from_json(bundle.read_scores(path))
    except (OSError, EOFError, ValueError, zlib.error, AttributeError) as error:
        raise EvaluationError(f"{path} cannot be read", cause=str(error), hint=CHANGED) from error


def _counts(leaks: Mapping[str, Any]) -> dict[str, Any]:
    """Without the names, which only the whole facts file gives."""
    return {
        row: [
            {
                **found,
                "leaking": [{k: v for k, v in fact.items() if k not in ("fact", "clear")} for fact in found["leaking"]],
            }
            for found in relations
        ]
        for row, relations in leaks.items()
    }
