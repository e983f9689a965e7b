"""`gguf-forget init`: a recipe to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gguf_forget.cli.common import guarded


@click.command(short_help="Write a recipe to start from.")
@click.argument("preset")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("recipe.toml"), help="[default: recipe.toml]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when all went well.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def init(preset: str, out: Path, as_json: bool, quiet: bool, debug: bool) -> None:
    """Write a recipe from PRESET: capitals, wmdp-mcq, tofu or muse-text.

    Every key is there with its meaning and limits; what the preset leaves alone has its default. Nothing is
    downloaded: paths name local files that you must give.

    \b
    Example:
      gguf-forget init capitals -o recipe.toml
    """

    def work() -> int:
        from gguf_forget.errors import InputError
        from gguf_forget.presets import recipe_text
        from gguf_forget.whole_file import replaced_whole

        text = recipe_text(preset)
        if out.exists():
            raise InputError(f"{out} is there already, needed a free path", hint="choose another with -o")
        with replaced_whole(out) as file:
            file.write(text.encode())
        if as_json:
            click.echo(json.dumps({"schema_version": 1, "preset": preset, "recipe": str(out)}))
        elif not quiet:
            click.echo(f"wrote {out}; put a model and facts where [model] and [facts] say, then: gguf-forget run {out}")
        return 0

    guarded(work, debug=debug)
