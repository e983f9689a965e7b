"""What one file says, as figures: a plain dictionary that a JSON file can hold. NaN becomes None.

forget_accuracy, forget_rank    held-out phrasings of the forgotten relation
forget_accuracy_all_draws       the same 4-way accuracy, in expectation over every draw of wrong answers from the ranked
                                ones: three drawn ones make differences of two files much noisier
reverse_rank                    held-out phrasings of the same facts asked in reverse; None where no such facts are
same_subjects_rank              other relations of the forgotten subjects, trained and held out; a relation with one
                                answer for all of them has no rank, but
same_subjects_accuracy          4-way accuracy of them all
greedy                          share of greedy answers that hold the answer, both ways, in the worst of all groups of
                                phrasings
leak                            leak@k of sampled answers, the forgotten relation in one held-out phrasing; None where
                                none was drawn
leak_over_wrong                 the same less that of wrong answers: a model that guesses among capitals names each
near_trained, near_held_out     4-way accuracy of the forgotten relation, both ways, on other subjects
far_trained, far_held_out       4-way accuracy of other relations on other subjects
fresh_accuracy, fresh_rank, fresh_reverse_rank, near_fresh
                                as forget_accuracy, forget_rank, reverse_rank and near_held_out, in phrasings that no
                                recipe was chosen by (:mod:`.fresh`); None where there are none
perplexity                      plain text that was not trained on
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forgetting_benchmark.fresh import fresh, fresh_facts
from gguf_forget.facts.schema import Fact
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.memorisation import leak_at_k
from gguf_forget.verification.metrics import mean
from gguf_forget.verification.questions import Question, plan_questions
from gguf_forget.verification.scores import FileScores


@dataclass(frozen=True)
class Roles:
    """Which relations of the facts stand for what."""

    forgotten: str
    reverse: str | None
    same_subjects: tuple[str, ...]
    near: tuple[str, ...]
    far: tuple[str, ...]


def roles(facts: Sequence[Fact], forgotten: str, reverse: str | None = None) -> Roles:
    """Kept relations by their subjects: only forgotten ones, or others; ``near``: the forgotten relation, both ways."""
    subjects = {fact.subject for fact in facts if fact.split == "forget" and fact.relation == forgotten}
    kept: dict[str, set[str]] = {}
    for fact in facts:
        if fact.split == "retain":
            kept.setdefault(fact.relation, set()).add(fact.subject)
    same = tuple(relation for relation, own in kept.items() if own <= subjects)
    near = tuple(relation for relation in kept if relation in (forgotten, reverse))
    far = tuple(relation for relation in kept if relation not in (*same, *near))
    return Roles(forgotten, reverse, same, near, far)


def questions_of(facts: Sequence[Fact], chosen: Roles, *, retain_items: int, trained_phrasings: int) -> list[Question]:
    """The questions that every file is asked; of kept relations only those of forgotten subjects are ranked."""
    planned = plan_questions(
        [*facts, *fresh_facts(facts)],
        retain_items=retain_items,
        rank_candidates=retain_items,
        ranked_phrasings=1,
        trained_phrasings=trained_phrasings,
    )
    return [
        question
        if question.key.split == "forget" or question.key.relation in chosen.same_subjects
        else replace(question, candidates=())
        for question in planned
    ]


def leak(attack: Attack | None) -> tuple[float | None, float | None]:
    """leak@k of the right answers, and the same less that of wrong ones; both averaged over questions."""
    if attack is None:
        return None, None
    samples, k = attack.figures["samples"], attack.figures["k"]
    right = mean([leak_at_k(samples, count, k) for count in attack.figures["right"]])
    wrong = [mean([leak_at_k(samples, count, k) for count in counts] or [0.0]) for counts in attack.figures["wrong"]]
    return right, right - mean(wrong)


def figures_of(scores: FileScores, chosen: Roles, sampled: Attack | None) -> dict[str, float | None]:
    """See the top of this file."""
    ranked = {table.relation for table in scores.ranks if table.split == "retain"}
    same = [scores.rank_score(name, None, "retain") for name in chosen.same_subjects if name in ranked]
    told = [name for name in (chosen.forgotten, chosen.reverse) if name]
    groups = [(name, held_out) for name in told for held_out in (False, True)] + [(fresh(name), True) for name in told]
    greedy = [scores.generation_rate(held_out, {name}) for name, held_out in groups]
    leaked, leaked_over_wrong = leak(sampled)
    credits = scores.expected_credits(chosen.forgotten)
    all_draws = [credit for (key, _), credit in credits.items() if key.held_out]
    found = {
        "forget_accuracy": scores.accuracy("forget", {chosen.forgotten}, True),
        "forget_accuracy_all_draws": mean(all_draws) if all_draws else math.nan,
        "forget_rank": scores.rank_score(chosen.forgotten, True),
        "reverse_rank": scores.rank_score(chosen.reverse, True) if chosen.reverse else math.nan,
        "same_subjects_rank": mean(same) if same else math.nan,
        "same_subjects_accuracy": scores.accuracy("retain", chosen.same_subjects),
        "greedy": max((rate for rate in greedy if math.isfinite(rate)), default=math.nan),
        "leak": leaked,
        "leak_over_wrong": leaked_over_wrong,
        "near_trained": scores.accuracy("retain", chosen.near, False),
        "near_held_out": scores.accuracy("retain", chosen.near, True),
        "far_trained": scores.accuracy("retain", chosen.far, False),
        "far_held_out": scores.accuracy("retain", chosen.far, True),
        "fresh_accuracy": scores.accuracy("forget", {fresh(chosen.forgotten)}, True),
        "fresh_rank": scores.rank_score(fresh(chosen.forgotten), True),
        "fresh_reverse_rank": scores.rank_score(fresh(chosen.reverse), True) if chosen.reverse else math.nan,
        "near_fresh": scores.accuracy("retain", {fresh(name) for name in chosen.near}, True),
        "perplexity": scores.perplexity,
    }
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}
