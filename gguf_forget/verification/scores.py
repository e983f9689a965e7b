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
from gguf_forget.verification.memorisation import (
    exact_memorisation,
    extraction_strength,
    truth_ratio,
    two_sided_truth_ratio,
)
from gguf_forget.verification.metrics import choice_credits, expected_choice_credit, mean, perplexity, rank_wins

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # version 1 had no forms of questions, no memorisation and no divergence
DECIMALS = 6  # of every log-probability kept, in nats


class GroupKey(NamedTuple):
    """One phrasing of one relation in one split, asked in one form.

    ``form`` is "cloze" (each option by itself continues the prompt) or "choice" (the prompt shows the options,
    permuted, and their letters are scored).
    """

    relation: str
    split: str
    held_out: bool
    phrasing: int
    form: str = "cloze"


@dataclass(frozen=True)
class Item:
    """One question and what the file made of it.

    Attributes:
        fact: index of the fact in the facts file.
        sha256: of the JSON array [prompt, answer]. It tells which question this was to whoever has the facts;
            it keeps no secret, as answers can be guessed.
        option_log_probabilities: Σ natural-log probability of each option's tokens, nats.
        option_tokens: number of tokens of each option.
        right: index of the right option. A single option, the answer, is no choice and has no accuracy.
        generated_sha256: of the greedy answer's text; None where none was asked for.
        contained: whether that text holds the answer, under any of its names.
        rouge_l: ROUGE-L recall of that text, the highest over the answer's names.
        argmax: for each answer token, whether it is the teacher-forced argmax.
        paraphrase: Σ log-probability and number of tokens of the right answer in other words.
        min_k, min_k_plus_plus: of prompt and answer as one text.

    None stands for what was not measured.
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
    form: str = "cloze"
    rouge_l: float | None = None
    argmax: tuple[bool, ...] | None = None
    paraphrase: tuple[float, int] | None = None
    min_k: float | None = None
    min_k_plus_plus: float | None = None

    @property
    def key(self) -> GroupKey:
        return GroupKey(self.relation, self.split, self.held_out, self.phrasing, self.form)

    @property
    def is_choice(self) -> bool:
        return len(self.option_log_probabilities) > 1

    @property
    def chance(self) -> float:
        return 1 / len(self.option_log_probabilities)

    @property
    def answer_probability(self) -> float:
        """Per token, :func:`.memorisation.answer_probability`."""
        return math.exp(self.answer_log_probability / self.option_tokens[self.right])

    @property
    def truth_ratio(self) -> float | None:
        """:func:`.memorisation.truth_ratio`, None without a paraphrase or wrong answers."""
        if self.paraphrase is None or not self.is_choice:
            return None
        pairs = zip(self.option_log_probabilities, self.option_tokens, strict=True)
        each = [math.exp(value / tokens) for value, tokens in pairs]
        del each[self.right]
        return truth_ratio(each, math.exp(self.paraphrase[0] / self.paraphrase[1]))

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
    """Log-probabilities of all candidates for the subjects of one group, asked as a cloze.

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
    """The figures of one phrasing of one relation in one form; None where nothing was measured.

    ``rank_score`` is corrected for each candidate's prior. ``rank_subjects`` and ``rank_candidates`` say over
    how many it was taken. ``truth_ratio`` is the mean of the two-sided one.
    """

    relation: str
    split: str
    held_out: bool
    phrasing: int
    n: int
    chance: float | None
    accuracy: float | None
    accuracy_normalised: float | None
    answer_log_probability: float
    rank_score: float | None
    rank_score_uncorrected: float | None
    rank_subjects: int
    rank_candidates: int
    generated: int
    generation_rate: float | None
    form: str = "cloze"
    answer_probability: float | None = None
    extraction_strength: float | None = None
    exact_memorisation: float | None = None
    rouge_l_recall: float | None = None
    truth_ratio: float | None = None
    min_k: float | None = None
    min_k_plus_plus: float | None = None

    @property
    def key(self) -> GroupKey:
        return GroupKey(self.relation, self.split, self.held_out, self.phrasing, self.form)


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
    choices = [item for item in items if item.is_choice]
    contained = [item.contained for item in items if item.contained is not None]
    matches = [item.argmax for item in items if item.argmax is not None]
    ratios = [item.truth_ratio for item in items if item.truth_ratio is not None]
    key = items[0].key
    return Group(
        relation=key.relation,
        split=key.split,
        held_out=key.held_out,
        phrasing=key.phrasing,
        form=key.form,
        n=len(items),
        chance=_measured([item.chance for item in choices]),
        accuracy=_measured([item.credit() for item in choices]),
        accuracy_normalised=_measured([item.credit(normalised=True) for item in choices]),
        answer_log_probability=mean([item.answer_log_probability for item in items]),
        rank_score=None if table is None else mean(table.wins()),
        rank_score_uncorrected=None if table is None else mean(table.wins(prior_corrected=False)),
        rank_subjects=0 if table is None else len(table.facts),
        rank_candidates=0 if table is None else len(table.log_probabilities[0]),
        generated=len(contained),
        generation_rate=_measured(contained),
        answer_probability=mean([item.answer_probability for item in items]),
        extraction_strength=_measured([extraction_strength(each) for each in matches]),
        exact_memorisation=_measured([exact_memorisation(each) for each in matches]),
        rouge_l_recall=_measured([item.rouge_l for item in items if item.rouge_l is not None]),
        truth_ratio=_measured([two_sided_truth_ratio(ratio) for ratio in ratios]),
        min_k=_measured([item.min_k for item in items if item.min_k is not None]),
        min_k_plus_plus=_measured([item.min_k_plus_plus for item in items if item.min_k_plus_plus is not None]),
    )


def _measured(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


@dataclass(frozen=True)
class FileScores:
    """All that was measured on one file.

    Attributes:
        chunk_nats: negative log-probabilities, summed over the tokens of each text chunk.
        chunk_tokens: tokens scored in each chunk (all but its first).
        chunk_divergences: truncated KL from the original to this file, summed over each chunk's tokens, nats
            (:func:`.divergence.truncated_divergence`); empty where it was not measured.
    """

    items: tuple[Item, ...]
    ranks: tuple[RankTable, ...]
    chunk_nats: tuple[float, ...]
    chunk_tokens: tuple[int, ...]
    groups: tuple[Group, ...]
    chunk_divergences: tuple[float, ...] = ()

    @property
    def divergence(self) -> float:
        """Truncated KL to the original per token, nats; NaN when it was not measured."""
        return sum(self.chunk_divergences) / sum(self.chunk_tokens) if self.chunk_divergences else math.nan

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
        """Raw accuracy pooled over items that are a choice; NaN when there are none."""
        return mean([item.credit() for item in self.select(split, relations, held_out) if item.is_choice])

    def rank_wins(self, relation: str, held_out: bool | None, split: str = "forget") -> dict[int, float]:
        """Fact -> its rank score, the mean over phrasings (see :func:`.metrics.rank_wins`)."""
        wins: dict[int, list[float]] = {}
        for table in self.ranks:
            if _matches(table, split, {relation}, held_out):
                for fact, value in zip(table.facts, table.wins(), strict=True):
                    wins.setdefault(fact, []).append(float(value))
        return {fact: mean(values) for fact, values in wins.items()}

    def rank_score(self, relation: str, held_out: bool | None, split: str = "forget") -> float:
        """Prior-corrected rank score, the mean over phrasings; NaN when none was measured."""
        return mean(self.rank_scores(relation, held_out, split))

    def rank_scores(self, relation: str, held_out: bool | None, split: str = "forget") -> list[float]:
        """Prior-corrected rank score of each phrasing that was ranked, in the order asked."""
        return [mean(wins) for wins in self.rank_wins_of_phrasings(relation, held_out, split)]

    def rank_wins_of_phrasings(self, relation: str, held_out: bool | None, split: str = "forget") -> list[np.ndarray]:
        """For each phrasing that was ranked, in the order asked, every fact's rank score, [s]."""
        return [table.wins() for table in self.ranks if _matches(table, split, {relation}, held_out)]

    def expected_credits(self, relation: str, split: str = "forget") -> dict[tuple[GroupKey, int], float]:
        """Group and fact -> :func:`.metrics.expected_choice_credit` of a question whose candidates were all scored.

        As many distractors are drawn as the question has. Questions with more distractors than other candidates are
        left out.
        """
        rows = {
            (table.key, fact): (right, row)
            for table in self.ranks
            if _matches(table, split, {relation}, None)
            for fact, right, row in zip(table.facts, table.right, table.log_probabilities, strict=True)
        }
        credits = {}
        for item in self.select(split, {relation}):
            right, row = rows.get((item.key, item.fact), (0, ()))
            drawn = len(item.option_log_probabilities) - 1
            if 0 < drawn < len(row):
                others = row[:right] + row[right + 1 :]
                credits[item.key, item.fact] = expected_choice_credit(row[right], others, drawn)
        return credits

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
                "chunk_divergences": list(self.chunk_divergences),
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
        if version not in READABLE_VERSIONS:
            raise EvaluationError(f"the scores have schema version {version!r}, needed {SCHEMA_VERSION}")
        try:
            items = tuple(Item(**_tupled(record)) for record in document["items"])
            ranks = tuple(RankTable(**_tupled(record)) for record in document["ranks"])
            stored = [dict(record) for record in document["groups"]]
            text = document["text"]
            nats, tokens = tuple(text["chunk_nats"]), tuple(text["chunk_tokens"])
            divergences = tuple(text.get("chunk_divergences", ()))
            groups = recompute(items, ranks)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EvaluationError("the scores are malformed", cause=repr(error)) from error
        if len(stored) != len(groups) or not all(map(_equal, stored, groups)):
            raise EvaluationError(
                "the scores do not add up: their groups do not follow from their items",
                hint="the file was changed after it was written; score again",
            )
        return cls(items, ranks, nats, tokens, groups, divergences)


def _matches(member: Item | RankTable, split: str, relations: Collection[str] | None, held_out: bool | None) -> bool:
    return (
        member.split == split
        and (relations is None or member.relation in relations)
        and (held_out is None or member.held_out == held_out)
    )


def _equal(stored: Mapping[str, Any], computed: Group) -> bool:
    """Equal but for the last digits, which may differ from one numpy to another; version 1 had fewer figures."""
    figures = asdict(computed)
    if not {"relation", "n", "accuracy"} <= stored.keys() <= figures.keys():
        return False
    return all(
        math.isclose(a, figures[name], rel_tol=1e-9, abs_tol=1e-9)
        if isinstance(a, float) and isinstance(figures[name], float)
        else a == figures[name]
        for name, a in stored.items()
    )


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(member) for key, member in value.items()}
    return [_listed(member) for member in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tupled(member) for key, member in value.items()}
    return tuple(_tupled(member) for member in value) if isinstance(value, list) else value
