"""When two texts are the same words to a reader: one rule for what is joined and for what is judged."""

from __future__ import annotations

import unicodedata

_UNSEEN = ("Mn", "Cf")  # accents, and characters without a width
# Letters that NFKD leaves whole although people write them without the stroke.
_STROKED = str.maketrans(
    {
        "ł": "l",
        "ø": "o",
        "đ": "d",
        "ð": "d",
        "ħ": "h",
        "ŧ": "t",
        "æ": "ae",
        "œ": "oe",
        "þ": "th",
        "\u0131": "i",
    }
)  # the last is the dotless i


def normalise(text: str) -> str:
    """Lower-case words without accents, one space between them: NFKD, casefold, the rest dropped.

    What has no width of its own (soft hyphens, joiners) parts no word.
    """
    folded = unicodedata.normalize("NFKD", text.casefold()).casefold().translate(_STROKED)
    kept = (character for character in folded if unicodedata.category(character) not in _UNSEEN)
    spaced = (c if c.isalnum() or unicodedata.category(c) == "Mc" else " " for c in kept)
    return " ".join("".join(spaced).split())
