"""The command line, from which every command hangs."""

from __future__ import annotations

from gguf_forget.cli.circuit import attribute, divergence
from gguf_forget.cli.commands import main
from gguf_forget.cli.export import quantize

main.add_command(attribute)
main.add_command(divergence)
main.add_command(quantize)

__all__ = ["main"]
