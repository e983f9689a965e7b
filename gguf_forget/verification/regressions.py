"""The verdict beside an earlier report: what failed there as badly is known, and fails no more than it did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.verification.gates import (
    FAILED,
    KNOWN,
    NOT_APPLICABLE,
    PASSED,
    UNKNOWN,
    Gate,
    Verdict,
    conclude,
    without_number,
)

SLACK = 0.005  # of a value: the same file scores a little differently on another processor
STATUSES = (PASSED, FAILED, KNOWN, UNKNOWN, NOT_APPLICABLE)


def baseline_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is kept of an earlier report.

    Raises:
        InputError: it holds no verdict with gates, or a gate is malformed.
    """
    keys = ("name", "file_type", "value", "low", "high", "status")
    try:
        found = report["verdict"]["gates"]
        gates = [{key: gate[key] for key in keys} for gate in found]
    except (KeyError, TypeError) as error:
        raise _no_report(repr(error)) from error
    if not isinstance(found, (list, tuple)):
        raise _no_report(f"verdict.gates: found {_shown(found)}, needed a list")
    for number, gate in enumerate(gates, start=1):
        for key, value in gate.items():
            needed = _needed(key, value)
            if needed is not None:
                raise _no_report(f"gate {number}: {key}: found {_shown(value)}, needed {needed}")
    return gates


def _no_report(cause: str) -> InputError:
    return InputError("the baseline is no report of gguf-forget", cause=cause, hint="give a report.json that it wrote")


def _needed(key: str, value: Any) -> str | None:
    """What a gate needs in place of a value that it cannot have; None where the value will do."""
    if key == "status":
        return None if isinstance(value, str) and value in STATUSES else f"one of {', '.join(STATUSES)}"
    if key in ("name", "file_type"):
        return None if isinstance(value, str) else "a text"
    return None if value is None or _is_finite(value) else "a finite number or null"


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:79] + '…'} ({type(value).__name__})"


def beside_baseline(verdict: Verdict, baseline: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict in which failures of the baseline count only where they got worse.

    A gate that the baseline judged and this verdict does not is unknown here: nobody can say that it still holds.
    """
    before = {(gate["name"], gate["file_type"]): gate for gate in baseline}
    gates = []
    for gate in verdict.gates:
        earlier = before.pop((gate.name, gate.file_type), None)
        if gate.status == NOT_APPLICABLE and earlier is not None and earlier["status"] in (PASSED, FAILED, KNOWN):
            gate = replace(gate, status=UNKNOWN, detail=f"judged in the baseline, not applicable now: {gate.detail}")
        if earlier is not None and earlier["status"] in (FAILED, KNOWN) and _no_worse(gate, earlier["value"]):
            gate = replace(gate, status=KNOWN, detail=f"{gate.detail}; {earlier['value']:.3f} in the baseline")
        gates.append(gate)
    for (name, file_type), earlier in before.items():
        if earlier["status"] in (PASSED, FAILED, KNOWN):
            gates.append(without_number(name, file_type, UNKNOWN, "judged in the baseline, not asked this time"))
    return conclude(gates)


def _no_worse(gate: Gate, earlier: float | None) -> bool:
    """Whether a gate that failed lies beyond the bound that the earlier value was beyond, no further than that was.

    Both by the bounds of now. A value that was below them and is above them now has crossed chance: what was avoided
    is known again.
    """
    if gate.status != FAILED or gate.value is None or earlier is None:
        return False
    if gate.high is not None and gate.value > gate.high:
        return earlier > gate.high and gate.value <= earlier + SLACK
    return gate.low is not None and earlier < gate.low and gate.value >= earlier - SLACK
