"""A verdict as JUnit XML, for CI systems: a suite a file, a case a gate."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from gguf_forget.report.terminal import gate_value

# Gate status -> JUnit element; a gate that passed has none.
ELEMENTS = {
    "failed": "failure",
    "could not evaluate": "error",
    "not applicable": "skipped",
    "failed in the baseline too": "skipped",
}
# What XML cannot hold: control characters, halves of surrogate pairs, and two that are no characters.
_FORBIDDEN = dict.fromkeys([*set(range(32)) - {9, 10, 13}, *range(0xD800, 0xE000), 0xFFFE, 0xFFFF])


def junit_xml(report: Mapping[str, Any]) -> str:
    """The document as text. Failures and errors are counted as JUnit does: an unknown gate is an error."""
    verdict = report["verdict"]
    suites: dict[str, list[Mapping[str, Any]]] = {}
    for gate in verdict["gates"]:
        suites.setdefault(gate["file_type"], []).append(gate)
    root = ElementTree.Element("testsuites", {"name": "gguf-forget verify", **_counts(verdict["gates"])})
    for label, gates in suites.items():
        suite = ElementTree.SubElement(root, "testsuite", {"name": _plain(label), **_counts(gates)})
        for gate in gates:
            case = ElementTree.SubElement(suite, "testcase", {"classname": _plain(label), "name": _plain(gate["name"])})
            value = "no value" if gate["value"] is None else gate_value(gate)
            message = f"{value}, needed {gate['bound']}"
            element = ELEMENTS.get(gate["status"])
            if element is None:
                ElementTree.SubElement(case, "system-out").text = _plain(f"{message}; {gate['detail']}")
            else:
                child = ElementTree.SubElement(case, element, {"message": _plain(f"{gate['status']}: {message}")})
                child.text = _plain(gate["detail"])
    if not verdict["gates"]:
        # Without a case, CI systems would call an empty file a success.
        suite = ElementTree.SubElement(root, "testsuite", {"name": "verdict", "tests": "1", "errors": "1"})
        case = ElementTree.SubElement(suite, "testcase", {"classname": "verdict", "name": "verdict"})
        ElementTree.SubElement(case, "error", {"message": _plain(verdict["sentence"])})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counts(gates: list[Mapping[str, Any]]) -> dict[str, str]:
    elements = [ELEMENTS.get(gate["status"]) for gate in gates]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {"tests": str(len(gates)), **{name: str(elements.count(element)) for name, element in counted.items()}}


def _plain(text: str) -> str:
    return text.translate(_FORBIDDEN)
