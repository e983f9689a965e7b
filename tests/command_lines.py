"""Parses command lines of examples as the program would, without running them."""

from __future__ import annotations

import shlex

import click

from gguf_forget.cli import main


def parse_command_line(line: str) -> str:
    """The command that ``gguf-forget …`` reaches once all its arguments are parsed.

    Raises:
        click.UsageError: the program would refuse the line.
    """
    program, *arguments = shlex.split(line.split(">")[0], comments=True)
    assert program == "gguf-forget"
    context = click.Context(main, info_name=program)
    name, command, rest = main.resolve_command(context, arguments)
    assert command is not None
    command.make_context(name, rest, parent=context)
    return command.name or ""


def examples_of(command: click.Command) -> list[str]:
    """The command lines in a command's help, those that go on in the next line joined."""
    text = f"{command.help or ''}\n{command.epilog or ''}".replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.lstrip().startswith("gguf-forget ")]
