"""JUnit XML of a hand-made verdict."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from gguf_forget.report.junit import junit_xml
from gguf_forget.verification.gates import NOT_APPLICABLE, Gate, bounded, conclude, without_number


def document(*gates: Gate) -> ElementTree.Element:
    return ElementTree.fromstring(junit_xml({"verdict": conclude(gates).to_json()}).encode())


def test_a_suite_a_file_and_a_case_a_gate() -> None:
    root = document(
        bounded("rank score, capital", "Q4_K_M", 0.5, 0.4, 0.6, "n = 38"),
        bounded("accuracy <&>", "Q4_K_M", 0.9, None, 0.3, "n = 38"),
        bounded("perplexity", "Q8_0", float("nan"), None, 1.02, "not\x00 read"),
        without_number("PTQ gap", "Q8_0", NOT_APPLICABLE, "no file of full precision"),
    )
    assert root.attrib == {"name": "gguf-forget verify", "tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    first, second = root
    assert (first.attrib["name"], first.attrib["tests"], first.attrib["failures"]) == ("Q4_K_M", "2", "1")
    assert (second.attrib["name"], second.attrib["errors"], second.attrib["skipped"]) == ("Q8_0", "1", "1")
    failure = first[1].find("failure")
    assert first[1].attrib["name"] == "accuracy <&>"
    assert failure is not None
    assert failure.attrib["message"] == "failed: 0.900, needed ≤ 0.3"
    assert failure.text == "n = 38"
    error = second[0].find("error")
    assert error is not None
    assert error.text == "not read"
    assert [child.tag for child in first[0]] == ["system-out"]


def test_no_gate_is_an_error_not_an_empty_success() -> None:
    (suite,) = document()
    assert suite.attrib["errors"] == "1"
    assert "no gate" in suite[0][0].attrib["message"]


def test_what_xml_cannot_hold_is_left_out() -> None:
    root = document(bounded("a\ufffeb\uffff\ud800\x00c\U0001f511", "Q8\ufffe_0", 0.5, None, 0.3, "n\uffff = 4"))
    (suite,) = root
    assert (suite.attrib["name"], suite[0].attrib["name"]) == ("Q8_0", "abc\U0001f511")
    failure = suite[0].find("failure")
    assert failure is not None
    assert failure.text == "n = 4"
