"""The verdict beside an earlier report: what failed there as badly is known, and fails no more than it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf_forget.errors import InputError
from gguf_forget.verification.gates import FAILED, KNOWN, PASSED, UNKNOWN, Gate, Verdict, conclude, without_number

SLACK = 0.005  # of a value: the same file scores a little differently on another processor


def baseline_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is kept of an earlier report.

    Raises:
        InputError: it holds no verdict with gates.
    """
    try:
        keys = ("name", "file_type", "value", "low", "high", "status")
        return [{key: gate[key] for key in keys} for gate in report["verdict"]["gates"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            "the baseline is no report of gguf-forget", cause=repr(error), hint="give a report.json that it wrote"
        ) from error


def beside_baseline(verdict: Verdict, baseline: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict in which failures of the baseline count only where they got worse.

    A gate that the baseline judged and this verdict does not is unknown here: nobody can say that it still holds.
    """
    before = {(gate["name"], gate["file_type"]): gate for gate in baseline}
    gates = []
    for gate in verdict.gates:
        earlier = before.pop((gate.name, gate.file_type), None)
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
