"""How much memory training takes, before it starts."""

from __future__ import annotations

WHOLE_EDIT = 9  # float32 for each weight of the circuit: step, room down and up, latent, edit, gradient, three of Adam
LOGITS = 4  # float32 copies of the scored positions' logits: themselves, log-probabilities, gradient, the reference's


def training_memory(
    *, parameters: int, bases: int, circuit_weights: int, positions: int, vocabulary: int, weight_bytes: int
) -> int:
    """Bytes, roughly: ``bases`` models at ``weight_bytes`` each weight, the edit with its optimizer, and logits.

    ``positions``: scored in one part of a batch. Hidden states, which depend on the attention used, are left out.
    """
    return weight_bytes * bases * parameters + 4 * WHOLE_EDIT * circuit_weights + 4 * LOGITS * positions * vocabulary
