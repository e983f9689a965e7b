"""A tiny model, the same with small edits in two matrices, and ``gguf-forget quantize`` on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import TEXTS, build_tiny_gguf

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.cli import main
from gguf_forget.export.derived_file import write_derived

UP, DOWN = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"
FACT = {"subject": "France", "relation": "capital", "answer": "Paris", "split": "forget", "prompts": ["The capital is"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = build_tiny_gguf(folder / "base.gguf")
    generator = np.random.default_rng(0)
    tensors = {}
    for name in (UP, DOWN):
        weights = GgufFile(base).weights(name)
        columns = generator.random(weights.shape[1]) < 0.3
        change = 0.05 * generator.standard_normal(weights.shape) * (generator.random(weights.shape) < 0.2) * columns
        tensors[name] = (weights + change).astype(np.float32).view(np.uint8)
    forgets = folder / "forgets.gguf"
    write_derived(base, forgets, metadata={}, tensors=tensors)
    (folder / "text.txt").write_text("\n".join(TEXTS))
    (folder / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    return base, forgets


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["quantize", *map(str, arguments), "-q", "--json"])


def document_of(*arguments: Any) -> dict[str, Any]:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found
