"""The HTML report: whole, escaped, self-contained, and as a browser shows it."""

from __future__ import annotations

import copy
import importlib.util
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gguf_forget.report.html_report import build_html
from gguf_forget.report.model_card import build_model_card

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def neighbour(name: str) -> Any:
    """Another test module of this directory, for the reports that it makes by hand."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


file_report = neighbour("test_file_report").report
run_report = neighbour("test_report_of_hand_made_scores").report
HOSTILE = '<script>alert("1")</script> & $x$ <b>\'"'
FIGURES = {
    "training": {
        "step": [1, 2, 3],
        "forget": [8.0, 4.0, 1.0],
        "retain": [0.0, 0.2, 0.1],
        "text": [0.0, 0.1, 0.1],
        "forget_accuracy": [1.0, 0.5, 0.25],
        "retain_accuracy": [None, 0.75, 0.75],
        "moved": [0, 10, 40],
    },
    "layers": [{"name": name, "values": [0.0, 2.0, 1.0]} for name in ("forget attribution", "edited, up")],
    "steps": {"Q4_K_M": {"edges": [0.25, 0.5, 1.0, 2.0], "before": [3, 20, 5], "after": [0, 0, 25], "unmoved": 3}},
}
CURVE = {"circuit": {"shares": [0.001, 0.1, 1.0], "faithfulness": [0.1, 0.6, 1.0]}}
LEAKS = {
    "unlearned/Q4_K_M": [
        {
            "relation": "capital",
            "facts": 38,
            "expected_by_luck": 0.6,
            "leaking": [{"fact": "0123456789abcdef", "right": 3, "asked": 3, "told": True}],
        }
    ]
}
RUN_PLOTS = ["by-format", "update-to-step", "circuit", "faithfulness", "training"]


def whole_run(**changes: Any) -> dict[str, Any]:
    training = {"moved": 40, "grid": "Q4_K_M", "circuit_weights": 900}
    arguments: dict[str, Any] = {
        "figures": FIGURES,
        "circuit": {"evidence": {"curve": CURVE}},
        "training": training,
        "export": {"Q4_K_M": {"file": "unlearned.Q4_K_M.gguf", "bytes": 9000, "sha256": "ab" * 32}},
        "leaks": LEAKS,
        "recipe": {"unlearn": {"seed": 7}},
    }
    return run_report(**{**arguments, **changes})


class Seen(HTMLParser):
    """Tags that were opened, the values of their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_the_retain_fisher_says_of_the_edit_is_told_where_training_knew_it() -> None:
    said = "By the retain Fisher, to second order, the edit moves kept answers by 0.083 nats"
    training = {"moved": 40, "grid": "Q4_K_M", "circuit_weights": 900, "retain_bound_nats": 0.0831}
    known, unknown = whole_run(training=training), whole_run()
    assert said in Seen(build_html(known)).text
    assert said in build_model_card(known)
    assert "Fisher" not in Seen(build_html(unknown)).text + build_model_card(unknown)


def plots_in(page: str) -> list[str]:
    return re.findall(r'data-plot="([^"]+)"', page)


def test_a_run_shows_everything_that_it_has() -> None:
    report = whole_run()
    page = build_html(report)
    body = Seen(page).text
    assert body.index(report["verdict"]["sentence"]) < body.index("Every file beside its original")
    assert plots_in(page) == RUN_PLOTS
    for row in report["rows"]:
        assert row["label"] in body
    for gate in report["verdict"]["gates"]:
        assert gate["name"] in body
    for text in ("0123456789abcdef", "right on 3 of 3 phrasings", "a greedy answer holds it", "0.6 expected by"):
        assert text in body
    for text in ("gguf-forget run recipe.toml", "rebuild stock.Q4_K_M.gguf", "ab" * 32, "unlearn 7", report["sha256"]):
        assert text in body
    assert "edited weights can be trained again" in body
    assert "mathdefault" not in page  # matplotlib's own labels of a logarithmic axis are mathematics, which is off
    assert page == build_html(copy.deepcopy(report))


def test_files_show_their_attacks_and_memorisation() -> None:
    page = build_html(file_report())
    assert plots_in(page) == ["by-format", "attacks"]
    text = Seen(page).text
    for expected in ("mine.gguf", "4 examples", "per-token accuracy", "verify mine.gguf --against ORIGINAL"):
        assert expected in text
    assert "edited weights can be trained again" not in text


def limits_of(*attacks: dict[str, Any]) -> str:
    """The page's limits of a report on as many files as there are records, each with the attacks of one record."""
    report = file_report()
    (file,) = report["evidence"]["files"]
    report["evidence"]["files"] = [{**file, "attacks": list(each.values())} for each in attacks]
    return Seen(build_html(report)).text


def test_only_relearning_says_what_further_training_brings_back() -> None:
    every = {attack["kind"]: attack for attack in file_report()["evidence"]["files"][0]["attacks"]}
    trained = "trained again"
    quick = {kind: attack for kind, attack in every.items() if kind != "relearning"}
    vain = {"relearning": {**every["relearning"], "figures": {}, "not_applicable": "fewer than 4 facts"}}
    assert trained not in limits_of(every)
    for attacks in ((quick,), (quick | vain,), (every, quick)):
        text = limits_of(*attacks)
        assert "Nobody tried to bring the facts back by further training; edited weights can be trained again." in text
        assert "by attacks" not in text
    for attacks in (({},), (vain,)):
        assert "Nobody tried to bring the facts back by attacks or further training" in limits_of(*attacks)


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    for report in (whole_run(), file_report()):
        seen = Seen(build_html(report))
        assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & {*seen.tags}
        for name, value in seen.attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action"):
                assert value is not None
                assert value.startswith(("#", "data:"))
        ids = [value for name, value in seen.attributes if name == "id"]
        assert len(ids) == len(set(ids))


def test_hostile_names_are_text() -> None:
    report = whole_run(model={"name": HOSTILE}, headline=["capital"])
    for row in report["rows"]:
        row["label"] = HOSTILE
    report["verdict"]["sentence"] = HOSTILE
    report["leaks"]["unlearned/Q4_K_M"][0]["relation"] = HOSTILE
    page = build_html(report)
    assert "<script" not in page
    assert Seen(page).text.count(HOSTILE) >= 3 + len(report["rows"])


def test_a_run_with_little_still_makes_a_page() -> None:
    page = build_html(run_report(circuit=None, training=None, recipe=None, export=None))
    assert plots_in(page) == ["by-format"]
    assert "This report does not list single facts" in page


def screenshot(page: Path, target: Path, width: int, *, dark: bool) -> tuple[int, int]:
    """Have Chromium draw the page; width and height of the picture."""
    import struct

    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [
        f"--user-data-dir={target.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={int(not dark)}",
    ]
    command += [f"--window-size={width},2400", f"--screenshot={target}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return struct.unpack(">II", target.read_bytes()[16:24])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_a_browser_shows_verdict_and_plots(tmp_path: Path) -> None:
    report = whole_run()
    page = tmp_path / "report.html"
    page.write_text(build_html(report))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=120)
    dom = done.stdout.decode()
    assert report["verdict"]["sentence"] in dom
    assert plots_in(dom) == RUN_PLOTS
    sizes = {}
    for width in (390, 1280):
        for dark in (False, True):
            target = tmp_path / f"{width}-{dark}.png"
            assert screenshot(page, target, width, dark=dark) == (width, 2400)
            sizes[width, dark] = target.read_bytes()
    assert sizes[390, False] != sizes[390, True]
    assert sizes[1280, False] != sizes[1280, True]
