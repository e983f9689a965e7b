"""The command that asks what is left of the edits when the shipped file is quantized again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_forget.cli.common import UNTOUCHED, guarded, say

if TYPE_CHECKING:
    from gguf_forget.export.requantized import Requantized


@click.command(short_help="See which edits are left when a file is quantized again.")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("shipped", type=click.Path(path_type=Path))
@click.argument("types", metavar="[TYPE]...", nargs=-1)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix that SHIPPED was quantized with.")
@click.option("-t", "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: all  [default: 0]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def survival(
    original: Path,
    shipped: Path,
    types: tuple[str, ...],
    imatrix: Path | None,
    threads: int,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Show which edits of SHIPPED are left when somebody quantizes it again, for each TYPE (default: eighteen of them).

    ORIGINAL is in full precision (then its stock quantization is compared), or the stock file itself. Both go through
    libggml to the type that llama.cpp gives each tensor; an edit survives if the two still differ in its direction.

    \b
    Examples:
      gguf-forget survival base.gguf unlearned.Q4_K_M.gguf
      gguf-forget survival base.gguf unlearned.Q4_K_M.twin.F16.gguf Q4_K_M Q4_0
    """

    def work() -> int:
        from gguf_forget.checkpoint.stored import stored_tensors
        from gguf_forget.export.requantized import FILE_TYPES, requantized
        from gguf_forget.llama.imatrix import read_importance
        from gguf_forget.llama.quantizer import file_type_name
        from gguf_forget.progress import progress_for

        kinds = tuple(dict.fromkeys(file_type_name(kind) for kind in types)) or FILE_TYPES
        importance = None if imatrix is None else read_importance(imatrix)
        with progress_for(quiet=quiet).task("quantizing again", len(stored_tensors(shipped))) as advance:
            rows = requantized(
                original, shipped, kinds, importance=importance, threads=threads or os.cpu_count() or 1, advance=advance
            )
        if as_json:
            found = [row.to_json() for row in rows]
            document = {"schema_version": 1, "original": str(original), "shipped": str(shipped), "types": found}
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        else:
            say(lambda: _print(rows))
        return 0

    guarded(work, debug=debug, interrupted=UNTOUCHED)


def _print(rows: list[Requantized]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("quantized again to", "edits", "survive", "share", "as the original", "reversed", box=None)
    for row in rows:
        share = "" if row.share is None else f"{row.share:.2%}"
        counts = (f"{count:,}" for count in (row.unmoved, row.reversed))
        table.add_row(row.type, f"{row.edits:,}", f"{row.survived:,}", share, *counts)
    Console(width=100).print(table)
