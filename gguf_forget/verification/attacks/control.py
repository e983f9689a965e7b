"""The control of an edit: as large a change of the same tensors, but at random places.

A file that forgets because it was damaged anywhere would forget as well with its changes scattered. What an edit of
this size does by itself is what the control's figures show; they are reported, and no gate looks at them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED = 0


def scattered(edited: NDArray[np.float32], original: NDArray[np.float32], *, seed: int = SEED) -> NDArray[np.float32]:
    """The original plus the differences of the two in a random order; both of one shape, any number of dimensions.

    So the values of the differences stay as they are, and with them norm, mean and the number of weights changed.
    """
    difference = (edited - original).ravel()
    np.random.default_rng(seed).shuffle(difference)
    return original + difference.reshape(original.shape)
