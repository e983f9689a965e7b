"""Plain text in two halves that never meet, its chunks, and text that the model writes itself."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_forget.errors import InputError
from gguf_forget.facts.text import builtin_documents, chunks, file_documents, sample_model


def test_the_built_in_halves_are_disjoint_whole_and_steady() -> None:
    from pydoc_data.topics import topics

    train, measure = builtin_documents("train"), builtin_documents("measure")
    assert set(train).isdisjoint(measure)
    assert sorted(train + measure) == sorted(topics.values())
    assert min(len(train), len(measure)) > 20
    assert builtin_documents("train") == train


def test_a_file_is_split_at_its_middle_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n\n\n\ntwo\nlines\n\n  \n\nthree\n\nfour\n\nfive\n", encoding="utf-8")
    assert file_documents(path, "train") == ["one\n\ntwo\nlines"]
    assert file_documents(path, "measure") == ["three\n\nfour\n\nfive"]


def test_a_text_file_that_cannot_be_halved_or_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("only one paragraph\n", encoding="utf-8")
    with pytest.raises(InputError, match="has 1 paragraphs, needed at least 2"):
        file_documents(path, "train")
    path.write_bytes(b"S\xe3o")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        file_documents(path, "train")
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        file_documents(tmp_path / "none.txt", "train")


def test_chunks_are_distinct_stretches_of_the_documents() -> None:
    documents = ["a" * 11, "b" * 7, "c" * 3]

    def tokenize(text: str) -> list[int]:
        return [100 * ord(text[0]) + place for place in range(len(text))]

    everything = chunks(documents, tokenize, length=4, count=99, seed=0)
    first, second = 100 * ord("a"), 100 * ord("b")
    assert sorted(everything) == [
        [first, first + 1, first + 2, first + 3],
        [first + 4, first + 5, first + 6, first + 7],
        [second, second + 1, second + 2, second + 3],
    ]
    two = chunks(documents, tokenize, length=4, count=2, seed=1)
    assert len(two) == 2
    assert two[0] != two[1]
    assert two == chunks(documents, tokenize, length=4, count=2, seed=1)
    with pytest.raises(InputError, match="no stretch of 12 tokens"):
        chunks(documents, tokenize, length=12, count=1, seed=0)


def test_samples_follow_the_model_step_by_step(tiny_model: Any) -> None:
    """The oracle runs the whole prefix anew for every token, without a cache, drawing with the same seed."""
    told: list[int] = []
    found = sample_model(tiny_model, count=66, length=9, seed=5, progress=told.append)
    generator = torch.Generator().manual_seed(5)
    expected: list[list[int]] = []
    with torch.no_grad():
        for size in (64, 2):
            ids = torch.full((size, 1), tiny_model.config.bos_token_id)
            for _ in range(8):
                probabilities = torch.stack([tiny_model(row[None]).logits[0, -1] for row in ids]).softmax(-1)
                ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
            expected += ids.tolist()
    assert found == expected
    assert told == [64, 2]
    assert found == sample_model(tiny_model, count=66, length=9, seed=5)
    assert found != sample_model(tiny_model, count=66, length=9, seed=6)


def test_first_tokens_are_drawn_with_the_model_s_probabilities(tiny_model: Any) -> None:
    """Pearson's chi-square over the likeliest tokens; its bound is five standard deviations away."""
    count, kept = 4000, 30
    drawn = Counter(sequence[1] for sequence in sample_model(tiny_model, count=count, length=2, seed=0))
    with torch.no_grad():
        start = torch.tensor([[tiny_model.config.bos_token_id]])
        probabilities = tiny_model(start).logits[0, -1].double().softmax(-1)
    top = probabilities.topk(kept)
    rest = float(1 - top.values.sum())
    pairs = [(drawn[int(t)], count * float(p)) for p, t in zip(top.values, top.indices, strict=True)]
    pairs.append((count - sum(found for found, _ in pairs), count * rest))
    statistic = sum((found - expected) ** 2 / expected for found, expected in pairs)
    assert statistic < kept + 5 * math.sqrt(2 * kept)
