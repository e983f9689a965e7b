"""The picture of a difference: what is drawn, and that the same values give the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib import image

from gguf_forget.errors import InputError
from gguf_forget.report.difference_plot import plot_difference

SHIFTS = {-20: 3, -1: 500, 1: 700, 2: 20}
UPDATES = {0.125: 40, 0.25: 100, 0.5: 60}


def test_both_panels_say_what_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    genuine = Figure.savefig

    def savefig(figure: Figure, *arguments: object, **keywords: object) -> None:
        seen.append(figure)
        genuine(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    plot_difference(tmp_path / "a.svg", SHIFTS, UPDATES, title="one → other")
    (figure,) = seen
    codes, updates = figure.axes
    assert codes.get_title() == "1,223 codes moved"
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in codes.patches}
    assert bars == {place: 0 for place in range(-8, 9) if place} | {-8: 3, -1: 500, 1: 700, 2: 20}
    assert codes.get_xticklabels()[0].get_text() == "≤-8"
    assert updates.get_title() == "200 updates, 70.0% below half a step"
    assert [bar.get_height() for bar in updates.patches] == [40, 100, 60]


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    for kind in ("png", "svg"):
        files = [tmp_path / f"{name}.{kind}" for name in "ab"]
        for file in files:
            plot_difference(file, SHIFTS, {}, title="one → other")
        assert files[0].read_bytes() == files[1].read_bytes()
    assert image.imread(tmp_path / "a.png").shape == (510, 690, 4)


def test_names_that_are_no_picture_or_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in '\.pdf', needed \.png or \.svg"):
        plot_difference(tmp_path / "a.pdf", {}, {}, title="")
    with pytest.raises(InputError, match=r"nowhere/a\.png cannot be written"):
        plot_difference(tmp_path / "nowhere" / "a.png", {}, {}, title="")
