"""The command on files, from the shell's side: exit codes, documents, messages."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf_with import copy_with
from tiny_knowledge import Knowledge, lessons, teach

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.cli import main
from gguf_forget.errors import LlamaError
from gguf_forget.facts.schema import dump_facts
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.quantizer import quantize
from gguf_forget.stages import verify_files
from gguf_forget.whole_file import sha256_file

RECIPE = """
[model]
path = "original.gguf"
[facts]
path = "facts.jsonl"
[verify]
max_new_tokens = 2
perplexity_tokens = 512
threads = 1
[gates]
forget_accuracy_above_chance = 0.25
rank_score_low = 0.25
rank_score_high = 0.75
generation = 0.1
retain_drop = 0.1
perplexity_ratio = 1.3
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, a file that never saw what it should forget, facts and a recipe."""
    path = tmp_path_factory.mktemp("files")
    knowledge = Knowledge(path)
    twin = teach(knowledge.ignorant, knowledge.tokenize, lessons(knowledge.retain))
    knowledge.derived(twin, path / "unlearned.gguf")
    (path / "facts.jsonl").write_bytes(dump_facts(knowledge.facts))
    (path / "recipe.toml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def passed(folder: Path) -> Result:
    return invoke(
        folder / "unlearned.gguf", "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml",
        "--out", folder / "report.json", "--junit", folder / "gates.xml",
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(folder: Path, passed: Result) -> Any:
    return json.loads((folder / "report.json").read_text())


def test_a_file_that_passes(folder: Path, passed: Result, report: Any) -> None:
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.startswith("FORGOTTEN: all 9 gates hold on the shipped F32.")
    assert "asking F32 through llama.cpp" in passed.stderr
    assert report["verdict"]["exit_code"] == 0
    assert report["facts"]["files"][0]["rows"] == 24
    assert report["evidence"]["limits"]["rank_score_high"] == 0.75
    assert "Through" not in json.dumps(report)  # the questions are hashed, not told again
    original = folder / "original.gguf"
    about = {"name": "original.gguf", "bytes": original.stat().st_size, "sha256": sha256_file(original)}
    assert report["inputs"]["original"] == about
    assert report["inputs"]["text"]["name"] == "built-in"


def test_the_gates_as_junit_xml(folder: Path, passed: Result) -> None:
    root = ElementTree.parse(folder / "gates.xml").getroot()
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("9", "0", "0")


def test_the_same_verdict_from_the_report_alone(folder: Path, report: Any) -> None:
    result = invoke("--recompute", folder / "report.json")
    assert result.exit_code == 0
    assert result.stdout.startswith(report["verdict"]["sentence"])
    as_json = invoke("--recompute", folder / "report.json", "--json")
    assert json.loads(as_json.stdout) == {"schema_version": 1, **report["verdict"]}


def test_a_forged_report_cannot_be_evaluated(folder: Path, report: Any) -> None:
    forged = json.loads(json.dumps(report))
    forged["evidence"]["files"][0]["tensors_changed"] = 0
    (folder / "forged.json").write_text(json.dumps(forged))
    result = invoke("--recompute", folder / "forged.json")
    assert result.exit_code == 3
    assert "'not forgotten' follows from its evidence" in result.stderr


def test_json_and_a_baseline(folder: Path, report: Any) -> None:
    """The original as a file fails; beside a report in which nothing failed that is a regression."""
    arguments = (folder / "original.gguf", "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml")
    result = invoke(*arguments, "--json", "--baseline", folder / "report.json", "-q")
    assert result.exit_code == 1
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["verdict"]["status"] == "not forgotten"
    assert document["baseline"][0]["name"] == "weights changed"
    (folder / "failing.json").write_text(result.stdout)
    again = invoke(*arguments, "--baseline", folder / "failing.json", "-q")
    assert again.exit_code == 0
    said = "the baseline was asked other facts"
    assert said not in again.stdout
    document["facts"]["files"][0]["sha256"] = "0" * 64
    (folder / "others.json").write_text(json.dumps(document))
    assert said in " ".join(invoke(*arguments, "--baseline", folder / "others.json", "-q").stdout.split())
    beside = "the baseline stood beside another original or text"
    assert beside not in " ".join(again.stdout.split())
    document["inputs"]["text"]["sha256"] = "0" * 64
    (folder / "others.json").write_text(json.dumps(document))
    assert beside in " ".join(invoke(*arguments, "--baseline", folder / "others.json", "-q").stdout.split())
    assert again.stdout.startswith("NO REGRESSION: 5 of 9 gates fail as they did before")


def test_one_sequence_at_a_time_is_the_same_on_a_float_file(folder: Path, report: Any) -> None:
    result = invoke(
        folder / "unlearned.gguf", "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml",
        "--exact", "--json", "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    exact = json.loads(result.stdout)
    assert exact["remarks"] == ["asked one sequence at a time (--exact)"]
    for mine, other in zip(exact["rows"], report["rows"], strict=True):
        assert mine["label"] == other["label"]
        assert mine["answer_probability"] == pytest.approx(other["answer_probability"], rel=1e-4)


def test_a_file_that_scores_nan_exits_with_3(folder: Path) -> None:
    broken = folder / "nan.gguf"
    broken.write_bytes((folder / "unlearned.gguf").read_bytes())
    with broken.open("r+b") as file:
        file.seek(int(GgufFile(broken).tensor("output_norm.weight").data_offset))
        file.write(np.full(64, 3e38, np.float32).tobytes())  # finite, but overflows
    result = invoke(
        broken, "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml",
        "--junit", folder / "nan.xml", "-q",
    )  # fmt: skip
    assert result.exit_code == 3
    assert result.stdout.startswith("COULD NOT EVALUATE: ")
    assert "values that are not finite" in " ".join(result.stdout.split())
    root = ElementTree.parse(folder / "nan.xml").getroot()
    assert int(root.attrib["errors"]) >= 1


def test_a_dry_run_asks_nothing(folder: Path) -> None:
    result = invoke(
        folder / "unlearned.gguf", "--against", folder / "original.gguf", "--facts", folder / "facts.jsonl",
        "--attacks", "quick", "--dry-run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert (plan["questions"], plan["attacks"], plan["limits"]["rank_score_high"]) == (72, "quick", 0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "verify got 0 files and no original"),
        (["unlearned.gguf"], "verify got 1 files and no original"),
        (["unlearned.gguf", "--against", "original.gguf"], "verify got no facts"),
        (["none.gguf", "--against", "original.gguf", "--facts", "facts.jsonl"], "no such model file"),
        (["facts.jsonl", "--against", "original.gguf", "--facts", "facts.jsonl"], "needed b'GGUF'"),
        (["unlearned.gguf"] * 2 + ["--against", "original.gguf", "--facts", "facts.jsonl"], "is named twice"),
        (["unlearned.gguf", "--against", "original.gguf", "--facts", "none.csv"], "none.csv does not exist"),
        (["recipe.toml", "--junit", "x.xml"], "--junit cannot stand beside a recipe"),
        (["recipe.toml", "--threads", "0"], "--threads cannot stand beside a recipe"),
        *(
            (["--recompute", "report.json", *option], f"{option[0]} cannot stand beside --recompute")
            for option in (["--facts", "x"], ["--limit", "3"], ["--out", "y"], ["--exact"], ["--attacks", "none"])
        ),
        (["unlearned.gguf", "--recompute", "report.json"], "FILE cannot stand beside --recompute"),
        (["--recompute", "recipe.toml"], "the report recipe.toml cannot be read"),
        (["--recompute", "list.json"], "is a list, needed an object"),
        (["--recompute", "other.json"], "needed a report.json of `verify FILE… --out`"),
        (
            ["unlearned.gguf", "--against", "original.gguf", "--facts", "facts.jsonl", "--baseline", "other.json"],
            "the baseline is no report",
        ),
        (["unlearned.gguf", "--against", "original.gguf", "--facts", "kept.jsonl"], "is to be forgotten"),
        *(
            (["unlearned.gguf", "--against", "original.gguf", "--facts", "facts.jsonl", *written], message)
            for written, message in (
                (["--out", "none/report.json"], "no such directory: none"),
                (["--html", "."], ". is a directory"),
                (["--junit", "facts.jsonl"], "facts.jsonl is one of the inputs"),
                (["--junit", "facts.jsonl", "--dry-run"], "facts.jsonl is one of the inputs"),
                (["--recipe", "recipe.toml", "--out", "recipe.toml"], "recipe.toml is one of the inputs"),
                (["--text", "plain.txt", "--out", "plain.txt"], "plain.txt is one of the inputs"),
                (["--out", "same", "--html", "same"], "same is named for two results"),
            )
        ),
        (
            ["unlearned.gguf", "--against", "original.gguf", "--facts", "facts.jsonl", "--text", "no.txt", "--dry-run"],
            "text file no.txt cannot be read",
        ),
        (
            ["unlearned.gguf", "--against", "original.gguf", "--facts", "facts.jsonl", "--device", "cpu"],
            "--device cannot stand beside a FILE",
        ),
    ],
)
def test_errors_of_use_exit_with_2(
    folder: Path, passed: Result, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("plain.txt").write_text("\n\n".join(["A text of its own. " * 500] * 4))
    Path("list.json").write_text("[]")
    Path("other.json").write_text("{}")
    Path("kept.jsonl").write_text('{"prompt": "x", "answer": "y", "split": "retain"}\n')
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "error: " in result.stderr
    assert "asking" not in result.stderr  # before anything slow


def test_the_report_is_kept_where_it_cannot_be_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys.modules["gguf_forget.cli.verify"], "_show", gone)
    result = invoke(
        folder / "unlearned.gguf", "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml",
        "--out", folder / "unseen.json", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "unseen.json").read_text())["verdict"]["status"] == "forgotten"


@pytest.mark.parametrize("key", ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_a_file_whose_texts_end_elsewhere_cannot_be_evaluated(folder: Path, tmp_path: Path, key: str) -> None:
    """It calls some answer's first token the end of a turn, and so tells nothing when it is let write."""
    file = copy_with(
        folder / "unlearned.gguf", tmp_path / "mute.gguf", {}, numbers={f"tokenizer.ggml.{key}_token_id": 40}
    )
    result = invoke(file, "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml", "--json", "-q")
    document = json.loads(result.stdout)
    assert result.exit_code == document["verdict"]["exit_code"] == 3
    problem = document["evidence"]["files"][0]["problem"]
    assert problem.startswith("its texts end at the tokens [")
    assert "40" in problem.split(",  the original's")[0]


def test_every_part_of_a_split_file_is_hashed_and_kept(folder: Path, tmp_path: Path) -> None:
    first = copy_with(folder / "unlearned.gguf", tmp_path / "split.gguf", {}, tensors_a_part=8)
    parts = sorted(tmp_path.glob("split-*"))
    arguments = (first, "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml", "--quiet")
    refused = invoke(*arguments, "--out", parts[1])
    assert refused.exit_code == 2
    assert f"{parts[1]} is one of the inputs" in refused.stderr
    document = json.loads(invoke(*arguments, "--json").stdout)
    (file,) = document["evidence"]["files"]
    assert len(parts) > 2
    assert file["sha256"] == sha256("\n".join(sha256_file(part) for part in parts).encode()).hexdigest()
    assert file["bytes"] == sum(part.stat().st_size for part in parts)
    parts[-1].unlink()
    assert "is missing" in (gone := invoke(*arguments)).stderr or parts[-1].name in gone.stderr
    assert gone.exit_code == 2


def test_a_recipe_s_further_facts_are_asked_too(folder: Path) -> None:
    """What earlier requests were to forget is in [facts] more; unasked, it could be back."""
    lines = (folder / "facts.jsonl").read_bytes().splitlines(keepends=True)
    forget, retain = ([line for line in lines if f'"{split}"'.encode() in line] for split in ("forget", "retain"))
    (folder / "kept.jsonl").write_bytes(b"".join(retain))
    for name, own in (("first", forget[:4]), ("second", forget[4:])):
        (folder / f"{name}.jsonl").write_bytes(b"".join(own))
    named = 'path = "second.jsonl"\nmore = ["first.jsonl"]\nretain = ["kept.jsonl"]'
    (folder / "later.toml").write_text(RECIPE.replace('path = "facts.jsonl"', named))
    result = invoke(
        folder / "unlearned.gguf", "--against", folder / "original.gguf", "--recipe", folder / "later.toml",
        "--dry-run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [(each["file"], each["rows"]) for each in plan["probe_files"]] == [
        ("second.jsonl", len(forget) - 4),
        ("first.jsonl", 4),
        ("kept.jsonl", len(retain)),
    ]
    assert plan["questions"] == 72


def test_a_recipe_alone_is_run_to_its_verdict(folder: Path) -> None:
    result = invoke(folder / "recipe.toml", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stages"][-2:] == ["report", "evidence"]


def test_a_type_that_the_original_cannot_be_brought_to_costs_no_other_file_its_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for IQ2_XXS of a model whose rows are long enough."""

    def refusing(function: Any, *arguments: Any, **options: Any) -> Any:
        if "IQ4_NL" in arguments:
            raise LlamaError("llama.cpp could not quantize", cause="this quantization requires an importance matrix!")
        return run_in_child(function, *arguments, **options)

    quantize(folder / "unlearned.gguf", tmp_path / "coarse.gguf", "IQ4_NL", threads=1)
    monkeypatch.setattr(verify_files, "run_in_child", refusing)
    result = invoke(
        tmp_path / "coarse.gguf", folder / "unlearned.gguf", "--against", folder / "original.gguf",
        "--recipe", folder / "recipe.toml", "--json", "-q",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    gates = json.loads(result.stdout)["verdict"]["gates"]
    assert [gate["status"] for gate in gates if gate["file_type"] == "F32"] == ["passed"] * 9
    changed, lacking = (gate for gate in gates if gate["file_type"] == "IQ4_NL")
    assert (changed["status"], lacking["status"]) == ("not applicable", "could not evaluate")
    assert "the original cannot be quantized to IQ4_NL without an importance matrix" in lacking["detail"]
    alone = invoke(tmp_path / "coarse.gguf", "--against", folder / "original.gguf", "--recipe", folder / "recipe.toml")
    assert alone.exit_code == 3
    assert "give the original of this type as --against" in " ".join(alone.stdout.split())
