"""What is here, and whether it is enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gguf_forget.cli.common import common, guarded


@click.command(short_help="Show versions, and whether memory and disk are enough.")
@click.argument("target", metavar="[MODEL | RECIPE]", required=False, type=click.Path(path_type=Path))
@common
def doctor(target: Path | None, dry_run: bool, as_json: bool, quiet: bool, debug: bool) -> None:
    """Show versions, processor features, the converter, memory and disk, free and needed; try llama.cpp out.

    MODEL is a GGUF, RECIPE a .toml. Exit code 2 where memory or disk is not enough, 3 where llama.cpp does not
    compute right on this machine.

    \b
    Examples:
      gguf-forget doctor
      gguf-forget doctor recipe.toml --json
    """

    def work() -> int:
        from gguf_forget.stages.doctor import doctor as examine

        document = examine(target)
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        else:
            _print(document)
        if not document["self_check"]["passed"]:
            return 3
        return 2 if _lacking(document) else 0

    guarded(work, debug=debug)


def _lacking(document: dict[str, Any]) -> list[str]:
    memory, disk = document["memory"], document["disk"]
    lacking = []
    if memory["free"] is not None and memory.get("needed_at_least", 0) > memory["free"]:
        lacking.append("memory")
    if disk.get("needed", 0) > disk["free"]:
        lacking.append("disk")
    return lacking


def _print(document: dict[str, Any]) -> None:
    machine, memory, disk = document["environment"], document["memory"], document["disk"]
    processor = machine["processor"]
    click.echo(", ".join(f"{name} {version}" for name, version in document["tools"].items()))
    click.echo(f"Python {machine['python']}, {machine['system']}, {processor['name']}, {processor['cores']} cores")
    click.echo(f"features: {' '.join(processor['features']) or 'unknown'}")
    click.echo(f"llama.cpp: {machine['llama.cpp']}")
    check = document["self_check"]
    click.echo(f"self-check: {check['error'] or 'llama.cpp computes right on this machine'}")
    if check["hint"]:
        click.echo(f"hint: {check['hint']}")
    click.echo(f"converter: {document['converter'] or 'fetched with pip when a directory is first converted'}")
    needed = f", {memory['needed_at_least']:,} bytes needed at least" if "needed_at_least" in memory else ""
    free = "unknown" if memory["free"] is None else f"{memory['free']:,} bytes"
    click.echo(f"memory: {free} free{needed}")
    needed = f", about {disk['needed']:,} bytes needed" if "needed" in disk else ""
    click.echo(f"disk: {disk['free']:,} bytes free in {disk['folder']}{needed}")
    for name in _lacking(document):
        click.echo(f"not enough {name}")
