"""The truncated divergence: exact where everything is kept, a lower bound elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.divergence import truncated_divergence


def top(p: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-p, axis=1)[:, :k]
    return order, np.log(np.take_along_axis(p, order, axis=1))


def distributions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(50, 0.3), size=20)
    q = 0.7 * p + 0.3 * generator.dirichlet(np.full(50, 0.3), size=20)
    return p, q


def test_by_hand() -> None:
    # p = (.5, .3, .2), q = (.25, .6, .15), two kept; in common: tokens 0 and 1, the rest .2 and .15
    found = truncated_divergence([[0, 1]], np.log([[0.5, 0.3]]), [[1, 0]], np.log([[0.6, 0.25]]))
    assert found == pytest.approx([0.5 * np.log(2) + 0.3 * np.log(0.5) + 0.2 * np.log(0.2 / 0.15)])


def test_whole_vocabularies_give_the_full_divergence() -> None:
    p, q = distributions(0)
    full = (p * np.log(p / q)).sum(axis=1)
    assert truncated_divergence(*top(p, 50), *top(q, 50)) == pytest.approx(full, abs=1e-6)


def test_fewer_tokens_give_a_lower_bound_that_grows() -> None:
    p, q = distributions(1)
    full = (p * np.log(p / q)).sum(axis=1)
    found = [truncated_divergence(*top(p, k), *top(q, k)) for k in (1, 5, 20, 50)]
    assert all((values <= full + 1e-9).all() for values in found)
    means = [values.mean() for values in found]
    assert means == sorted(means)


def test_equal_files_diverge_nowhere_and_disjoint_ones_by_what_is_known() -> None:
    p, _ = distributions(2)
    assert truncated_divergence(*top(p, 7), *top(p, 7)) == pytest.approx(np.zeros(20), abs=1e-12)
    nothing_in_common = truncated_divergence([[0]], [[np.log(0.9)]], [[1]], [[np.log(0.9)]])
    assert nothing_in_common == [0.0]


def test_shapes_are_checked() -> None:
    with pytest.raises(EvaluationError, match="needed \\[positions, k\\]"):
        truncated_divergence([[0]], [[0.0]], [[0], [1]], [[0.0], [0.0]])
