"""Scores written by hand: so many of so many right, a rank score as wanted."""

from __future__ import annotations

from gguf_forget.verification.scores import FileScores, Item, RankTable, recompute

N = 100


def items(
    relation: str,
    split: str,
    right: int,
    *,
    held_out: bool = True,
    told: int | None = None,
    form: str = "cloze",
    options: int = 4,
    matches: int | None = None,
    length: int = 10,
) -> list[Item]:
    """N questions about N facts, the first ``right`` answered right; ``told`` greedy answers hold the answer.

    ``matches``: of the ``length`` tokens of each answer, how many at its end are the argmax; None: not asked.
    """
    return [
        Item(
            relation,
            split,
            held_out,
            0,
            i,
            f"{relation}/{split}/{held_out}/{form}/{i}",
            (-1.0 if i < right else -3.0, *(-2.0 for _ in range(options - 1))),
            (1,) * options,
            0,
            None if told is None else "hash",
            None if told is None else i < told,
            form,
            argmax=None if matches is None else (*[False] * (length - matches), *[True] * matches),
        )
        for i in range(N)
    ]


def ranks(relation: str, score: float, *, held_out: bool = True) -> RankTable:
    """A table whose rank score is ``score`` (a multiple of 0.01): 101 candidates, priors all equal.

    About other facts than the questions are: accuracy and rank score are then two dials.
    """
    beaten = round(100 * score)
    # Row s is row 0 turned by s, so each column holds every value once and the priors cancel.
    values = [0.0, *(-1.0 if i < beaten else 1.0 for i in range(100))]
    rows = tuple(tuple(values[(c - s) % 101] for c in range(101)) for s in range(101))
    return RankTable(relation, "forget", held_out, 0, tuple(range(N, N + 101)), tuple(range(101)), rows)


def file_scores(probes: list[Item], tables: tuple[RankTable, ...] = (), nats: float = 3.0) -> FileScores:
    return FileScores(tuple(probes), tables, (nats * 10,), (10,), recompute(probes, tables))


def capital_scores(
    *, forget: int = 27, rank: float = 0.5, told: int = 0, keep: int = 80, nats: float = 3.0
) -> FileScores:
    """A forgotten relation ``capital`` and a kept one of the same name."""
    probes = items("capital", "forget", forget, told=told) + items("capital", "retain", keep)
    return file_scores(probes, (ranks("capital", rank),), nats)
