"""Every metric against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gguf_forget.errors import EvaluationError
from gguf_forget.verification.metrics import (
    bootstrap_interval,
    choice_credits,
    contains_answer,
    expected_choice_credit,
    four_way_accuracy,
    four_way_accuracy_normalised,
    perplexity,
    prior_corrected_rank_score,
    rank_score,
    rank_wins,
    recovery_rate,
    standard_error,
    without_answer,
)


def test_ties_at_the_top_count_one_over_their_number() -> None:
    right = [-1.0, -2.0, -3.0, -4.0]
    distractors = [[-2, -3, -4], [-1, -3, -4], [-3, -5, -6], [-4, -4, -4]]
    assert choice_credits(right, distractors).tolist() == [1.0, 0.0, 0.5, 0.25]
    assert four_way_accuracy(right, distractors) == 1.75 / 4


def test_a_tie_below_the_top_counts_nothing() -> None:
    assert choice_credits([-2.0], [[-1.0, -2.0]]).tolist() == [0.0]


def test_scores_that_are_not_finite_are_never_a_credit() -> None:
    credits = choice_credits([math.nan, -1.0, math.inf], [[-2.0], [math.nan], [-1.0]])
    assert np.isnan(credits).all()


def test_the_expected_credit_is_the_mean_over_every_draw() -> None:
    right, others = -2.0, [-1.0, -2.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    for k in range(1, len(others) + 1):
        draws = [list(drawn) for drawn in itertools.combinations(others, k)]
        assert expected_choice_credit(right, others, k) == pytest.approx(four_way_accuracy([right] * len(draws), draws))
    assert expected_choice_credit(-0.5, others, 3) == 1.0
    assert expected_choice_credit(-7.0, others, 3) == 0.0
    # One of seven is better: it is among three drawn in 15 of 35 cases.
    assert expected_choice_credit(-1.5, others, 3) == pytest.approx(20 / 35)


def test_the_expected_credit_of_a_random_order_is_chance() -> None:
    values = [float(value) for value in range(9)]
    credits = [expected_choice_credit(value, [v for v in values if v != value], 3) for value in values]
    assert np.mean(credits) == pytest.approx(0.25)


def test_an_expected_credit_needs_finite_scores_and_enough_others() -> None:
    assert math.isnan(expected_choice_credit(math.nan, [1.0, 2.0], 1))
    assert math.isnan(expected_choice_credit(0.0, [1.0, math.inf], 1))
    with pytest.raises(EvaluationError, match="3 distractors cannot be drawn from 2"):
        expected_choice_credit(0.0, [1.0, 2.0], 3)


def test_no_items_have_no_accuracy() -> None:
    assert math.isnan(four_way_accuracy(np.empty(0), np.empty((0, 3))))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(EvaluationError, match=r"\(2,\) and distractors \(1, 3\)"):
        choice_credits([0, 0], [[1, 2, 3]])


def test_length_normalised_divides_by_the_tokens_of_each_option() -> None:
    right, distractors = [-6.0], [[-4.0, -9.0, -9.0]]
    assert four_way_accuracy(right, distractors) == 0.0
    assert four_way_accuracy_normalised(right, distractors, [3], [[1, 2, 3]]) == 1.0  # −2 beats −4, −4.5, −3


def test_the_prior_of_an_answer_is_taken_off() -> None:
    # Whoever is asked about, the model prefers candidate 0; beyond that it knows every answer.
    scores = np.array([[0.0, -5.0, -6.0], [-1.0, -4.0, -6.0], [-1.0, -5.0, -5.0]])
    right = [0, 1, 2]
    assert rank_score(scores, right) == pytest.approx((1.0 + 0.5 + 0.25) / 3)
    assert prior_corrected_rank_score(scores, right) == 1.0


def test_rank_wins_of_one_subject_by_hand() -> None:
    scores = [[-1.0, -2.0, -1.0, 0.0], [-1.0, -2.0, -1.0, 0.0]]
    # Candidate 0 beats 1, ties with 2, loses to 3.
    assert rank_wins(scores, [0, 3], prior_corrected=False).tolist() == [0.5, 1.0]
    # Every subject alike: after the priors are gone all is a tie.
    assert rank_wins(scores, [0, 3]).tolist() == [0.5, 0.5]


def test_candidates_of_the_same_text_are_not_compared_with_the_right_one() -> None:
    scores = [[-1.0, -0.5, -2.0]]
    assert rank_wins(scores, [0], prior_corrected=False).tolist() == [0.5]
    assert rank_wins(scores, [0], prior_corrected=False, texts=["euro", "euro", "franc"]).tolist() == [1.0]
    assert np.isnan(rank_wins(scores, [0], texts=["euro", "euro", "euro"])).all()


def test_an_avoided_answer_falls_below_chance() -> None:
    assert prior_corrected_rank_score(-np.eye(4), range(4)) == 0.0
    assert prior_corrected_rank_score(np.eye(4), range(4)) == 1.0


def test_random_scores_give_chance() -> None:
    scores = np.random.default_rng(0).standard_normal((400, 400))
    assert prior_corrected_rank_score(scores, range(400)) == pytest.approx(0.5, abs=0.05)


def test_a_rank_score_with_a_hole_is_not_a_number() -> None:
    assert math.isnan(prior_corrected_rank_score([[0.0, math.nan], [0.0, 1.0]], [0, 1]))
    assert math.isnan(prior_corrected_rank_score(np.empty((0, 3)), []))


def test_a_right_answer_outside_the_candidates_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"right holds 0 … 2, needed 0 … 1"):
        rank_wins([[0.0, 1.0], [0.0, 1.0]], [0, 2])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris, of course.", "Paris"),
        ("it is PARIS", "paris"),
        ("São Tomé", "Sao Tome"),
        ("Sao  Tome!", "São Tomé"),
        ("the Washington\nD.C. area", "Washington, D.C."),
        ("the Washington DC area", "Washington, D.C."),
        ("It is Sanaa.", "Sana'a"),
        ("It is Sana\u02bba.", "Sanaa"),
        ("It is Sana\u2018a.", "Sanaa"),
        ("SANA'A'S mayor", "Sanaa"),
        ("Paris's mayor", "Paris"),
        ("in St. Johns", "St. John's"),
        ("in St. John's", "St. Johns"),
        ("aloha from l'Hawaii", "Hawai'i"),
        ("the Pa\u00adris", "Paris"),
        ("the Pa\u200bris", "Paris"),
        ("in New\u200bYork", "New York"),
        ("\u845b\U000e0101\u57ce", "\u845b\u57ce"),  # another shape of a character
        ("room 5\ufe0f\u20e3 is", "5"),
        ("in New York", "New\u2060York"),
        ("\u0646\u06cc\u0645 \u0631\u0648\u0632", "\u0646\u06cc\u0645\u200c\u0631\u0648\u0632"),  # a joiner, or a space
        ("the Washington D. C. area", "Washington, DC"),
        ("made in the USA.", "U.S.A."),
        ("from A. B. to C", "B"),
        ("Łódź", "Lodz"),
        ("Tórshavn", "Torshavn"),
        ("STRASSE", "Straße"),
        ("日本の首都は東京です", "東京"),
        ("수도는 서울입니다", "서울"),
        ("an arrow → here", "→"),
        ("Ko\u0308ln", "Köln"),
        ("about 1,000 people", "1000"),
        ("about 1000 people", "1,000"),
        ("1’250’000 francs", "1250000"),
    ],
)
def test_an_answer_is_found_whatever_its_spelling(text: str, answer: str) -> None:
    assert contains_answer(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Romeo", "Rome"),
        ("in Berlingen", "Berlin"),
        ("", "Oslo"),
        ("San Jose", "San Juan"),
        ("text", "→"),
        ("D. Care", "DC"),
        ("the ratio is 2.5", "25"),
        ("1,000,500 people", "1000"),
        ("1,2,345", "12345"),
        ("She'll go, we're there, I'd say", "Shell"),
        ("She'll go, we're there, I'd say", "Were"),
        ("She'll go, we're there, I'd say", "Id"),
        ("\u30d0\u30ea", "\u30d1\u30ea"),  # Bali, Paris: the mark is a part of the letter
        ("\u0930\u093e\u092e\u0942", "\u0930\u093e\u092e"),  # so is a vowel
    ],
)
def test_another_word_is_no_answer(text: str, answer: str) -> None:
    assert not contains_answer(text, answer)


def test_an_answer_is_cut_out_of_a_text_wherever_it_stands() -> None:
    text = "Guinea, New Guinea; Papua  New Guinea, PAPUA NEW GUINEA, Papua New Guinea Papua New Guinea."
    (rest,) = without_answer(text, ["New Guinea", "Papua New Guinea"])
    assert rest.split() == ["guinea"]
    assert [rest.split() for rest in without_answer("Rome", ["", "…"])] == [["rome"]]


@pytest.mark.parametrize(
    ("text", "right", "part"),
    [
        ("It is Washington DC.", "Washington, D.C.", "Washington"),
        ("It is Washington, D.C.", "Washington DC", "Washington"),
        ("首都は大阪府です", "大阪府", "大阪"),
        ("It was 1000 BC", "1,000 BC", "1000"),
        ("Washington, D.C. (Washington DC)", "Washington DC", "Washington"),
        ("in Irlande du Nord", "Irlande du Nord", "Irlande"),
    ],
)
def test_no_part_of_an_answer_stays_however_it_is_written(text: str, right: str, part: str) -> None:
    assert contains_answer(text, right)
    assert contains_answer(text, part)
    assert not any(contains_answer(rest, part) for rest in without_answer(text, [right]))
    assert any(contains_answer(rest, part) for rest in without_answer(f"{text} {part}", [right]))
    assert any(contains_answer(rest, part) for rest in without_answer(f"{text}, l'{part}", [right]))


def test_perplexity_is_the_exponential_of_nats_a_token() -> None:
    assert perplexity(math.log(20)) == pytest.approx(20)
    assert perplexity(1e6) == math.inf


def test_the_bootstrap_of_a_coin_is_near_the_normal_interval() -> None:
    low, high = bootstrap_interval([0.0, 1.0] * 50, seed=1)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    assert bootstrap_interval([0.0, 1.0] * 50, seed=1) == (low, high)
    assert bootstrap_interval([0.3] * 9, seed=0) == pytest.approx((0.3, 0.3))


def test_whole_clusters_are_drawn() -> None:
    values = [0.0] * 8 + [1.0] * 8
    # Two clusters: a mean of 0 or 1 comes up in a quarter of the draws each.
    assert bootstrap_interval(values, seed=0, clusters=[7] * 8 + [9] * 8) == (0.0, 1.0)
    low, high = bootstrap_interval(values, seed=0)
    assert 0 < low < 0.5 < high < 1


def test_an_interval_of_nothing_is_not_a_number() -> None:
    assert all(map(math.isnan, bootstrap_interval([], seed=0)))
    assert all(map(math.isnan, bootstrap_interval([1.0, math.nan], seed=0)))


def test_standard_error_by_hand() -> None:
    assert standard_error([0.0, 1.0, 0.0, 1.0]) == pytest.approx(math.sqrt(1 / 3) / 2)
    assert math.isnan(standard_error([1.0]))


def test_recovery_rate_by_hand() -> None:
    # 0.32 in full precision, 0.50 after rounding, the quantized original has 0.92: 0.18 of 0.60 came back.
    assert recovery_rate(0.50, 0.32, 0.92) == pytest.approx(0.3)
    assert recovery_rate(0.26, 0.32, 0.92) == pytest.approx(-0.1)
    assert math.isnan(recovery_rate(0.5, 0.5, 0.5))
