"""What all pictures share: style, colours, and how they are written.

The same values give the same bytes: no date, a fixed salt for the SVG's ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_forget.errors import InputError
from gguf_forget.whole_file import replaced_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
DOTS_PER_INCH = 150
CHOSEN, OTHER, GUIDE = "#b2182b", "#4d4d4d", "#999999"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "gguf_forget",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same shapes everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def picture_format(path: Path) -> str:
    """``png`` or ``svg``, from the name; InputError for any other."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"{path}: the name of a picture ends in {path.suffix!r}, needed .png or .svg")
    return kind


def save_picture(figure: Figure, path: Path) -> None:
    """Write ``figure`` in the format that the name says; InputError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    kind = picture_format(path)
    (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(figure)
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with replaced_whole(path) as file:
        figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
