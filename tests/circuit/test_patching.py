"""Replaced neurons, against copies of the model whose down projections are other modules; one pair at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gguf_forget.circuit.neurons import score_neurons
from gguf_forget.circuit.patching import (
    ablation_effects,
    mean_neurons,
    patched_metrics,
    patching_effects,
    runs,
    sample_neurons,
)
from gguf_forget.circuit.ranks import spearman
from gguf_forget.circuit.selection import Circuit
from gguf_forget.errors import InputError
from gguf_forget.facts.corruption import Pair

PAIRS = (
    Pair((300, 20, 31), (301, 20, 31), 42, (50, 51), 0),
    Pair((7, 8, 9, 10, 11, 12), (7, 8, 99, 98, 11, 12), 60, (61, 62, 63), 1),
    Pair((200,), (210,), 5, (6,), 2),
    Pair((300, 20, 33, 34), (300, 25, 33, 34), 42, (50, 52), 3),
)
ORDER = (2, 0, 3, 1)  # by length, as batches are made
SHAPE = (2, 512)


class Down(nn.Module):
    """A down projection that remembers its input, and computes with another where ``kept`` is false."""

    def __init__(self, down: Any) -> None:
        super().__init__()
        self.down, self.kept, self.replacement = down, None, None
        self.in_features = down.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is not None:
            x = torch.where(self.kept, x, self.replacement)
        self.seen = x
        return self.down(x)


class Oracle:
    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model)
        self.downs = []
        for layer in self.model.model.layers:
            layer.mlp.down_proj = Down(layer.mlp.down_proj)
            self.downs.append(layer.mlp.down_proj)

    def run(self, ids: tuple[int, ...], pair: Pair, kept: Any = None, replacement: Any = None) -> tuple[float, Any]:
        for layer, down in enumerate(self.downs):
            down.kept = None if kept is None else torch.from_numpy(kept[layer])
            down.replacement = None if kept is None else replacement[layer]
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0, -1]
        difference = logits[pair.answer] - logits[list(pair.distractors)].mean()
        return float(difference), [down.seen.clone() for down in self.downs]


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    half = generator.random(SHAPE) < 0.5
    one_layer = np.ones(SHAPE, dtype=bool)
    one_layer[1, ::3] = False
    return [half, one_layer, np.zeros(SHAPE, dtype=bool), np.ones(SHAPE, dtype=bool)]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_resampled_neurons_equal_the_oracle(tiny_double: Any, masks: list[np.ndarray], batch_size: int) -> None:
    steps: list[int] = []
    found = patched_metrics(tiny_double, PAIRS, masks, batch_size=batch_size, progress=steps.append)
    oracle = Oracle(tiny_double)
    for column, index in enumerate(ORDER):
        pair = PAIRS[index]
        clean, _ = oracle.run(pair.clean, pair)
        corrupted, neurons = oracle.run(pair.corrupted, pair)
        assert found.clean[column] == pytest.approx(clean, rel=1e-9)
        assert found.corrupted[column] == pytest.approx(corrupted, rel=1e-9)
        for row, kept in enumerate(masks):
            expected, _ = oracle.run(pair.clean, pair, kept, neurons)
            assert found.patched[row, column] == pytest.approx(expected, rel=1e-9)
    assert found.patched.shape == (4, 4)
    assert np.array_equal(found.patched[3], found.clean)  # nothing replaced
    assert sum(steps) == runs(4, 4, batch_size=batch_size)


def test_neurons_replaced_by_their_mean_equal_the_oracle(tiny_double: Any, masks: list[np.ndarray]) -> None:
    oracle = Oracle(tiny_double)
    seen = [oracle.run(pair.clean, pair)[1] for pair in PAIRS]
    mean = np.stack([torch.cat([each[layer][0] for each in seen]).mean(dim=0).numpy() for layer in (0, 1)])
    found_mean = mean_neurons(tiny_double, PAIRS, batch_size=3)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-9, atol=1e-15)
    found = patched_metrics(tiny_double, PAIRS, masks[:1], fill=mean)
    for column, index in enumerate(ORDER):
        expected, _ = oracle.run(PAIRS[index].clean, PAIRS[index], masks[0], torch.from_numpy(mean))
        assert found.patched[0, column] == pytest.approx(expected, rel=1e-9)


def test_single_neurons_equal_the_oracle_and_scores_rank_like_them(tiny_double: Any) -> None:
    scores = score_neurons(tiny_double, PAIRS, integration_steps=8).scores.numpy()
    top, random = sample_neurons(scores, top=12, random=6, seed=0)
    chosen = np.concatenate([top, random])
    found = patching_effects(tiny_double, PAIRS, chosen, SHAPE, batch_size=2)
    oracle = Oracle(tiny_double)
    for neuron, effect in zip(chosen[[0, 11, 17]], found[[0, 11, 17]], strict=True):
        kept = np.ones(SHAPE, dtype=bool)
        kept[divmod(int(neuron), 512)] = False
        expected = 0.0
        for pair in PAIRS:
            _, neurons = oracle.run(pair.corrupted, pair)
            expected += oracle.run(pair.clean, pair)[0] - oracle.run(pair.clean, pair, kept, neurons)[0]
        assert effect == pytest.approx(expected / len(PAIRS), rel=1e-7)
    assert spearman(scores.reshape(-1)[chosen], found) > 0.9
    assert np.sign(scores.reshape(-1)[top]).tolist() == np.sign(found[:12]).tolist()


def test_the_sample_is_the_top_and_others_at_random() -> None:
    scores = np.array([[0.0, -9.0, 1.0], [5.0, 2.0, -3.0]])
    top, random = sample_neurons(scores, top=3, random=2, seed=0)
    assert top.tolist() == [1, 3, 5]
    assert len(set(random.tolist())) == 2
    assert set(random.tolist()) <= {0, 2, 4}
    assert len({tuple(sample_neurons(scores, top=3, random=2, seed=seed)[1]) for seed in range(9)}) > 1


def test_the_effect_of_an_ablation_by_hand(tiny_double: Any) -> None:
    circuit = Circuit((np.arange(0, 512, 4), np.array([3, 7])), 512)
    nothing = Circuit((np.array([], dtype=np.int64),) * 2, 512)
    found, none = ablation_effects(tiny_double, PAIRS, [circuit, nothing])
    metrics = patched_metrics(tiny_double, PAIRS, [~circuit.mask()])
    drops = metrics.clean - metrics.patched[0]
    assert found.drop == pytest.approx(drops.sum() / 4)
    variance = sum((value - drops.sum() / 4) ** 2 for value in drops) / 3
    assert found.standard_error == pytest.approx((variance / 4) ** 0.5)
    assert found.share_of_gap == pytest.approx(drops.sum() / (metrics.clean - metrics.corrupted).sum())
    assert found.right_before == (metrics.clean > 0).sum() / 4
    assert found.right_after == (metrics.patched[0] > 0).sum() / 4
    assert found.pairs == 4
    assert (none.drop, none.share_of_gap) == (0.0, 0.0)


def test_free_text_has_no_share_of_right_answers(tiny_model: Any) -> None:
    pair = Pair((7, 8, 9, 60), (7, 99, 9, 60), 60, (), 0, answer_tokens=(60, 61))
    (effect,) = ablation_effects(tiny_model, [pair], [Circuit((np.array([1]), np.array([2])), 512)])
    assert (effect.right_before, effect.right_after) == (None, None)
    assert np.isnan(effect.standard_error)


def test_the_model_is_left_as_found_also_after_an_error(tiny_model: Any, masks: list[np.ndarray]) -> None:
    ids = torch.tensor([[300, 20, 31]])
    with torch.no_grad():
        before = tiny_model(ids).logits
    patched_metrics(tiny_model, PAIRS, masks)

    class Stop(Exception):
        pass

    def stop(_done: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        patched_metrics(tiny_model, PAIRS, masks, progress=stop)
    beyond = Pair((300, 20), (300, 21), 100_000, (50,), 0)
    with pytest.raises(IndexError):
        patched_metrics(tiny_model, [beyond], masks)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny_model.modules())
    with torch.no_grad():
        assert torch.equal(tiny_model(ids).logits, before)


def test_no_pairs_are_refused(tiny_model: Any, masks: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="no pairs"):
        patched_metrics(tiny_model, [], masks)
    with pytest.raises(InputError, match="no pairs"):
        mean_neurons(tiny_model, [])
