"""The evidence as text: every figure where its column says, what is missing as a dash."""

from __future__ import annotations

import io
from typing import Any

from gguf_forget.report.circuit_table import print_circuit, print_divergence, print_plan

COUNTS = {
    "pairs": 8,
    "other_subject": 6,
    "other_question": 0,
    "mean_embedding": 2,
    "free_text": 1,
    "unpaired": 3,
    "unlocated": 4,
}


def effect(split: str, circuit: str, kind: str, drop: float, **others: Any) -> dict[str, Any]:
    return {
        "split": split,
        "circuit": circuit,
        "kind": kind,
        "drop": drop,
        "standard_error": 0.25,
        "share_of_gap": drop / 4,
        "right_before": 0.9,
        "right_after": 0.6,
        **others,
    }


DOCUMENT = {
    "neurons": 1382,
    "share_of_neurons": 0.03,
    "share_of_attribution": {"forget": 0.31, "retain": 0.13},
    "method": "EAP-IG",
    "pairs": {"forget": {**COUNTS, "metric_gap": 6.06, "completeness_residual": 0.0132}},
    "evidence": {
        "unseen_pairs": {"forget": True, "retain": True},
        "faithfulness": [
            {"split": "forget", "circuit": "circuit", "drawn": 1, "faithfulness": 0.456, "pairs": 64},
            {"split": "forget", "circuit": "random control", "drawn": 3, "faithfulness": None, "pairs": 64},
        ],
        "ablation": [
            effect("forget", "circuit", "resample", 2.0),
            effect("forget", "circuit", "mean", 3.0, right_after=None),
            effect("forget", "random control", "resample", 0.4),
            effect("forget", "random control", "mean", -0.4),
        ],
        "curve": {"circuit": {"shares": [0.001, 1.0], "faithfulness": [0.1, None], "cpr": 0.5, "cmd": 0.4}},
        "exact_patching": {
            "top": 24,
            "random": 24,
            "spearman": 0.97,
            "spearman_top": 0.9,
            "spearman_random": 0.8,
            "pairs": 16,
        },
        "across_halves": {"overlap": {"share": 0.2, "chance": 0.065}, "rank_correlation": 0.32},
        "across_seeds": None,
    },
}


def printed(function: Any, document: Any, **changes: Any) -> str:
    stream = io.StringIO()
    function({**document, **changes}, stream)
    return stream.getvalue()


def test_the_evidence() -> None:
    text = printed(print_circuit, DOCUMENT)
    assert "1,382 neurons (3 %) hold 31% of the forget attribution and 13% of the retain" in text
    assert "forget: 8 pairs (another subject 6, mean embedding 2; free text 1)" in text
    unbroken = " ".join(text.split())
    assert "left out: no partner 3, subject not found 4; metric gap 6.06, completeness residual 1.3%" in unbroken
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "64 forget circuit 0.456 0.90 +2.00 ± 0.25 +0.50 0.60 +3.00 ± 0.25 +0.75 –" in rows
    assert "64 forget random × 3 – 0.90 +0.40 ± 0.25 +0.10 0.60 -0.40 ± 0.25 -0.10 0.60" in rows
    assert "faithfulness, top by |forget score|: CPR 0.500, CMD 0.400" in rows
    assert "0.1%:0.10 100%:–" in rows
    assert "exact patching of 48 neurons: Spearman 0.970 (top 24: 0.900, random 24: 0.800), 16 pairs" in rows
    assert "halves of the facts: 20% of the neurons shared (chance 6.5%), Spearman of all scores 0.320" in rows
    assert "another draw" not in text
    assert "Judged on pairs that no attribution saw." in unbroken
    assert max(map(len, text.splitlines())) <= 100


def test_pairs_that_were_seen_are_named() -> None:
    evidence = {**DOCUMENT["evidence"], "unseen_pairs": {"forget": False, "retain": True}}  # type: ignore[dict-item]
    assert "Judged on pairs that were attributed (forget)" in printed(print_circuit, DOCUMENT, evidence=evidence)


def test_without_evidence_there_is_no_table() -> None:
    text = printed(print_circuit, DOCUMENT, evidence=None)
    assert "1,382 neurons" in text
    assert "faithful" not in text


def test_the_plan() -> None:
    document = {
        "folder": "out",
        "neurons": 46080,
        "layers": 30,
        "neurons_wanted": 1382,
        "pairs": {"forget": COUNTS},
        "evidence": True,
    }
    lines = printed(print_plan, document).splitlines()
    assert lines[0] == "would attribute into out: 46,080 neurons in 30 layers"
    assert lines[1] == "circuit: 1,382 neurons"
    expected = "forget: 8 pairs (another subject 6, mean embedding 2, no partner 3, subject not found 4)"
    assert lines[2:] == [expected, "evidence: all"]


def test_divergence() -> None:
    row = {"split": "forget", "of": "circuit", "drawn": 1, "neurons": 1382, "l1": 0.5, "one_minus_cosine": 0.25}
    document = {
        "original": "a.gguf",
        "unlearned": "b.gguf",
        "pairs": {"forget": 8},
        "metric_gap": {"forget": {"before": 6.0, "after": 0.5}},
        "divergence": [
            {**row, "mass_ratio": 0.125},
            {**row, "of": "random control", "drawn": 3, "mass_ratio": None},
        ],
    }
    rows = [" ".join(line.split()) for line in printed(print_divergence, document).splitlines()]
    assert rows[0] == "a.gguf → b.gguf"
    assert rows[1] == "forget: 8 pairs, metric gap 6.00 before, 0.50 after"
    assert "forget circuit 1,382 0.500 0.250 0.125" in rows
    assert "forget random control × 3 1,382 0.500 0.250 –" in rows
