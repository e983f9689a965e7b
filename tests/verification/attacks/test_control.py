"""The control edit: the same differences, elsewhere."""

from __future__ import annotations

import numpy as np

from gguf_forget.verification.attacks.control import scattered


def test_the_same_differences_at_other_places() -> None:
    generator = np.random.default_rng(5)
    original = generator.integers(-8, 8, (40, 30)).astype(np.float32)
    edited = original.copy()
    edited[3] += np.arange(30, dtype=np.float32) - 7
    control = scattered(edited, original)
    assert control.dtype == np.float32
    assert sorted((control - original).ravel()) == sorted((edited - original).ravel())
    assert (control - original)[3].astype(bool).sum() < 10
    np.testing.assert_array_equal(control, scattered(edited, original))
    assert (control != scattered(edited, original, seed=1)).any()
    np.testing.assert_array_equal(scattered(original, original), original)
