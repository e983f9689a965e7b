"""One tiny model for all the tests of the door to llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from single_sequence import SingleSequence
from tiny import build_tiny_gguf

from gguf_forget.llama.scorer import Scorer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def scorer(tiny_model: Path) -> Iterator[Scorer]:
    with Scorer(tiny_model, threads=2, cells=1024, batch=256) as opened:
        yield opened


@pytest.fixture(scope="session")
def oracle(tiny_model: Path) -> Iterator[SingleSequence]:
    single = SingleSequence(tiny_model)
    yield single
    single.close()
