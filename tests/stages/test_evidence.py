"""The evidence of a run: the verdict and the shipped files follow from it, and whatever was changed is found."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from changed_evidence import relist, rewrite
from click.testing import CliRunner, Result
from test_pipeline import facts

from gguf_forget.cli import main
from gguf_forget.report.document import content_hash
from gguf_forget.report.html_report import build_html
from gguf_forget.whole_file import sha256_file


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def run(project: Path, tmp_path: Path) -> Path:
    """A copy of what is in the run but the large files."""
    shutil.copytree(project / "done" / "evidence", tmp_path / "evidence")
    shutil.copytree(project / "done" / "report", tmp_path / "report")
    return tmp_path


def test_the_shipped_files_are_rebuilt_bit_by_bit(project: Path, tmp_path: Path) -> None:
    done = project / "done"
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        out = tmp_path / f"{kind}.gguf"
        result = call("rebuild", done / "stock" / f"{kind}.gguf", done / "evidence", "-o", out, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["shipped"]["name"] == f"unlearned.{kind}.gguf"
        assert out.read_bytes() == (done / "export" / f"unlearned.{kind}.gguf").read_bytes()
    wrong = call("rebuild", done / "stock" / "Q4_0.gguf", done / "evidence", "-o", tmp_path / "x.gguf")
    assert wrong.exit_code == 2
    assert "needed one of" in wrong.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_files_of_a_later_unfinished_run_are_not_those_of_the_evidence(
    project: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads((run / "report" / "report.json").read_text())["verdict"]["exit_code"]
    shipped = run / "export" / "unlearned.Q8_0.gguf"
    shipped.parent.mkdir()
    shutil.copy(project / "done" / "export" / shipped.name, shipped)
    assert call("report", "--recompute", run).exit_code == expected
    with shipped.open("ab") as file:
        file.write(b"!")
    for place in (run, run / "evidence", run / "report" / "report.json"):
        result = call("report", "--recompute", place)
        assert result.exit_code == 3
        assert f"unlearned.Q8_0.gguf has sha256 {sha256_file(shipped)}, but the evidence speaks of" in result.stderr
    monkeypatch.chdir(run / "evidence")
    for name in (".", "evidence.json", "report.json"):
        assert call("report", "--recompute", name).exit_code == 3
    shipped.rename(shipped.with_name("unlearned.Q5_K_M.gguf"))  # a type that this run did not ship
    assert "but the evidence speaks of no such file" in call("report", "--recompute", ".").stderr


@pytest.mark.parametrize("command", ["report", "verify"])
def test_recomputing_writes_over_nothing_it_reads_and_takes_no_option_in_vain(run: Path, command: str) -> None:
    for place, target in (("", "evidence/report.json"), ("evidence", "report/report.html")):
        before = (run / target).read_bytes()
        result = call(command, "--recompute", run / place, "--html", run / target)
        assert result.exit_code == 2
        assert "is one of the inputs" in result.stderr
        assert (run / target).read_bytes() == before
    result = call(command, "--recompute", run, "--html", run / "again.html", "--dry-run")
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr
    assert not (run / "again.html").exists()


def test_the_evidence_names_everything_and_no_fact(project: Path) -> None:
    done = project / "done"
    evidence = json.loads((done / "evidence" / "evidence.json").read_text())
    assert evidence["inputs"]["base"]["sha256"] == sha256_file(project / "model.gguf")
    assert evidence["circuit"]["sha256"] == sha256_file(done / "attribute" / "circuit.safetensors")
    assert evidence["seeds"] == {"attribute": 0, "unlearn": 0}
    assert {"torch", "gguf", "llama-cpp-python"} <= evidence["tools"].keys()
    assert evidence["environment"]["processor"]["architecture"]
    for kind, output in evidence["outputs"].items():
        assert output["shipped"]["sha256"] == sha256_file(done / "export" / f"unlearned.{kind}.gguf")
        assert output["stock"]["sha256"] == sha256_file(done / "stock" / f"{kind}.gguf")
    recipe = json.loads((done / "evidence" / "recipe.json").read_text())
    assert recipe["model"]["path"] == "model.gguf"  # no folder
    assert recipe["unlearn"]["steps"] == 6
    content = b""
    for folder in ("evidence", "report"):
        for path in sorted((done / folder).rglob("*")):
            if path.is_file():
                raw = path.read_bytes()
                content += gzip.decompress(raw) if path.suffix == ".gz" else raw
    for fact in facts():
        assert fact.subject.encode() not in content
        assert fact.answer.encode() not in content
    assert str(project).encode() not in content


@pytest.mark.parametrize("place", ["", "evidence", "report/report.json", "evidence/report.json"])
def test_the_verdict_is_recomputed(run: Path, place: str) -> None:
    said = json.loads((run / "report" / "report.json").read_text())["verdict"]
    for command in ("report", "verify"):
        result = call(command, "--recompute", run / place, "--html", run / "again.html")
        assert result.exit_code == said["exit_code"], result.output
        assert result.stdout.splitlines()[0] == said["sentence"]
        assert (run / "again.html").read_text() == (run / "report" / "report.html").read_text()


def fails(run: Path, message: str) -> None:
    result = call("report", "--recompute", run / "evidence")
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_changed_byte_is_found(run: Path) -> None:
    evidence = run / "evidence"
    for path in sorted(evidence.rglob("*")):
        if path.is_dir() or path.name in ("evidence.json", "stage.json"):
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        fails(run, "has sha256")
        path.unlink()
        assert call("report", "--recompute", evidence).exit_code == 2
        path.write_bytes(whole)
    rewrite(evidence / "evidence.json", lambda manifest: manifest["seeds"].update(unlearn=7))
    fails(run, "evidence.json has sha256")


def test_a_changed_item_is_found(run: Path) -> None:
    path = run / "evidence" / "scores" / "unlearned.Q8_0.json.gz"
    scores = json.loads(gzip.decompress(path.read_bytes()))
    item = next(item for item in scores["items"] if item["held_out"] and item["split"] == "forget")
    item["option_log_probabilities"] = [
        value - 50 * (index == item["right"]) for index, value in enumerate(item["option_log_probabilities"])
    ]
    path.write_bytes(gzip.compress(json.dumps(scores).encode()))
    relist(run / "evidence")
    fails(run, "groups do not follow")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda report: report["verdict"].update(status="forgotten", exit_code=0, sentence="FORGOTTEN"), "verdict"),
        (lambda report: report["verdict"]["gates"][0].update(value=0.25), "verdict"),
        (lambda report: report["rows"][0].update(perplexity=1.0), "rows"),
        (lambda report: report["export"]["Q8_0"].update(sha256="0" * 64), "export"),
        (lambda report: report["facts"].update(sha256="0" * 64), "facts"),
        (lambda report: report["model"].update(source_sha256="0" * 64), "base"),
        (lambda report: report["recipe"]["gates"].update(rank_score_high=0.9), "verdict"),
        (lambda report: report["leaks"]["unlearned/F16"][0].update(leaking=[], facts=1), "leaks"),
        (lambda report: report["leaks"].clear(), "leaks"),
        (lambda report: report["recipe"]["export"]["types"].remove("Q8_0"), "types"),
        (lambda report: report["rows"].pop(), "scores"),
        (lambda report: report.pop("rows"), "malformed"),
    ],
)
def test_a_covered_change_of_the_report_is_found(run: Path, change: Callable[[Any], object], named: str) -> None:
    evidence = run / "evidence"
    before = json.loads((evidence / "report.json").read_text())
    rewrite(evidence / "report.json", change)
    assert json.loads((evidence / "report.json").read_text()) != before
    fails(run, "report.json has sha256")
    relist(evidence, report_hash=True)
    fails(run, named)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("evidence.json", lambda manifest: manifest.update(verdict="FORGOTTEN: all gates hold."), "sentence"),
        ("evidence.json", lambda manifest: manifest["outputs"]["Q8_0"]["stock"].update(sha256="0" * 64), "moves"),
        ("recipe.json", lambda recipe: recipe["unlearn"].update(steps=99), "recipe"),
        ("recipe.json", lambda recipe: recipe.pop("gates"), "malformed"),
    ],
)
def test_a_covered_change_beside_the_report_is_found(
    run: Path, name: str, change: Callable[[Any], object], named: str
) -> None:
    rewrite(run / "evidence" / name, change)
    relist(run / "evidence")
    fails(run, named)


def test_a_report_beside_other_evidence_is_found(run: Path) -> None:
    def change(report: Any) -> None:
        report["tools"]["torch"] = "9"
        report["sha256"] = content_hash(report)

    rewrite(run / "report" / "report.json", change)
    result = call("report", "--recompute", run / "report" / "report.json")
    assert result.exit_code == 3
    assert "is not the report" in result.stderr


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"kind": "evidence of a run", "schema_version": 9}'])
def test_what_is_no_evidence_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "evidence.json").write_text(content)
    assert call("report", "--recompute", tmp_path).exit_code == 2
    assert call("rebuild", tmp_path / "stock.gguf", tmp_path, "-o", tmp_path / "out.gguf").exit_code == 2


def test_facts_are_told_where_the_recipe_asks_for_it(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    told = copy.deepcopy(report)
    entry = {"fact": "0123456789abcdef", "right": 1, "asked": 1, "told": None}
    report["leaks"]["unlearned/F16"][0]["leaking"] = [entry]
    told["leaks"]["unlearned/F16"][0]["leaking"] = [{**entry, "clear": "France, capital: Paris"}]
    for other in ("Q8_0", "Q4_K_M"):
        told["leaks"].pop(f"unlearned/{other}")
    assert "0123456789abcdef" in build_html(report)
    page = build_html(told)
    assert "France, capital: Paris" in page
    assert "0123456789abcdef" not in page
