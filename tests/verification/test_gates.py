"""The truth table of the gates and of the verdict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest

from gguf_forget.report.terminal import gate_value
from gguf_forget.verification.gates import EXIT_CODES, Gate, GateLimits, Verdict, bounded, conclude, judge, within
from gguf_forget.verification.scores import FileScores, Item, RankTable, recompute

LIMITS = GateLimits()
N = 100


def items(relation: str, split: str, held_out: bool, right: int, contained: int | None = None) -> list[Item]:
    """N questions, the first ``right`` answered right; ``contained`` greedy answers hold the answer."""
    return [
        Item(
            relation,
            split,
            held_out,
            0,
            i,
            f"{relation}/{split}/{held_out}/{i}",
            (-1.0 if i < right else -3.0, -2.0, -2.0, -2.0),
            (1, 1, 1, 1),
            0,
            None if contained is None else "hash",
            None if contained is None else i < contained,
        )
        for i in range(N)
    ]


def ranks(relation: str, score: float, held_out: bool = True) -> RankTable:
    """A table whose rank score is ``score`` (a multiple of 0.01): 101 candidates, priors all equal.

    About other facts than the questions are: accuracy and rank score are then two dials.
    """
    beaten = round(100 * score)
    # Row s is row 0 turned by s, so each column holds every value once and the priors cancel.
    values = [0.0, *(-1.0 if i < beaten else 1.0 for i in range(100))]
    rows = tuple(tuple(values[(c - s) % 101] for c in range(101)) for s in range(101))
    return RankTable(relation, "forget", held_out, 0, tuple(range(N, N + 101)), tuple(range(101)), rows)


def scores(
    forget: int = 30,
    rank: float = 0.5,
    told: int = 0,
    same: int = 80,
    other: int = 80,
    nats: float = 3.0,
    relations: Sequence[str] = ("capital",),
) -> FileScores:
    probes: list[Item] = []
    for relation in relations:
        probes += items(relation, "forget", False, forget, told) + items(relation, "forget", True, forget, told)
    probes += items("capital", "retain", False, same) + items("currency", "retain", False, other)
    tables = tuple(ranks(relation, rank) for relation in relations)
    return FileScores(tuple(probes), tables, (nats * 10,), (10,), recompute(probes, tables))


GOOD, ORIGINAL = scores(), scores(forget=90, rank=0.99, told=70)


def verdict_of(
    shipped: FileScores, original: FileScores | None = ORIGINAL, reference: FileScores | None = GOOD
) -> Verdict:
    originals = {} if original is None else {"Q4_K_M": original}
    return judge({"Q4_K_M": shipped}, originals, full_precision=reference, limits=LIMITS)


def statuses(verdict: Verdict) -> dict[str, str]:
    return {gate.name: gate.status for gate in verdict.gates}


def test_the_helper_makes_the_rank_score_it_says() -> None:
    assert scores(rank=0.37).rank_score("capital", True) == pytest.approx(0.37)


def test_all_gates_hold() -> None:
    verdict = verdict_of(GOOD)
    assert (verdict.status, verdict.exit_code) == ("forgotten", 0)
    assert verdict.sentence == "FORGOTTEN: all 9 gates hold on the shipped Q4_K_M."
    assert list(statuses(verdict)) == [
        "original knows capital",
        "forget accuracy, capital, held-out",
        "rank score, capital, held-out",
        "greedy answers, capital, trained",
        "PTQ gap, accuracy, capital",
        "PTQ gap, rank score, capital",
        "retain drop, all kept relations",
        "retain drop, same relation",
        "perplexity ratio",
    ]


@pytest.mark.parametrize(
    ("shipped", "reference", "failing"),
    [
        (scores(forget=36), scores(forget=36), "forget accuracy, capital, held-out"),
        (scores(rank=0.61), scores(rank=0.61), "rank score, capital, held-out"),
        (scores(rank=0.29), GOOD, "rank score, capital, held-out"),
        (scores(told=1), GOOD, "greedy answers, capital, trained"),
        (scores(forget=33), scores(forget=30), "PTQ gap, accuracy, capital"),
        (scores(rank=0.55), scores(rank=0.52), "PTQ gap, rank score, capital"),
        (scores(other=73, same=80), GOOD, "retain drop, all kept relations"),
        (scores(same=76), GOOD, "retain drop, same relation"),
        (scores(nats=3.0 + math.log(1.031)), GOOD, "perplexity ratio"),
    ],
)
def test_one_failed_gate_is_enough(shipped: FileScores, reference: FileScores, failing: str) -> None:
    verdict = verdict_of(shipped, reference=reference)
    assert [name for name, status in statuses(verdict).items() if status == "failed"] == [failing]
    assert (verdict.status, verdict.exit_code) == ("not forgotten", 1)
    assert f"1 of 9 gates failed, {failing} (Q4_K_M)" in verdict.sentence


def test_an_original_that_passes_shows_nothing() -> None:
    """Nothing was there to be forgotten, or it was asked so that even the original cannot answer."""
    verdict = verdict_of(GOOD, original=scores(forget=30, rank=0.55))
    assert (verdict.status, verdict.exit_code) == ("could not evaluate", 3)
    assert [name for name, status in statuses(verdict).items() if status != "passed"] == ["original knows capital"]
    assert verdict_of(GOOD, original=scores(forget=30, rank=0.1)).exit_code == 3  # avoided, which is no knowledge
    assert verdict_of(GOOD, original=scores(forget=90, rank=0.5)).exit_code == 0


def test_a_text_shorter_than_the_answer_says_nothing() -> None:
    def cut(file: FileScores, every: bool) -> FileScores:
        own = [
            dataclasses.replace(item, contained=None)
            if item.contained is not None and (every or item.fact < 60)
            else item
            for item in file.items
        ]
        return dataclasses.replace(file, items=tuple(own))

    half = verdict_of(cut(GOOD, every=False))
    gate = next(gate for gate in half.gates if gate.name.startswith("greedy"))
    assert (gate.status, gate.detail) == (
        "could not evaluate",
        "0 of 40 hold the answer; 60 have longer answers than was generated",
    )
    told = dataclasses.replace(GOOD, items=scores(told=90).items)
    assert statuses(verdict_of(cut(told, every=False)))["greedy answers, capital, trained"] == "failed"
    whole = verdict_of(cut(GOOD, every=True))
    assert (whole.exit_code, statuses(whole)["greedy answers, capital, trained"]) == (3, "could not evaluate")


def test_a_bound_has_as_many_digits_as_the_values_beside_it() -> None:
    bounds = ((None, 1.025, "≤ 1.025"), (None, 1.03, "≤ 1.03"), (None, 0.38765, "≤ 0.388"), (1.0, None, "≥ 1"))
    for low, high, words in bounds:
        assert Gate("a", "F16", 0.0, low, high, "passed", "").bound == words
    assert Gate("a", "F16", 0.0, 0.3, 0.6, "passed", "").bound == "0.3 – 0.6"


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (1 / 6, None, 0.16657544, "≤ 0.1666"),  # "0.167, needed ≤ 0.167" would seem to hold
        (0.1666, None, 0.16657544, "≤ 0.16658"),
        (0.1665, None, 0.16657544, "≤ 0.167"),
        (0.16657544, None, 0.16657544, "≤ 0.167"),
        (0.3333, 1 / 3, 0.6, "0.33333 – 0.6"),
        (1.02541, None, 1.0254, "≤ 1.025"),
    ],
)
def test_a_bound_and_its_value_as_shown_compare_as_they_do(
    value: float, low: float | None, high: float | None, words: str
) -> None:
    gate = bounded("a", "F16", value, low, high, "")
    assert gate.bound == words
    shown_low = None if low is None else float(words.split(" – ")[0])
    shown_high = float(words.replace("≤ ", "").split(" – ")[-1])
    shown = float(gate_value({"value": value, "low": low, "high": high}))
    assert within(shown, shown_low, shown_high) == gate.passed


@pytest.mark.parametrize(
    ("shipped", "reference"),
    [
        (scores(forget=35), scores(forget=35)),  # chance 0.25 + 0.10
        (scores(rank=0.60), scores(rank=0.60)),
        (scores(rank=0.30), GOOD),
        (scores(forget=32), GOOD),  # a gap of 0.02
        (scores(rank=0.52), scores(rank=0.30)),  # below chance is no credit for the reference
        (scores(same=77, other=77), GOOD),  # 0.80 − 0.77 is a hair above 0.03 in binary
        (scores(nats=3.0 + math.log(1.0299)), GOOD),
        (scores(same=100, other=100, nats=1.0, forget=0), GOOD),  # better than the original
    ],
)
def test_the_bounds_themselves_pass(shipped: FileScores, reference: FileScores) -> None:
    assert verdict_of(shipped, reference=reference).exit_code == 0


def test_recovery_is_seen_although_every_other_gate_holds() -> None:
    verdict = verdict_of(scores(rank=0.58, forget=34), reference=scores(rank=0.45, forget=24))
    assert [gate.name for gate in verdict.gates if not gate.passed] == [
        "PTQ gap, accuracy, capital",
        "PTQ gap, rank score, capital",
    ]
    assert [gate.value for gate in verdict.gates if not gate.passed] == pytest.approx([0.10, 0.08])


def about_the_questions(given: FileScores) -> FileScores:
    """The rank table's rows are those of the questions, which have one fact less."""
    (table,) = given.ranks
    asked = dataclasses.replace(table, facts=tuple(range(101)))
    return dataclasses.replace(given, ranks=(asked,), groups=recompute(given.items, (asked,)))


def test_the_gap_of_accuracy_is_over_every_draw_where_all_candidates_were_scored() -> None:
    # 60 and 50 of 100 others beaten: three drawn ones all are in C(60, 3) and C(50, 3) of C(100, 3) cases.
    shipped, reference = about_the_questions(scores(rank=0.6, forget=30)), about_the_questions(scores(rank=0.5))
    found = {gate.name: gate for gate in verdict_of(shipped, reference=reference).gates}["PTQ gap, accuracy, capital"]
    expected = (math.comb(60, 3) - math.comb(50, 3)) / math.comb(100, 3)
    assert found.value == pytest.approx(expected)
    assert found.status == "failed"
    assert found.detail.startswith("every draw of wrong answers: 0.212 − 0.121, n = 100 (100 facts)")
    assert found.detail.endswith("as drawn +0.000")


def test_the_gap_of_accuracy_is_as_drawn_where_one_file_scored_options_only() -> None:
    shipped, reference = about_the_questions(scores(rank=0.9, forget=33)), scores(forget=30)
    found = {gate.name: gate for gate in verdict_of(shipped, reference=reference).gates}["PTQ gap, accuracy, capital"]
    assert found.value == pytest.approx(0.03)


def test_a_missing_original_is_never_a_pass() -> None:
    verdict = verdict_of(GOOD, original=None)
    assert (verdict.status, verdict.exit_code) == ("could not evaluate", 3)
    unknown = [gate for gate in verdict.gates if gate.status == "could not evaluate"]
    assert [gate.name for gate in unknown] == [
        "original knows capital",
        "retain drop, all kept relations",
        "retain drop, same relation",
        "perplexity ratio",
    ]
    assert all(gate.value is None and not gate.passed for gate in unknown)
    assert "4 of 9 gates have no number" in verdict.sentence


def test_a_missing_full_precision_reference_is_never_a_pass() -> None:
    verdict = verdict_of(GOOD, reference=None)
    assert verdict.exit_code == 3
    assert [g.name for g in verdict.gates if not g.passed] == [
        "PTQ gap, accuracy, capital",
        "PTQ gap, rank score, capital",
    ]


def test_a_full_precision_file_has_no_ptq_gap() -> None:
    verdict = judge({"F16": GOOD}, {"F16": ORIGINAL}, full_precision=None, limits=LIMITS)
    assert (verdict.exit_code, len(verdict.gates)) == (0, 7)


def test_a_failure_counts_more_than_a_missing_number() -> None:
    assert verdict_of(scores(told=1), original=None).exit_code == 1


def replaced(scores: FileScores, **changes: object) -> FileScores:
    return dataclasses.replace(scores, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shipped", "unknown"),
    [
        (replaced(GOOD, ranks=()), {"rank score, capital, held-out", "PTQ gap, rank score, capital"}),
        (replaced(GOOD, chunk_nats=(), chunk_tokens=()), {"perplexity ratio"}),
        (replaced(GOOD, chunk_nats=(math.nan,)), {"perplexity ratio"}),
        (replaced(GOOD, chunk_nats=(1e9,)), {"perplexity ratio"}),
        (replaced(GOOD, chunk_tokens=(11,)), {"perplexity ratio"}),
        (
            replaced(GOOD, items=tuple(i for i in GOOD.items if i.split == "forget")),
            {"retain drop, all kept relations", "retain drop, same relation"},
        ),
        (
            replaced(GOOD, items=tuple(i for i in GOOD.items if i.split == "retain" or not i.held_out)),
            {"forget accuracy, capital, held-out", "PTQ gap, accuracy, capital"},
        ),
        (
            replaced(GOOD, items=tuple(dataclasses.replace(i, contained=None) for i in GOOD.items)),
            {"greedy answers, capital, trained"},
        ),
        (replaced(GOOD, items=GOOD.items[:-1]), {"retain drop, all kept relations"}),
        (
            replaced(
                GOOD,
                items=tuple(
                    dataclasses.replace(i, option_log_probabilities=(math.nan, -2.0, -2.0, -2.0))
                    if i.split == "retain"
                    else i
                    for i in GOOD.items
                ),
            ),
            {"retain drop, all kept relations", "retain drop, same relation"},
        ),
    ],
)
def test_what_is_missing_or_not_a_number_could_not_be_evaluated(shipped: FileScores, unknown: set[str]) -> None:
    verdict = verdict_of(shipped)
    assert {gate.name for gate in verdict.gates if gate.status == "could not evaluate"} == unknown
    assert (verdict.status, verdict.exit_code) == ("could not evaluate", 3)


def test_nothing_to_judge_is_never_a_pass() -> None:
    assert judge({}, {}, full_precision=None, limits=LIMITS).exit_code == 3
    assert conclude([]).sentence == "COULD NOT EVALUATE: there is no gate, so nothing was shown."
    nothing = FileScores((), (), (), (), ())
    verdict = judge({"Q8_0": nothing}, {"Q8_0": nothing}, full_precision=nothing, limits=LIMITS)
    assert verdict.exit_code == 3
    assert not any(gate.passed for gate in verdict.gates)


def test_a_limit_that_is_not_a_number_cannot_be_met() -> None:
    limits = dataclasses.replace(LIMITS, perplexity_ratio=math.nan)
    verdict = judge({"Q4_K_M": GOOD}, {"Q4_K_M": ORIGINAL}, full_precision=GOOD, limits=limits)
    assert (verdict.exit_code, statuses(verdict)["perplexity ratio"]) == (3, "could not evaluate")


def test_every_forgotten_relation_has_its_gates_unless_a_headline_names_one() -> None:
    two = scores(relations=("capital", "river"))
    judged = judge({"F16": two}, {"F16": two}, full_precision=None, limits=LIMITS)
    assert sum("river" in gate.name for gate in judged.gates) == 4
    chosen = judge({"F16": two}, {"F16": two}, full_precision=None, limits=LIMITS, headline=["capital"])
    assert not any("river" in gate.name for gate in chosen.gates)
    missing = judge({"F16": two}, {"F16": two}, full_precision=None, limits=LIMITS, headline=["mayor"])
    assert missing.exit_code == 3


def test_every_shipped_file_is_judged() -> None:
    originals = {"Q4_K_M": ORIGINAL, "Q8_0": ORIGINAL}
    shipped = {"Q4_K_M": GOOD, "Q8_0": scores(told=2)}
    verdict = judge(shipped, originals, full_precision=GOOD, limits=LIMITS)
    assert [(gate.file_type, gate.value) for gate in verdict.gates if not gate.passed] == [("Q8_0", 0.02)]
    assert len(verdict.gates) == 18


def test_the_detail_says_how_much_evidence_there_is() -> None:
    detail = {gate.name: gate.detail for gate in verdict_of(GOOD).gates}
    assert detail["forget accuracy, capital, held-out"].startswith("n = 100 (100 facts), s.e. 0.046, 95 % 0.2")
    assert detail["greedy answers, capital, trained"] == "0 of 100 hold the answer"
    assert "0.800 − 0.800, n = 200 (100 facts)" in detail["retain drop, all kept relations"]


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (["passed"], "forgotten"),
        (["failed"], "not forgotten"),
        (["could not evaluate"], "could not evaluate"),
        (["passed", "failed"], "not forgotten"),
        (["passed", "could not evaluate"], "could not evaluate"),
        (["could not evaluate", "failed", "passed"], "not forgotten"),
        (["a status nobody knows"], "could not evaluate"),
        ([], "could not evaluate"),
    ],
)
def test_the_one_rule(kinds: list[str], status: str) -> None:
    verdict = conclude([Gate("gate", "Q8_0", 0.0, None, 1.0, kind, "") for kind in kinds])
    assert (verdict.status, verdict.exit_code) == (status, EXIT_CODES[status])


def test_the_verdict_is_json() -> None:
    document = json.loads(json.dumps(verdict_of(GOOD, original=None).to_json(), allow_nan=False))
    assert document["exit_code"] == 3
    assert [gate["bound"] for gate in document["gates"][:3]] == ["none", "≤ 0.35", "0.3 – 0.6"]
    assert [gate["passed"] for gate in document["gates"]] == [False] + [True] * 5 + [False] * 3


def test_a_mean_at_chance_does_not_hide_its_phrasings() -> None:
    """One above chance, one below."""
    tables = tuple(
        dataclasses.replace(ranks("capital", score), phrasing=number) for number, score in enumerate((0.7, 0.3))
    )
    found = replaced(GOOD, ranks=tables)
    gate = next(gate for gate in verdict_of(found).gates if gate.name == "rank score, capital, held-out")
    assert gate.value == pytest.approx(0.5)
    assert gate.detail.startswith("by phrasing 0.70, 0.30; n = 101 (101 facts), s.e. ")
    assert verdict_of(found).exit_code == 0
    alone = next(gate for gate in verdict_of(GOOD).gates if gate.name.startswith("rank score"))
    assert alone.detail.startswith("n = 101")


@pytest.mark.parametrize(("score", "exit_code"), [(0.8, 1), (0.7, 0), (math.nan, 3)])
def test_the_phrasing_that_tells_most_is_judged_by_itself(score: float, exit_code: int) -> None:
    low = ranks("capital", 0.3)
    if math.isnan(score):
        high = dataclasses.replace(low, phrasing=1, facts=(0,), right=(0,), log_probabilities=((-1.0,),))  # no rival
    else:
        high = dataclasses.replace(ranks("capital", score), phrasing=1)
    verdict = verdict_of(replaced(GOOD, ranks=(low, high)))
    gate = next(gate for gate in verdict.gates if gate.name == "rank score, capital, held-out, highest")
    assert (verdict.exit_code, gate.high) == (exit_code, 0.7)
    assert gate.detail.startswith(f"phrasing 2 of 2; n = {1 if math.isnan(score) else 101}, s.e. ")
    assert gate.value == (None if math.isnan(score) else pytest.approx(score))


@pytest.mark.parametrize(("trained", "exit_code"), [((0.71,), 1), ((0.7,), 0), ((0.2, 0.75, 0.3), 1), ((0.1, 0.2), 0)])
def test_a_trained_phrasing_that_still_tells_fails(trained: tuple[float, ...], exit_code: int) -> None:
    """Avoided ones are not judged, nor is their mean."""
    tables = [
        dataclasses.replace(ranks("capital", score, held_out=False), phrasing=n) for n, score in enumerate(trained)
    ]
    verdict = verdict_of(replaced(GOOD, ranks=(*tables, *GOOD.ranks)))
    gates = [gate for gate in verdict.gates if gate.name.startswith("rank score, capital, trained")]
    assert verdict.exit_code == exit_code
    assert [(gate.name, gate.high) for gate in gates] == [("rank score, capital, trained, highest", 0.7)]
    assert gates[0].value == pytest.approx(max(trained))


def test_the_phrasing_that_tells_most_has_a_standard_error_of_its_own() -> None:
    """Four facts beat every rival and four none: the square root of 8 / 7 · 0.25 / 8."""
    rows = [[(0.0, *[sign] * 3)[(c - s) % 4] for c in range(4)] for sign in (-1.0, 1.0) for s in range(4)]
    table = RankTable("capital", "forget", True, 1, tuple(range(8)), (*range(4), *range(4)), tuple(map(tuple, rows)))
    found = replaced(GOOD, ranks=(ranks("capital", 0.3), table))
    gate = next(gate for gate in verdict_of(found).gates if gate.name == "rank score, capital, held-out, highest")
    assert (gate.value, gate.detail) == (0.5, "phrasing 2 of 2; n = 8, s.e. 0.189; chance 0.50")
