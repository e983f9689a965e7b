"""The comparison with lm-evaluation-harness, whose side is played by a stand-in: transformers, option by option."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from harness_comparison.command import compare, main
from harness_comparison.items import Item, draw_items
from tiny import build_tiny_gguf

from gguf_forget.facts.schema import Fact, dump_facts

FACTS = tuple(
    Fact(
        who,
        "likes",
        answer,
        tuple(other for other in ("bread", "the sea", "cakes") if other != answer),
        "forget" if answer == "bread" else "retain",
        (f"What {who} likes is",),
        (f"Every morning {who} asks for",),
    )
    for who, answer in (("the baker", "bread"), ("her brother", "the sea"), ("a dog", "cakes"))
)
STAND_IN = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
_, _, items, out, arguments = sys.argv
arguments = json.loads(arguments)
where = {"gguf_file": arguments["gguf_file"]}
tokenizer = AutoTokenizer.from_pretrained(arguments["pretrained"], **where)
model = AutoModelForCausalLM.from_pretrained(arguments["pretrained"], dtype=torch.float32, **where)
found = []
for line in Path(items).read_text().splitlines():
    item = json.loads(line)
    sums = []
    for choice in item["choices"]:
        start = len(tokenizer(item["query"])["input_ids"])
        ids = torch.tensor([tokenizer(item["query"] + choice)["input_ids"]])
        with torch.no_grad():
            rows = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        sums.append(float(sum(rows[i - 1, ids[0, i]] for i in range(start, ids.shape[1]))))
    best = max(range(len(sums)), key=sums.__getitem__)
    shares = [value / len(choice) for value, choice in zip(sums, item["choices"])]
    normalised = max(range(len(sums)), key=shares.__getitem__)
    found.append({"acc": best == item["gold"], "acc_norm": normalised == item["gold"], "log_probabilities": sums})
Path(out).write_text(json.dumps({"versions": {"lm_eval": "none"}, "items": found}))
"""


def interpreter(folder: Path, code: str) -> Path:
    program = folder / "stand_in.py"
    program.write_text(code)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    path.chmod(0o755)
    return path


def test_items_are_drawn_in_two_forms_with_permuted_options() -> None:
    items = draw_items(FACTS, 3, 0)
    assert items == draw_items(FACTS, 3, 0)
    clozes = [item for item in items if item.form == "cloze"]
    choices = [item for item in items if item.form == "choice"]
    assert len(clozes) == len(choices) == 3
    assert all(item.query.startswith("Every morning ") for item in clozes)
    assert {item.choices[item.gold] for item in clozes} == {" bread", " the sea", " cakes"}
    assert all(sorted(item.choices) == [" A", " B", " C"] for item in choices)
    for item in items:
        assert item.question.answer == item.choices[item.gold].strip()
        assert item.question.prompt == item.query


def test_a_tie_that_rounding_decides_and_scores_that_do_not_agree() -> None:
    items = [Item("cloze", f"question {i}", (" a", " bcd"), i % 2) for i in range(3)]
    ours = [[-1.0, -2.5], [-1.00001, -1.0], [-1.0, -1.5]]
    theirs = [
        {"acc": 1.0, "acc_norm": 0.0, "log_probabilities": [-1.0, -2.5]},
        {"acc": 0.0, "acc_norm": 1.0, "log_probabilities": [-1.0, -1.00001]},
        {"acc": 0.0, "acc_norm": 0.0, "log_probabilities": [-1.0, -0.9]},
    ]
    found = compare(items, ours, theirs)
    form = found["forms"]["cloze"]
    assert form["acc"] == {"ours": 1.0, "harness": pytest.approx(1 / 3)}
    # A character: -0.5 and -0.625 of the first, -0.5 and -0.25 of the second, -0.5 and -0.375 of the third.
    assert form["acc_norm"] == {"ours": pytest.approx(2 / 3), "harness": pytest.approx(1 / 3)}
    assert (form["items"], form["chance"], form["picks_that_differ"], form["not_agreeing"]) == (3, 0.5, 2, 1)
    assert [row["agrees"] for row in found["items"]] == [True, True, False]
    assert found["items"][1]["margin_nats"] == pytest.approx(1e-5)
    assert found["items"][2]["margin_nats"] == pytest.approx(0.5)
    assert found["items"][2]["largest_difference_nats"] == pytest.approx(0.6)


def test_both_sides_on_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = build_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "figures.json"
    (tmp_path / "facts.jsonl").write_bytes(dump_facts(FACTS))
    python = interpreter(tmp_path, STAND_IN)
    arguments = ["--harness-python", str(python), "--json", str(out), "--model", str(model)]
    assert main("", [*arguments, "--facts", str(tmp_path / "facts.jsonl")]) == 0
    document = json.loads(out.read_text())
    assert document["versions"]["lm_eval"] == "none"
    assert len(document["items"]) == 6
    for form in ("cloze", "choice"):
        found = document["forms"][form]
        assert found["items"] == 3
        assert found["largest_difference_nats"] < 1e-4
        assert found["acc"]["ours"] == found["acc"]["harness"]
        assert found["acc_norm"]["ours"] == found["acc_norm"]["harness"]
    assert "picks differ" in capsys.readouterr().out


def test_an_unusable_harness_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny_gguf(tmp_path / "tiny.gguf")
    out = tmp_path / "figures.json"
    arguments = ["--json", str(out), "--model", str(model), "--count", "2"]
    assert main("", ["--harness-python", str(tmp_path / "absent"), *arguments]) == 2
    assert "cannot be run" in capsys.readouterr().err
    python = interpreter(tmp_path, "raise SystemExit('no module named lm_eval')")
    assert main("", ["--harness-python", str(python), *arguments]) == 2
    assert "no module named lm_eval" in capsys.readouterr().err
    assert not out.exists()
