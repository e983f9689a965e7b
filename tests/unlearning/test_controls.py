"""Controls keep the sizes that they are to match."""

from __future__ import annotations

import numpy as np

from gguf_forget.unlearning.controls import rounding_noise, shuffled_edit


def test_a_shuffled_edit_has_the_same_magnitudes_on_allowed_weights() -> None:
    generator = np.random.default_rng(0)
    delta = generator.standard_normal((6, 50)).astype(np.float32)
    allowed = generator.random((6, 50)) < 0.5
    delta[~allowed] = 0
    found = shuffled_edit(delta, allowed, np.random.default_rng(1))
    assert found.dtype == np.float32
    assert not found[~allowed].any()
    assert np.array_equal(np.sort(np.abs(found[allowed])), np.sort(np.abs(delta[allowed])))
    assert abs(np.corrcoef(found[allowed], delta[allowed])[0, 1]) < 0.3
    assert np.array_equal(found, shuffled_edit(delta, allowed, np.random.default_rng(1)))


def test_noise_has_the_variance_of_the_rounding_block_by_block() -> None:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((4000, 72)).astype(np.float32)
    steps = np.repeat([0.1, 0.4, 0.0], [32, 32, 8]).astype(np.float32)
    quantized = weights.copy()
    quantized[:, :64] = np.round(weights[:, :64] / steps[:64]) * steps[:64]
    noise = rounding_noise(weights, quantized, np.random.default_rng(1))
    assert noise.dtype == np.float32
    for part, step in ((slice(0, 32), 0.1), (slice(32, 64), 0.4)):
        assert abs(noise[:, part].std() / (step / 12**0.5) - 1) < 0.02
    assert not noise[:, 64:].any()
