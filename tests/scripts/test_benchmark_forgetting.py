"""The forgetting benchmark: bars and intervals by hand, and the whole of it on a tiny model, twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from forgetting_benchmark import command
from forgetting_benchmark.command import main
from forgetting_benchmark.figures import Roles, figures_of, leak, questions_of, roles
from forgetting_benchmark.methods import METHODS
from forgetting_benchmark.table import method_rows, summarise, whole_rows
from hand_made_scores import file_scores
from tiny import build_tiny_gguf

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
    assert ranked == {("capital", "forget"), ("currency", "retain")}


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


def test_leak_is_over_that_of_wrong_answers() -> None:
    figures = {"samples": 10, "k": 10, "right": [3, 0], "wrong": [[1, 0], [0, 0]]}
    # Right: one of two questions leaks. Wrong: of the first question's two answers one does.
    assert leak(Attack("sampling", "sampled", figures=figures)) == pytest.approx(0.5 - 0.25)
    assert leak(None) is None


def test_intervals_by_hand() -> None:
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
    assert found["greedy answers", "F16"]["met"] is None
    assert found["greedy answers", "F16"]["seeds"] == 1


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
    assert found["share of parameters changed"]["met"] is True
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
    ],
)
def test_wrong_arguments_exit_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("", ["--json", str(tmp_path / "out.json"), *arguments]) == 2
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
    assert not list((tmp_path / "out.work").glob("files-*"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    for made in ("make_files", "make_edit", "measure", "circuit_divergence", "relearned"):
        monkeypatch.setattr(command, made, never)
    assert main("", arguments) == 0
    assert json.loads(out.read_text()) == document
