"""The report as one HTML file: no script, nothing from the network, readable on a phone, in print, in light and dark.

It is made from report.json alone, that of a run or that of files anyone made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from gguf_forget.report import html_plots
from gguf_forget.report.file_report import KIND as FILES_KIND
from gguf_forget.report.file_report import MEMORISATION
from gguf_forget.report.leaks import leaks_of
from gguf_forget.report.terminal import COLUMNS, explanation, gate_value, left_open, not_judged, number, retain_estimate

MOODS = {"passed": "good", "failed": "bad"}
LIMITS = (
    "The figures hold for these files, these questions and this text. Other phrasings and other languages may still "
    "bring a fact out.",
    "A gate that holds says that nothing above its bound was found, not that nothing is there.",
    "Accuracies over a few dozen facts are coarse: each gate gives the number of facts and a standard error.",
    "A rank score well below 0.5 would mean that the right answer is avoided, which tells what it was.",
    "Knowledge nearby may have suffered where no question looked: the figures on facts to keep speak of those asked.",
    "Hashes keep a fact out of sight, not secret from whoever already suspects it: the hash of one short question can "
    "be guessed and compared.",
    "The verdict can be recomputed from the evidence, so a slip or a careless change is found; somebody who changes "
    "everything consistently is found only by a signature or by running the recipe again.",
)
NO_ATTACK = "Nobody tried to bring the facts back by attacks or further training; edited weights can be trained again."
NO_TRAINING = "Nobody tried to bring the facts back by further training; edited weights can be trained again."
DETERMINISM = (
    "The same recipe, versions, processor features and number of threads give the same bytes. Other threads or "
    "processor features change the order in which numbers are summed, and with it the files in places."
)


def build_html(report: Mapping[str, Any], *, commands: str | None = None) -> str:
    """The page. ``commands``: how to make the report again; None: the usual ones."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False, lstrip_blocks=False)
    template = environment.from_string((files("gguf_forget.report") / "report.html.j2").read_text(encoding="utf-8"))
    of_files = report.get("kind") == FILES_KIND
    verdict = report["verdict"]
    return template.render(
        title=_title(report, of_files),
        verdict=verdict,
        mood={0: "good", 1: "bad"}.get(verdict["exit_code"], "unsure"),
        left_open=left_open(report),
        summary=_summary(report, of_files),
        columns=[heading.replace("\n", " ").replace("per- plexity", "perplexity") for heading, _, _ in COLUMNS],
        rows=[_row(row, COLUMNS) for row in report["rows"]],
        memorisation=_memorisation(report["rows"]) if of_files else None,
        explanation=explanation(report),
        plots=_plots(report),
        gates=_gates(verdict["gates"]),
        leaks=_leaks(report, of_files),
        facts_in_clear=any("clear" in fact for fact in _all_leaks(report)),
        limits=_limits(report, of_files),
        commands=commands or _commands(report, of_files),
        provenance=_provenance(report),
        files=_files(report, of_files),
    )


def _title(report: Mapping[str, Any], of_files: bool) -> str:
    if of_files:
        names = ", ".join(file["name"] for file in report["evidence"]["files"])
        return f"Verification of {names} by gguf_forget"
    name = (report["model"] or {}).get("name") or "model"
    return f"{name}, unlearned with gguf_forget"


def _summary(report: Mapping[str, Any], of_files: bool) -> list[str]:
    lines = ["Every figure of the tables was read off the file named, by llama.cpp."]
    if not of_files and report["training"]:
        training = report["training"]
        lines.append(
            f"{training['moved']:,} weights were edited, each by whole steps of the {training['grid']} grid, of "
            f"{training['circuit_weights']:,} in the circuit."
        )
        lines += retain_estimate(training)
    return [*lines, *report.get("remarks", ())]


def _row(row: Mapping[str, Any], columns: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    return {
        "label": row["label"],
        "file_type": row["file_type"],
        "shipped": row["variant"] not in ("original", "npo_stock", "unlearned_stock"),
        "cells": [number(row.get(key), decimals) for _, key, decimals in columns],
    }


def _memorisation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [column for column in MEMORISATION if any(row[column[1]] is not None for row in rows)]
    return {
        "columns": [heading.replace("memoris.", "memorisation").replace("\n", " ") for heading, _, _ in shown],
        "rows": [_row(row, shown) for row in rows],
    }


def _in_order(report: Mapping[str, Any], by_type: Mapping[str, Any]) -> dict[str, Any]:
    """By file type in the order of the rows, so that a report read back from its file gives the same page."""
    types = [row["file_type"] for row in report["rows"]]
    return dict(sorted(by_type.items(), key=lambda entry: types.index(entry[0].rpartition("/")[2])))


def _plots(report: Mapping[str, Any]) -> list[dict[str, str]]:
    figures = report.get("figures") or {}
    curve = ((report.get("circuit") or {}).get("evidence") or {}).get("curve") or {}
    drawn = (
        (
            "Forget and retain by format",
            html_plots.by_format(report["rows"]),
            "Red should be at the dotted line, blue where the original's is.",
        ),
        (
            "Edits against the grid's steps",
            html_plots.update_to_step(_in_order(report, figures.get("steps") or {})),
            "An edit of less than half a step is lost in plain rounding. Filled: as trained; red: what the file holds.",
        ),
        (
            "The circuit, layer by layer",
            html_plots.layers(figures.get("layers") or []),
            "Where the facts to forget and to keep are attributed to, which neurons were chosen, where codes moved.",
        ),
        ("Faithfulness", html_plots.faithfulness(curve), "What the best neurons do while all others are corrupted."),
        (
            "Training",
            html_plots.training(figures.get("training") or {}),
            "Losses in nats: forget falls to its target, retain and text are distances to the original.",
        ),
        (
            "Recovery under attack",
            html_plots.attacks(report["verdict"]["gates"]),
            "What each attempt to get the facts back reached; the bar is what it must not pass.",
        ),
    )
    return [{"title": title, "svg": _markup(svg), "caption": caption} for title, svg, caption in drawn if svg]


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # matplotlib has escaped the text in it


def _gates(gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [{**gate, "number": gate_value(gate), "mood": MOODS.get(gate["status"], "unsure")} for gate in gates]
    held = [gate for gate in shown if gate["status"] == "passed"]
    return {"passed": len(held), "held": held, "others": [gate for gate in shown if gate["status"] != "passed"]}


def _leaks(report: Mapping[str, Any], of_files: bool) -> list[dict[str, Any]]:
    found = report.get("leaks") or {}
    if of_files:
        found = {
            file["label"]: leaks_of(file["scores"]["items"]) for file in report["evidence"]["files"] if file["scores"]
        }
    judged = set(report["headline"])
    return [
        {
            "name": name.replace("unlearned/", ""),
            "relations": [{**relation, "judged": relation["relation"] in judged} for relation in relations],
        }
        for name, relations in (found if of_files else _in_order(report, found)).items()
    ]


def _all_leaks(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = report.get("leaks") or {}
    return [fact for relations in found.values() for relation in relations for fact in relation["leaking"]]


def _limits(report: Mapping[str, Any], of_files: bool) -> list[str]:
    return [*LIMITS, *_untried(report, of_files), *(line.removeprefix("! ") for line in not_judged(report))]


def _untried(report: Mapping[str, Any], of_files: bool) -> list[str]:
    """What nobody tried on every one of the files: an attack that could not be carried out says nothing."""
    files = report["evidence"]["files"] if of_files else []
    kinds = [{each["kind"] for each in file["attacks"] if each["scores"] or each["figures"]} for file in files]
    if not any(kinds):
        return [NO_ATTACK]
    return [] if all("relearning" in each for each in kinds) else [NO_TRAINING]


def _commands(report: Mapping[str, Any], of_files: bool) -> str:
    if of_files:
        names = " ".join(file["name"] for file in report["evidence"]["files"])
        return (
            f"gguf-forget verify {names} --against ORIGINAL --facts FACTS --out report.json\n"
            "gguf-forget verify --recompute report.json   # the verdict again, without any model"
        )
    lines = [
        "gguf-forget run recipe.toml",
        "gguf-forget report --recompute evidence   # the verdict again, without any model",
        *(
            f"gguf-forget rebuild stock.{kind}.gguf evidence -o {record['file']}"
            for kind, record in _in_order(report, report["export"] or {}).items()
        ),
    ]
    return "\n".join(lines)


def _provenance(report: Mapping[str, Any]) -> list[str]:
    lines = ["Made with " + ", ".join(f"{name} {version}" for name, version in sorted(report["tools"].items())) + "."]
    machine = report.get("environment") or {}
    if machine:
        processor, threads = machine["processor"], machine["threads"]
        lines.append(
            f"On {processor['name'] or processor['architecture']} ({processor['cores']} cores, "
            f"{threads['torch']} threads in torch; {', '.join(processor['features']) or 'features unknown'}), "
            f"{machine['system']}, Python {machine['python']}."
        )
    lines.append(DETERMINISM)
    recipe = report.get("recipe") or {}
    seeds = {name: section["seed"] for name, section in recipe.items() if "seed" in section}
    if seeds:
        lines.append("Seeds: " + ", ".join(f"{name} {seed}" for name, seed in seeds.items()) + ".")
    lines.append(f"Report sha256 {report['sha256']}.")
    return lines


def _files(report: Mapping[str, Any], of_files: bool) -> list[dict[str, str]]:
    entries = report["evidence"]["files"] if of_files else _in_order(report, report["export"] or {}).values()
    found = [
        {"name": entry.get("file") or entry["name"], "bytes": f"{entry['bytes']:,}", "sha256": entry["sha256"]}
        for entry in entries
    ]
    model = report.get("model") or {}
    if model.get("source_sha256"):
        found.insert(0, {"name": f"{model['source']} (original)", "bytes": "", "sha256": model["source_sha256"]})
    facts = report.get("facts") or {}
    if facts.get("sha256"):
        found.append({"name": "facts (canonical form)", "bytes": "", "sha256": facts["sha256"]})
    return found
