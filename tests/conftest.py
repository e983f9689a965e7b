"""What holds for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch or llama.cpp is loaded: threads that spin while they wait starve a machine that has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A busy machine is slow at times: no time limit for one example, and the same examples in every run.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a tiny model and facts, run once from start to end; tests leave it as it is."""
    from test_pipeline import RECIPE, facts, invoke
    from tiny import build_tiny_gguf

    from gguf_forget.facts.schema import dump_facts

    folder = tmp_path_factory.mktemp("project")
    # Trained on the facts themselves, so that different answers begin with different tokens.
    texts = [f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts + fact.held_out_prompts]
    build_tiny_gguf(folder / "model.gguf", texts=texts * 4)
    (folder / "facts.jsonl").write_bytes(dump_facts(facts()))
    (folder / "recipe.toml").write_text(RECIPE)
    result = invoke("run", folder / "recipe.toml", "-o", folder / "done", "--quiet")
    # A random model knows nothing: whatever the gates say is a verdict, 0 or 1, but never an error.
    assert result.exit_code in (0, 1), result.output
    return folder
