"""The walls between the parts, read from the source: who may import whom, and what start-up may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_forget

PACKAGE = Path(gguf_forget.__file__).parent
LINE_UP = ("cli", "pipeline", "stages", "presets", "recipe", "settings", "run_directory")
ORGANS = (
    "checkpoint",
    "circuit",
    "demo",
    "export",
    "facts",
    "fitting",
    "grids",
    "llama",
    "report",
    "rounding",
    "unlearning",
    "verification",
)
PLAIN_ORGANS = ("circuit", "fitting", "grids", "rounding", "unlearning", "verification")


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module in ``package`` imports, inside functions too.

    ``from a.b import c`` may mean the module a.b.c, so it is given as that; typing-only imports count.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def breaches(files: Iterator[Path], forbidden: tuple[str, ...]) -> list[str]:
    """``file:line name`` for every import of a forbidden module or of something in it."""
    found = []
    for file in files:
        package = ".".join(("gguf_forget", *file.relative_to(PACKAGE).parent.parts))
        for line, name in imported(file.read_text(encoding="utf-8"), package):
            if any(name == wall or name.startswith(wall + ".") for wall in forbidden):
                found.append(f"{file.relative_to(PACKAGE)}:{line} {name}")
    return found


def part(name: str) -> Iterator[Path]:
    """The files of a part, be it a package or a single module."""
    yield from (PACKAGE / name).rglob("*.py")
    yield from PACKAGE.glob(f"{name}.py")


def ours(*names: str) -> tuple[str, ...]:
    return tuple(f"gguf_forget.{name}" for name in names)


def test_the_reader_sees_every_form_of_import() -> None:
    source = (
        "import a.b as c\ndef f():\n    from .. import stages\n    from ..stages.run import go\n    from . import x\n"
    )
    assert list(imported(source, "gguf_forget.grids")) == [
        (1, "a.b"),
        (3, "gguf_forget.stages"),
        (4, "gguf_forget.stages.run.go"),
        (5, "gguf_forget.grids.x"),
    ]


def test_every_part_of_the_package_has_its_place_behind_the_walls() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    neutral = {"__init__", "__main__", "errors", "prefix_tree", "progress", "whole_file", "words"}
    assert parts - neutral - {*LINE_UP, *ORGANS} == set()


def test_only_llama_imports_llama_cpp() -> None:
    outside = (file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] != "llama")
    assert breaches(outside, ("llama_cpp",)) == []


@pytest.mark.parametrize("name", PLAIN_ORGANS)
def test_the_numerics_know_no_recipe_run_directory_or_terminal(name: str) -> None:
    assert breaches(part(name), (*ours(*LINE_UP), "click", "rich")) == []


@pytest.mark.parametrize("name", ORGANS)
def test_organs_import_no_stages(name: str) -> None:
    assert breaches(part(name), ours("cli", "pipeline", "stages")) == []


def test_stages_import_no_pipeline_and_no_command_line() -> None:
    assert breaches(part("stages"), ours("cli", "pipeline")) == []


def test_the_pipeline_imports_no_command_line() -> None:
    assert breaches(part("pipeline"), ours("cli")) == []


def loaded_by(code: str) -> set[str]:
    """Top-level modules in ``sys.modules`` after a fresh interpreter ran ``code``."""
    program = f"""
import sys
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *sorted(name for name in sys.modules if "." not in name))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import gguf_forget; dir(gguf_forget); gguf_forget.InputError")
    assert "gguf_forget" in loaded
    assert loaded & {"torch", "transformers", "llama_cpp", "numpy", "gguf", "rich", "click"} == set()


def test_reading_a_recipe_loads_nothing_heavy() -> None:
    loaded = loaded_by("import gguf_forget.recipe, gguf_forget.run_directory")
    assert loaded & {"torch", "transformers", "llama_cpp", "numpy"} == set()


def test_help_loads_no_model_library() -> None:
    loaded = loaded_by("from gguf_forget.cli import main; sys.argv = ['gguf-forget', '--help']; main()")
    assert loaded & {"torch", "transformers", "llama_cpp"} == set()


@pytest.mark.parametrize("name", gguf_forget.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(gguf_forget)
    assert getattr(gguf_forget, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        gguf_forget.no_such_name  # noqa: B018
