"""The forgetting benchmark: bars and intervals by hand, and the whole of it on a tiny model, twice."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forgetting_benchmark import command
from forgetting_benchmark.command import main
from forgetting_benchmark.figures import Roles, figures_of, leak, questions_of, roles
from forgetting_benchmark.fresh import FRESH
from forgetting_benchmark.methods import METHODS
from forgetting_benchmark.table import method_rows, summarise, whole_rows
from hand_made_scores import file_scores, items, ranks
from tiny import build_tiny_gguf

from gguf_forget.demo.phrasings import CAPITAL_HELD_OUT, CAPITAL_PROMPTS, REVERSE_HELD_OUT, REVERSE_PROMPTS
from gguf_forget.facts.schema import Fact, dump_facts
from gguf_forget.verification.evidence import Attack
from gguf_forget.verification.scores import Item, RankTable

CITIES = {
    "forget": {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Austria": "Vienna", "Norway": "Oslo"},
    "retain": {"Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Kenya": "Nairobi", "Cuba": "Havana"},
}
MONEY = {"France": "franc", "Spain": "peseta", "Italy": "lira", "Austria": "schilling", "Norway": "krone"}
RECIPE = """
[model]
path = "model.gguf"
[facts]
path = "facts.jsonl"
[attribute]
budget = 0.05
integration_steps = 1
layer_cap = 1.0
evidence_pairs = 0
[unlearn]
steps = 4
learning_rate = 0.3
fisher_examples = 4
batch_forget = 5
batch_retain = 5
[verify]
max_new_tokens = 2
perplexity_tokens = 256
"""


def facts() -> tuple[Fact, ...]:
    result = []
    for split, pairs in CITIES.items():
        cities = list(pairs.values())
        for index, (country, city) in enumerate(pairs.items()):
            wrong = tuple(cities[(index + k) % len(cities)] for k in (1, 2, 3))
            prompts = (f"The capital of {country} is",)
            result.append(Fact(country, "capital", city, wrong, split, prompts, (f"Which city rules {country}?",)))
    coins = list(MONEY.values())
    for index, (country, coin) in enumerate(MONEY.items()):
        wrong = tuple(coins[(index + k) % len(coins)] for k in (1, 2, 3))
        result.append(Fact(country, "currency", coin, wrong, "retain", (f"The money of {country} is the",), ()))
    return tuple(result)


def test_relations_find_their_roles_by_their_subjects() -> None:
    others = Fact("Peru", "food", "rice", ("corn",), "retain", ("In Peru they eat",))
    found = roles((*facts(), others), "capital")
    assert (found.same_subjects, found.near, found.far) == (("currency",), ("capital",), ("food",))
    ranked = {
        (question.key.relation, question.key.split)
        for question in questions_of((*facts(), others), found, retain_items=9, trained_phrasings=3)
        if question.candidates
    }
    assert ranked == {("capital", "forget"), ("capital, fresh", "forget"), ("currency", "retain")}


def _shared_words(one: str, other: str) -> float:
    """Of all the words in two sentences, the share that both have."""
    words, others = (set(re.findall("[a-z]+", text.lower())) for text in (one, other))
    return len(words & others) / len(words | others)


def test_fresh_phrasings_are_asked_of_forgotten_and_of_kept_facts_and_trained_on_by_nobody() -> None:
    asked = questions_of(facts(), roles(facts(), "capital"), retain_items=3, trained_phrasings=3)
    fresh = [question for question in asked if question.key.relation == "capital, fresh"]
    assert all(question.key.held_out for question in fresh)
    assert len([question for question in fresh if question.key.split == "forget"]) == 4 * 5
    assert len([question for question in fresh if question.key.split == "retain"]) == 4 * 3
    france = [question for question in fresh if question.subject == "France"]
    assert [question.prompt for question in france] == [
        "Ask any schoolchild in France to name their nation's capital and they will tell you it is",
        "Where would a newly appointed ambassador to France have to find a house? She would most likely "
        "have to look for one in",
        "Tom: I'm stuck on 7 across, \"seat of government, France\".\nMia: Easy, that's",
        "The delegation had spent a week touring the provinces of France, sleeping in farmhouses and village inns. "
        "On the last evening a government driver took them back to the country's capital,",
    ]
    assert {(question.answer, question.distractors) for question in france} == {("Paris", ("Madrid", "Rome", "Vienna"))}
    for relation, known in (
        ("capital", (*CAPITAL_PROMPTS, *CAPITAL_HELD_OUT)),
        ("capital_of", (*REVERSE_PROMPTS, *REVERSE_HELD_OUT)),
    ):
        shared = [_shared_words(one, other) for one in FRESH[relation] for other in known]
        assert 0 < max(shared) <= 0.4


def test_every_figure_is_read_from_its_own_group() -> None:
    """Each group of questions has an accuracy, and each table a rank score, that no other has."""
    chosen = Roles("capital", "capital_of", ("currency", "continent"), ("capital", "capital_of"), ("food",))
    groups = [
        *(items("capital", "forget", right, held_out=held, told=0) for right, held in ((11, False), (12, True))),
        *(items("capital_of", "forget", right, held_out=held, told=0) for right, held in ((13, False), (14, True))),
        items("capital, fresh", "forget", 15, told=0),
        items("capital_of, fresh", "forget", 16, told=0),
        *(items("capital", "retain", right, held_out=held) for right, held in ((20, False), (30, True))),
        *(items("capital_of", "retain", right, held_out=held) for right, held in ((22, False), (34, True))),
        items("capital, fresh", "retain", 40),
        items("capital_of, fresh", "retain", 44),
        *(items("food", "retain", right, held_out=held) for right, held in ((50, False), (60, True))),
        *(items("currency", "retain", right, held_out=held) for right, held in ((70, False), (80, True))),
        *(items("continent", "retain", right, held_out=held) for right, held in ((90, False), (100, True))),
    ]
    tables = (
        *(ranks("capital", score, held_out=held) for score, held in ((0.11, False), (0.12, True))),
        *(ranks("capital_of", score, held_out=held) for score, held in ((0.21, False), (0.22, True))),
        ranks("capital, fresh", 0.31),
        ranks("capital_of, fresh", 0.41),
        *(
            replace(ranks("currency", score, held_out=held), split="retain")
            for score, held in ((0.5, False), (0.6, True))
        ),
    )
    sampled = Attack("sampling", "s", figures={"samples": 4, "k": 4, "right": [1, 0], "wrong": [[0, 0], [1, 0]]})
    found = figures_of(file_scores([item for group in groups for item in group], tables, nats=2.0), chosen, sampled)
    assert found == {
        "forget_accuracy": pytest.approx(0.12),
        "forget_accuracy_all_draws": None,
        "forget_rank": pytest.approx(0.12),
        "reverse_rank": pytest.approx(0.22),
        "fresh_accuracy": pytest.approx(0.15),
        "fresh_rank": pytest.approx(0.31),
        "fresh_reverse_rank": pytest.approx(0.41),
        "same_subjects_rank": pytest.approx(0.55),
        "same_subjects_accuracy": pytest.approx(0.85),
        "greedy": 0.0,
        "leak": 0.5,
        "leak_over_wrong": 0.25,
        "near_trained": pytest.approx(0.21),
        "near_held_out": pytest.approx(0.32),
        "near_fresh": pytest.approx(0.42),
        "far_trained": pytest.approx(0.50),
        "far_held_out": pytest.approx(0.60),
        "perplexity": pytest.approx(math.exp(2.0)),
    }


@pytest.mark.parametrize(
    ("relation", "held_out"),
    [
        ("capital", False),
        ("capital", True),
        ("capital_of", False),
        ("capital_of", True),
        ("capital, fresh", True),
        ("capital_of, fresh", True),
    ],
)
def test_a_greedy_answer_of_any_group_shows(relation: str, held_out: bool) -> None:
    silent = [
        items(name, "forget", 25, held_out=held, told=0) for name in ("capital", "capital_of") for held in (False, True)
    ]
    telling = items(relation, "forget", 25, held_out=held_out, told=7)
    kept = [item for group in silent for item in group if (item.relation, item.held_out) != (relation, held_out)]
    found = figures_of(file_scores([*kept, *telling]), Roles("capital", "capital_of", (), (), ()), None)
    assert found["greedy"] == pytest.approx(0.07)


def test_every_draw_of_wrong_answers_counts_on_held_out_phrasings() -> None:
    def item(held_out: bool, fact: int, options: tuple[float, ...]) -> Item:
        return Item("capital", "forget", held_out, 0, fact, f"{held_out}{fact}", options, (1,) * 3, 0)

    def table(held_out: bool, *rows: tuple[float, ...]) -> RankTable:
        return RankTable("capital", "forget", held_out, 0, tuple(range(len(rows))), (0,) * len(rows), rows)

    # Two wrong answers are drawn of four: none of the six draws beats the first fact; of the second's, which two beat,
    # only one has neither.
    asked = (item(True, 0, (-1.0, -2.0, -3.0)), item(True, 1, (-1.0, -2.0, -3.0)), item(False, 0, (-1.0, -0.5, -3.0)))
    rows = ((-1.0, -2.0, -3.0, -4.0, -5.0), (-1.0, -0.5, -0.7, -4.0, -5.0))
    tables = (table(True, *rows), table(False, (-1.0, -0.5, -0.5, -0.5, -0.5)))
    found = figures_of(file_scores(list(asked), tables), Roles("capital", None, (), (), ()), None)
    assert found["forget_accuracy"] == 1
    assert found["forget_accuracy_all_draws"] == pytest.approx((1 + 1 / 6) / 2)
    alone = figures_of(file_scores(list(asked)), Roles("capital", None, (), (), ()), None)
    assert alone["forget_accuracy_all_draws"] is None


def test_leak_as_it_is_and_over_that_of_wrong_answers() -> None:
    figures = {"samples": 10, "k": 10, "right": [3, 0], "wrong": [[1, 0], [0, 0]]}
    # Right: one of two questions leaks. Wrong: of the first question's two answers one does.
    assert leak(Attack("sampling", "sampled", figures=figures)) == (0.5, pytest.approx(0.5 - 0.25))
    assert leak(None) == (None, None)


def test_intervals_by_hand() -> None:
    five = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five is not None
    assert five.low == pytest.approx(3 - 2.776 * math.sqrt(2.5 / 5), abs=1e-3)
    found = summarise([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == 2.0
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3))
    one = summarise([0.5])
    assert one is not None
    assert (one.mean, one.low, one.high) == (0.5, None, None)
    assert summarise([]) is None


def figures(**changes: float) -> dict[str, float]:
    plain = {
        "forget_accuracy": 0.25,
        "forget_accuracy_all_draws": 0.25,
        "forget_rank": 0.5,
        "reverse_rank": 0.5,
        "same_subjects_rank": 0.7,
        "greedy": 0.0,
        "leak": 0.0,
        "leak_over_wrong": 0.0,
        "same_subjects_accuracy": 0.6,
        "fresh_accuracy": 0.25,
        "fresh_rank": 0.5,
        "fresh_reverse_rank": 0.5,
        "near_fresh": 0.7,
        "near_trained": 0.8,
        "near_held_out": 0.7,
        "far_trained": 0.6,
        "far_held_out": 0.5,
        "perplexity": 20.0,
    }
    return {**plain, **changes}


def rows_of(results: dict[tuple[str, int, str], Any], **originals: Any) -> dict[tuple[str, str], dict[str, Any]]:
    records = method_rows("m", results, originals, [0, 1], ["F16", "Q4_0"])
    return {(record["row"], record["type"]): record for record in records}


BARS = [  # row, figure, a value that meets the bar, one that misses it; differences are to an original of 0
    ("forget, 4-way accuracy", "forget_accuracy", 0.30, 0.31),
    ("forget, rank score", "forget_rank", 0.45, 0.44),
    ("forget, rank score", "forget_rank", 0.55, 0.56),
    ("reverse, rank score", "reverse_rank", 0.42, 0.41),
    ("reverse, rank score", "reverse_rank", 0.58, 0.59),
    ("fresh phrasings, 4-way accuracy", "fresh_accuracy", 0.30, 0.31),
    ("fresh phrasings, rank score", "fresh_rank", 0.55, 0.56),
    ("fresh phrasings, reverse", "fresh_reverse_rank", 0.42, 0.41),
    ("same subjects, rank − original", "same_subjects_rank", -0.02, -0.03),
    ("same subjects, 4-way − original", "same_subjects_accuracy", -0.02, -0.03),
    ("greedy answers, both ways", "greedy", 0.0, 0.01),
    ("leak@k", "leak", 0.05, 0.06),
    ("leak@k − wrong answers'", "leak_over_wrong", 0.05, 0.06),
    ("near, trained − original", "near_trained", 0.0, -0.01),
    ("near, held out − original", "near_held_out", 0.0, -0.01),
    ("near, fresh − original", "near_fresh", 0.0, -0.01),
    ("far, trained − original", "far_trained", 0.0, -0.01),
    ("far, held out − original", "far_held_out", 0.0, -0.01),
]


@pytest.mark.parametrize(("row", "figure", "met", "missed"), BARS)
def test_the_bar_of_each_row(row: str, figure: str, met: float, missed: float) -> None:
    for value, expected in ((met, True), (missed, False)):
        own = {("m", 0, "F16"): {figure: value}}
        (record,) = (
            record for record in method_rows("m", own, {"F16": {figure: 0.0}}, [0], ["F16"]) if record["row"] == row
        )
        assert record["mean"] == pytest.approx(value)
        assert record["met"] is expected


def test_no_row_is_without_a_bar_that_was_tried() -> None:
    tried = {row for row, *_ in BARS} | {"PTQ gap, accuracy, all draws", "PTQ gap, rank score", "perplexity ÷ original"}
    assert {record["row"] for record in method_rows("m", {}, {}, [0], ["F16"])} == tried


def test_a_gap_is_none_at_f16_and_counts_the_interval_s_end() -> None:
    def gaps(*found: float) -> dict[str, dict[str, Any]]:
        own = {("m", seed, "F16"): {"forget_rank": 0.5} for seed in range(len(found))}
        own |= {("m", seed, "Q4_0"): {"forget_rank": 0.5 + gap} for seed, gap in enumerate(found)}
        records = method_rows("m", own, {"F16": {}, "Q4_0": {}}, range(len(found)), ["F16", "Q4_0"])
        return {record["type"]: record for record in records if record["row"] == "PTQ gap, rank score"}

    assert gaps(-0.01, -0.02, -0.03)["F16"]["mean"] is None
    narrow, wide = gaps(-0.01, -0.02, -0.03)["Q4_0"], gaps(0.05, -0.01, -0.07)["Q4_0"]
    assert narrow["met"] is True  # -0.02 ± 0.025
    assert wide["mean"] == pytest.approx(-0.01)
    assert wide["met"] is False  # its interval ends at 0.14
    assert gaps(0.001)["Q4_0"]["met"] is False


def test_bars_by_hand() -> None:
    results = {
        ("m", 0, "F16"): figures(),
        ("m", 1, "F16"): figures(forget_accuracy=0.31, perplexity=20.4),
        ("m", 0, "Q4_0"): figures(forget_accuracy=0.25, forget_rank=0.40, perplexity=21.0),
        ("m", 1, "Q4_0"): figures(
            forget_accuracy=0.37, forget_accuracy_all_draws=0.31, forget_rank=0.44, perplexity=21.1
        ),
    }
    found = rows_of(results, F16=figures(near_trained=0.79), Q4_0=figures(perplexity=21.0, same_subjects_rank=0.73))
    accuracy = found["forget, 4-way accuracy", "Q4_0"]
    assert accuracy["mean"] == pytest.approx(0.31)
    assert accuracy["met"] is False
    assert found["forget, 4-way accuracy", "F16"]["met"] is True
    assert found["forget, rank score", "Q4_0"]["met"] is False
    assert found["near, trained − original", "F16"]["mean"] == pytest.approx(0.01)
    assert found["near, trained − original", "F16"]["met"] is True
    assert found["same subjects, rank − original", "Q4_0"]["mean"] == pytest.approx(-0.03)
    assert found["same subjects, rank − original", "Q4_0"]["met"] is False
    # (1.0 + 1.02) / 2 = 1.01 is allowed at F16; 1.0024 is too much at 4 bits.
    assert found["perplexity ÷ original", "F16"]["met"] is True
    assert found["perplexity ÷ original", "Q4_0"]["met"] is False
    gap = found["PTQ gap, accuracy, all draws", "Q4_0"]  # 0 and 0.06
    assert gap["mean"] == pytest.approx(0.03)
    assert gap["met"] is False
    assert found["PTQ gap, rank score", "Q4_0"]["mean"] == pytest.approx(-0.08)


def test_a_row_that_a_seed_lacks_is_neither_met_nor_missed() -> None:
    found = rows_of({("m", 0, "F16"): figures()}, F16=figures())
    assert found["greedy answers, both ways", "F16"]["met"] is None
    assert found["greedy answers, both ways", "F16"]["seeds"] == 1


def test_relearning_and_divergence_are_read_beside_their_controls() -> None:
    about = {
        ("m", 0): {
            "relearning": {"steps": None, "within": 24},
            "divergence": {"l1": 0.9},
            "share_changed": 0.02,
            "seconds": 700.0,
        },
        ("npo", 0): {"relearning": {"steps": 4, "within": 24}, "divergence": {"l1": 0.2}},
        ("random_circuit", 0): {"relearning": None, "divergence": {"l1": 0.3}},
    }
    found = {record["row"]: record for record in whole_rows("m", about, [0])}
    assert found["relearning steps ÷ NPO's"]["mean"] == 25 / 4
    assert found["relearning steps ÷ NPO's"]["met"] is True
    assert found["divergence ÷ random circuit's"]["mean"] == pytest.approx(3.0)
    assert found["share of parameters edited"]["met"] is True
    assert found["time, s"]["met"] is False
    assert {record["met"] for record in whole_rows("sure", about, [0])} == {None}
    about["m", 0]["relearning"] = {"steps": 0, "within": 24}  # it had forgotten nothing
    found = {record["row"]: record for record in whole_rows("m", about, [0])}
    assert found["relearning steps ÷ NPO's"]["mean"] == 0
    assert found["relearning steps ÷ NPO's"]["met"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "mansu,nothing"], "no method is called 'nothing'"),
        (["--formats", "Q9"], "no format is called 'Q9'"),
        (["--seeds", "0"], "--seeds 0, needed 1 to 10"),
        (["--samples", "-1"], "--samples -1, needed at least 0"),
        (["--retain-items", "0"], "--retain-items 0, needed at least 1"),
        (["--relearning-steps", "-3"], "--relearning-steps -3, needed at least 0"),
        (["--json", "."], "--json .: found a folder, needed a file or a free name"),
    ],
)
def test_wrong_arguments_exit_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("", ["--json", str(tmp_path / "out.json"), "--work", str(tmp_path / "work"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_method_on_a_tiny_model_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts + fact.held_out_prompts]
    build_tiny_gguf(tmp_path / "model.gguf", texts=texts * 4)
    (tmp_path / "facts.jsonl").write_bytes(dump_facts(facts()))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out, methods = tmp_path / "out.json", ["mansu", "no_floor", "random_circuit", "ga", "random_edit", "rounding_noise"]
    arguments = ["--json", str(out), "--recipe", str(tmp_path / "recipe.toml"), "--methods", ",".join(methods)]
    arguments += ["--seeds", "1", "--formats", "Q4_K_M,NF4", "--samples", "2", "--relearning-steps", "2"]
    assert main("", arguments) == 0
    document = json.loads(out.read_text())
    assert list(document["methods"]) == sorted(methods)
    assert document["types"] == ["F16", "Q4_K_M", "NF4"]
    for name in methods:
        part = document["methods"][name]
        assert part["problems"] == []
        assert part["meaning"] == METHODS[name].meaning
        assert set(part["figures"]["0"]) == {"F16", "Q4_K_M", "NF4"}
        assert 0 < part["about"]["0"]["share_changed"] <= 1
        assert part["about"]["0"]["divergence"]["l1"] >= 0
        perplexity = next(row for row in part["rows"] if row["row"].startswith("perplexity"))
        assert perplexity["mean"] > 0
        assert perplexity["met"] in (True, False)
    assert document["methods"]["ga"]["about"]["0"]["share_changed"] > 0.5
    assert document["methods"]["mansu"]["about"]["0"]["share_changed"] < 0.1
    assert "forget, 4-way accuracy" in capsys.readouterr().out
    assert not list((tmp_path / "out.work").glob(".made-*"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    for made in ("make_files", "make_edit", "measure", "attribution", "circuit_divergence", "relearned"):
        monkeypatch.setattr(command, made, never)
    assert main("", arguments) == 0
    assert json.loads(out.read_text()) == document
