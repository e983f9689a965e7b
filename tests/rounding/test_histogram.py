"""The histogram of edit sizes against exact quantiles."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.rounding import StepHistogram


def test_quantiles_are_right_to_a_bin() -> None:
    generator = np.random.default_rng(0)
    delta = (generator.standard_normal((40, 50)) * np.exp(3 * generator.standard_normal((40, 50)))).astype(np.float32)
    steps = generator.uniform(0.1, 2.0, delta.shape).astype(np.float32)
    whole, first, second = StepHistogram(), StepHistogram(), StepHistogram()
    whole.add(delta, steps)
    first.add(delta[:11], steps[:11])
    second.add(delta[11:], steps[11:])
    first.merge(second)
    np.testing.assert_array_equal(first.counts, whole.counts)
    for share in (0.05, 0.5, 0.95):
        assert whole.quantile(share) == pytest.approx(np.quantile(np.abs(delta / steps), share), rel=0.1)


def test_weights_without_edit_or_step_are_not_counted_and_extremes_are() -> None:
    histogram = StepHistogram()
    assert histogram.quantile(0.5) is None
    histogram.add(np.array([0.0, 1.0, -1e30, 1e-30]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert histogram.counts.sum() == 2
    assert histogram.counts[0] == histogram.counts[-1] == 1
