"""Commands that sign an evidence folder, and check such a signature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gguf_forget.cli.common import Command, guarded

_FILE = click.Path(path_type=Path)


def _common(function: Command) -> Command:
    for option in (
        click.option("--debug", is_flag=True, help="Show a traceback when something fails."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing when all went well."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout."),
        click.argument("evidence", type=_FILE),
    ):
        function = option(function)
    return function


def _show(work: Callable[[], dict[str, Any]], said: str, *, as_json: bool, quiet: bool, debug: bool) -> None:
    def show() -> int:
        document = work()
        if as_json:
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        elif not quiet:
            click.echo(f"{said}: {document['signature']}")
        return 0

    guarded(show, debug=debug)


@click.command(short_help="Sign an evidence folder with a local key.")
@click.option("--private-key", type=_FILE, required=True, help="PEM of an elliptic curve, without a password.")
@_common
def sign(evidence: Path, private_key: Path, as_json: bool, quiet: bool, debug: bool) -> None:
    """Sign an EVIDENCE folder with a local key, by OpenSSF's model-signing (pip install 'gguf-forget[signing]').

    The signature, EVIDENCE/evidence.sig, covers every other file of the folder. `model_signing verify key` reads it
    as well.

    \b
    Example:
      gguf-forget sign runs/mine/evidence --private-key private.pem
    """

    def work() -> dict[str, Any]:
        from gguf_forget.stages import signing

        return signing.sign(evidence, private_key)

    _show(work, "signed", as_json=as_json, quiet=quiet, debug=debug)


@click.command("check-signature", short_help="Check the signature of an evidence folder.")
@click.option("--public-key", type=_FILE, required=True, help="PEM of the key that belongs to the signer's.")
@_common
def check_signature(evidence: Path, public_key: Path, as_json: bool, quiet: bool, debug: bool) -> None:
    """See that an EVIDENCE folder is as the owner of a key signed it.

    Exit code 3 for another key's signature, or where a file was changed, added or taken away.

    \b
    Example:
      gguf-forget check-signature runs/mine/evidence --public-key public.pem
    """

    def work() -> dict[str, Any]:
        from gguf_forget.stages import signing

        return signing.check_signature(evidence, public_key)

    _show(work, "the signature holds", as_json=as_json, quiet=quiet, debug=debug)
