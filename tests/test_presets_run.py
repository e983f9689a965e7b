"""Each preset for a public set, as `init` writes it, on a tiny local file and a tiny model: it ends in a verdict.

Only what makes a run long is made small; the random model knows nothing, so the verdict itself is not looked at.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import build_tiny_gguf
from tiny_knowledge import names

from gguf_forget.pipeline import run
from gguf_forget.presets import recipe_text
from gguf_forget.progress import Progress
from gguf_forget.recipe import Recipe, load_recipe
from gguf_forget.stages.facts import load_facts

PEOPLE, PLACES = names(8, "a"), names(16, "um")[8:]
LETTERS = "ABCD"


def jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def wmdp(folder: Path) -> None:
    rows = [
        {"question": f"Where does {person} live?", "choices": [PLACES[(i + k) % 8] for k in range(4)], "answer": i % 4}
        for i, person in enumerate(PEOPLE)
    ]
    (folder / "wmdp.json").write_text(json.dumps(rows))
    with (folder / "mmlu.csv").open("w", newline="") as file:
        for i, person in enumerate(PEOPLE):
            options = [PLACES[(i + 3 * k) % 8] for k in range(4)]
            csv.writer(file).writerow([f"Where was {person} born?", *options, LETTERS[(i + 1) % 4]])


def tofu(folder: Path) -> None:
    for name, verb in (("forget10_perturbed", "lives"), ("retain_perturbed", "works")):
        rows: list[dict[str, object]] = []
        for i, person in enumerate(PEOPLE):
            wrong = [f"{person} {verb} in {PLACES[(i + k) % 8]}." for k in (1, 2, 3)]
            answer = f"{person} {verb} in {PLACES[i]}."
            rows.append({"question": f"Where {verb} {person}?", "answer": answer, "perturbed_answer": wrong})
        jsonl(folder / f"{name}.jsonl", rows)


def muse(folder: Path) -> None:
    passages: list[dict[str, object]] = [
        {"prompt": f"On a cold morning in spring old {person} went to", "gt": f"{PLACES[i]}, and stayed."}
        for i, person in enumerate(PEOPLE)
    ]
    (folder / "verbmem_forget.json").write_text(json.dumps(passages))
    kept = [{"question": f"Who lives in {place}?", "answer": PEOPLE[i]} for i, place in enumerate(PLACES)]
    (folder / "knowmem_retain.json").write_text(json.dumps(kept))


def small(recipe: Recipe) -> Recipe:
    """The preset with few steps, examples and files."""
    attribute = replace(recipe.attribute, pairs=4, integration_steps=1, evidence_pairs=0, layer_cap=1.0)
    unlearn = replace(recipe.unlearn, steps=3, fisher_examples=2, batch_forget=4, batch_retain=4, learning_rate=0.5)
    verify = replace(recipe.verify, perplexity_tokens=64, baselines=False)
    export = replace(recipe.export, types=("F16", "Q4_K_M"))
    return replace(recipe, attribute=attribute, unlearn=unlearn, verify=verify, export=export)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"Where does {person} live? In {place}." for person, place in zip(PEOPLE, PLACES, strict=True)]
    letters = [f"Answer: {letter}\nAnswer: {letter}" for letter in LETTERS]  # a token each, with its space
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return build_tiny_gguf(path, texts=texts * 4 + letters * 8, layers=1)


@pytest.mark.parametrize(
    ("preset", "files", "forgotten", "kept", "phrasings"),
    [
        ("wmdp-mcq", wmdp, "wmdp", "mmlu", 2),
        ("tofu", tofu, "forget10_perturbed", "retain_perturbed", 2),
        ("muse-text", muse, "verbmem_forget", "knowmem_retain", 1),
    ],
)
def test_a_preset_ends_in_a_verdict(
    model: Path, tmp_path: Path, preset: str, files, forgotten: str, kept: str, phrasings: int
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model.gguf").write_bytes(model.read_bytes())
    files(tmp_path)
    (tmp_path / "recipe.toml").write_text(recipe_text(preset))
    outcome = run(small(load_recipe(tmp_path / "recipe.toml")), tmp_path / "run", Progress())
    facts, _ = load_facts(tmp_path / "run" / "facts")
    assert [(fact.relation, fact.split) for fact in facts] == [(forgotten, "forget")] * 8 + [(kept, "retain")] * 8
    assert {len(fact.prompts) for fact in facts if fact.split == "forget"} == {phrasings}
    assert outcome.report is not None
    gates = outcome.report["verdict"]["gates"]
    # A random model may know nothing of what is asked; no other figure is missing.
    asked = [gate for gate in gates if not gate["name"].startswith("original knows")]
    assert {gate["status"] for gate in asked} <= {"passed", "failed"}
    for kind in ("F16", "Q4_K_M"):
        own = {gate["name"]: gate["value"] for gate in gates if gate["file_type"] == kind}
        for name in (
            f"forget accuracy, {forgotten}, held-out",
            f"rank score, {forgotten}, held-out",
            f"greedy answers, {forgotten}, trained",
            "retain drop, all kept relations",
            "perplexity ratio",
        ):
            assert own[name] is not None
    statuses = {gate["status"] for gate in gates}
    assert outcome.exit_code == (1 if "failed" in statuses else 3 if "could not evaluate" in statuses else 0)
    assert str(tmp_path) not in json.dumps(outcome.report)  # folders may name people
