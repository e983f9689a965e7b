"""The report document, the page and the model card, from scores made by hand."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from gguf_forget.errors import InputError
from gguf_forget.report.document import build_report, content_hash
from gguf_forget.report.html_report import build_html
from gguf_forget.report.model_card import build_model_card
from gguf_forget.report.terminal import gate_value, left_open, print_report


def group(relation: str, split: str, held_out: bool, n: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "relation": relation,
        "split": split,
        "held_out": held_out,
        "phrasing": 0,
        "n": n,
        "chance": 0.25,
        "accuracy": accuracy,
        "accuracy_normalised": accuracy,
        "answer_log_probability": -2.0,
        "rank_score": None,
        "rank_score_uncorrected": None,
        "rank_subjects": 0,
        "rank_candidates": 0,
        "generated": 0,
        "generation_rate": None,
        **more,
    }


def scores(forget: float = 0.3, rank: float = 0.45, told: float = 0.0) -> dict[str, Any]:
    groups = [
        group("capital", "forget", False, 30, forget, rank_score=rank + 0.1, generated=30, generation_rate=told),
        group("capital", "forget", False, 10, forget + 0.4, generated=10, generation_rate=told, phrasing=1),
        group("capital", "forget", True, 40, forget, rank_score=rank, answer_log_probability=-7.25),
        group("capital", "forget", True, 40, forget, rank_score=rank + 0.1, phrasing=1),
        group("river", "forget", True, 40, 0.9, rank_score=0.9),
        group("capital", "retain", False, 100, 0.8),
        group("currency", "retain", False, 300, 0.6),
    ]
    text = {"perplexity": 19.5, "nats_per_token": math.log(19.5), "tokens": 4080, "chunk_nats": [1.0]}
    return {"schema_version": 1, "groups": groups, "text": text, "items": [{"sha256": "x"}], "ranks": []}


GATES = [
    {
        "name": "forget accuracy, capital, held-out",
        "file_type": "Q4_K_M",
        "value": 0.3,
        "low": None,
        "high": 0.35,
        "bound": "≤ 0.35",
        "status": "passed",
        "passed": True,
        "detail": "n = 80 (40 facts), s.e. 0.050, 95 % 0.200 to 0.400; chance 0.25",
    },
    {
        "name": "retain drop, same relation",
        "file_type": "Q4_K_M",
        "value": 0.071,
        "low": None,
        "high": 0.03,
        "bound": "≤ 0.03",
        "status": "failed",
        "passed": False,
        "detail": "0.800 − 0.729, n = 100 (100 facts)",
    },
    {
        "name": "perplexity ratio",
        "file_type": "Q4_K_M",
        "value": None,
        "low": None,
        "high": 1.03,
        "bound": "≤ 1.03",
        "status": "could not evaluate",
        "passed": False,
        "detail": "not measured",
    },
]
VERDICT = {
    "status": "not forgotten",
    "exit_code": 1,
    "sentence": "NOT FORGOTTEN: 1 of 3 gates failed.",
    "gates": GATES,
}


def report(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "tools": {"gguf_forget": "0.1.0", "torch": "2.13.0"},
        "model": {
            "name": "Tiny",
            "base_model": 'lab/Tiny: the "first"',
            "license": "apache-2.0",
            "path": Path("/m"),
        },
        "facts": {"sha256": "ab" * 32, "forget": 38, "retain": 123},
        "circuit": {"neurons": 1382, "score": math.nan},
        "export": {
            "Q4_K_M": {
                "sha256": "cd" * 32,
                "bytes": 105454144,
                "edits_asked": 9,
                "edits_landed": 8,
                "edits_saturated": 1,
                "codes_moved": 12,
            }
        },
        "scores": {
            "original/Q4_K_M": scores(0.5, 0.89, 0.7),
            "unlearned_stock/Q4_K_M": scores(),
            "unlearned/Q4_K_M": scores(),
            "npo_stock/Q4_0": scores(),
            "random_circuit/Q4_K_M": scores(),
        },
        "verdict": VERDICT,
        "headline": ["capital"],
        "timings": {"verify": 12.5},
    }
    return build_report(**{**arguments, **changes})


def row(document: dict[str, Any], index: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = document["rows"][index]
    return found


def test_columns_are_pooled_over_the_items_of_the_headline_relations() -> None:
    found = row(report())
    assert found["forget_trained"]["value"] == pytest.approx((30 * 0.3 + 10 * 0.7) / 40)
    assert found["forget_trained"]["n"] == 40
    assert found["forget_held_out"]["value"] == pytest.approx(0.3)
    assert found["forget_held_out"]["standard_error"] == pytest.approx(math.sqrt(0.3 * 0.7 / 80))
    assert found["forget_held_out"]["chance"] == pytest.approx(0.25)
    assert found["rank_trained"] == pytest.approx(0.55)  # the second trained phrasing was not ranked
    assert found["rank_held_out"] == pytest.approx(0.5)
    assert found["answer_log_probability"] == pytest.approx((-7.25 - 2.0) / 2)
    assert found["generation"] == {"value": 0.0, "n": 40}
    assert found["retain_same"]["value"] == pytest.approx(0.8)
    assert found["retain_all"]["value"] == pytest.approx(0.65)
    assert found["perplexity"] == 19.5


def test_without_a_headline_every_forgotten_relation_counts() -> None:
    document = report(headline=None)
    assert document["headline"] == ["capital", "river"]
    assert row(document)["forget_held_out"] == {
        "value": pytest.approx(0.5),
        "n": 120,
        "standard_error": pytest.approx(math.sqrt(0.25 / 120)),
        "chance": pytest.approx(0.25),
    }


def test_variants_and_ablations_have_their_words() -> None:
    assert [(r["label"], r["file_type"]) for r in report()["rows"]] == [
        ("original, stock", "Q4_K_M"),
        ("unlearned, stock", "Q4_K_M"),
        ("unlearned, bin-aware", "Q4_K_M"),
        ("plain NPO, stock", "Q4_0"),
        ("random circuit", "Q4_K_M"),
    ]


def test_what_was_not_measured_is_null() -> None:
    bare = {"groups": [group("capital", "retain", False, 4, 1.0)], "text": {}}
    found = row(report(scores={"unlearned/F16": bare}), 0)
    assert found["forget_held_out"] == {"value": None, "n": 0, "standard_error": None, "chance": None}
    assert (
        found["rank_trained"] is found["rank_held_out"] is found["perplexity"] is found["generation"]["value"] is None
    )
    assert found["retain_all"]["value"] == 1.0


def test_the_report_is_json_without_items_or_facts() -> None:
    document = report()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["circuit"]["score"] is None
    assert document["model"]["path"] == str(Path("/m"))
    assert "items" not in row(document)
    assert document["schema_version"] == 1


def test_only_timings_leave_the_hash_alone() -> None:
    document = report()
    assert document["sha256"] == content_hash(document) == report(timings={"verify": 99.0})["sha256"]
    assert report(facts={"sha256": "00"})["sha256"] != document["sha256"]
    assert json.loads(json.dumps(document))["sha256"] == content_hash(json.loads(json.dumps(document)))


@pytest.mark.parametrize("key", ["Q4_K_M", "unlearned/", "/Q4_K_M"])
def test_a_key_without_variant_or_type_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="variant/file type"):
        report(scores={key: scores()})


def test_scores_without_groups_are_refused() -> None:
    with pytest.raises(InputError, match="have no groups"):
        report(scores={"unlearned/F16": {"items": []}})


def page(document: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_report(document, stream)
    return stream.getvalue()


def test_the_page_gives_the_verdict_first_then_table_gates_and_chance_levels() -> None:
    lines = page(report()).splitlines()
    assert lines[0] == "NOT FORGOTTEN: 1 of 3 gates failed."
    text = "\n".join(line.rstrip() for line in lines)
    assert "✓ Q4_K_M  forget accuracy, capital, held-out: 0.300, needed ≤ 0.35" in text
    assert "✗ Q4_K_M  retain drop, same relation: 0.071, needed ≤ 0.03\n    0.800 − 0.729, n = 100" in text
    assert "? Q4_K_M  perplexity ratio: –, needed ≤ 1.03" in text
    assert "chance 0.25" in text
    assert "chance 0.50" in text


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.0204, None, 0.02, "0.0204"),  # failed; 0.020 would look as if it held
        (0.02, None, 0.02, "0.020"),
        (0.0296, None, 0.03, "0.030"),
        (0.82 - 0.85, -0.03, None, "-0.030"),
        (0.29996, 0.30, 0.60, "0.29996"),
        (0.5, 0.30, 0.60, "0.500"),
        (0.0357, None, 0.0358, "0.0357"),  # holds; 0.036 would not
        (None, None, 1.03, "–"),
    ],
)
def test_a_value_is_shown_on_its_side_of_the_bound(
    value: float | None, low: float | None, high: float | None, shown: str
) -> None:
    assert gate_value({"value": value, "low": low, "high": high}) == shown


def test_the_table_is_plain_and_whole_in_a_pipe() -> None:
    text = page(report())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    cells = {}
    for line in text.splitlines():
        for label in ("original, stock", "unlearned, stock", "unlearned, bin-aware", "plain NPO, stock"):
            if line.strip().startswith(label):
                cells[label] = line.strip().removeprefix(label).split()
    assert cells["unlearned, bin-aware"] == [
        "Q4_K_M", "0.400", "0.300", "0.550", "0.500", "-4.62", "0.000", "0.800", "0.650", "19.50"
    ]  # fmt: skip
    assert cells["original, stock"][:5] == ["Q4_K_M", "0.600", "0.500", "0.990", "0.940"]
    assert len(cells) == 4


def test_markup_in_a_name_is_printed_as_it_is() -> None:
    document = report(scores={"ablation[red]x[/red]/Q8_0": scores()})
    assert "[red]" in page(document).replace("\n", "")


def test_a_report_of_nothing_still_prints() -> None:
    empty = {"status": "could not evaluate", "exit_code": 3, "sentence": "COULD NOT EVALUATE.", "gates": []}
    text = page(report(scores={}, verdict=empty, headline=None))
    assert text.startswith("COULD NOT EVALUATE.")
    assert "no file was scored" in text
    assert "There is no gate" in build_model_card(report(scores={}, verdict=empty))


def test_the_card_begins_with_a_header_that_yaml_reads() -> None:
    card = build_model_card(report())
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "apache-2.0",
        "base_model": 'lab/Tiny: the "first"',
        "base_model_relation": "finetune",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "quantized_by": "gguf_forget",
        "tags": ["unlearning", "machine-unlearning", "gguf", "llama.cpp", "quantized"],
    }
    assert body.startswith("\n# Tiny, unlearned with gguf_forget\n\n**NOT FORGOTTEN: 1 of 3 gates failed.**")


def test_an_unknown_licence_is_not_claimed() -> None:
    assert "license" not in build_model_card(report(model={"name": "Tiny"})).split("---")[1]


def test_the_card_holds_the_figures_the_files_and_the_gates() -> None:
    card = build_model_card(report())
    assert (
        r"| unlearned, bin-aware | Q4\_K\_M | 0.400 | 0.300 | 0.550 | 0.500 | -4.62 | 0.000 | 0.800 | 0.650 | 19.50 |"
        in card
    )
    assert rf"| Q4\_K\_M | {'cd' * 32} | 105454144 | 9 | 8 | 1 | 12 |" in card
    assert r"| Q4\_K\_M | retain drop, same relation | 0.071 | ≤ 0.03 | failed |" in card
    assert r"| Q4\_K\_M | perplexity ratio | – | ≤ 1.03 | could not evaluate | not measured |" in card
    assert f"Report sha256: `{report()['sha256']}`" in card
    assert "gguf_forget 0.1.0, torch 2.13.0" in card


def test_forgotten_facts_are_counted_and_not_told_unless_asked() -> None:
    facts = [{"subject": "Al|and", "relation": "capital", "answer": "Xan"}]
    card = build_model_card(report())
    assert "Xan" not in card
    assert "ab" * 32 in card
    assert "| forget | 38 |" in card
    told = build_model_card(report(), facts_in_clear=facts)
    assert "| Al\\|and | capital | Xan |" in told


def test_attribution_and_commands_are_passed_on() -> None:
    card = build_model_card(report(), attribution="Names: GeoNames, CC BY 4.0", reproduce="gguf-forget demo")
    assert card.endswith("## Attribution\n\nNames: GeoNames, CC BY 4.0\n")
    assert "```sh\ngguf-forget demo\n```" in card
    assert "Attribution" not in build_model_card(report())


HOSTILE = (
    "E<script>alert(1)</script>\r\n\r\n# FORGOTTEN: all gates hold\n\n![x](http://evil.example/x.png) **b** `c` "
    "<img src=x onerror=alert(1)> | [l](javascript:a) &lt;b&gt; ~~s~~ www.evil.example <u@evil.example> "
    "\x1b[31m\x00 end"
)


def shown_by_markdown(body: str) -> tuple[set[str], str]:
    """The tags that a reader of Markdown with tables makes of it, and the texts that it shows, one a line."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    tags = {token.tag for token in tokens} | {child.tag for child in inline}
    tags |= {token.type for token in (*tokens, *inline) if token.type.startswith("html")}
    return tags, "\n".join(
        "".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"
    )


def test_what_comes_from_files_is_text_in_the_card() -> None:
    shown = " ".join(HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd").split())
    credit = [f"# {shown}", f"1. {shown}", f"- {shown}", f"=== {shown}"]
    asked = {f"{kind}/Q4_K_M": scores() for kind in ("unlearned", "original")}
    for document in asked.values():
        document["groups"] = [{**g, "relation": g["relation"].replace("river", HOSTILE)} for g in document["groups"]]
    card = build_model_card(
        report(
            model={"name": HOSTILE, "license": HOSTILE, "base_model": HOSTILE},
            scores=asked,
            facts={HOSTILE: HOSTILE},
            export={HOSTILE: {"sha256": HOSTILE}},
            verdict={**VERDICT, "gates": [{**GATES[0], "name": HOSTILE, "file_type": HOSTILE, "detail": HOSTILE}]},
        ),
        facts_in_clear=[{"subject": HOSTILE, "relation": HOSTILE, "answer": HOSTILE}],
        attribution="\n\n".join([*credit, HOSTILE]),
    )
    body = card.split("---\n", 2)[2]
    tags, text = shown_by_markdown(body)
    plain, _ = shown_by_markdown(build_model_card(report(), attribution="x").split("---\n", 2)[2])
    assert tags == plain
    lines = text.splitlines()
    assert lines[0] == f"{shown}, unlearned with gguf_forget"
    (bullet,) = (line for line in lines if "not judged by any gate" in line)
    assert shown in bullet
    assert [line for line in lines if line in credit] == credit
    # Name, left open, bullet, summary, facts in clear, file, gate, credit; nothing is lost on the way.
    assert text.count(shown) == 1 + 1 + 1 + 2 + 3 + 2 + 3 + 4
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.splitlines()[1]]
    # GitHub and Hugging Face make links of bare addresses too.
    assert not [address for address in ("http://evil", "www.evil", "u@evil") if address in body]


def test_the_header_holds_whatever_a_licence_is_called() -> None:
    name = 'a\nb: "c"\x7f\x85\u2028\ud800 d\U0001f511é'
    card = build_model_card(report(model={"name": "Tiny", "license": name, "base_model": "x\ny: z"}))
    assert card.encode()  # lone surrogates have no UTF-8
    header = yaml.safe_load(card.split("---\n", 2)[1])
    assert header["license"] == name
    assert header["base_model"] == "x\ny: z"


def test_a_model_without_a_name_that_shows_is_called_a_model() -> None:
    for name in (None, "", " \n"):
        assert "\n# model, unlearned with gguf_forget\n" in build_model_card(report(model={"name": name}))


LEFT_OPEN = (
    "This verdict does not speak of river, which was to be forgotten too: rank score on unseen phrasings up to 0.930 "
    "(Q8_0; chance 0.500)."
)


def test_a_forgotten_relation_that_no_gate_judges_stands_beside_the_verdict() -> None:
    finer = scores()
    finer["groups"] = [{**g, "rank_score": 0.93} if g["relation"] == "river" else g for g in finer["groups"]]
    asked = {"unlearned/Q4_K_M": scores(), "unlearned/Q8_0": finer, "original/Q8_0": scores(0.9, 0.9)}
    document = report(scores=asked, export=None)
    assert left_open(document) == [LEFT_OPEN]
    lines = page(document).splitlines()
    assert lines[0] == VERDICT["sentence"]
    assert " ".join(" ".join(lines[1:3]).split()) == LEFT_OPEN
    assert "\n\n" + LEFT_OPEN.replace("_", "\\_") + "\n\n" in build_model_card(document)
    html = build_html(document)
    assert html.index(VERDICT["sentence"]) < html.index(LEFT_OPEN) < html.index("Every file beside its original")


def test_where_every_forgotten_relation_is_judged_nothing_is_left_open() -> None:
    assert left_open(report(headline=None)) == []
