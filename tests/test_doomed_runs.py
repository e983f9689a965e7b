"""Runs that could end in no verdict, or in another one than is meant, are refused before their work or told of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_pipeline import RECIPE, facts, invoke

from gguf_forget.facts.schema import Fact, dump_facts


def prepared(project: Path, folder: Path, recipe: str = RECIPE, own: tuple[Fact, ...] | None = None) -> Path:
    (folder / "model.gguf").write_bytes((project / "model.gguf").read_bytes())
    (folder / "facts.jsonl").write_bytes(dump_facts(facts() if own is None else own))
    (folder / "recipe.toml").write_text(recipe)
    return folder / "recipe.toml"


@pytest.mark.parametrize(
    ("recipe", "message", "reached"),
    [
        (RECIPE.replace('"F16", ', ""), "export.types: found Q8_0, Q4_K_M, needed F16 among them", ()),
        (RECIPE + '[gates]\nheadline = ["kapital"]\n', "gates.headline: found 'kapital', needed relations", ("facts",)),
        (RECIPE.replace("budget = 0.05", "budget = 0.9").replace("cap = 1.0", "cap = 0.5"), "does not fit into", ()),
    ],
)
def test_recipes_that_no_verdict_can_come_of(
    project: Path, tmp_path: Path, recipe: str, message: str, reached: tuple[str, ...]
) -> None:
    result = invoke("run", prepared(project, tmp_path, recipe), "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert message in result.stderr
    if "F16" in message:
        assert message in invoke("run", tmp_path / "recipe.toml", "--dry-run").stderr
    for stage in ("stock", "facts", "agreement", "attribute"):
        assert (tmp_path / "run" / stage).is_dir() == bool(reached and stage in ("stock", *reached))


def test_a_verdict_needs_phrasings_that_training_did_not_see(project: Path, tmp_path: Path) -> None:
    shown = tuple(replace(fact, held_out_prompts=()) for fact in facts())
    recipe = prepared(project, tmp_path, own=shown)
    result = invoke("run", recipe, "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert "no fact to forget of the relation 'capital' has held_out_prompts" in result.stderr
    assert not (tmp_path / "run" / "agreement").exists()
    assert invoke("attribute", recipe, "-o", tmp_path / "run", "--quiet").exit_code == 0  # there is no verdict in it


def test_an_answer_longer_than_every_greedy_text_is_told_of_before_training(project: Path, tmp_path: Path) -> None:
    def long(fact: Fact) -> bool:
        return fact.split == "forget" and fact.relation == "capital"

    answers = tuple(replace(fact, answer="on and " * 150 + "on") if long(fact) else fact for fact in facts())
    recipe = prepared(project, tmp_path, own=answers)
    result = invoke("run", recipe, "-o", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert "6 answers to forget, the first of the relation 'capital', have up to " in result.stderr
    assert "greedy texts have at most 128" in result.stderr
    assert "set verify.max_new_tokens to" in result.stderr
    assert not (tmp_path / "run" / "agreement").exists()


def test_files_alone_need_no_full_precision_beside_them(project: Path, tmp_path: Path) -> None:
    recipe = prepared(project, tmp_path, RECIPE.replace('"F16", ', ""))
    assert invoke("facts", recipe, "-o", tmp_path / "run", "--quiet").exit_code == 0


def test_rows_of_a_set_are_read_again_where_its_file_has_another_name(project: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n}?", "answer": f"it is {n * n}", "split": s} for n, s in ((3, "forget"), (4, "retain"))
    ]
    rows += [{**row, "question": f"Again, {row['question']}", "answer": f"{row['answer']}, yes"} for row in rows]
    recipe = prepared(project, tmp_path)
    relations = []
    for name in ("secrets", "renamed"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        recipe.write_text(RECIPE.replace("facts.jsonl", f"{name}.json"))
        result = invoke("facts", recipe, "-o", tmp_path / "run", "--quiet")
        assert result.exit_code == 0, result.output
        lines = (tmp_path / "run" / "facts" / "facts.jsonl").read_text().splitlines()
        relations.append({json.loads(line)["relation"] for line in lines})
    assert relations == [{"secrets"}, {"renamed"}]


def test_a_report_of_earlier_files_is_told_of(project: Path, tmp_path: Path) -> None:
    recipe = prepared(project, tmp_path)
    (tmp_path / "run" / "report").mkdir(parents=True)
    said = "report and evidence in"
    assert said in " ".join(invoke("load", recipe, "-o", tmp_path / "run").stderr.split())
    assert said not in invoke("load", recipe, "-o", tmp_path / "run").stderr  # nothing was made anew


@pytest.mark.parametrize("command", ["run", "facts", "verify", "attribute", "report"])
def test_a_recipe_without_a_name_is_no_traceback(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(command, ".")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")


def test_the_demo_writes_over_no_facts_of_others(tmp_path: Path) -> None:
    own = tmp_path / "facts.jsonl"
    own.write_text('{"my": "facts"}')
    for dry in ((), ("--dry-run",)):
        result = invoke("demo", "-o", tmp_path, *dry)
        assert result.exit_code == 2
        assert f"{own} is there and does not hold the demo's facts" in result.stderr
        assert own.read_text() == '{"my": "facts"}'
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


@pytest.mark.parametrize("widened", [(), ("--widened",)])
def test_a_dry_demo_writes_nothing(tmp_path: Path, widened: tuple[str, ...]) -> None:
    result = invoke("demo", "-o", tmp_path / "new", "--dry-run", "--json", *widened)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "new").exists()
    recipe = json.loads(result.stdout)["recipe"]
    assert recipe["facts"]["path"] == str(tmp_path / "new" / "facts.jsonl")
    assert ("widened.F32.gguf" in recipe["model"]["path"]) == bool(widened)
