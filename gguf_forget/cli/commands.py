"""The command line: parse, call one thing, turn errors into exit codes.

Exit codes: 0 forgotten, 1 a gate failed, 2 usage or input error, 3 could not evaluate, 130 interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gguf_forget import __version__
from gguf_forget.cli.common import common, guarded, say
from gguf_forget.cli.suggestions import SuggestingGroup
from gguf_forget.errors import InputError

EPILOG = """\b
Examples:
  gguf-forget demo
  gguf-forget run recipe.toml
  gguf-forget quantize base.gguf unlearned.gguf out.gguf Q4_K_M
  gguf-forget verify out.gguf --against base.gguf --facts facts.jsonl

Exit codes: 0 forgotten, 1 a gate failed, 2 usage or input error, 3 could not evaluate.

\b
Completion in the shell:
  bash, in ~/.bashrc:  eval "$(_GGUF_FORGET_COMPLETE=bash_source gguf-forget)"
  zsh, in ~/.zshrc:    eval "$(_GGUF_FORGET_COMPLETE=zsh_source gguf-forget)"
  fish:                _GGUF_FORGET_COMPLETE=fish_source gguf-forget | source
"""
STAGE_HELP = {
    "load": "Write the original as a GGUF in full precision. Its tokenizer is checked.",
    "facts": "Check the facts against the tokenizer. Plain text is prepared too.",
    "unlearn": "Train code moves inside the circuit. Training goes through the grid that ships.",
    "export": "Write the unlearned GGUFs, bin-aware. Their base is llama.cpp's own files.",
}
TRAINS = ("unlearn", "export")  # stages up to which there is a training


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="gguf-forget")
def main() -> None:
    """Make a language model forget facts, ship it as a GGUF, and check through llama.cpp whether that file has."""
    # Threads that spin while they wait make PyTorch many times slower on a machine with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _show(outcome: Any, *, as_json: bool) -> None:
    import json

    from gguf_forget.report.terminal import print_report

    if outcome.report is None:
        if as_json:
            document = {
                "schema_version": 1,
                "folder": str(outcome.folder),
                "stages": outcome.stages,
                "exit_code": 0,
            }
            click.echo(json.dumps(document))
        return
    if as_json:
        click.echo(json.dumps(outcome.report, indent=2, sort_keys=True))
    else:
        print_report(outcome.report)


def _plan(recipe: Any, folder: Path, until: str, *, as_json: bool) -> None:
    import json

    from gguf_forget.pipeline import judged_files, stages_until

    stages = list(stages_until(until))
    document = {
        "schema_version": 1,
        "folder": str(folder),
        "stages": stages,
        "files_judged": sorted(judged_files(recipe)) if "verify" in stages else [],
        "recipe": recipe.resolved(),
    }
    if as_json:
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    click.echo(f"would run in {folder}: {', '.join(stages)}")
    if document["files_judged"]:
        click.echo(f"would ask through llama.cpp: {', '.join(document['files_judged'])}")


def execute(
    make_recipe: Callable[[Any], Any], folder: Path, until: str, *, dry_run: bool, as_json: bool, quiet: bool
) -> int:
    from gguf_forget.pipeline import check_recipe
    from gguf_forget.pipeline import run as run_pipeline
    from gguf_forget.progress import progress_for

    progress = progress_for(quiet=quiet)
    recipe = make_recipe(progress)
    if dry_run:
        check_recipe(recipe, until)
        _plan(recipe, folder, until, as_json=as_json)
        return 0
    outcome = run_pipeline(recipe, folder, progress, until=until)
    say(lambda: _show(outcome, as_json=as_json))
    return int(outcome.exit_code)


def from_file(path: Path, device: str | None = None) -> Callable[[Any], Any]:
    def make(_progress: Any) -> Any:
        from dataclasses import replace

        from gguf_forget.recipe import load_recipe

        recipe = load_recipe(path)
        return replace(recipe, unlearn=replace(recipe.unlearn, device=device)) if device else recipe

    return make


def run_folder(recipe: Path, out: Path | None) -> Path:
    if out is None and not recipe.stem:
        raise InputError(f"the recipe is {str(recipe)!r}, needed the name of a file", hint="give a TOML file")
    return out if out is not None else recipe.parent / "runs" / recipe.stem


_RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
_OUT = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory  [default: runs/NAME beside the recipe, NAME from the recipe's file name]",
)


DEVICE = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Where training runs  [default: unlearn.device of the recipe]"
)


@main.command(short_help="Run a recipe from the model to the verdict.")
@_RECIPE
@_OUT
@DEVICE
@common
def run(
    recipe: Path, out: Path | None, device: str | None, dry_run: bool, as_json: bool, quiet: bool, debug: bool
) -> None:
    """Run the whole RECIPE: what is done and unchanged is skipped, an interrupted run goes on.

    \b
    Example:
      gguf-forget run recipe.toml -o runs/mine
    """

    def work() -> int:
        folder = run_folder(recipe, out)
        return execute(from_file(recipe, device), folder, "evidence", dry_run=dry_run, as_json=as_json, quiet=quiet)

    guarded(work, debug=debug)


def _stage_command(stage: str, text: str) -> click.Command:
    @_RECIPE
    @_OUT
    @common
    def command(
        recipe: Path,
        out: Path | None,
        dry_run: bool,
        as_json: bool,
        quiet: bool,
        debug: bool,
        device: str | None = None,
    ) -> None:
        def work() -> int:
            folder = run_folder(recipe, out)
            return execute(from_file(recipe, device), folder, stage, dry_run=dry_run, as_json=as_json, quiet=quiet)

        guarded(work, debug=debug)

    if stage in TRAINS:
        command = DEVICE(command)
    command.__doc__ = (
        f"{text}\n\nRuns RECIPE up to this stage; earlier stages that are done and unchanged are skipped."
        f"\n\n\b\nExample:\n  gguf-forget {stage} recipe.toml"
    )
    return click.command(stage)(command)


for _stage, _text in STAGE_HELP.items():
    main.add_command(_stage_command(_stage, _text))


@main.command(short_help="Forget the capitals of Europe, on a small model.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=None, help="Run directory  [default: runs/demo]")
@click.option("--widened", is_flag=True, help="The same model widened to 768: every matrix is a K-quant.")
@common
def demo(out: Path | None, widened: bool, dry_run: bool, as_json: bool, quiet: bool, debug: bool) -> None:
    """SmolLM2-135M-Instruct forgets the capitals of Europe: the whole way, on a model that pip installs.

    \b
    Examples:
      gguf-forget demo
      gguf-forget demo --widened -o runs/widened
    """
    folder = out if out is not None else Path("runs") / ("demo-widened" if widened else "demo")

    def make(progress: Any) -> Any:
        from gguf_forget.demo.prepare import prepare_demo

        return prepare_demo(folder, progress, widened=widened, write=not dry_run)

    guarded(lambda: execute(make, folder, "evidence", dry_run=dry_run, as_json=as_json, quiet=quiet), debug=debug)
