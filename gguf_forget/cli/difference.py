"""The command that shows what differs between two models."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_forget.cli.common import UNTOUCHED, called, guarded, say
from gguf_forget.cli.quantize_options import quantize_options, read_quantize_options
from gguf_forget.errors import InputError

if TYPE_CHECKING:
    from gguf_forget.export.difference import Difference


@click.command(short_help="Show what differs between two models, code by code.")
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option("--type", "file_type", metavar="TYPE", help="Measure the updates in steps of A's grid in this file type.")
@quantize_options
@click.option("--plot", type=click.Path(path_type=Path), help="Draw histograms into this file, .png or .svg.")
@click.option(
    "--llama-cpp", type=click.Path(path_type=Path), help="A checkout of llama.cpp to convert directories with."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def diff(
    before: Path,
    after: Path,
    file_type: str | None,
    plot: Path | None,
    llama_cpp: Path | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Show what differs from model A to model B: tensors, codes and how far they moved, metadata.

    Both are GGUFs or Hugging Face directories; directories are converted as for `quantize`, in the system's temporary
    directory (TMPDIR). Two quantized files are compared code by code. Of two models in full precision (F32, F16, BF16,
    Q8_0), --type says how large a step of the grid that would ship is against the median update; --imatrix,
    --tensor-type and the like are those that you will give to `quantize`.

    \b
    Examples:
      gguf-forget diff stock.Q4_K_M.gguf unlearned.Q4_K_M.gguf
      gguf-forget diff base.gguf unlearned.gguf --type Q4_K_M --plot updates.png
      gguf-forget diff base/ unlearned/ --type Q4_K_M --imatrix base.imatrix
    """

    def work() -> int:
        from gguf_forget.llama.quantizer import file_type_name
        from gguf_forget.progress import progress_for
        from gguf_forget.stages.difference import DifferenceJob, compare_models

        in_vain = [name for name, value in given.items() if value] if file_type is None else []
        if in_vain:
            raise InputError(f"{called(in_vain)} without --type: no grid is measured", hint="give --type TYPE")
        if llama_cpp is not None and os.path.isfile(before) and os.path.isfile(after):
            raise InputError(f"--llama-cpp {llama_cpp} beside two GGUFs: nothing is converted", hint="leave it out")
        kind = None if file_type is None else file_type_name(file_type)
        job = DifferenceJob(before, after, kind, read_quantize_options(**given), plot, llama_cpp)
        found = compare_models(job, progress_for(quiet=quiet))
        if as_json:
            document = {"schema_version": 1, "a": str(before), "b": str(after), **found.to_json()}
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        else:
            say(lambda: _print(found, kind))
        return 0

    guarded(work, debug=debug, interrupted=UNTOUCHED)


def _print(found: Difference, file_type: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("tensor", "type", "weights", "moved", "share", "up", "down", "furthest", "step / update", box=None)
    for tensor in found.tensors:
        kind = tensor.type_before
        if tensor.type_after != kind:
            kind += f" → {tensor.type_after}"
        if tensor.grid is not None:
            kind += f" on {tensor.grid}"
        shifts = tensor.shifts or {}
        table.add_row(
            Text(_escaped(tensor.tensor)),  # as it is: rich would read brackets in a plain string as markup
            kind,
            f"{tensor.weights:,}",
            f"{tensor.moved:,}",
            f"{tensor.moved / tensor.weights:.3%}",
            *("" if count is None else f"{count:,}" for count in (tensor.up, tensor.down)),
            f"{max(map(abs, shifts))} codes" if shifts else "",
            "" if tensor.step_to_update is None else f"{tensor.step_to_update:.3g} ×",
        )
    if found.tensors:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    click.echo(f"{found.same} tensors are the same, {len(found.tensors)} differ")
    if file_type is not None:
        _print_not_measured(found, file_type)
    for label, names in (("only in A", found.only_before), ("only in B", found.only_after)):
        if names:
            click.echo(f"{label}: {_listed(names)}")
    for key, value in found.metadata_removed.items():
        click.echo(_escaped(f"- {key} = {value}"))
    for key, value in found.metadata_added.items():
        click.echo(_escaped(f"+ {key} = {value}"))
    for key, (old, new) in found.metadata_changed.items():
        click.echo(_escaped(f"~ {key} = {old} → {new}"))


def _escaped(text: str) -> str:
    """On one line, whatever a file holds: what does not print could move the cursor, or look like a line of ours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _listed(names: list[str]) -> str:
    return ", ".join(map(_escaped, names))


def _print_not_measured(found: Difference, file_type: str) -> None:
    from gguf_forget.checkpoint.stored import READABLE

    coarse, without_steps = [], []
    for tensor in found.tensors:
        if tensor.type_before not in READABLE or tensor.type_after not in READABLE:
            coarse.append(tensor.tensor)
        elif tensor.grid is None:
            without_steps.append(tensor.tensor)
    if coarse:
        click.echo(f"not measured, not in full precision ({', '.join(READABLE)}): {_listed(coarse)}")
    if without_steps:
        click.echo(f"not measured, no steps known in {file_type}: {_listed(without_steps)}")
