"""Facts that a file still tells: those in a greedy answer, and those it picks on every held-out phrasing asked.

A file that knows nothing picks the right one of four options on every one of k phrasings with probability 0.25 to the
k, so the number to expect by luck stands beside the list.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAME_DIGITS = 16


def fact_names(facts: Sequence[Mapping[str, Any]], whole: bytes) -> list[str]:
    """A name for each fact that only those who have the whole facts file can tie to the fact.

    A plain hash of a fact could be guessed: try every capital. This one is keyed with the whole file.

    Args:
        facts: as JSON objects.
        whole: all facts in their canonical form, whose plain SHA-256 reports publish; the key is another hash of it.
    """
    key = hashlib.sha256(b"gguf_forget names of facts\0" + whole).digest()
    texts = (json.dumps(fact, sort_keys=True, ensure_ascii=False).encode() for fact in facts)
    return [hmac.new(key, text, hashlib.sha256).hexdigest()[:NAME_DIGITS] for text in texts]


def leaks_of(
    items: Iterable[Mapping[str, Any]], names: Sequence[str] | None = None, clear: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """By forgotten relation: how many facts were asked, which still leak, how many picks luck alone gives.

    Args:
        items: the probe items of one file's scores, as JSON.
        names: of the facts by index; None: the hash of the fact's first question stands for it.
        clear: the facts in words, to be told; None: they stay hidden.

    Returns:
        [{relation, facts, expected_by_luck, leaking: [{fact, right, asked, told}]}]; right of asked: held-out
        phrasings (where there are none, all) on which the right option was the most probable; told: whether a greedy
        answer held it, None if none was asked.
    """
    by_relation: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for item in items:
        if item["split"] == "forget":
            by_relation.setdefault(item["relation"], {}).setdefault(item["fact"], []).append(item)
    found = []
    for relation, facts in by_relation.items():
        leaking, luck = [], 0.0
        # Where nothing is held out, what was asked is all there is.
        seen = not any(item["held_out"] for asked in facts.values() for item in asked)
        for index, asked in facts.items():
            choices = [item for item in asked if item["held_out"] or seen]
            choices = [item for item in choices if len(item["option_log_probabilities"]) > 1]
            right = sum(_picked(item) for item in choices)
            answers = [item["contained"] for item in asked if item.get("contained") is not None]
            if choices:
                luck += math.prod(1 / len(item["option_log_probabilities"]) for item in choices)
            if any(answers) or (choices and right == len(choices)):
                leaking.append(
                    {
                        "fact": names[index] if names is not None else asked[0]["sha256"][:NAME_DIGITS],
                        "right": right,
                        "asked": len(choices),
                        "told": any(answers) if answers else None,
                        **({} if clear is None else {"clear": clear[index]}),
                    }
                )
        found.append({"relation": relation, "facts": len(facts), "expected_by_luck": luck, "leaking": leaking})
    return found


def _picked(item: Mapping[str, Any]) -> bool:
    options = item["option_log_probabilities"]
    best = max(options)
    return bool(options[item["right"]] == best and options.count(best) == 1)
