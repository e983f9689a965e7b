"""A command line that answers a misspelt command with the nearest one, in the form of all other errors, and none at all
with its help."""

from __future__ import annotations

import difflib
import sys
from typing import Any, NoReturn

import click


class SuggestingGroup(click.Group):
    """Usage errors as ``error: … / hint: …`` with exit code 2, and "did you mean" for commands.

    Options are suggested by click itself.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # click calls that an error since 8.2
            args = ["--help"]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"commands: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no command is called {name!r}\nhint: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """As click's, but for how usage errors are printed; ``standalone_mode=False`` leaves them to the caller."""
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.UsageError as error:
            _fail(error)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(error: click.UsageError) -> NoReturn:
    first, *rest = error.format_message().splitlines() or [""]
    text = [f"error: {first[:1].lower()}{first[1:]}", *rest]
    if error.ctx is not None and not any(line.startswith("hint:") for line in rest):
        text.append(f"hint: {error.ctx.command_path} --help shows what it takes")
    click.echo("\n".join(text), err=True)
    sys.exit(2)
