"""The report on files, from evidence written by hand."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hand_made_scores import capital_scores, file_scores, items, ranks

from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.report.document import content_hash
from gguf_forget.report.file_report import build_file_report, recompute_verdict, render_file_report
from gguf_forget.report.html_report import build_html
from gguf_forget.report.terminal import report_console
from gguf_forget.verification.evidence import Attack, Evidence, FileEvidence
from gguf_forget.verification.gates import PROTOCOL
from gguf_forget.verification.regressions import baseline_gates
from gguf_forget.verification.scores import FileScores

KNOWS = capital_scores(forget=95, rank=0.99, told=60)
CURVE = {
    "steps": [0, 4, 8],
    "accuracy": [0.25, 0.4, 0.75],
    "original": 0.95,
    "questions": 30,
    "steps_to_half": 8,
    "examples_to_half": 128,
    "learning_rate": 2e-5,
}


def evidence(**scores: int) -> Evidence:
    attacks = (
        Attack("few-shot", "4 examples", capital_scores()),
        Attack("requantize", "quantized to Q8_0", capital_scores(forget=26, rank=0.5)),
        Attack("requantize", "quantized to Q4_0", capital_scores(forget=28, rank=0.54)),
        Attack("control", "random edit of the same size", capital_scores(forget=94, rank=0.98)),
        Attack("relearning", "trained on 9 of 38 facts", figures=CURVE),
        Attack(
            "last-layer",
            "new head on layer 15 of 30",
            figures={"layer": 15, "of": 30, "relations": {"capital": {"accuracy": 0.5, "rank": 0.61}}},
        ),
    )
    file = FileEvidence(
        "Q4_K_M", "mine.gguf", "ab", 9, "Q4_K_M", False, "Q4_K_M", 7, capital_scores(**scores), attacks=attacks
    )
    return Evidence((file,), {"Q4_K_M": KNOWS}, PROTOCOL)


def report(found: Evidence | None = None, **options: object) -> dict:
    inputs = {
        "original": {"name": "original.gguf", "bytes": 9, "sha256": "a" * 64},
        "text": {"name": "built-in", "sha256": "b" * 64},
    }
    facts = {"files": [], "questions": 200}
    made = build_file_report(found or evidence(), tools={"gguf_forget": "0"}, facts=facts, inputs=inputs, **options)
    return json.loads(json.dumps(made, allow_nan=False))


def test_the_document_holds_every_item_and_its_own_hash() -> None:
    document = report()
    assert (document["schema_version"], document["kind"]) == (1, "verification of files")
    (file,) = document["evidence"]["files"]
    assert len(file["scores"]["items"]) == 200
    assert {"sha256", "option_log_probabilities", "contained"} <= file["scores"]["items"][0].keys()
    assert document["sha256"] == content_hash(document)
    assert [row["label"] for row in document["rows"]] == ["original", "mine.gguf"]
    assert document["rows"][1]["forget_held_out"]["value"] == 0.27
    assert document["rows"][1]["answer_probability"] == pytest.approx(0.27 * 0.3679 + 0.73 * 0.0498, abs=1e-3)


def test_the_verdict_can_be_recomputed_from_the_document_alone() -> None:
    document = report()
    verdict = recompute_verdict(document)
    assert verdict.exit_code == document["verdict"]["exit_code"] == 0
    assert verdict.sentence == document["verdict"]["sentence"]
    assert recompute_verdict(report(evidence(forget=50))).exit_code == 1


def test_a_verdict_that_does_not_follow_is_an_error() -> None:
    document = report(evidence(forget=50))
    document["verdict"]["status"], document["verdict"]["exit_code"] = "forgotten", 0
    with pytest.raises(EvaluationError, match="says 'forgotten', but 'not forgotten' follows"):
        recompute_verdict(document)
    document = copy.deepcopy(report(evidence(forget=50)))
    for item in document["evidence"]["files"][0]["scores"]["items"]:
        item["option_log_probabilities"][0] = -9.0
    with pytest.raises(EvaluationError, match="do not add up"):
        recompute_verdict(document)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda document: document["verdict"].update(sentence="FORGOTTEN: all gates hold"), "verdict"),
        (lambda document: document["verdict"].update(exit_code=0), "verdict"),
        (lambda document: document["verdict"]["gates"][2].update(value=0.25), "verdict"),
        (lambda document: document["rows"][1].update(perplexity=1.0), "rows"),
        (lambda document: document["headline"].append("river"), "headline"),
        (lambda document: document["not_judged"].append({}), "not_judged"),
    ],
)
def test_whatever_the_page_shows_has_to_follow(change: Callable[[Any], object], named: str) -> None:
    document = report(evidence(forget=50))
    change(document)
    with pytest.raises(EvaluationError, match=f"{named} of the report: found something other"):
        recompute_verdict(document)


def test_forgotten_relations_outside_the_headline_are_named() -> None:
    def both(forget: int, rank: float) -> FileScores:
        own = capital_scores(forget=forget, rank=rank)
        probes = [*own.items, *items("capital_of", "forget", 97)]
        return file_scores(probes, (*own.ranks, ranks("capital_of", 0.98)))

    file = FileEvidence("Q4_K_M", "mine.gguf", "ab", 9, "Q4_K_M", False, "Q4_K_M", 7, both(27, 0.5))
    found = Evidence((file,), {"Q4_K_M": both(95, 0.99)}, PROTOCOL, ("capital",))
    document = report(found)
    assert recompute_verdict(document).exit_code == 0
    assert [(entry["relation"], entry["variant"], entry["file_type"]) for entry in document["not_judged"]] == [
        ("capital_of", "unlearned", "Q4_K_M"),
        ("capital_of", "original", "Q4_K_M"),
    ]
    page = io.StringIO()
    render_file_report(document, report_console(page, width=130))
    lines = " ".join(page.getvalue().split())
    open_words = (
        "This verdict does not speak of capital_of, which was to be forgotten too: rank score on unseen phrasings"
    )
    assert f"{open_words} up to 0.980 (Q4_K_M; chance 0.500)." in lines
    assert "Q4_K_M not judged by any gate: capital_of, held-out phrasings: rank score 0.980 (original 0.980)" in lines
    assert "does not speak of capital_of" in build_html(document)


@pytest.mark.parametrize("change", [{"kind": "something"}, {"schema_version": 2}, {"kind": None}])
def test_another_document_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="needed 'verification of files' of version 1"):
        recompute_verdict({**report(), **change})


def test_a_baseline_is_part_of_the_document() -> None:
    before = baseline_gates(report(evidence(forget=50)))
    document = report(evidence(forget=50), baseline=before)
    assert document["verdict"]["status"] == "no regression"
    assert recompute_verdict(document).exit_code == 0
    assert recompute_verdict(report(evidence(forget=60), baseline=before)).exit_code == 1


def test_the_page_for_a_person() -> None:
    page = io.StringIO()
    render_file_report(report(evidence(forget=50), remarks=["its template differs"]), report_console(page, width=130))
    text = page.getvalue()
    assert text.startswith("NOT FORGOTTEN: 1 of 17 gates failed, forget accuracy, capital, held-out (Q4_K_M). 1 not")
    assert "✗ Q4_K_M  forget accuracy, capital, held-out: 0.500, needed ≤ 0.3" in text
    assert "– Q4_K_M  PTQ gap, capital: not applicable" in text
    assert "✓ 16 gates passed" in text
    assert "! its template differs" in text
    assert (
        "relearning, trained on 9 of 38 facts: accuracy 0.250 to 0.750 in 8 steps (original 0.950, n = 30); half of "
        "the loss is back after 8 steps, 128 examples"
    ) in " ".join(text.split())
    lines = " ".join(text.split())
    assert "worst of 2 other file types: quantized to Q4_0: capital accuracy 0.280, rank score 0.540" in lines
    assert "control, random edit of the same size: capital accuracy 0.940, rank score 0.980" in lines
    assert "the same questions, the original: capital accuracy 0.950, rank score 0.990" in lines
    assert "the same questions, the file: capital accuracy 0.500, rank score 0.500" in lines
    assert "new head on layer 15 of 30, not gated: capital accuracy 0.500, rank 0.610" in " ".join(text.split())
    assert "truth\n" not in text  # a column that nothing was measured for is left out


def test_a_file_that_only_says_it_is_of_full_precision_cannot_be_recomputed() -> None:
    document = report()
    document["evidence"]["files"][0]["full_precision"] = True
    with pytest.raises(EvaluationError, match=r"'mine\.gguf' is Q4_K_M, and its full precision another"):
        recompute_verdict(document)


def test_an_attack_that_has_scores_is_not_said_to_have_none() -> None:
    document = report()
    attack = next(each for each in document["evidence"]["files"][0]["attacks"] if each["scores"] is not None)
    attack["not_applicable"] = "no template"
    with pytest.raises(EvaluationError, match="has scores, and is said to have none"):
        recompute_verdict(document)


def test_questions_without_options_are_no_part_of_an_accuracy_s_n_and_options_follow_the_headline() -> None:
    choices = (
        items("a", "forget", 25) + items("a", "forget", 25, form="choice") + items("b", "forget", 90, form="choice")
    )
    scores = file_scores(choices + items("kept", "retain", 60) + items("free", "retain", 0, options=1))
    file = FileEvidence("Q8_0", "mine.gguf", "ab", 9, "Q8_0", False, "Q8_0", 7, scores)
    (_, row) = report(Evidence((file,), {"Q8_0": KNOWS}, PROTOCOL, ("a",)))["rows"]
    assert row["retain_all"]["n"] == 100
    assert row["retain_all"]["standard_error"] == pytest.approx((0.6 * 0.4 / 100) ** 0.5)
    assert row["choice"] == 0.25


def test_the_report_names_what_the_files_stand_beside() -> None:
    assert report()["inputs"]["text"] == {"name": "built-in", "sha256": "b" * 64}
