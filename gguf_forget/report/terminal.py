"""The report as a page of text: the verdict, the table, the gates, and what the numbers mean."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gguf_forget.verification.gates import within

NARROWEST = 110  # columns; a narrower pipe gets lines of this length rather than a broken table
COLUMNS = (
    # heading, key of the row, decimals
    ("forget\ntrained", "forget_trained", 3),
    ("forget\nheld out", "forget_held_out", 3),
    ("rank\ntrained", "rank_trained", 3),
    ("rank\nheld out", "rank_held_out", 3),
    ("answer\nlog p", "answer_log_probability", 2),
    ("greedy\nanswer", "generation", 3),
    ("retain\nsame", "retain_same", 3),
    ("retain\nall", "retain_all", 3),
    ("per-\nplexity", "perplexity", 2),
)
MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "not applicable": ("–", "dim")}


def print_report(report: Mapping[str, Any], file: IO[str] | None = None, *, width: int | None = None) -> None:
    """Print a report for a person; colour only on a terminal.

    Args:
        file: where to; None: standard output.
        width: columns; None: the terminal's, 110 when it is none.
    """
    render(report, report_console(file, width=width))


def report_console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """Where reports are printed; arguments as for :func:`print_report`."""
    stream = file if file is not None else sys.stdout
    terminal = stream.isatty()
    columns = width or (shutil.get_terminal_size().columns if terminal else NARROWEST)
    return Console(file=stream, width=columns, force_terminal=terminal, highlight=False, soft_wrap=False)


def render(report: Mapping[str, Any], console: Console) -> None:
    """The whole page on a console."""
    verdict = report["verdict"]
    colour = {0: "bold green", 1: "bold red"}.get(verdict["exit_code"], "bold yellow")
    console.print(Text(verdict["sentence"], style=colour))
    for line in left_open(report):
        console.print(Text(line, style="yellow"))
    console.print()
    console.print(figures_table(report))
    print_gates(verdict["gates"], console)
    for line in not_judged(report):
        console.print(Text(line, style="yellow"))
    console.print()
    console.print(Text(explanation(report), style="dim"))


def left_open(report: Mapping[str, Any]) -> list[str]:
    """What belongs beside the verdict: a sentence for each forgotten relation that it does not speak of."""
    shipped = [entry for entry in report.get("not_judged", []) if entry["variant"] == "unlearned"]
    lines = []
    for relation in dict.fromkeys(entry["relation"] for entry in shipped):
        found = [entry for entry in shipped if entry["relation"] == relation]
        worst = max(found, key=lambda entry: -math.inf if entry["rank_held_out"] is None else entry["rank_held_out"])
        lines.append(
            f"This verdict does not speak of {relation}, which was to be forgotten too: rank score on unseen phrasings "
            f"up to {number(worst['rank_held_out'], 3)} ({worst['file_type']}; chance 0.500)."
        )
    return lines


def not_judged(report: Mapping[str, Any]) -> list[str]:
    """One line for each shipped file and forgotten relation that no gate looks at, with the original's figure."""
    entries = report.get("not_judged", [])
    figures = {(e["relation"], e["variant"], e["file_type"]): e for e in entries}
    lines = []
    for (relation, variant, file_type), entry in figures.items():
        original = figures.get((relation, "original", file_type))
        if variant == "unlearned" and original:
            lines.append(
                f"! {file_type:<7} not judged by any gate: {relation}, held-out phrasings: rank score "
                f"{number(entry['rank_held_out'], 3)} (original {number(original['rank_held_out'], 3)}), accuracy "
                f"{number(entry['forget_held_out'], 3)} (original {number(original['forget_held_out'], 3)})"
            )
    return lines


def explanation(report: Mapping[str, Any]) -> str:
    """The footer: what the columns are, and what chance would give."""
    first = report["rows"][0] if report["rows"] else {}
    # Of files that anyone made, nobody but who trained them knows more.
    held = "as the facts file says" if "kind" in report else "phrasings that no training saw"
    trained, held_out = first.get("forget_trained") or {}, first.get("forget_held_out") or {}
    chance = held_out.get("chance") or trained.get("chance")
    error = held_out.get("standard_error")
    sizes = f"n = {trained.get('n', 0)} trained, {held_out.get('n', 0)} held out" + (
        f", standard error {error:.3f} in the first row" if error is not None else ""
    )
    return (
        f"Forgotten relations shown: {', '.join(report['headline']) or 'none'}. forget, retain: share of "
        f"questions where the right answer is the most probable of its options "
        f"({'chance ' + format(chance, '.2f') if chance else 'chance unknown'}; {sizes}). "
        f"held out: {held}. rank: how often the right answer beats another "
        "answer of the relation, priors subtracted (chance 0.50; far below it the answer is avoided, "
        "which tells it too). log p: log-probability of the forgotten answers on held-out phrasings, "
        "nats. greedy answer: share of greedy texts, trained phrasings, that hold the answer. retain: "
        "same = relations of the same name as a forgotten one, all = every kept relation. All figures "
        "are llama.cpp's, on the file named."
    )


def figures_table(report: Mapping[str, Any]) -> Table:
    """A row a file, a column a figure."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("file", overflow="fold", vertical="bottom")
    table.add_column("type", no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        cells = [number(row.get(key), decimals) for _, key, decimals in COLUMNS]
        shipped = row["variant"] == "unlearned"
        table.add_row(Text(row["label"]), Text(row["file_type"]), *cells, style="bold" if shipped else None)
    if not report["rows"]:
        table.caption = "no file was scored"
    return table


def number(value: Any, decimals: int) -> str:
    """A figure for a table cell, a dash for what was not measured."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return "–" if value is None else f"{value:.{decimals}f}"


def gate_value(gate: Mapping[str, Any]) -> str:
    """A gate's value with three decimals, or as many more as keep it on its side of the bounds."""
    value, low, high = gate["value"], gate["low"], gate["high"]
    if value is None:
        return number(None, 3)
    holds = within(value, low, high)
    decimals = next((d for d in range(3, 9) if within(round(value, d), low, high) == holds), 9)
    return number(value, decimals)


def print_gates(gates: list[Mapping[str, Any]], console: Console) -> None:
    """Each gate with its value, bound and detail."""
    for gate in gates:
        mark, colour = MARKS.get(gate["status"], ("?", "yellow"))
        compared = f"{gate_value(gate)}, needed {gate['bound']}"
        if gate["value"] is None and gate["low"] is None and gate["high"] is None:
            compared = gate["status"]
        line = Text(mark, style=colour)
        line.append(f" {gate['file_type']:<7} {gate['name']}: {compared}", style="default")
        console.print(line)
        console.print(Padding(Text(gate["detail"], style="dim"), (0, 0, 0, 4)))


def retain_estimate(training: Mapping[str, Any] | None) -> list[str]:
    """What the edit should cost kept answers, by what training knew of them; nothing where nothing was trained."""
    if not training or training.get("retain_bound_nats") is None:
        return []
    return [
        "By the retain Fisher, to second order, the edit moves kept answers by "
        f"{training['retain_bound_nats']:.2g} nats (KL, an estimate from a sample of them: what they lost, the retain "
        "columns say)."
    ]
