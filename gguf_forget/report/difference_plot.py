"""A picture of the difference between two files: how far codes moved, how large the updates are against a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_forget.report.pictures import CHOSEN, GUIDE, OTHER, STYLE, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FURTHEST = 8  # codes; what went further is in the last bar on its side


def plot_difference(path: Path, shifts: Mapping[int, int], updates: Mapping[float, int], *, title: str) -> None:
    """Write a PNG or SVG with a panel for each that is not empty.

    shifts: codes moved by how many steps of code (0 left out) to their number. updates: lower edge of a bin, in steps,
    to the number of updates in it; every bin reaches to the next possible edge, eight to a power of two.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = [draw for draw, found in ((_shifts, shifts), (_updates, updates)) if found]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * max(1, len(panels)), 3.4), layout="constrained")
        figure.suptitle(title, fontsize=10, parse_math=False)  # names of files
        if not panels:
            figure.text(0.5, 0.45, "no codes moved, no updates measured", ha="center", color=OTHER)
        for place, draw in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), place)
            draw(axes, shifts if draw is _shifts else updates)  # type: ignore[arg-type]
        save_picture(figure, path)


def _shifts(axes: Axes, shifts: Mapping[int, int]) -> None:
    counts: Counter[int] = Counter()
    for shift, count in shifts.items():
        counts[max(-FURTHEST, min(FURTHEST, shift))] += count
    reach = max(abs(shift) for shift in counts)
    places = np.array([place for place in range(-reach, reach + 1) if place])
    axes.bar(places, [counts[int(place)] for place in places], color=CHOSEN, width=0.8)
    axes.axvline(0, color=GUIDE, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(places)
    ends = {-FURTHEST: f"≤{-FURTHEST}", FURTHEST: f"≥{FURTHEST}"} if max(map(abs, shifts)) > FURTHEST else {}
    axes.set_xticklabels([ends.get(int(place), f"{place:+d}") for place in places], fontsize=7)
    axes.set_xlabel("steps of code moved")
    axes.set_ylabel("codes")
    axes.set_title(f"{sum(shifts.values()):,} codes moved")


def _updates(axes: Axes, updates: Mapping[float, int]) -> None:
    edges = np.array(sorted(updates))
    axes.bar(edges, [updates[edge] for edge in edges], width=edges * (2**0.125 - 1), align="edge", color=CHOSEN)
    axes.set_xscale("log", base=2)
    axes.axvline(0.5, color=OTHER, linewidth=0.9, linestyle="--")
    axes.annotate(
        "half a step",
        (0.5, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
        color=OTHER,
        va="top",
        fontsize=8,
    )
    axes.set_xlabel("update, in steps of the grid that ships")
    axes.set_ylabel("weights")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    total = sum(updates.values())
    small = sum(count for edge, count in updates.items() if edge < 0.5)
    axes.set_title(f"{total:,} updates, {small / total:.1%} below half a step")
