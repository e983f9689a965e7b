"""Greedy and sampled text against one token at a time from the slow scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from single_sequence import SingleSequence

from gguf_forget.errors import InputError
from gguf_forget.llama.scorer import Scorer


def greedy_by_argmax(oracle: SingleSequence, prompt: list[int], end: frozenset[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < count:
        best = int(oracle.log_probabilities(tokens)[-1].argmax())
        if best in end:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("cells", "batch", "max_sequences"), [(1024, 256, 128), (48, 8, 3), (20, 4, 1)])
def test_greedy_equals_argmax_one_by_one(
    tiny_model: Path, oracle: SingleSequence, cells: int, batch: int, max_sequences: int
) -> None:
    prompts = [[50, 60, 70], [50, 60], [50, 60, 70], [300], [120, 50, 60, 70, 80, 90], [7, 7]]
    with Scorer(tiny_model, threads=2, cells=cells, batch=batch, max_sequences=max_sequences) as scorer:
        for count in (1, 7):
            generated = scorer.generate_greedy(prompts, max_new_tokens=count)
            assert generated == [greedy_by_argmax(oracle, p, scorer.end_of_generation, count) for p in prompts]
            assert all(len(tokens) == count for tokens in generated[:3])


def test_greedy_stops_before_end_of_generation(tiny_model: Path, oracle: SingleSequence) -> None:
    prompts = [[50, 60, 70], [300], [7, 7]]
    with Scorer(tiny_model, threads=2) as scorer:
        assert scorer.end_of_generation == {0, 2}  # <|endoftext|>, and <|im_end|> named as EOS
        free = scorer.generate_greedy(prompts, max_new_tokens=8)
        end = frozenset({free[0][3]})
        scorer.__dict__["end_of_generation"] = end
        stopped = scorer.generate_greedy(prompts, max_new_tokens=8)
    assert stopped[0] == free[0][: free[0].index(free[0][3])]
    assert stopped == [greedy_by_argmax(oracle, prompt, end, 8) for prompt in prompts]


def sampled_by_cumulative_sum(
    oracle: SingleSequence, prompt: list[int], stream: np.random.Generator, temperature: float, count: int
) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        weights = np.exp(oracle.log_probabilities(tokens)[-1] / temperature)
        shares = np.cumsum(weights / weights.sum())
        token = int(np.flatnonzero(shares > stream.random())[0])
        if token in (0, 2):
            break
        tokens.append(token)
    return tokens[len(prompt) :]


PROMPTS = [[50, 60, 70], [50, 60], [50, 60, 70], [120, 50, 60, 70, 80, 90]]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_samples_equal_the_cumulative_sum_one_by_one(
    tiny_model: Path, oracle: SingleSequence, temperature: float
) -> None:
    with Scorer(tiny_model, threads=2) as scorer:
        drawn = scorer.generate_sampled(PROMPTS, max_new_tokens=5, samples=3, temperature=temperature, seed=7)
    for i, (prompt, samples) in enumerate(zip(PROMPTS, drawn, strict=True)):
        for j, tokens in enumerate(samples):
            stream = np.random.default_rng([7, i, j])
            assert tokens == sampled_by_cumulative_sum(oracle, prompt, stream, temperature, 5)


def test_a_sample_depends_on_its_place_alone(tiny_model: Path) -> None:
    with Scorer(tiny_model, threads=2, cells=64, batch=16, max_sequences=5) as scorer:
        many = scorer.generate_sampled(PROMPTS, max_new_tokens=6, samples=4, seed=1)
        few = scorer.generate_sampled(PROMPTS[:2], max_new_tokens=6, samples=2, seed=1)
        again = scorer.generate_sampled(PROMPTS, max_new_tokens=6, samples=4, seed=1)
        other = scorer.generate_sampled(PROMPTS, max_new_tokens=6, samples=4, seed=2)
    assert few == [samples[:2] for samples in many[:2]]
    assert again == many
    assert other != many
    assert len({tuple(tokens) for samples in many for tokens in samples}) == 16


def test_a_low_temperature_is_greedy(tiny_model: Path) -> None:
    with Scorer(tiny_model, threads=2) as scorer:
        drawn = scorer.generate_sampled(PROMPTS, max_new_tokens=6, samples=2, temperature=1e-4, seed=0)
        best = scorer.generate_greedy(PROMPTS, max_new_tokens=6)
    assert drawn == [[tokens, tokens] for tokens in best]


def test_frequencies_follow_the_probabilities(tiny_model: Path, oracle: SingleSequence) -> None:
    with Scorer(tiny_model, threads=2) as scorer:
        (drawn,) = scorer.generate_sampled([[50, 60]], max_new_tokens=1, samples=2000, seed=3)
    counts = np.bincount([tokens[0] if tokens else 0 for tokens in drawn], minlength=493)
    expected = 2000 * np.exp(oracle.log_probabilities([50, 60])[-1])
    common = expected > 8
    assert common.sum() > 30
    chi_square = ((counts - expected) ** 2 / expected)[common].sum()
    assert chi_square < 1.5 * common.sum()


def test_what_sampling_refuses(scorer: Scorer) -> None:
    with pytest.raises(InputError, match="samples is 0"):
        scorer.generate_sampled([[5]], max_new_tokens=1, samples=0, seed=0)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature is"):
            scorer.generate_sampled([[5]], max_new_tokens=1, samples=1, temperature=temperature, seed=0)
    with pytest.raises(InputError, match="seed is -1"):
        scorer.generate_sampled([[5]], max_new_tokens=1, samples=1, seed=-1)
    with pytest.raises(InputError, match="prompt 1 has 1025 tokens"):
        scorer.generate_sampled([[5], [5] * 1025], max_new_tokens=1, samples=3, seed=0)
    assert scorer.generate_sampled([], max_new_tokens=1, samples=3, seed=0) == []
