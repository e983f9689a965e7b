"""Judging files: those of a recipe's run, or any GGUF beside its original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gguf_forget.cli.commands import DEVICE, execute, from_file, run_folder
from gguf_forget.cli.common import RESUMED, UNTOUCHED, called, common, given_options, guarded, say
from gguf_forget.cli.evidence import RECOMPUTES, publish, recompute_and_show
from gguf_forget.errors import InputError

STAGE_OPTIONS = ("out", "device", "dry_run", "as_json", "quiet", "debug")
OPTION_NAMES = {"files": "FILE", "original": "--against"}
_FILE = click.Path(path_type=Path)


@click.command(short_help="Judge GGUFs that anyone made beside their original.")
@click.argument("files", metavar="RECIPE | FILE…", nargs=-1, type=_FILE)
@click.option("--against", "original", type=_FILE, help="The original that the files are compared with.")
@click.option(
    "--facts",
    multiple=True,
    type=_FILE,
    help="What was to be forgotten: a facts file, or WMDP, MMLU, TOFU, MUSE or plain rows as JSON, JSONL, CSV or "
    "Parquet. May be repeated.",
)
@click.option("--retain", multiple=True, type=_FILE, help="What was to be kept, in the same formats. May be repeated.")
@click.option(
    "--recipe", type=_FILE, help="Take [gates], [verify], [text] path and, without --facts, [facts] from this recipe."
)
@click.option(
    "--attacks",
    type=click.Choice(["none", "quick", "full"]),
    default="none",
    help="Ask harder, too: other words, examples, the chat template, sampling, other types (quick: minutes a file); "
    "every type and phrasing, a probe and relearning as well (full: hours)  [default: none]",
)
@click.option("--limit", type=click.IntRange(1), help="Most rows of each public set, drawn with a fixed seed.")
@click.option(
    "--text", type=_FILE, help="Plain text whose second half is for perplexity and divergence  [default: built in]"
)
@click.option("--threads", type=click.IntRange(0), help="Threads of llama.cpp; 0: one a core  [default: 0]")
@click.option("--gpu-layers", type=int, default=0, help="Layers given to GPUs; -1: all  [default: 0]")
@click.option("--tensor-split", multiple=True, type=float, help="One GPU's share of the model. Once for each GPU.")
@click.option(
    "--exact",
    is_flag=True,
    help="Ask one sequence at a time: every score as a slow scorer's, on quantized files too; about 6 times slower.",
)
@click.option("-o", "--out", type=_FILE, help="Where report.json goes; with a recipe, its run directory.")
@click.option("--junit", type=_FILE, help="Also write the gates as JUnit XML.")
@click.option("--baseline", type=_FILE, help="An earlier report: fail only on what got worse.")
@click.option("--html", type=_FILE, help="Also write the report as one HTML file.")
@click.option("--recompute", type=_FILE, help="Recompute a verdict from its evidence alone; no FILE then.")
@DEVICE
@common
def verify(
    files: tuple[Path, ...],
    original: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Judge GGUF FILEs that anyone made beside their ORIGINAL, or what a RECIPE ships, made where it is not yet.

    Exit code 0: forgotten (with --baseline: no worse than it); 1: a gate failed; 2: usage or input error; 3: could not
    evaluate.

    \b
    Examples:
      gguf-forget verify recipe.toml
      gguf-forget verify unlearned.Q4_K_M.gguf --against original.F16.gguf --facts facts.jsonl
      gguf-forget verify unlearned.*.gguf --against original.gguf --facts wmdp.json --retain mmlu.csv \\
          --attacks quick --out report.json --html report.html --junit gates.xml
      gguf-forget verify --recompute report.json
    """

    def work() -> int:
        if given["recompute"] is not None:
            _refuse("--recompute", given_options() - {"recompute", *RECOMPUTES})
            return recompute_and_show(given["recompute"], html=given["html"], as_json=as_json, junit=given["junit"])
        if original is None and len(files) == 1 and files[0].suffix == ".toml":
            _refuse("a recipe", given_options() - {"files", *STAGE_OPTIONS})
            folder = run_folder(files[0], given["out"])
            return execute(
                from_file(files[0], given["device"]), folder, "evidence", dry_run=dry_run, as_json=as_json, quiet=quiet
            )
        if not files or original is None:
            raise InputError(
                f"verify got {len(files)} files and {'no original' if original is None else 'an original'}, needed a "
                "RECIPE (.toml) alone, or one FILE or more with --against ORIGINAL",
                hint="gguf-forget verify --help shows both",
            )
        _refuse("a FILE, which is trained already", given_options() & {"device"})
        return _judge(files, original, given, dry_run=dry_run, as_json=as_json, quiet=quiet)

    kept = RESUMED if original is None and given["recompute"] is None else UNTOUCHED
    guarded(work, debug=debug, interrupted=kept)


def _refuse(what: str, others: set[str]) -> None:
    if others:
        named = called(sorted(others), OPTION_NAMES)
        raise InputError(f"{named} cannot stand beside {what}", hint="leave out one of them")


def _judge(
    files: Sequence[Path], original: Path, given: dict[str, Any], *, dry_run: bool, as_json: bool, quiet: bool
) -> int:
    from gguf_forget.export.inputs import input_files
    from gguf_forget.progress import progress_for
    from gguf_forget.report.file_report import KIND, build_file_report
    from gguf_forget.stages.file_questions import read_questions
    from gguf_forget.stages.machine import tool_versions
    from gguf_forget.stages.verify_files import check_files, facts_summary, gather_evidence, inputs_of
    from gguf_forget.verification.regressions import baseline_gates
    from gguf_forget.whole_file import check_outputs

    settings, forget, retain = _settings(given)
    check_files(files, original, settings.text)
    asked = read_questions(forget, retain, settings.options, limit=given["limit"])
    earlier = None if given["baseline"] is None else _read_json(given["baseline"])
    baseline = None if earlier is None else baseline_gates(earlier)
    read = (*forget, *retain, *(path for path in (settings.text, given["recipe"]) if path))
    check_outputs((given["out"], given["html"], given["junit"]), input_files((original, *files), read))
    if dry_run:
        _plan(files, original, asked, settings, as_json=as_json)
        return 0
    inputs = inputs_of(original, settings)
    evidence, remarks = gather_evidence(files, original, asked, settings, progress_for(quiet=quiet))
    if asked.left_out:
        remarks.append(asked.left_out)
    if earlier is not None and earlier.get("kind") == KIND:
        if earlier.get("facts") != facts_summary(asked):
            remarks.append("the baseline was asked other facts: what it failed by may be others than these")
        if earlier.get("inputs") != inputs:
            remarks.append("the baseline stood beside another original or text, or does not name them")
    report = build_file_report(
        evidence,
        tools=tool_versions(),
        facts=facts_summary(asked),
        inputs=inputs,
        remarks=remarks,
        baseline=baseline,
    )
    try:
        _publish(report, given)
    finally:  # whatever happens to the files, hours of asking are not lost, nor by what happens to the terminal
        say(lambda: _show(report, as_json=as_json))
    return int(report["verdict"]["exit_code"])


def _settings(given: dict[str, Any]) -> tuple[Any, Sequence[Path], Sequence[Path]]:
    """How to ask, what was to be forgotten, and what was to be kept."""
    from dataclasses import replace

    from gguf_forget.recipe import VerifySection, load_recipe
    from gguf_forget.stages.report import gate_limits
    from gguf_forget.stages.verify_files import Settings
    from gguf_forget.verification.gates import PROTOCOL

    settings = Settings(limits=PROTOCOL, options=VerifySection())
    forget: Sequence[Path] = given["facts"]
    retain: Sequence[Path] = given["retain"]
    if given["recipe"] is not None:
        recipe = load_recipe(given["recipe"])
        settings = replace(
            settings,
            options=recipe.verify,
            limits=gate_limits(recipe.gates),
            headline=recipe.gates.headline or None,
            text=recipe.text.path,
        )
        if not forget:
            forget, retain = (recipe.facts.path, *recipe.facts.more), (*recipe.facts.retain, *retain)
    if not forget:
        raise InputError(
            "verify got no facts, needed --facts FACTS or a --recipe, which names them",
            hint="give what was to be forgotten, and with --retain what was to be kept",
        )
    if given["threads"] is not None:
        settings = replace(settings, options=replace(settings.options, threads=given["threads"]))
    text = given["text"] if given["text"] is not None else settings.text
    how = {name: given[name] for name in ("attacks", "gpu_layers", "tensor_split", "exact")}
    return replace(settings, text=text, **how), forget, retain


def _plan(files: Sequence[Path], original: Path, asked: Any, settings: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    document = {
        "schema_version": 1,
        "files": [str(path) for path in files],
        "original": str(original),
        "probe_files": list(asked.summary),
        "questions": len(asked.questions),
        "attacks": settings.attacks,
        "limits": asdict(settings.limits),
    }
    if as_json:
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    click.echo(f"would ask {len(files)} files and {original} {len(asked.questions)} questions through llama.cpp")
    click.echo(f"attacks: {settings.attacks}")
    if asked.left_out:
        click.echo(asked.left_out)


def _read_json(path: Path) -> Any:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the report {path} cannot be read", cause=str(error)) from error
    if not isinstance(document, dict):
        raise InputError(f"the report {path} is a {type(document).__name__}, needed an object")
    return document


def _publish(report: Any, given: dict[str, Any]) -> None:
    from gguf_forget.run_directory import write_json_atomically

    if (out := given["out"]) is not None:
        try:
            write_json_atomically(out, report)
        except OSError as error:
            raise InputError(f"{out} cannot be written", cause=str(error), hint="check the path") from error
    publish(report, html=given["html"], junit=given["junit"])


def _show(report: Any, *, as_json: bool) -> None:
    from gguf_forget.report.file_report import render_file_report
    from gguf_forget.report.terminal import report_console

    if as_json:
        click.echo(json.dumps(report, indent=2, sort_keys=True))
    else:
        render_file_report(report, report_console())
