"""The command line, from which every command hangs."""

from __future__ import annotations

from gguf_forget.cli.circuit import attribute, divergence
from gguf_forget.cli.commands import main
from gguf_forget.cli.difference import diff
from gguf_forget.cli.doctor import doctor
from gguf_forget.cli.evidence import rebuild, report
from gguf_forget.cli.export import quantize
from gguf_forget.cli.init import init
from gguf_forget.cli.schema import schema
from gguf_forget.cli.signing import check_signature, sign
from gguf_forget.cli.survival import survival
from gguf_forget.cli.verify import verify

for command in (
    attribute,
    check_signature,
    diff,
    divergence,
    doctor,
    init,
    quantize,
    rebuild,
    report,
    schema,
    sign,
    survival,
    verify,
):
    main.add_command(command)

__all__ = ["main"]
