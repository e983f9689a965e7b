"""The surface of every command: examples in its help, errors in one form, suggestions, and a light start."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from command_lines import examples_of, parse_command_line

from gguf_forget.cli import main

HEAVY = {"torch", "transformers", "llama_cpp", "matplotlib", "numpy", "gguf", "jinja2", "rich", "safetensors"}


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_examples_json_and_debug(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"  gguf-forget {name}" in result.stdout
    for option in ("--json", "--quiet", "--debug"):
        assert option in result.stdout


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_examples_of_every_command_parse(name: str) -> None:
    found = [parse_command_line(line) for line in examples_of(main.commands[name])]
    assert found == [name] * len(found)
    assert found


def test_the_examples_of_the_program_parse() -> None:
    assert [parse_command_line(line) for line in examples_of(main)] == ["demo", "run", "quantize", "verify"]


def test_the_program_alone_shows_its_help_and_a_whole_line_for_every_command() -> None:
    result = CliRunner().invoke(main, [], prog_name="gguf-forget")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == CliRunner().invoke(main, ["--help"], prog_name="gguf-forget").stdout
    listed = result.stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == sorted(main.commands)  # none goes on in a second line
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_an_example_with_a_wrong_option_does_not_parse() -> None:
    with pytest.raises(click.UsageError, match="--colour"):
        parse_command_line("gguf-forget diff a.gguf b.gguf --colour red")


def test_help_of_every_command_loads_nothing_heavy() -> None:
    program = f"""
import sys
from gguf_forget.cli import main
for name in ["", *main.commands]:
    try:
        main([*([name] if name else []), "--help"])
    except SystemExit as end:
        assert not end.code
print("LOADED", *sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quantise"], ["error: no command is called 'quantise'", "hint: did you mean quantize?"]),
        (["zzz"], ["error: no command is called 'zzz'", "hint: commands: attribute, "]),
        (["diff", "a", "b", "--jsn"], ["error: no such option '--jsn'", "--json"]),
        (["diff", "a"], ["error: missing argument 'B'.", "hint: gguf-forget diff --help shows what it takes"]),
        (["verify", "x.gguf", "--attacks", "many"], ["error: invalid value for '--attacks'"]),
    ],
)
def test_usage_errors_have_one_form(arguments: list[str], expected: list[str]) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="gguf-forget")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for text in expected:
        assert text in result.stderr


def test_options_are_understood_by_every_shell() -> None:
    from click.shell_completion import get_completion_class

    for shell in ("bash", "zsh", "fish"):
        completion = get_completion_class(shell)
        assert completion is not None
        found = completion(main, {}, "gguf-forget", "_GGUF_FORGET_COMPLETE").get_completions([], "qua")
        assert [item.value for item in found] == ["quantize"]
    assert isinstance(main, click.Group)
