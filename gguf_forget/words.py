"""When two texts are the same words to a reader: what is judged, and what is joined (where signs count as well).

A text has several readings, because people write a name in several ways ("D.C.", "DC"; "1,000", "1000"; "Sana'a",
"Sanaa"; a joiner of no width in place of a space). Two texts agree where a reading of one is a reading of the other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_INITIALS = re.compile(r"(?<!\w)([^\W\d])\.\s?(?=[^\W\d](?!\w))")  # what parts two of them
_THOUSANDS = re.compile(r"(?<=\d)[,'’\u00a0\u202f](?=\d{3}(?!\d))")
# Within a word, but for English short forms ("she'll" is no "Shell").
_APOSTROPHES = re.compile(
    r"(?<=[^\W\d])['`\u00b4\u02bb-\u02bf\u2018\u2019\u2032\uff07](?=[^\W\d])(?!(?:ll|re|ve|d|m|t)(?!\w))", re.IGNORECASE
)
_POSSESSIVE = re.compile(r"['`\u2018\u2019](?=s(?!\w))", re.IGNORECASE)
# Scripts written without spaces, or with endings glued to a name: a word boundary would hide an answer.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# Where a mark over or under a letter is an accent, or a vowel that is mostly left out: elsewhere another letter.
_ACCENTED = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "SYRIAC")
_ANYWHERE = ("COMBINING", "VARIATION SELECTOR")  # marks of no script, but for those of Japanese kana
_VOICED = "\u3099\u309a"
# Signs that make another name of the same letters: blood types, languages, charges, numbers below zero.
_SIGNS = {"+": " plus ", "#": " sharp ", "*": " star ", "-": " minus ", "\u2212": " minus ", "\u2013": " minus "}
_SIGNED = re.compile(
    r"(?<=\w)[+#*]+(?!\w)|(?<=\b\w)[-\u2013](?!\w)|(?<=\b\w\w)[-\u2013](?!\w)|(?<=\w)\u2212(?!\w)|(?<!\w)[+\u2212\u2013-](?=\d)"
)
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
    """Lower-case words without accents, one space between them: NFKD, casefold, the rest dropped."""
    folded = unicodedata.normalize("NFKD", text.casefold()).casefold().translate(_STROKED)
    return " ".join("".join(_letters(folded)).split())


def _letters(folded: str) -> Iterator[str]:
    marked = False  # whether a mark here makes another letter
    for character in folded:
        if unicodedata.category(character) in ("Mn", "Mc"):
            if marked and (character in _VOICED or not unicodedata.name(character, "").startswith(_ANYWHERE)):
                yield character
        else:
            letter = character.isalnum()
            marked = letter and not unicodedata.name(character, "").startswith(_ACCENTED)
            yield character if letter else " "


def unspaced(text: str) -> bool:
    """Whether ``text`` holds a character of a script in which spaces say little."""
    return any(unicodedata.name(character, "").startswith(_UNSPACED) for character in text)


@lru_cache(maxsize=1 << 14)  # one text is read for many names, one name in many texts
def readings(text: str) -> tuple[str, ...]:
    """:func:`normalise` of ``text`` in each of the ways it may be read, without empty ones; one in most cases."""
    narrow = "".join(character for character in text if unicodedata.category(character) != "Cf")
    parted = "".join(" " if unicodedata.category(character) == "Cf" else character for character in text)
    found = [parted, narrow]
    found += [_THOUSANDS.sub("", _INITIALS.sub(r"\1", each)) for each in found]
    found += [_APOSTROPHES.sub("", each) for text in found for each in (_POSSESSIVE.sub(" ", text), text)]
    return tuple(dict.fromkeys(filter(None, map(normalise, found))))


def names(text: str) -> tuple[str, ...]:
    """:func:`readings` of a name; two names are one where they have any in common.

    Signs that make another name of the same letters ("C++", "A-") become words. In scripts without spaces none is
    left; of a text of signs alone the signs are.
    """
    plain = unicodedata.normalize("NFKC", text)
    signed = _SIGNED.sub(lambda found: "".join(_SIGNS[sign] for sign in found.group()), plain)
    found = readings(signed)
    if unspaced(text):
        found = tuple(dict.fromkeys(each.replace(" ", "") for each in found))
    return found or (unicodedata.normalize("NFC", text).strip().casefold(),)
