"""Argmax and top tokens along given text, against the slow scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from single_sequence import SingleSequence

from gguf_forget.errors import InputError
from gguf_forget.llama.scorer import Scorer


@pytest.mark.parametrize(("cells", "batch", "max_sequences"), [(1024, 256, 128), (40, 7, 3)])
def test_argmax_equals_one_sequence_at_a_time(
    tiny_model: Path, oracle: SingleSequence, cells: int, batch: int, max_sequences: int
) -> None:
    prompts = [[50, 60, 70], [50, 60], [300]]
    with Scorer(tiny_model, threads=2, cells=cells, batch=batch, max_sequences=max_sequences) as scorer:
        # What the model would say itself, and with one token changed: both outcomes occur.
        said = scorer.generate_greedy(prompts, max_new_tokens=6)
        changed = [[*tokens[:3], 9, *tokens[4:]] for tokens in said]
        continuations = [[*pair, [4, 5]] for pair in zip(said, changed, strict=True)]
        found = scorer.continuation_argmax(prompts, continuations)
    for prompt, parts, matches in zip(prompts, continuations, found, strict=True):
        for part, match in zip(parts, matches, strict=True):
            table = oracle.log_probabilities(prompt + part)
            expected = [int(table[len(prompt) - 1 + k].argmax()) == token for k, token in enumerate(part)]
            assert match.dtype == np.bool_
            assert match.tolist() == expected
        assert matches[0].all()
        assert matches[1].tolist()[:4] == [True, True, True, False]


def test_top_tokens_equal_one_sequence_at_a_time(tiny_model: Path, oracle: SingleSequence) -> None:
    generator = np.random.default_rng(4)
    sequences = [generator.integers(3, 400, length).tolist() for length in (30, 2, 1, 75)]
    sequences.append([*sequences[0][:20], 7, 8])
    with Scorer(tiny_model, threads=2, cells=128, batch=32) as scorer:
        found = scorer.top_log_probabilities(sequences, k=5)
        own = scorer.sequence_log_probabilities(sequences)
    assert [len(part.tokens) for part in found] == [29, 1, 0, 74, 21]
    assert found[2].tokens.shape == found[2].log_probabilities.shape == (0, 5)
    for tokens, part, scores in zip(sequences, found, own, strict=True):
        table = oracle.log_probabilities(tokens)[:-1]
        np.testing.assert_array_equal(part.tokens, np.argsort(-table, axis=1, kind="stable")[:, :5])
        expected = np.take_along_axis(table, part.tokens, axis=1)
        np.testing.assert_allclose(part.log_probabilities, expected, rtol=0, atol=1e-4)
        mean = (np.exp(table) * table).sum(axis=1)
        np.testing.assert_allclose(part.mean, mean, rtol=0, atol=1e-4)
        variance = (np.exp(table) * (table - mean[:, None]) ** 2).sum(axis=1)
        np.testing.assert_allclose(part.variance, variance, rtol=0, atol=1e-4)
        among = part.tokens == np.array(tokens[1:])[:, None]
        np.testing.assert_allclose(
            part.log_probabilities[among], scores[among.any(axis=1)], rtol=0, atol=2e-6
        )  # the same logits, summed in float64 here


def test_how_many_top_tokens_there_may_be(scorer: Scorer) -> None:
    (everything,) = scorer.top_log_probabilities([[5, 6]], k=scorer.vocabulary_size)
    assert np.exp(everything.log_probabilities).sum() == pytest.approx(1.0)
    for k in (0, scorer.vocabulary_size + 1):
        with pytest.raises(InputError, match=f"k is {k}, needed: 1 to 493"):
            scorer.top_log_probabilities([[5, 6]], k=k)
