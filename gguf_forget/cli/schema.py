"""What the JSON of every command and of the files that an auditor keeps looks like, as JSON Schema.

One file a document in ``gguf_forget/schemas``; what several share is in ``common.json``. They refer to one another as
``urn:gguf-forget:NAME``, and what is printed carries all that it refers to inside itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import click

from gguf_forget.cli.common import guarded
from gguf_forget.errors import InputError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SHARED = {
    **dict.fromkeys(("demo", "report"), "run"),
    **dict.fromkeys(("load", "facts", "unlearn", "export"), "stage"),
    "check-signature": "sign",
}
FILES = ("report.json", "evidence.json")
_REFERENCE = re.compile(r'"urn:gguf-forget:([\w.]+)#')


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a command's ``--json``, or of one of :data:`FILES`; it needs no other file."""
    found: dict[str, dict[str, Any]] = {}
    wanted = [SHARED.get(name, name)]
    while wanted:
        one = wanted.pop()
        if one not in found:
            text = (files("gguf_forget") / "schemas" / f"{one}.json").read_text(encoding="utf-8")
            found[one] = {"$id": f"urn:gguf-forget:{one}", **json.loads(text)}
            wanted += _REFERENCE.findall(text)
    root, *others = found.values()
    inside = {other["$id"]: other for other in others}
    return {"$schema": DIALECT, **root, "$defs": {**root.get("$defs", {}), **inside}}


def names(commands: Iterable[str]) -> list[str]:
    """Everything that has a schema."""
    return [*sorted(commands), *FILES]


@click.command(short_help="Print the JSON Schema of what --json prints.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the list of names as JSON too.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing is said on stderr anyway.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def schema(context: click.Context, name: str | None, as_json: bool, quiet: bool, debug: bool) -> None:
    """Print the JSON Schema of what a command says with --json, or of a file; without NAME, list the names.

    NAME is a command, report.json or evidence.json.

    \b
    Examples:
      gguf-forget schema
      gguf-forget schema quantize > quantize.schema.json
    """

    def work() -> int:
        group = context.find_root().command
        known = names(group.commands if isinstance(group, click.Group) else ())
        if name is not None and name not in known:
            raise InputError(f"no schema is called {name!r}", hint=f"names: {', '.join(known)}")
        if name is not None:
            click.echo(json.dumps(schema_of(name), indent=2, ensure_ascii=False))
        elif as_json:
            click.echo(json.dumps({"schema_version": 1, "schemas": {one: schema_of(one)["title"] for one in known}}))
        else:
            click.echo("\n".join(known))
        return 0

    guarded(work, debug=debug)
