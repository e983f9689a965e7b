"""Commands for whoever keeps or checks the evidence: the report of a run, and files rebuilt from their moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gguf_forget.cli.commands import DEVICE, execute, from_file, run_folder
from gguf_forget.cli.common import UNTOUCHED, called, common, given_options, guarded, say
from gguf_forget.errors import InputError

RECOMPUTES = ("html", "junit", "as_json", "quiet", "debug")  # options that go with --recompute
_FILE = click.Path(path_type=Path)


@click.command(short_help="Apply the gates, write the report, or recompute one.")
@click.argument("recipe", required=False, type=_FILE)
@click.option("-o", "--out", type=_FILE, help="Run directory  [default: runs/NAME beside the recipe]")
@click.option(
    "--recompute",
    type=_FILE,
    help="Recompute the verdict of a run directory, an evidence folder or a report.json from its evidence alone; no "
    "RECIPE then.",
)
@click.option("--html", type=_FILE, help="With --recompute: also write the report as one HTML file.")
@DEVICE
@common
def report(
    recipe: Path | None,
    out: Path | None,
    recompute: Path | None,
    html: Path | None,
    device: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Apply the gates, print table and verdict, write report.json, report.html, the model card and the evidence.

    Runs RECIPE to its end; stages that are done and unchanged are skipped.

    \b
    Examples:
      gguf-forget report recipe.toml
      gguf-forget report --recompute runs/mine/evidence
      gguf-forget report --recompute report.json --html report.html
    """

    def work() -> int:
        if recompute is not None:
            named = sorted(given_options() - {"recompute", *RECOMPUTES})
            if named:
                found = called(named, {"recipe": "RECIPE"})
                raise InputError(f"--recompute stands alone, found {found} beside it", hint="leave one out")
            return recompute_and_show(recompute, html=html, as_json=as_json)
        if recipe is None:
            raise InputError("report got no RECIPE, needed one, or --recompute", hint="gguf-forget report --help")
        if html is not None:
            raise InputError("--html goes with --recompute", hint="a run writes report/report.html by itself")
        folder = run_folder(recipe, out)
        return execute(from_file(recipe, device), folder, "evidence", dry_run=dry_run, as_json=as_json, quiet=quiet)

    guarded(work, debug=debug)


def recompute_and_show(path: Path, *, html: Path | None, as_json: bool, junit: Path | None = None) -> int:
    """Recompute, write what is asked for, print the verdict; returns its exit code."""
    from gguf_forget.stages.recompute import recompute
    from gguf_forget.whole_file import check_outputs, real_path

    found = recompute(path)
    source = real_path(found.source)
    folders = (source, source.parent / "report") if source.is_dir() else ()
    check_outputs((html, junit), [path, *(each for folder in folders for each in folder.rglob("*"))])
    publish(found.report, html=html, junit=junit)
    if as_json:
        text = json.dumps({"schema_version": 1, **found.verdict.to_json()}, indent=2, sort_keys=True)
    else:
        text = f"{found.verdict.sentence}\nThis follows from {found.source} alone."
    say(lambda: click.echo(text))
    return found.verdict.exit_code


def publish(report: Any, *, html: Path | None, junit: Path | None) -> None:
    """Other forms of a report. Raises InputError where one cannot be written."""
    from gguf_forget.report.junit import junit_xml
    from gguf_forget.whole_file import replaced_whole

    for path, make in ((junit, junit_xml), (html, _html)):
        if path is None:
            continue
        with replaced_whole(path) as file:
            file.write(make(report).encode())


def _html(report: Any) -> str:
    from gguf_forget.report.html_report import build_html

    return build_html(report)


@click.command(short_help="Rebuild a shipped file from stock file and evidence.")
@click.argument("stock", type=_FILE)
@click.argument("evidence", type=_FILE)
@click.option("-o", "--out", type=_FILE, required=True, help="The file to write.")
@common
def rebuild(stock: Path, evidence: Path, out: Path, dry_run: bool, as_json: bool, quiet: bool, debug: bool) -> None:
    """Rebuild a shipped file bit by bit from the STOCK file and the list of moved codes in EVIDENCE.

    EVIDENCE is the evidence folder of a run or of `quantize --evidence`, in which the list that fits STOCK is found by
    its hash, or one .moves.npz file. A STOCK other than the one that was edited is refused.

    \b
    Examples:
      gguf-forget rebuild stock.Q4_K_M.gguf runs/mine/evidence -o unlearned.Q4_K_M.gguf
      gguf-forget rebuild stock.gguf Q4_K_M.moves.npz -o out.gguf
    """

    def work() -> int:
        from gguf_forget.stages.rebuild import rebuild_file

        document = rebuild_file(stock, evidence, out, dry_run=dry_run)
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        else:
            verb = "would write" if dry_run else "rebuilt"
            click.echo(f"{verb} {out}: {document['moves']:,} moves, sha256 {document['shipped']['sha256']}")
        return 0

    guarded(work, debug=debug, interrupted=UNTOUCHED)
