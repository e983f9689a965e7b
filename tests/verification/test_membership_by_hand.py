"""Min-K % and its relatives on a handful of numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.membership import area_under_curve, min_k, min_k_plus_plus, privacy_leak


def test_min_k_is_the_mean_of_the_least_probable_share() -> None:
    assert min_k([-1.0, -5.0, -2.0, -4.0, -3.0]) == -4.5  # 40 % of five tokens are two
    assert min_k([-1.0, -5.0], share=0.1) == -5.0  # never less than one
    assert min_k([-1.0, -2.0], share=1.0) == -1.5
    assert math.isnan(min_k([]))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(EvaluationError, match="share of tokens"):
        min_k([-1.0], share=share)


def test_min_k_plus_plus_standardises_each_position() -> None:
    # (−1 − −2)/1 = 1; (−5 − −3)/2 = −1; (−2 − −2)/… = 0
    assert min_k_plus_plus([-1.0, -5.0, -2.0], [-2.0, -3.0, -2.0], [1.0, 4.0, 9.0], share=0.7) == -0.5
    assert min_k_plus_plus([0.0], [0.0], [0.0]) == 0.0  # a model that is certain


def test_area_under_curve_is_the_share_of_pairs_won() -> None:
    assert area_under_curve([3.0, 2.0], [1.0, 2.0]) == (1 + 1 + 1 + 0.5) / 4
    assert area_under_curve([1.0], [1.0]) == 0.5
    members, others = np.random.default_rng(0).normal(size=(2, 30))
    pairs = [(a > b) + (a == b) / 2 for a in members for b in others]
    assert area_under_curve(members, others) == pytest.approx(np.mean(pairs))
    assert math.isnan(area_under_curve([], [1.0]))
    assert math.isnan(area_under_curve([math.nan], [1.0]))


def test_privacy_leak_is_relative_to_the_retrained_model() -> None:
    assert privacy_leak(0.75, 0.5) == 50.0
    assert privacy_leak(0.25, 0.5) == -50.0
    assert math.isnan(privacy_leak(0.5, 0.0))
