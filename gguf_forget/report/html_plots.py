"""The pictures of the HTML report as SVG: text stays text, and lines and letters take the page's own colour.

Each function returns one ``<svg>`` element, or None where there is nothing to show. The same values give the same text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
FORGET, RETAIN, TEXT, BEFORE = "#d1495b", "#2e86ab", "#9a8c3c", "#8d99ae"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "gguf_forget",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a file name is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **{key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}
WIDTH = 5.4  # inches: letters are then of a readable size on a phone


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _plain_numbers(axis: Axis) -> None:
    """Labels of a logarithmic axis without the mathematical markup that is matplotlib's default."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter(lambda value, _position: f"{value:,g}" if value < 1e4 else f"{value:,.0f}")
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure, name: str, alternative: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # Several pictures share one page: their ids must not meet.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', _opening(name, alternative), text, count=1)
    # A style sheet inside would be the whole page's.
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "inherit").replace("DejaVu Sans", "inherit")
    return text.replace(INK, "currentColor")


def _opening(name: str, alternative: str) -> str:
    from html import escape

    label = escape(alternative, quote=True).replace("\\", "\\\\")
    return (
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \g<1> '
        rf'class="plot" data-plot="{name}" role="img" aria-label="{label}">'
    )


def by_format(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Forget and retain accuracy of each file; ``rows`` of a report, originals among them."""
    from matplotlib import rc_context

    shown = [
        row for row in rows if row["forget_held_out"]["value"] is not None or row["retain_all"]["value"] is not None
    ]
    if not shown:
        return None
    with rc_context(STYLE):
        figure = _figure(1.3 + 0.34 * len(shown))
        axes = figure.subplots()
        places = range(len(shown))
        for key, colour, marker, label in (
            ("forget_held_out", FORGET, "o", "to forget, held-out phrasings"),
            ("retain_all", RETAIN, "s", "to keep"),
        ):
            values = [
                (row[key]["value"], row[key]["standard_error"] or 0.0, place)
                for row, place in zip(shown, places, strict=True)
            ]
            known = [value for value in values if value[0] is not None]
            axes.errorbar(
                [value for value, _, _ in known],
                [place for _, _, place in known],
                xerr=[error for _, error, _ in known],
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=2,
                label=label,
            )
        chances = sorted(
            {round(row["forget_held_out"]["chance"], 3) for row in shown if row["forget_held_out"]["chance"]}
        )
        for chance in chances:
            axes.axvline(chance, color=INK, linestyle=":", linewidth=0.9)
        axes.set_yticks(list(places), [f"{_short(row['label'])}  {row['file_type']}" for row in shown])
        axes.invert_yaxis()
        axes.set(xlabel="accuracy ± standard error (dotted: chance)", xlim=(-0.02, 1.02))
        figure.legend(loc="outside upper right", frameon=False, ncols=2, fontsize=8)
        return _svg(figure, "by-format", "Accuracy on facts to forget and to keep, for each file and its original")


def _short(label: str, longest: int = 24) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def update_to_step(steps: Mapping[str, Mapping[str, Any]]) -> str | None:
    """How large the edits are in steps of each grid, as trained and as shipped; ``steps``: figures.steps."""
    import numpy as np
    from matplotlib import rc_context

    if not steps:
        return None
    with rc_context(STYLE):
        figure = _figure(0.9 + 1.7 * len(steps))
        for axes, (kind, found) in zip(figure.subplots(len(steps), squeeze=False)[:, 0], steps.items(), strict=True):
            edges = np.asarray(found["edges"])
            for name, colour, style in (("before", BEFORE, "stepfilled"), ("after", FORGET, "step")):
                axes.hist(
                    edges[:-1],
                    bins=edges,
                    weights=found[name],
                    color=colour,
                    histtype=style,
                    linewidth=1.3,
                    alpha=0.55 if name == "before" else 1.0,
                    label="as trained, before rounding" if name == "before" else "in the shipped file",
                )
            axes.axvline(0.5, color=INK, linestyle="--", linewidth=0.9)
            axes.set_xscale("log", base=2)
            # Half a step is always in the picture.
            axes.set_xlim(min(0.4, edges[0] * 0.9), max(edges[-1] * 1.1, 4))
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                _plain_numbers(axis)
            axes.set_ylim(bottom=0.7)
            axes.set(title=f"{kind}: {found['unmoved']:,} edits did not move a code", ylabel="weights")
        axes.set_xlabel("|edit| in steps of the file's grid (dashed: half a step)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", frameon=False, ncols=2, fontsize=8)
        return _svg(figure, "update-to-step", "Sizes of the edits in steps of the grid, before and after rounding")


def layers(columns: Sequence[Mapping[str, Any]]) -> str | None:
    """Heat map: a row a layer, a column a quantity as a share of its largest layer; figures.layers."""
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    if not columns:
        return None
    values = np.array([column["values"] for column in columns], dtype=float).T  # [layers, columns]
    largest = values.max(axis=0)
    shares = values / np.where(largest > 0, largest, 1.0)
    with rc_context(STYLE):
        figure = _figure(min(8.0, 1.9 + 0.13 * len(shares)))
        axes = figure.subplots()
        mesh = axes.pcolormesh(
            np.arange(values.shape[1] + 1) - 0.5, np.arange(len(shares) + 1) - 0.5, shares, cmap="magma", vmin=0, vmax=1
        )
        bar = figure.colorbar(mesh, ax=axes, aspect=40, pad=0.02)
        bar.set_label("share of the column's largest value")
        bar.outline.set_visible(False)
        axes.set_xticks(
            range(values.shape[1]), [column["name"].replace(" ", "\n", 1) for column in columns], fontsize=7
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(ylabel="layer")
        return _svg(figure, "circuit", "Heat map of the circuit: attribution, neurons and edits by layer")


def training(curve: Mapping[str, Sequence[float]]) -> str | None:
    """Losses, accuracies and moved codes over the steps; figures.training of a report."""
    from matplotlib import rc_context

    if not curve:
        return None
    with rc_context(STYLE):
        figure = _figure(4.4)
        upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        for name, colour in (("forget", FORGET), ("retain", RETAIN), ("text", TEXT)):
            upper.plot(curve["step"], curve[name], color=colour, linewidth=1.2, label=name)
        upper.set(ylabel="loss (nats)")
        upper.set_yscale("symlog", linthresh=0.1)
        _plain_numbers(upper.yaxis)
        upper.legend(frameon=False, ncols=3, fontsize=8)
        # A report of an older version has no accuracies, and a step may have none.
        for name, colour in (("forget_accuracy", FORGET), ("retain_accuracy", RETAIN)):
            values = [math.nan if value is None else value for value in curve.get(name, ())]
            middle.plot(curve["step"][: len(values)], values, color=colour, linewidth=1.2)
        middle.axhline(0.25, color=INK, linewidth=0.8, linestyle=":")
        middle.set(ylabel="4-way", ylim=(0, 1))
        lower.plot(curve["step"], curve["moved"], color=INK, linewidth=1.2)
        lower.yaxis.set_major_formatter(lambda value, _position: f"{value:,.0f}")
        lower.set(xlabel="step", ylabel="codes moved", ylim=(0, None))
        return _svg(figure, "training", "Losses, accuracies and moved codes during training")


def faithfulness(curves: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the best neurons do by themselves; ``curves``: circuit.evidence.curve of a report."""
    from matplotlib import rc_context

    if not curves:
        return None
    with rc_context(STYLE):
        figure = _figure(3.0)
        axes = figure.subplots()
        for height in (0.0, 1.0):
            axes.axhline(height, color=INK, linewidth=0.8, linestyle=":")
        for (name, curve), colour, marker in zip(
            curves.items(), (FORGET, BEFORE, RETAIN), ("o", "s", "^"), strict=False
        ):
            axes.plot(
                [100 * share for share in curve["shares"]],
                curve["faithfulness"],
                color=colour,
                marker=marker,
                markersize=4,
                label=name,
            )
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.set(xlabel="MLP neurons kept (%)", ylabel="faithfulness (1: whole model)")
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure, "faithfulness", "Faithfulness of the highest-scoring neurons by their share")


def attacks(gates: Sequence[Mapping[str, Any]]) -> str | None:
    """What each attack brought back, beside what it must stay under; ``gates`` of a report's verdict."""
    from matplotlib import rc_context

    shown = [gate for gate in gates if gate["name"].startswith("attack, ") and gate["value"] is not None]
    if not shown:
        return None
    with rc_context(STYLE):
        figure = _figure(1.2 + 0.26 * len(shown))
        axes = figure.subplots()
        for place, gate in enumerate(shown):
            passed = gate["status"] == "passed"
            axes.plot([gate["value"]], [place], "o", color=RETAIN if passed else FORGET, markersize=5)
            if gate["high"] is not None:
                axes.plot([gate["high"]] * 2, [place - 0.35, place + 0.35], color=INK, linewidth=1.4)
        axes.set_yticks(range(len(shown)), [_attack_label(gate) for gate in shown], fontsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="what came back (bar: must stay at or below)", xlim=(-0.03, 1.03))
        return _svg(figure, "attacks", "What each attack brought back, beside its bound")


def _attack_label(gate: Mapping[str, Any]) -> str:
    name = gate["name"].removeprefix("attack, ")
    return f"{_short(name, 44)}  {_short(gate['file_type'], 12)}"
