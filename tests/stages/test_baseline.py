"""What a baseline is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_pipeline import facts
from tiny import build_tiny_gguf

from gguf_forget.facts.schema import dump_facts
from gguf_forget.progress import Progress
from gguf_forget.stages.baseline import train_baseline


@pytest.mark.parametrize("phrasings", [1, None])
def test_baselines_train_on_the_phrasings_asked_for_or_on_all(tmp_path: Path, phrasings: int | None) -> None:
    texts = [f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts]
    build_tiny_gguf(tmp_path / "model.gguf", texts=texts * 4)
    (tmp_path / "facts.jsonl").write_bytes(dump_facts(facts()))
    text = [list(range(16))]
    (tmp_path / "text.json").write_text(json.dumps({"train": text, "samples": text, "measure": text}))
    arguments = ("ga", tmp_path / "model.gguf", tmp_path, tmp_path, Progress())
    train_baseline(*arguments, trained_phrasings=phrasings, seed=0, batch=1)
    forgotten = [fact for fact in facts() if fact.split == "forget"]
    prompts = sum(len(fact.prompts[:phrasings]) for fact in forgotten)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 5 * prompts  # epochs
    assert sum(len(fact.prompts) for fact in forgotten) > len(forgotten)
