"""The evidence for a circuit as a page of text: circuit.json read out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST = 100


def console_for(file: IO[str] | None, width: int | None) -> Console:
    """A console on a stream (None: standard output), at least 100 columns wide when it is no terminal."""
    stream = file if file is not None else sys.stdout
    terminal = stream.isatty()
    columns = width or (shutil.get_terminal_size().columns if terminal else NARROWEST)
    return Console(file=stream, width=columns, force_terminal=terminal, highlight=False, soft_wrap=False)


def print_circuit(document: Mapping[str, Any], file: IO[str] | None = None, *, width: int | None = None) -> None:
    """Print what circuit.json says."""
    console = console_for(file, width)
    shares = document["share_of_attribution"]
    console.print(
        Text(
            f"{document['neurons']:,} neurons ({100 * document['share_of_neurons']:.2g} %) hold "
            f"{shares['forget']:.0%} of the forget attribution and {shares.get('retain', 0):.0%} of the retain "
            "attribution",
            style="bold",
        )
    )
    console.print(Text(document["method"], style="dim"))
    for split, pairs in document["pairs"].items():
        console.print(_pairs_line(split, pairs))
    evidence = document.get("evidence")
    if not evidence:
        return
    console.print()
    console.print(_table(evidence))
    for line in _lines(evidence):
        console.print(Text(line))
    console.print()
    console.print(Text(_explanation(evidence), style="dim"))


def figure(value: float | None, decimals: int = 3, *, sign: bool = False) -> str:
    """A number for a table cell, a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


KINDS = {
    "other_subject": "another subject",
    "other_question": "another question",
    "mean_embedding": "mean embedding",
}
ABLATIONS = {"resample": "resampled", "mean": "to the mean"}
LEFT_OUT = {"unpaired": "no partner", "unlocated": "subject not found"}


def _pairs_line(split: str, pairs: Mapping[str, Any]) -> Text:
    made = ", ".join(f"{words} {pairs[name]}" for name, words in KINDS.items() if pairs[name])
    left = ", ".join(f"{words} {pairs[name]}" for name, words in LEFT_OUT.items() if pairs[name])
    return Text(
        f"{split}: {pairs['pairs']} pairs ({made}{f'; free text {n}' if (n := pairs['free_text']) else ''})"
        + (f", left out: {left}" if left else "")
        + f"; metric gap {pairs['metric_gap']:.2f}, completeness residual {pairs['completeness_residual']:.1%}"
    )


def _table(evidence: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("pairs", no_wrap=True, vertical="bottom")
    table.add_column("neurons of", no_wrap=True, vertical="bottom")
    effects = {(row["split"], row["circuit"], row["kind"]): row for row in evidence.get("ablation", ())}
    kinds = list(dict.fromkeys(kind for _, _, kind in effects))
    headings = ["faithful-\nness", "L > 0\nbefore"]
    for kind in kinds:
        headings += [f"{ABLATIONS[kind]}:\ndrop of L", "of\ngap", "L > 0\nafter"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for row in evidence.get("faithfulness", ()):
        own = [effects[row["split"], row["circuit"], kind] for kind in kinds]
        cells = [figure(row["faithfulness"]), figure(own[0]["right_before"], 2) if own else "–"]
        for effect in own:
            cells += [
                f"{figure(effect['drop'], 2, sign=True)} ± {figure(effect['standard_error'], 2)}",
                figure(effect["share_of_gap"], 2, sign=True),
                figure(effect["right_after"], 2),
            ]
        name = row["circuit"].removesuffix(" control") + (f" × {row['drawn']}" if row["drawn"] > 1 else "")
        table.add_row(
            f"{row['pairs']} {row['split']}", name, *cells, style="bold" if row["circuit"] == "circuit" else None
        )
    return table


def _lines(evidence: Mapping[str, Any]) -> list[str]:
    lines = []
    curves: Mapping[str, Any] = evidence.get("curve") or {}
    for name in ("circuit", "random control"):
        if name in curves:
            values = zip(curves[name]["shares"], curves[name]["faithfulness"], strict=True)
            shown = "  ".join(f"{100 * share:g}%:{figure(value, 2)}" for share, value in values)
            label = "top by |forget score|" if name == "circuit" else name
            lines += [
                f"faithfulness, {label}: CPR {figure(curves[name]['cpr'])}, CMD {figure(curves[name]['cmd'])}",
                f"  {shown}",
            ]
    patching: Mapping[str, Any] | None = evidence.get("exact_patching")
    if patching:
        count = patching["top"] + patching["random"]
        lines.append(
            f"exact patching of {count} neurons: Spearman {figure(patching['spearman'])} "
            f"(top {patching['top']}: {figure(patching['spearman_top'])}, random {patching['random']}: "
            f"{figure(patching['spearman_random'])}), {patching['pairs']} pairs"
        )
    named: Sequence[tuple[str, Any]] = [
        ("halves of the facts", evidence.get("across_halves")),
        ("another draw of pairs", evidence.get("across_seeds")),
    ]
    for name, found in named:
        if found:
            overlap = found["overlap"]
            lines.append(
                f"{name}: {overlap['share']:.0%} of the neurons shared (chance {overlap['chance']:.1%}), "
                f"Spearman of all scores {figure(found['rank_correlation'])}"
            )
    return lines


def _explanation(evidence: Mapping[str, Any]) -> str:
    unseen = evidence.get("unseen_pairs") or {}
    seen = [split for split, fresh in unseen.items() if not fresh]
    where = (
        f"Judged on pairs that were attributed ({', '.join(seen)}): no others were left."
        if seen
        else "Judged on pairs that no attribution saw."
    )
    return (
        f"{where if unseen else ''} L: logit of the answer's first token less the mean of its distractors' (free text: "
        "log-probability of the answer). Faithfulness: what the circuit does while all other MLP neurons are as in the "
        "corrupted run, 0 = no neuron, 1 = whole model. Drop: what L loses when the circuit's neurons are as in the "
        "corrupted run (resampled) or at their mean over these prompts; of gap: drop as a share of L(clean) − "
        "L(corrupted). Undiscounted: by forget scores alone, without a cap on layers. Random controls have the "
        "circuit's size and layer profile. CPR, CMD: areas under f and |1 − f| over the share of neurons kept, 0.001 "
        "to 1."
    ).strip()


def print_plan(document: Mapping[str, Any], file: IO[str] | None = None, *, width: int | None = None) -> None:
    """Print what `--dry-run` found out."""
    console = console_for(file, width)
    where = f" into {document['folder']}" if "folder" in document else ""
    console.print(f"would attribute{where}: {document['neurons']:,} neurons in {document['layers']} layers")
    console.print(f"circuit: {document['neurons_wanted']:,} neurons")
    for split, counts in document["pairs"].items():
        made = ", ".join(f"{words} {counts[name]}" for name, words in {**KINDS, **LEFT_OUT}.items() if counts[name])
        console.print(f"{split}: {counts['pairs']} pairs ({made})")
    if "evidence" in document:
        console.print(f"evidence: {'all' if document['evidence'] else 'none'}")


def print_divergence(document: Mapping[str, Any], file: IO[str] | None = None, *, width: int | None = None) -> None:
    """Print how far attribution moved, and what the numbers mean."""
    console = console_for(file, width)
    console.print(Text(f"{document['original']} → {document['unlearned']}", style="bold"))
    for split, gap in document["metric_gap"].items():
        console.print(
            f"{split}: {document['pairs'][split]} pairs, metric gap {gap['before']:.2f} before, "
            f"{gap['after']:.2f} after"
        )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("pairs", no_wrap=True)
    table.add_column("neurons of")
    for heading in ("neurons", "L1 (0 … 2)", "1 − cosine", "mass after/before"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["divergence"]:
        name = row["of"] + (f" × {row['drawn']}" if row["drawn"] > 1 else "")
        values = (figure(row[key]) for key in ("l1", "one_minus_cosine", "mass_ratio"))
        table.add_row(
            row["split"], name, f"{row['neurons']:,}", *values, style="bold" if row["of"] == "circuit" else None
        )
    console.print(table)
    console.print(
        Text(
            "Attribution divergence (ours). L1: distance of the normalised |scores|, 0 = same shares, 2 = nothing in "
            "common. Mass: what is left of the total |score|. Random controls have the circuit's size and layer "
            "profile; a circuit that is erased loses mass there and not in the controls. Metric gap: mean of "
            "L(clean) − L(corrupted).",
            style="dim",
        )
    )
