"""The command line, from which every command hangs."""

from __future__ import annotations

from gguf_forget.cli.circuit import attribute, divergence
from gguf_forget.cli.commands import main

main.add_command(attribute)
main.add_command(divergence)

__all__ = ["main"]
