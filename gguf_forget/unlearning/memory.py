"""How much memory training takes, before it starts."""

from __future__ import annotations

# float32 for each weight of the circuit: step, room down and up, latent, edit, gradient, three of Adam, two of the kept
# facts' Fisher (float64), three of a state that is being saved; and for each grid beside the first step and room again.
WHOLE_EDIT, OTHER_GRID = 14, 3
LOGITS = 4  # float32 copies of the scored positions' logits: themselves, log-probabilities, gradient, the reference's


def training_memory(
    *, parameters: int, bases: int, circuit_weights: int, positions: int, vocabulary: int, weight_bytes: int
) -> int:
    """Bytes, roughly: ``bases`` models (the original, and on each grid) at ``weight_bytes`` each weight, the edit with
    its optimizer, and logits.

    ``positions``: scored in one part of a batch. For hidden states see :func:`activation_memory`.
    """
    edit = 4 * (WHOLE_EDIT + OTHER_GRID * max(0, bases - 2)) * circuit_weights
    return weight_bytes * bases * parameters + edit + 4 * LOGITS * positions * vocabulary


def activation_memory(
    *,
    tokens: int,
    longest: int,
    layers: int,
    d_model: int,
    d_ff: int,
    heads: int,
    keys_and_values: int,
    weight_bytes: int,
    recompute: bool,
) -> int:
    """Bytes, roughly, that ``layers`` decoder layers keep of ``tokens`` tokens until the backward pass has passed them.

    A layer keeps the inputs of its two norms in float32; queries, what attention found, and both norms' outputs, all
    of ``d_model``; keys and values, ``keys_and_values`` numbers a token together; the shares of attention, one for each
    of ``heads`` and of the ``longest`` row's tokens; and four numbers of each of ``d_ff`` neurons. With ``recompute``
    it keeps its input alone, and one layer at a time all of that.
    """
    numbers = 4 * d_model + keys_and_values + heads * longest + 4 * d_ff
    layer = 2 * 4 * d_model + weight_bytes * numbers
    if recompute:
        return tokens * (weight_bytes * d_model * layers + layer)
    return tokens * layer * layers
