"""Pictures of a circuit: where it is, how faithful it is, and where the scores were cut. PNG and SVG.

The same values give the same bytes: no date, a fixed salt for the SVG's ids, and no state outside each function.

Shapes: L layers, H heads, d_ff neurons a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_forget.report.pictures import CHOSEN, FORMATS, GUIDE, OTHER, STYLE, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path in paths:
        save_picture(figure, path)
    return paths


def _heat_map(figure: Figure, axes: Axes, values: np.ndarray, *, label: str) -> None:
    """Signed values [L, columns] with white at zero, first layer at the bottom."""
    largest = float(np.abs(values).max()) or 1.0
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower", aspect="auto", interpolation="nearest"
    )
    bar = figure.colorbar(image, ax=axes, aspect=40, pad=0.06)
    bar.set_label(label)
    bar.formatter.set_powerlimits((-2, 3))  # type: ignore[attr-defined]


def plot_components(
    folder: Path, heads: np.ndarray, mlps: np.ndarray, neurons_by_layer: Sequence[int], *, unit: str, title: str
) -> list[Path]:
    """``components``: signed scores of heads [L, H] and MLPs [L], and where the circuit's neurons are."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = len(mlps)
    with rc_context(STYLE):
        height = min(8.0, max(3.4, 0.16 * layers + 1.4))
        figure = Figure(figsize=(9.0, height), layout="constrained")
        figure.suptitle(title)
        columns = figure.subplots(1, 3, width_ratios=(max(3.0, min(6.0, 0.35 * heads.shape[1])), 1.6, 2.2))
        _heat_map(figure, columns[0], heads, label=f"score ({unit})")
        columns[0].set(xlabel="attention head", ylabel="layer", title="Attention heads")
        _heat_map(figure, columns[1], mlps[:, None], label=f"score ({unit})")
        columns[1].set(title="MLPs", xticks=[])
        columns[2].barh(range(layers), neurons_by_layer, color=CHOSEN, height=0.8)
        columns[2].set(xlabel="neurons in the circuit", title="Circuit", ylim=(-0.5, layers - 0.5))
        for axes in columns:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        columns[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        columns[2].xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        return _save(figure, folder, "components")


def plot_faithfulness(
    folder: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    chosen: tuple[float, float] | None,
    title: str,
) -> list[Path]:
    """``faithfulness``: name -> (shares of neurons kept, f); ``chosen`` is the (share, f) of the circuit itself."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        # Each label where no curve runs: they start low on the left, and end high on the right.
        for height, text, share, side in ((0.0, "no neuron kept", 100.0, "right"), (1.0, "whole model", 0.1, "left")):
            axes.axhline(height, color=GUIDE, linewidth=0.8, linestyle=":")
            axes.annotate(
                text, (share, height), xytext=(0, 3), textcoords="offset points", color=GUIDE, fontsize=7, ha=side
            )
        for (name, (shares, values)), colour, marker in zip(
            curves.items(), (CHOSEN, OTHER, GUIDE), ("o", "s", "^"), strict=False
        ):
            percent = [100 * share for share in shares]
            axes.plot(percent, values, color=colour, marker=marker, markersize=4, label=name)
        if chosen is not None:
            axes.plot(
                [100 * chosen[0]],
                [chosen[1]],
                color="black",
                marker="*",
                markersize=11,
                linestyle="none",
                label=f"the circuit ({100 * chosen[0]:.2g} %, f = {chosen[1]:.2f})",
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.set(xlabel="MLP neurons kept (% of all, log scale)", ylabel="faithfulness f (no unit)", title=title)
        axes.legend(frameon=False, fontsize=8)
        return _save(figure, folder, "faithfulness")


def plot_scores(folder: Path, ranking: np.ndarray, chosen: np.ndarray, *, title: str) -> list[Path]:
    """``scores``: how many neurons have which ranking value [L, d_ff], those ``chosen`` (bool) apart, and the cut."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cut = float(ranking[chosen].min())
    low, high = min(float(ranking.min()), 0.0), max(float(ranking.max()), 1.0)
    # Equal steps on the axis drawn, which is linear within ±1 and logarithmic beyond.
    ends = [np.sign(v) * (1 + np.log10(abs(v))) if abs(v) > 1 else v for v in (low, high)]
    steps = np.linspace(ends[0], ends[1], 81)
    edges = np.where(np.abs(steps) > 1, np.sign(steps) * 10 ** (np.abs(steps) - 1), steps)
    edges[0], edges[-1] = low, high
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.hist(
            [ranking[chosen], ranking[~chosen]],
            bins=edges.tolist(),
            stacked=True,
            color=[CHOSEN, "#bdbdbd"],
            label=[f"in the circuit ({int(chosen.sum()):,})", f"not in it ({int((~chosen).sum()):,})"],
        )
        axes.axvline(cut, color="black", linewidth=0.9, linestyle="--", label=f"cut at {cut:.2f}")
        axes.set_xscale("symlog", linthresh=1.0)
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)  # one neuron is still seen
        axes.set(
            xlabel="ranking score (mean |score| = 1; linear within ±1, log beyond)",
            ylabel="neurons (log scale)",
            title=title,
        )
        axes.legend(frameon=False, fontsize=8)
        return _save(figure, folder, "scores")
