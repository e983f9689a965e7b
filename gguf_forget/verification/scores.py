"""What one file scored: every probe item, and the figures that follow from the items.

Nothing is stored that cannot be recomputed: :func:`recompute` turns items and rank tables into groups, is the
only place where that is done, and :meth:`FileScores.from_json` refuses a document whose groups do not follow
from its items.

Shapes:
    s: subjects of a rank table
    c: its candidates, the distinct answers
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.metrics import choice_credits, mean, perplexity, rank_wins

SCHEMA_VERSION = 1
DECIMALS = 6  # of every log-probability kept, in nats


class GroupKey(NamedTuple):
    """One phrasing of one relation in one split."""

    relation: str
    split: str
    held_out: bool
    phrasing: int


@dataclass(frozen=True)
class Item:
    """One question and what the file made of it.

    Attributes:
        fact: index of the fact in the facts file.
        sha256: of the JSON array [prompt, answer]. It tells which question this was to whoever has the facts;
            it keeps no secret, as answers can be guessed.
        option_log_probabilities: Σ natural-log probability of each option's tokens, nats.
        option_tokens: number of tokens of each option.
        right: index of the right option.
        generated_sha256: of the greedy answer's text; None where none was asked for.
        contained: whether that text holds the answer.
    """

    relation: str
    split: str
    held_out: bool
    phrasing: int
    fact: int
    sha256: str
    option_log_probabilities: tuple[float, ...]
    option_tokens: tuple[int, ...]
    right: int
    generated_sha256: str | None = None
    contained: bool | None = None

    @property
    def key(self) -> GroupKey:
        return GroupKey(self.relation, self.split, self.held_out, self.phrasing)

    @property
    def chance(self) -> float:
        return 1 / len(self.option_log_probabilities)

    @property
    def answer_log_probability(self) -> float:
        return self.option_log_probabilities[self.right]

    def credit(self, *, normalised: bool = False) -> float:
        """1 for the right option on top, 1/t in a tie of t, else 0; ``normalised``: per token."""
        values = list(self.option_log_probabilities)
        if normalised:
            values = [value / tokens for value, tokens in zip(values, self.option_tokens, strict=True)]
        first = values.pop(self.right)
        return float(choice_credits([first], [values])[0])


@dataclass(frozen=True)
class RankTable:
    """Log-probabilities of all candidates for the subjects of one group.

    Attributes:
        facts: the fact of each row, [s].
        right: the column of each row's right answer, [s]. All columns are distinct answers.
        log_probabilities: nats, [s][c].
    """

    relation: str
    split: str
    held_out: bool
    phrasing: int
    facts: tuple[int, ...]
    right: tuple[int, ...]
    log_probabilities: tuple[tuple[float, ...], ...]

    @property
    def key(self) -> GroupKey:
        return GroupKey(self.relation, self.split, self.held_out, self.phrasing)

    def wins(self, *, prior_corrected: bool = True) -> np.ndarray:
        """The share of other candidates that each subject's right answer beats, [s]."""
        return rank_wins(self.log_probabilities, self.right, prior_corrected=prior_corrected)


@dataclass(frozen=True)
class Group:
    """The figures of one phrasing of one relation; None where nothing was measured.

    ``rank_score`` is corrected for each candidate's prior. ``rank_subjects`` and ``rank_candidates`` say over
    how many it was taken.
    """

    relation: str
    split: str
    held_out: bool
    phrasing: int
    n: int
    chance: float
    accuracy: float
    accuracy_normalised: float
    answer_log_probability: float
    rank_score: float | None
    rank_score_uncorrected: float | None
    rank_subjects: int
    rank_candidates: int
    generated: int
    generation_rate: float | None

    @property
    def key(self) -> GroupKey:
        return GroupKey(self.relation, self.split, self.held_out, self.phrasing)


def item_hash(prompt: str, answer: str) -> str:
    """SHA-256 of the JSON array [prompt, answer]."""
    return hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()


def recompute(items: Iterable[Item], ranks: Iterable[RankTable] = ()) -> tuple[Group, ...]:
    """The groups that follow from the items and rank tables, in the order of their first item."""
    by_group: dict[GroupKey, list[Item]] = {}
    for item in items:
        by_group.setdefault(item.key, []).append(item)
    tables = {table.key: table for table in ranks}
    return tuple(_group(members, tables.get(key)) for key, members in by_group.items())


def _group(items: Sequence[Item], table: RankTable | None) -> Group:
    contained = [item.contained for item in items if item.contained is not None]
    return Group(
        *items[0].key,
        n=len(items),
        chance=mean([item.chance for item in items]),
        accuracy=mean([item.credit() for item in items]),
        accuracy_normalised=mean([item.credit(normalised=True) for item in items]),
        answer_log_probability=mean([item.answer_log_probability for item in items]),
        rank_score=None if table is None else mean(table.wins()),
        rank_score_uncorrected=None if table is None else mean(table.wins(prior_corrected=False)),
        rank_subjects=0 if table is None else len(table.facts),
        rank_candidates=0 if table is None else len(table.log_probabilities[0]),
        generated=len(contained),
        generation_rate=mean(contained) if contained else None,
    )


@dataclass(frozen=True)
class FileScores:
    """All that was measured on one file.

    Attributes:
        chunk_nats: negative log-probabilities, summed over the tokens of each text chunk.
        chunk_tokens: tokens scored in each chunk (all but its first).
    """

    items: tuple[Item, ...]
    ranks: tuple[RankTable, ...]
    chunk_nats: tuple[float, ...]
    chunk_tokens: tuple[int, ...]
    groups: tuple[Group, ...]

    @property
    def nats_per_token(self) -> float:
        """NaN when no text was measured."""
        return sum(self.chunk_nats) / sum(self.chunk_tokens) if sum(self.chunk_tokens) else math.nan

    @property
    def perplexity(self) -> float:
        return perplexity(self.nats_per_token)

    def select(
        self, split: str, relations: Collection[str] | None = None, held_out: bool | None = None
    ) -> tuple[Item, ...]:
        """The items of a split, of these relations (None: all), trained, held out or both (None)."""
        return tuple(item for item in self.items if _matches(item, split, relations, held_out))

    def accuracy(self, split: str, relations: Collection[str] | None = None, held_out: bool | None = None) -> float:
        """Raw 4-way accuracy pooled over items; NaN when there are none."""
        return mean([item.credit() for item in self.select(split, relations, held_out)])

    def rank_wins(self, relation: str, held_out: bool, split: str = "forget") -> dict[int, float]:
        """Fact -> its rank score, the mean over phrasings (see :func:`.metrics.rank_wins`)."""
        wins: dict[int, list[float]] = {}
        for table in self.ranks:
            if _matches(table, split, {relation}, held_out):
                for fact, value in zip(table.facts, table.wins(), strict=True):
                    wins.setdefault(fact, []).append(float(value))
        return {fact: mean(values) for fact, values in wins.items()}

    def rank_score(self, relation: str, held_out: bool, split: str = "forget") -> float:
        """Prior-corrected rank score, the mean over phrasings; NaN when none was measured."""
        return mean([mean(t.wins()) for t in self.ranks if _matches(t, split, {relation}, held_out)])

    def generation_rate(self, held_out: bool, relations: Collection[str] | None = None) -> float:
        """Share of greedy answers to forgotten facts that hold the answer; NaN when none was asked for."""
        selected = self.select("forget", relations, held_out)
        return mean([item.contained for item in selected if item.contained is not None])

    def to_json(self) -> dict[str, Any]:
        """A document of plain JSON values; :meth:`from_json` reads it back equal."""
        return {
            "schema_version": SCHEMA_VERSION,
            "text": {
                "perplexity": self.perplexity if sum(self.chunk_tokens) else None,
                "nats_per_token": self.nats_per_token if sum(self.chunk_tokens) else None,
                "tokens": sum(self.chunk_tokens),
                "chunk_nats": list(self.chunk_nats),
                "chunk_tokens": list(self.chunk_tokens),
            },
            "groups": [asdict(group) for group in self.groups],
            "items": [_listed(asdict(item)) for item in self.items],
            "ranks": [_listed(asdict(table)) for table in self.ranks],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FileScores:
        """Read :meth:`to_json` back.

        Raises:
            EvaluationError: another schema version, missing or unknown keys, or groups that do not follow
                from the items.
        """
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise EvaluationError(f"the scores have schema version {version!r}, needed {SCHEMA_VERSION}")
        try:
            items = tuple(Item(**_tupled(record)) for record in document["items"])
            ranks = tuple(RankTable(**_tupled(record)) for record in document["ranks"])
            stored = [Group(**record) for record in document["groups"]]
            text = document["text"]
            nats, tokens = tuple(text["chunk_nats"]), tuple(text["chunk_tokens"])
            groups = recompute(items, ranks)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EvaluationError("the scores are malformed", cause=repr(error)) from error
        if len(stored) != len(groups) or not all(map(_equal, stored, groups)):
            raise EvaluationError(
                "the scores do not add up: their groups do not follow from their items",
                hint="the file was changed after it was written; score again",
            )
        return cls(items, ranks, nats, tokens, groups)


def _matches(member: Item | RankTable, split: str, relations: Collection[str] | None, held_out: bool | None) -> bool:
    return (
        member.split == split
        and (relations is None or member.relation in relations)
        and (held_out is None or member.held_out == held_out)
    )


def _equal(stored: Group, computed: Group) -> bool:
    """Equal but for the last digits, which may differ from one numpy to another."""
    pairs = zip(asdict(stored).values(), asdict(computed).values(), strict=True)
    return all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b
        for a, b in pairs
    )


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(member) for key, member in value.items()}
    return [_listed(member) for member in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tupled(member) for key, member in value.items()}
    return tuple(_tupled(member) for member in value) if isinstance(value, list) else value
