"""A request to forget, then another one about the file that the first shipped: what was forgotten stays forgotten."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_knowledge import Knowledge

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.facts.schema import dump_facts
from gguf_forget.pipeline import run
from gguf_forget.progress import Progress
from gguf_forget.recipe import load_recipe
from gguf_forget.stages.facts import load_facts
from gguf_forget.stages.verify import load_scores
from gguf_forget.whole_file import sha256_file

RECIPE = """
[model]
path = "{model}"
[facts]
path = "{facts}"
more = {more}
[attribute]
budget = 0.5
integration_steps = 2
layer_cap = 1.0
evidence_pairs = 0
[unlearn]
grid = "Q4_0"
steps = 40
learning_rate = 0.3
fisher_examples = 12
batch_forget = 12
batch_retain = 24
fisher_quantile = 0.9
[export]
types = ["F16", "Q4_0"]
[verify]
max_new_tokens = 4
perplexity_tokens = 256
baselines = false
"""


def accuracy(folder: Path, row: str, subjects: Collection[str]) -> float:
    """Held-out 4-way accuracy of a file on facts about ``subjects``, as llama.cpp was asked."""
    facts, _ = load_facts(folder / "facts")
    asked = [item for item in load_scores(folder / f"score-{row}").items if item.held_out]
    own = [item.credit() for item in asked if facts[item.fact].subject in subjects]
    assert len(own) == len(subjects)
    return sum(own) / len(own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs: ``first`` forgets half of the rivers to forget, ``second`` the others on its Q4_0 file."""
    folder = tmp_path_factory.mktemp("requests")
    knowledge = Knowledge(folder)
    halves = {"first": knowledge.forget[:6], "second": knowledge.forget[6:]}
    for name, forget in halves.items():
        facts = [replace(fact, split="forget" if fact in forget else "retain") for fact in knowledge.facts]
        (folder / f"{name}.jsonl").write_bytes(dump_facts(facts))
        (folder / f"{name}.subjects").write_text(json.dumps([fact.subject for fact in forget]))
    (folder / "kept.subjects").write_text(json.dumps([fact.subject for fact in knowledge.retain]))
    for name, model, more in (
        ("first", "original.gguf", []),
        ("second", "first/export/unlearned.Q4_0.gguf", ["first.jsonl"]),
    ):
        recipe = folder / f"{name}.toml"
        recipe.write_text(RECIPE.format(model=model, facts=f"{name}.jsonl", more=json.dumps(more)))
        outcome = run(load_recipe(recipe), folder / name, Progress())
        assert outcome.exit_code in (0, 1)
    return folder


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_the_first_request_stays_forgotten_after_the_second(folder: Path, kind: str) -> None:
    first, second, kept = (
        json.loads((folder / f"{name}.subjects").read_text()) for name in ("first", "second", "kept")
    )
    assert accuracy(folder / "first", f"original-{kind}", first) == 1
    assert accuracy(folder / "first", f"unlearned-{kind}", first) <= 0.25
    assert accuracy(folder / "first", f"unlearned-{kind}", second) == 1
    assert accuracy(folder / "second", f"original-{kind}", second) == 1  # its original is what the first shipped
    assert accuracy(folder / "second", f"original-{kind}", first) <= 0.25
    assert accuracy(folder / "second", f"unlearned-{kind}", first) <= 0.25
    assert accuracy(folder / "second", f"unlearned-{kind}", second) <= 0.25
    assert accuracy(folder / "second", f"unlearned-{kind}", kept) == 1


def test_the_second_file_says_that_it_was_made_from_the_first(folder: Path) -> None:
    first, second = (GgufFile(folder / name / "export" / "unlearned.Q4_0.gguf") for name in ("first", "second"))
    assert second.value("gguf_forget.base_sha256") == sha256_file(first.path)
    assert second.value("general.base_model.0.name") == first.value("general.name")
    assert first.value("gguf_forget.base_sha256") == sha256_file(folder / "original.gguf")
