"""Relations in turn: one that is asked in few phrasings is not crowded out by one that is asked in many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def turns(prompts: Mapping[str, int]) -> Iterator[str]:
    """Relations without end, each as often as the square root of its number of ``prompts`` has it.

    In proportion to the prompts the small ones would hardly be seen, and with equal turns the large ones seldom in
    each of their phrasings. Ties go by name. Nothing where there are no relations.
    """
    drawn = dict.fromkeys(sorted(prompts), 0)
    while drawn:
        following = min(drawn, key=lambda relation: (drawn[relation] + 1) / prompts[relation] ** 0.5)
        drawn[following] += 1
        yield following


def dealt(prompts: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of ``count`` prompts each relation gives by its :func:`turns`, none more than it has."""
    given, left = dict.fromkeys(prompts, 0), min(count, sum(prompts.values()))
    for relation in turns(prompts):
        if not left:
            break
        if given[relation] < prompts[relation]:
            given[relation] += 1
            left -= 1
    return given
