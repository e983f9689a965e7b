"""Arguments, both sides, the comparison, the table and the JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.convert import convert_directory
from gguf_forget.demo.capitals import build_capitals
from gguf_forget.demo.prepare import embedded_model
from gguf_forget.errors import GgufForgetError
from gguf_forget.facts.schema import read_facts
from gguf_forget.llama.child import run_in_child
from gguf_forget.llama.library import version
from gguf_forget.llama.quantizer import quantize
from gguf_forget.verification.scores import item_hash
from harness_comparison.items import Item, draw_items, our_log_probabilities, write_items

HARNESS = Path(__file__).with_name("harness.py")
ROUNDING = 1e-3  # nats; what float32 in another order of additions explains in a sum over a few tokens


class Failure(Exception):
    """One line for the user; exit code 2."""


def _arguments(description: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness-python", required=True, metavar="PYTHON", help="interpreter that has lm_eval")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--model", type=Path, help="a GGUF or a Hugging Face directory  [default: the demo's]")
    parser.add_argument("--facts", type=Path, help="a facts file  [default: the demo's]")
    parser.add_argument("--count", type=int, default=150, help="facts, asked in two forms  [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="of each side  [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[default: %(default)s]")
    return parser.parse_args(given)


def _ask_harness(python: str, items: Path, folder: Path, arguments: dict[str, Any], threads: int) -> dict[str, Any]:
    out, log = folder / "harness.json", folder / "harness.log"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    command = [python, str(HARNESS), str(items), str(out), json.dumps(arguments)]
    with log.open("w") as stream:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, check=False
            ).returncode
        except OSError as error:
            raise Failure(f"{python} cannot be run: {error.strerror}") from None
    if code or not out.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        raise Failure(f"the harness stopped with exit code {code}: {lines[-1]}")
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def compare(items: Sequence[Item], ours: Sequence[Sequence[float]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both sides item by item, and in all."""
    rows = []
    for item, mine, other in zip(items, ours, theirs, strict=True):
        own, foreign = np.array(mine), np.array(other["log_probabilities"])
        characters = np.array([len(choice) for choice in item.choices])
        difference = float(np.abs(own - foreign).max())
        row = {
            "form": item.form,
            "sha256": item_hash(item.query, item.choices[item.gold]),
            "gold": item.gold,
            "ours": [round(value, 6) for value in mine],
            "harness": [round(value, 6) for value in other["log_probabilities"]],
            "largest_difference_nats": difference,
            "acc": {"ours": float(own.argmax() == item.gold), "harness": float(other["acc"])},
            "acc_norm": {
                "ours": float((own / characters).argmax() == item.gold),
                "harness": float(other["acc_norm"]),
            },
            "pick": {"ours": int(own.argmax()), "harness": int(foreign.argmax())},
        }
        row["margin_nats"] = float(own.max() - own[foreign.argmax()])  # from our pick down to the harness' one
        row["agrees"] = difference <= ROUNDING
        rows.append(row)
    summary = {}
    for form in dict.fromkeys(row["form"] for row in rows):
        own_form = [row for row in rows if row["form"] == form]
        distances = np.array([row["largest_difference_nats"] for row in own_form])
        summary[form] = {
            "items": len(own_form),
            **{
                name: {side: float(np.mean([row[name][side] for row in own_form])) for side in ("ours", "harness")}
                for name in ("acc", "acc_norm")
            },
            "chance": float(np.mean([1 / len(row["ours"]) for row in own_form])),
            "mean_difference_nats": float(distances.mean()),
            "largest_difference_nats": float(distances.max()),
            "picks_that_differ": sum(row["pick"]["ours"] != row["pick"]["harness"] for row in own_form),
            "not_agreeing": sum(not row["agrees"] for row in own_form),
        }
    return {"forms": summary, "items": rows}


def _table(forms: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'form':8}{'items':>7}{'chance':>8}{'acc: ours':>11}{'harness':>9}{'acc_norm: ours':>16}{'harness':>9}"
        f"{'difference, nats: mean':>24}{'largest':>9}{'picks differ':>14}{'not agreeing':>14}"
    ]
    for form, found in forms.items():
        lines.append(
            f"{form:8}{found['items']:>7}{found['chance']:>8.2f}{found['acc']['ours']:>11.4f}"
            f"{found['acc']['harness']:>9.4f}{found['acc_norm']['ours']:>16.4f}{found['acc_norm']['harness']:>9.4f}"
            f"{found['mean_difference_nats']:>24.1e}{found['largest_difference_nats']:>9.1e}"
            f"{found['picks_that_differ']:>14}{found['not_agreeing']:>14}"
        )
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    model: Path = options.model or embedded_model()
    facts = build_capitals() if options.facts is None else read_facts(options.facts, needed=())
    items = draw_items(facts, options.count, options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / "F32.gguf"
        if model.is_dir():
            convert_directory(model, file)
            arguments: dict[str, Any] = {"pretrained": str(model)}
        else:
            run_in_child(quantize, model, file, "F32", threads=options.threads, allow_requantize=True)
            arguments = {"pretrained": str(folder), "gguf_file": file.name}
        write_items(items, folder / "items.jsonl")
        print(f"{len(items)} items: ours", file=sys.stderr, flush=True)
        ours = our_log_probabilities(items, file, options.threads)
        print(f"{len(items)} items: the harness", file=sys.stderr, flush=True)
        arguments |= {"dtype": "float32", "device": "cpu", "batch_size": 8}
        theirs = _ask_harness(options.harness_python, folder / "items.jsonl", folder, arguments, options.threads)
    return {
        "schema_version": 1,
        "model": model.name,
        "seed": options.seed,
        "versions": {**theirs["versions"], "llama_cpp": version()},
        **compare(items, ours, theirs["items"]),
    }


def main(description: str | None, given: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    options = _arguments(description, given)
    try:
        document = _run(options)
    except (GgufForgetError, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(_table(document["forms"]))
    for row in document["items"]:
        if row["pick"]["ours"] != row["pick"]["harness"] or not row["agrees"]:
            print(
                f"{row['form']} {row['sha256'][:12]}: ours {row['pick']['ours']}, harness {row['pick']['harness']}, "
                f"margin {row['margin_nats']:.1e}, difference {row['largest_difference_nats']:.1e} nats"
            )
    return 1 if any(found["not_agreeing"] for found in document["forms"].values()) else 0
