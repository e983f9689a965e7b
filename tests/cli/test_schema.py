"""The JSON of every command on a tiny model, and the files of a run, against the schemas that the package ships."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from signing_keys import make_keys

from gguf_forget.cli import main
from gguf_forget.cli.schema import FILES, names

Arguments = Callable[[Path, Path], list[object]]  # the project, a folder for results


def printed(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 1, 3), result.output + result.stderr
    document = json.loads(result.stdout)
    if result.exit_code == 3:  # by luck, of a model that knows nothing; of anything but a verdict it is an error
        assert document["verdict"]["status"] == "could not evaluate", result.stderr
    return document


def validator(name: str) -> Draft202012Validator:
    schema = printed("schema", name)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def export(project: Path, kind: str) -> Path:
    return project / "done" / "export" / f"unlearned.{kind}.gguf"


def of_recipe(*options: object) -> Arguments:
    return lambda project, out: [project / "recipe.toml", "-o", project / "done", *options]


def of_models(*options: object) -> Arguments:
    return lambda project, out: [project / "model.gguf", export(project, "F16"), out / "out.gguf", *options]


def signed(project: Path, out: Path) -> list[object]:
    """Arguments for signing a copy of the run's evidence; it has been signed already."""
    make_keys(out)
    shutil.copytree(project / "done" / "evidence", out / "evidence")
    arguments = [out / "evidence", "--private-key", out / "private.pem"]
    printed("sign", *arguments, "--json")
    return arguments


FEW = ("--pairs", 2, "--steps", 1, "--evidence-pairs", 2)
OUTPUTS: tuple[tuple[str, Arguments], ...] = (
    ("load", of_recipe()),
    ("facts", of_recipe()),
    ("unlearn", of_recipe()),
    ("export", of_recipe()),
    ("attribute", of_recipe()),
    ("verify", of_recipe()),
    ("run", of_recipe()),
    ("report", of_recipe()),
    ("run", of_recipe("--dry-run")),
    ("load", of_recipe("--dry-run")),
    ("demo", lambda project, out: ["-o", out, "--dry-run"]),
    ("report", lambda project, out: ["--recompute", project / "done" / "evidence"]),
    ("verify", lambda project, out: ["--recompute", project / "done" / "evidence"]),
    ("attribute", lambda project, out: [project / "model.gguf", project / "facts.jsonl", "-o", out / "c", *FEW]),
    (
        "attribute",
        lambda project, out: [
            *(project / "model.gguf", project / "facts.jsonl", "-o", out / "c", "--level", "edges", "--no-evidence"),
            *FEW[:4],
        ],
    ),
    ("attribute", lambda project, out: [project / "model.gguf", project / "facts.jsonl", "-o", out, "--dry-run"]),
    (
        "divergence",
        lambda project, out: [project / "model.gguf", export(project, "F16"), project / "facts.jsonl", *FEW[:4]],
    ),
    (
        "divergence",
        lambda project, out: [project / "model.gguf", export(project, "F16"), project / "facts.jsonl", "--dry-run"],
    ),
    ("diff", lambda project, out: [project / "done" / "stock" / "Q4_K_M.gguf", export(project, "Q4_K_M")]),
    ("diff", lambda project, out: [project / "model.gguf", export(project, "F16"), "--type", "Q8_0"]),
    ("doctor", lambda project, out: []),
    ("doctor", lambda project, out: [project / "recipe.toml"]),
    ("init", lambda project, out: ["capitals", "-o", out / "recipe.toml"]),
    ("quantize", lambda project, out: of_models("Q4_K_M", "--twin", "F16", "--evidence", out / "e")(project, out)),
    ("quantize", of_models("--dry-run")),
    (
        "quantize",
        lambda project, out: [*of_models("Q8_0")(project, out), "--calibration", project / "facts.jsonl"],
    ),
    (
        "quantize",
        lambda project, out: [
            *(*of_models("Q8_0")(project, out), "--fit", project / "facts.jsonl", "--fit-steps", "2"),
        ],
    ),
    (
        "rebuild",
        lambda project, out: [project / "done/stock/Q8_0.gguf", project / "done/evidence", "-o", out / "again.gguf"],
    ),
    ("survival", lambda project, out: [project / "model.gguf", export(project, "Q4_K_M"), "Q8_0", "Q4_0"]),
    (
        "verify",
        lambda project, out: [
            *(export(project, "Q8_0"), "--against", project / "model.gguf", "--facts", project / "facts.jsonl"),
            *("--attacks", "none", "--out", out / "report.json"),
        ],
    ),
    (
        "verify",
        lambda project, out: [
            *(export(project, "Q8_0"), "--against", project / "model.gguf", "--facts", project / "facts.jsonl"),
            *("--attacks", "quick", "--dry-run"),
        ],
    ),
    ("sign", lambda project, out: signed(project, out)),
    ("check-signature", lambda project, out: [signed(project, out)[0], "--public-key", out / "public.pem"]),
    ("schema", lambda project, out: []),
    ("schema", lambda project, out: ["diff"]),
)


@pytest.mark.parametrize(
    ("command", "arguments"), OUTPUTS, ids=[f"{index}-{name}" for index, (name, _) in enumerate(OUTPUTS)]
)
def test_what_a_command_prints_is_as_its_schema_says(
    command: str, arguments: Arguments, project: Path, tmp_path: Path
) -> None:
    document = printed(command, *arguments(project, tmp_path), "--json", "--quiet")
    check = validator(command)
    assert [error.message for error in check.iter_errors(document)] == []
    if command != "schema":
        assert document["schema_version"] == 1
        for wrong in (
            {**document, "unheard_of": 1},
            {**document, "schema_version": 2},
            {key: value for key, value in document.items() if key != "schema_version"},
        ):
            assert not check.is_valid(wrong)
    if (tmp_path / "report.json").exists():
        assert validator("report.json").is_valid(json.loads((tmp_path / "report.json").read_text()))


def test_the_files_of_a_run_are_as_their_schemas_say(project: Path) -> None:
    for name, path in (("report.json", "report/report.json"), ("evidence.json", "evidence/evidence.json")):
        document = json.loads((project / "done" / path).read_text())
        assert [error.message for error in validator(name).iter_errors(document)] == []
        assert not validator(name).is_valid({**document, "sha256": "0"})


def test_every_command_has_a_schema_and_an_output_here() -> None:
    assert {name for name, _ in OUTPUTS} == set(main.commands)
    assert list(printed("schema", "--json")["schemas"]) == names(main.commands)
    for name in names(main.commands):
        schema = printed("schema", name)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        # Whatever it refers to is inside it.
        text = json.dumps(schema)
        for part in text.split('"$ref": "urn:gguf-forget:')[1:]:
            other = part.partition("#")[0]
            assert schema["$defs"][f"urn:gguf-forget:{other}"]["$id"] == f"urn:gguf-forget:{other}"


def test_names_are_listed_and_others_refused() -> None:
    listed = CliRunner().invoke(main, ["schema"])
    assert listed.stdout.split() == [*sorted(main.commands), *FILES]
    wrong = CliRunner().invoke(main, ["schema", "quantise"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: no schema is called 'quantise'\nhint: names: attribute, ")
