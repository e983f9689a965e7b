"""Beside a baseline only what got worse fails, and nothing unknown passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gguf_forget.errors import InputError
from gguf_forget.verification.gates import NOT_APPLICABLE, Verdict, bounded, conclude, without_number
from gguf_forget.verification.regressions import baseline_gates, beside_baseline


def verdict(**values: float) -> Verdict:
    return conclude([bounded(name, "Q8_0", value, None, 0.3, "n = 4") for name, value in values.items()])


def beside(now: Verdict, before: Verdict) -> Verdict:
    return beside_baseline(now, baseline_gates({"verdict": before.to_json()}))


def test_what_failed_as_badly_before_is_no_regression() -> None:
    found = beside(verdict(a=0.5, b=0.2), verdict(a=0.5, b=0.1))
    assert (found.status, found.exit_code) == ("no regression", 0)
    assert [gate.status for gate in found.gates] == ["failed in the baseline too", "passed"]
    assert found.sentence == "NO REGRESSION: 1 of 2 gates fail as they did before, a (Q8_0)."


def test_what_got_worse_or_newly_fails_is_one() -> None:
    assert beside(verdict(a=0.51), verdict(a=0.5)).exit_code == 1
    assert beside(verdict(a=0.5, b=0.31), verdict(a=0.5, b=0.3)).exit_code == 1
    assert beside(verdict(a=0.504), verdict(a=0.5)).exit_code == 0
    assert beside(verdict(a=0.5), verdict(b=0.1)).exit_code == 1


def between(value: float, low: float = 0.4, high: float = 0.6) -> Verdict:
    return conclude([bounded("a", "Q8_0", value, low, high, "n = 4")])


def test_what_was_avoided_and_is_known_again_is_a_regression() -> None:
    assert beside(between(0.85), between(0.15)).exit_code == 1
    assert beside(between(0.15), between(0.85)).exit_code == 1
    assert beside(between(0.15), between(0.15)).exit_code == 0
    assert beside(between(0.85), between(0.85)).exit_code == 0


def test_other_bounds_than_the_baseline_s_forgive_nothing() -> None:
    """0.62 was 0.27 above 0.35, as 0.87 is above 0.6."""
    assert beside(between(0.87), between(0.62, 0.0, 0.35)).exit_code == 1
    assert beside(between(0.62), between(0.62, 0.0, 0.35)).exit_code == 0
    assert beside(between(0.65), between(0.55, 0.0, 0.35)).exit_code == 1  # held by the bounds of now


def test_a_gate_of_the_baseline_that_was_not_judged_is_unknown() -> None:
    found = beside(verdict(a=0.1), verdict(a=0.1, b=0.1))
    assert (found.status, found.exit_code) == ("could not evaluate", 3)
    assert found.gates[-1].detail == "judged in the baseline, not asked this time"


def test_a_gate_of_the_baseline_that_is_not_applicable_now_is_unknown() -> None:
    now = conclude([*verdict(a=0.1).gates, without_number("b", "Q8_0", NOT_APPLICABLE, "texts too short")])
    for earlier in (0.1, 0.5):
        found = beside(now, verdict(a=0.1, b=earlier))
        assert (found.status, found.exit_code) == ("could not evaluate", 3)
        assert found.gates[-1].detail == "judged in the baseline, not applicable now: texts too short"
    assert beside(now, now).exit_code == 0


def test_what_cannot_be_evaluated_is_no_pass_whatever_the_baseline() -> None:
    assert beside(verdict(a=float("nan")), verdict(a=float("nan"))).exit_code == 3


def test_a_pass_stays_a_pass_and_a_second_baseline_knows_the_first() -> None:
    assert beside(verdict(a=0.1), verdict(a=0.5)).status == "forgotten"
    once = beside(verdict(a=0.5), verdict(a=0.5))
    assert beside(verdict(a=0.5), once).exit_code == 0


def test_something_else_is_refused_as_a_baseline() -> None:
    with pytest.raises(InputError, match="no report of gguf-forget"):
        baseline_gates({"verdict": {"gates": [{"name": "a"}]}})


GATE = {"name": "a", "file_type": "Q8_0", "value": 0.5, "low": None, "high": 0.3, "status": "failed"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ["x"]}, "gate 2: name: found ['x'] (list), needed a text"),
        ({"file_type": {}}, "gate 2: file_type: found {} (dict), needed a text"),
        ({"value": "abc"}, "gate 2: value: found 'abc' (str), needed a finite number or null"),
        ({"value": float("nan")}, "gate 2: value: found nan (float), needed a finite number or null"),
        ({"value": True}, "gate 2: value: found True (bool), needed a finite number or null"),
        ({"value": 10**400}, "gate 2: value: found 1000"),
        ({"low": float("-inf")}, "gate 2: low: found -inf (float), needed a finite number or null"),
        ({"high": [0.3]}, "gate 2: high: found [0.3] (list), needed a finite number or null"),
        ({"status": "fine"}, "gate 2: status: found 'fine' (str), needed one of passed, failed,"),
        ({"status": ["failed"]}, "gate 2: status: found ['failed'] (list), needed one of passed, failed,"),
    ],
)
def test_a_malformed_gate_of_a_baseline_is_named(change: dict[str, Any], said: str) -> None:
    gates = json.loads(json.dumps([GATE, {**GATE, **change}]))  # as read from a file, NaN and all
    with pytest.raises(InputError, match="no report of gguf-forget") as caught:
        baseline_gates({"verdict": {"gates": gates}})
    assert str(caught.value.cause).startswith(said)


@pytest.mark.parametrize("report", [[], "text", None, {"verdict": {"gates": {}}}, {"verdict": {"gates": [[]]}}])
def test_another_document_is_no_baseline(report: Any) -> None:
    with pytest.raises(InputError, match="no report of gguf-forget"):
        baseline_gates(report)


def test_a_gate_without_a_number_is_kept_as_it_is() -> None:
    gate = {**GATE, "value": None, "high": 1, "status": "could not evaluate"}
    assert baseline_gates({"verdict": {"gates": [{**gate, "detail": "n = 4"}]}}) == [gate]
