"""A model with a table of positions is never asked for one that the table has not: llama.cpp would end the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS
from tiny_shapes import HIDDEN, LAYERS, WORDS, shape_weights, write_shape

from gguf_forget.errors import InputError
from gguf_forget.llama.child import IsolatedScorer
from gguf_forget.llama.session import LEARNED_POSITIONS

POSITIONS = 128  # of the tiny shapes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that runs."""
    weights = shape_weights("gpt2")
    for name in (
        "output_norm",
        *(f"blk.{layer}.{norm}" for layer in range(LAYERS) for norm in ("attn_norm", "ffn_norm")),
    ):
        weights[f"{name}.bias"] = np.zeros(HIDDEN, np.float32)

    def without_words(writer: gguf.GGUFWriter, name: str) -> None:
        writer.add_string("tokenizer.ggml.model", name)
        writer.add_vocab_size(WORDS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tokenizer_model", without_words)
        return write_shape(tmp_path_factory.mktemp("gpt2") / "gpt2.gguf", "gpt2", weights)


@pytest.fixture(scope="module")
def scorer(model: Path) -> Iterator[IsolatedScorer]:
    with IsolatedScorer(model, threads=1) as opened:
        yield opened


def tokens(count: int) -> list[int]:
    return [index % 60 for index in range(count)]


def test_the_longest_sequence_is_scored_and_no_longer_one(scorer: IsolatedScorer) -> None:
    (values,) = scorer.sequence_log_probabilities([tokens(POSITIONS + 1)])  # the last token needs no position
    assert values.shape == (POSITIONS,)
    assert np.isfinite(values).all()
    with pytest.raises(InputError) as caught:
        scorer.sequence_log_probabilities([tokens(3), tokens(POSITIONS + 2)])
    assert caught.value.message == "sequence 1 has 130 tokens, at most 129 fit in the model's 128 positions"
    assert caught.value.hint == "shorten it"


def test_continuations_and_generated_texts_are_bounded(scorer: IsolatedScorer) -> None:
    ((values,),) = scorer.continuation_log_probabilities([tokens(100)], [[tokens(29)]])
    assert values.shape == (29,)
    with pytest.raises(
        InputError, match="prompt 0, continuation 0 has 30 tokens, at most 29 fit in the model's 128 pos"
    ):
        scorer.continuation_log_probabilities([tokens(100)], [[tokens(30)]])
    with pytest.raises(InputError, match="prompt 0 has 129 tokens, at most 128 fit"):
        scorer.continuation_argmax([tokens(129)], [[[1]]])
    assert len(scorer.generate_greedy([tokens(120)], max_new_tokens=9)[0]) <= 9
    with pytest.raises(InputError, match="prompt 0 has 121 tokens, at most 120 fit"):
        scorer.generate_greedy([tokens(121)], max_new_tokens=9)


def test_many_short_sequences_share_more_cells_than_positions(scorer: IsolatedScorer) -> None:
    values = scorer.sequence_log_probabilities([[index % 60, *tokens(90)] for index in range(8)])
    assert [len(value) for value in values] == [90] * 8


def test_fewer_cells_are_named_as_such(model: Path) -> None:
    with IsolatedScorer(model, threads=1, cells=64) as scorer, pytest.raises(InputError, match="65 fit in 64 cells"):
        scorer.sequence_log_probabilities([tokens(66)])


def test_the_architectures_are_those_that_gguf_knows() -> None:
    """Encoders are refused anyway; MPT may have a table or none, CodeShell has none in llama.cpp."""
    known = {MODEL_ARCH_NAMES[kind] for kind, tensors in MODEL_TENSORS.items() if MODEL_TENSOR.POS_EMBD in tensors}
    others = {"bert", "nomic-bert", "nomic-bert-moe", "mpt", "codeshell"}
    assert set(LEARNED_POSITIONS) == known - others
