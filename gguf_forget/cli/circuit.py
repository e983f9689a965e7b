"""Commands about circuits: find one with its evidence, and see how far an edit moved it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gguf_forget.cli.commands import execute, from_file, run_folder
from gguf_forget.cli.common import UNTOUCHED, Command, Weight, called, common, guarded, say
from gguf_forget.recipe import AttributeSection

DEFAULTS = AttributeSection()
EVIDENCE_PAIRS = 64  # a study has the time that a stage of a run has not
CHOOSING = ("budget", "neurons", "ranking", "layer_cap", "retain_discount", "text_discount")  # options


class Share(click.ParamType):
    """A share above 0 and at most 1, written 0.03 or 3%."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = float("nan")
        if not 0 < number <= 1:
            self.fail(f"{value!r}, needed a share like 0.03 or 3%, above 0 and at most 1", param, ctx)
        return number


def _scoring_options(function: Command) -> Command:
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            help=f"Seed of every random choice  [default: {DEFAULTS.seed}]",
        ),
        click.option(
            "--pairs",
            type=click.IntRange(1),
            help=f"Pairs of prompts of each split that are attributed  [default: {DEFAULTS.pairs}]",
        ),
        click.option(
            "--variant",
            type=click.Choice(["inputs", "activations"]),
            help=f"What the integrated gradient interpolates  [default: {DEFAULTS.variant}]",
        ),
        click.option(
            "--steps",
            type=click.IntRange(1, 64),
            help=f"Points of the integrated gradient  [default: {DEFAULTS.integration_steps}]",
        ),
        click.option(
            "--layer-cap",
            type=Share(),
            help=f"Largest share of one layer's neurons  [default: {DEFAULTS.layer_cap}]",
            metavar="SHARE",
        ),
        click.option(
            "--retain-discount",
            type=Weight(0),
            help=f"Weight of the retain attribution that is subtracted  [default: {DEFAULTS.retain_discount:g}]",
        ),
        click.option(
            "--text-discount",
            type=Weight(0),
            help="Weight of what plain text needs of a neuron, which is subtracted  "
            f"[default: {DEFAULTS.text_discount:g}]",
        ),
        click.option(
            "--ranking",
            type=click.Choice(["absolute", "signed"]),
            help="Choose neurons by the size of their scores (how much they matter) or with sign (what ablation costs)"
            f"  [default: {DEFAULTS.ranking}]",
        ),
        click.option(
            "--neurons", type=click.IntRange(1), help="Budget as a number of MLP neurons, in place of a share"
        ),
        click.option(
            "--budget",
            type=Share(),
            help=f"Budget as a share of the MLPs' parameters  [default: {DEFAULTS.budget}]",
            metavar="SHARE",
        ),
    ):
        function = option(function)
    return function


def _section(given: dict[str, Any]) -> AttributeSection:
    """The [attribute] section of a recipe with what was given on the command line."""
    renamed = {"steps": "integration_steps"}
    values = {renamed.get(key, key): value for key, value in given.items() if value is not None}
    values.setdefault("evidence_pairs", EVIDENCE_PAIRS)
    return dataclasses.replace(DEFAULTS, **values)


def _one_budget(**given: Any) -> None:
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} were given, needed at most one of them")


@click.command(short_help="Find the circuit of the facts, and judge it.")
@click.argument("source", metavar="RECIPE | MODEL FACTS", type=click.Path(path_type=Path))
@click.argument("facts", required=False, metavar="", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Where the circuit goes; with a recipe, its run directory"
)
@click.option("--evidence/--no-evidence", default=None, help="Whether the circuit is judged  [default: evidence]")
@click.option(
    "--evidence-pairs",
    type=click.IntRange(1),
    help=f"Pairs of each split to judge it on  [default: {EVIDENCE_PAIRS}]",
)
@click.option(
    "--minimum-faithfulness", type=Share(), metavar="SHARE", help="Grow the circuit until it is that faithful, or fail"
)
@click.option(
    "--level",
    type=click.Choice(["neurons", "nodes", "edges"]),
    help="Score neurons alone, or heads and MLPs too, or edges too  [default: nodes]",
)
@click.option("--parameters", type=Share(), metavar="SHARE", help="Budget as a share of all the model's parameters")
@click.option(
    "--precision",
    type=click.Choice(["bfloat16", "float32"]),
    help=f"What gradients are computed in  [default: {DEFAULTS.precision}]",
)
@_scoring_options
@common
def attribute(
    source: Path,
    facts: Path | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Find the circuit of the facts (EAP-IG on MLP neurons), and what speaks for it.

    With MODEL (a GGUF of any type, or a Hugging Face directory) and FACTS (JSONL): writes circuit.safetensors,
    circuit.json and pictures into a folder, and prints the evidence. With RECIPE alone: runs it up to this stage;
    earlier stages that are done and unchanged are skipped.

    \b
    Examples:
      gguf-forget attribute model.gguf facts.jsonl -o circuit --budget 3%
      gguf-forget attribute recipe.toml
    """
    options = {name: value for name, value in given.items() if value is not None}
    if facts is None:
        if options:
            raise click.UsageError(
                f"{called(options)} need MODEL and FACTS; a recipe says these things in its section [attribute]"
            )

        def through_the_stages() -> int:
            folder = run_folder(source, out)
            return execute(from_file(source), folder, "attribute", dry_run=dry_run, as_json=as_json, quiet=quiet)

        guarded(through_the_stages, debug=debug)
        return
    if out is None:
        raise click.UsageError("the circuit of MODEL and FACTS needs a folder to go to: give it with -o DIR")
    _one_budget(**{name: options.get(name) for name in ("budget", "neurons", "parameters")})
    if options.get("evidence") is False and "evidence_pairs" in options:
        raise click.UsageError("--evidence-pairs with --no-evidence: the circuit is not judged")
    work = _study(source, facts, out, options, dry_run=dry_run, as_json=as_json, quiet=quiet)
    guarded(work, debug=debug, interrupted=UNTOUCHED)


def _study(
    model: Path, facts: Path, out: Path, options: dict[str, Any], *, dry_run: bool, as_json: bool, quiet: bool
) -> Callable[[], int]:
    def work() -> int:
        import json

        from gguf_forget.progress import progress_for
        from gguf_forget.report.circuit_table import print_circuit, print_plan
        from gguf_forget.stages.study import StudyOptions, plan, study

        own = {name: options.pop(name) for name in ("parameters", "evidence", "level") if name in options}
        settings = StudyOptions(_section(options), **own)
        if dry_run:
            document = plan(model, facts, settings, out)
        else:
            document = study(model, facts, settings, out, progress_for(quiet=quiet))
        if as_json:
            click.echo(json.dumps({**document, "folder": str(out)}, indent=2, sort_keys=True))
        else:
            say(lambda: (print_plan if dry_run else print_circuit)(document))
        return 0

    return work


@click.command(short_help="See how far the attribution moved by unlearning.")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("unlearned", type=click.Path(path_type=Path))
@click.argument("facts", type=click.Path(path_type=Path))
@click.option(
    "--circuit",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder with circuit.safetensors  [default: the circuit is found in ORIGINAL, as "
    "`attribute --precision float32` does]",
)
@_scoring_options
@common
def divergence(
    original: Path,
    unlearned: Path,
    facts: Path,
    circuit: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """How far the attribution of FACTS moved from ORIGINAL to UNLEARNED, in the circuit and in random controls.

    Both are GGUFs of any type (quantized ones are dequantized) or Hugging Face directories of one architecture with
    one tokenizer. Circuit attribution divergence as measured here is ours: L1 distance of the normalised |scores|
    (0 to 2), 1 - cosine, and the ratio of the total attribution after and before.

    \b
    Example:
      gguf-forget divergence original.gguf unlearned.Q4_K_M.gguf facts.jsonl --circuit circuit
    """
    options = {name: value for name, value in given.items() if value is not None}
    in_vain = [name for name in CHOOSING if name in options]
    if circuit is not None and in_vain:
        raise click.UsageError(f"{called(in_vain)} with --circuit: the circuit is given, none is chosen")
    _one_budget(**{name: options.get(name) for name in ("budget", "neurons")})

    def work() -> int:
        import json

        from gguf_forget.progress import progress_for
        from gguf_forget.report.circuit_table import print_divergence, print_plan
        from gguf_forget.stages.divergence import compare, plan

        section = _section({**options, "precision": "float32"})
        if dry_run:
            document = plan(original, unlearned, facts, section, circuit)
        else:
            document = compare(original, unlearned, facts, section, circuit, progress_for(quiet=quiet))
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        else:
            say(lambda: (print_plan if dry_run else print_divergence)(document))
        return 0

    guarded(work, debug=debug, interrupted=UNTOUCHED)
