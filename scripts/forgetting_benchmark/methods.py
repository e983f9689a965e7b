"""What is compared: name -> how its files are made.

A circuit method is a change of the recipe's [unlearn]; a baseline is a name of unlearning/baselines.py; a control is
made from the edit of the method itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gguf_forget.unlearning.baselines import BASELINES

OURS = "mansu"


@dataclass(frozen=True)
class Method:
    """``kind``: circuit, baseline, shuffled or noise. ``stock``: shipped by llama.cpp's own rounding, not bin-aware.
    ``baseline``: its name. ``every_phrasing``: trained on all that ours is, not on those alone that are asked about.
    """

    kind: str
    meaning: str
    changes: dict[str, Any] = field(default_factory=dict)
    stock: bool = False
    baseline: str = ""
    every_phrasing: bool = False

    @property
    def in_circuit(self) -> bool:
        """Whether it needs the attributed circuit, whose time is then its own."""
        return self.kind != "baseline" or self.baseline == "surgical_ga"


# Where no paper gives settings for a model and facts like these, the meaning says whose they are.
OWN_SETTINGS = {
    "npo": "with KL on kept facts, its authors' rate, beta and epochs",
    "sure": "a mask found once and a rate that are ours",
    "surgical_ga": "GA's settings in the circuit",
}


def _published(name: str, *, every_phrasing: bool = False) -> Method:
    phrasings = "every phrasing that ours trains on" if every_phrasing else "the trained phrasings that are asked about"
    settings = OWN_SETTINGS.get(name, "published defaults")
    meaning = f"{name}, {settings}, on {phrasings}, rounded by llama.cpp"
    return Method("baseline", meaning, stock=True, baseline=name, every_phrasing=every_phrasing)


METHODS: dict[str, Method] = {
    OURS: Method("circuit", "circuit, projection, floor, KL, through the grid, bin-aware (ours)"),
    "mansu_stock": Method("circuit", "the same weights, rounded by llama.cpp alone", stock=True),
    "mansu_npo": Method("circuit", "NPO in place of the chance-level target", {"objective": "npo"}),
    "no_floor": Method("circuit", "edits of any size, rounded by llama.cpp alone", {"floor": 0}, stock=True),
    "no_projection": Method("circuit", "no retain-Fisher projection", {"fisher_quantile": 1.0}),
    "no_divergence": Method(
        "circuit",
        "nothing that holds kept answers or text to the original",
        {"retain_weight": 0.0, "shortfall_weight": 0.0, "text_weight": 0.0},
    ),
    "random_circuit": Method("circuit", "a random circuit of equal size and layers", {"circuit": "random"}),
    **{name: _published(name) for name in BASELINES},
    "npo_every_phrasing": _published("npo", every_phrasing=True),
    "random_edit": Method("shuffled", "the edit's own magnitudes, shuffled inside the circuit"),
    "rounding_noise": Method("noise", "unlearned F32 weights with noise of the type's rounding variance, no grid"),
}
QUICK = (OURS, "npo", "random_circuit")
