"""What strangers hand over: models to judge, questions, importance matrices, evidence with a signature."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from fuzzing.harness import CaseFailed, api, call, check, child, nothing_more, spoiled, tree
from fuzzing.material import Material
from fuzzing.mutations import BY_KIND

SETS = ("items_json", "items_csv", "items_jsonl", "items_parquet")


def questions(material: Material, folder: Path, draw: random.Random) -> str:
    """All that `verify` reads before llama.cpp is asked: headers, facts, public sets, an earlier report."""
    role = draw.choice(("file", "original", "facts", "retain", "baseline"))
    name = {"file": "shipped", "original": "stock", "baseline": "report"}.get(role, draw.choice(("facts", *SETS)))
    path, mutation = spoiled(material, name, folder, draw)
    before = tree(folder)
    given = {"file": material.shipped, "original": material.stock, "facts": material.facts, role: path}
    arguments: list[object] = ["verify", given["file"], "--against", given["original"], "--facts", given["facts"]]
    if role in ("retain", "baseline"):
        arguments += [f"--{role}", path]
    check(*call(*arguments, "--dry-run", "--json"))
    nothing_more(folder, before)
    return f"{role}, {mutation}"


def doctor(material: Material, folder: Path, draw: random.Random) -> str:
    path, mutation = spoiled(material, draw.choice(("stock", "recipe")), folder, draw)
    before = tree(folder)
    code, said = call("doctor", path, "--json")
    if code != 2 or said:  # 2 without a message: not enough memory or disk
        check(code, said)
    nothing_more(folder, before)
    return mutation


def survival(material: Material, folder: Path, draw: random.Random) -> str:
    path, mutation = spoiled(material, "shipped", folder, draw)
    before = tree(folder)
    pair = (material.stock, path) if draw.random() < 0.5 else (path, material.shipped)
    check(*call("survival", *pair, "Q4_0", "--json", "-q"))
    nothing_more(folder, before)
    return mutation


def importance(material: Material, folder: Path, draw: random.Random) -> str:
    from gguf_forget.llama.imatrix import read_importance

    path, mutation = spoiled(material, draw.choice(("imatrix", "legacy_imatrix")), folder, draw)
    check(*api(lambda: read_importance(path)))
    return mutation


def signature(material: Material, folder: Path, draw: random.Random) -> str:
    """Of a signed folder one file is changed, or the key: only what is as it was signed passes."""
    evidence = Path(shutil.copytree(material.evidence, folder / "evidence"))
    names = sorted(path.relative_to(evidence) for path in evidence.rglob("*") if path.is_file())
    name, key = draw.choice(names), material.public_key
    if draw.random() < 0.2:
        key, mutation = spoiled(material, "public_key", folder, draw)
        name = Path("the key")
    else:
        mutation = _spoil(evidence / name, draw)
    same = all((evidence / name).read_bytes() == (material.evidence / name).read_bytes() for name in names)
    before = tree(folder)
    code, said = call("check-signature", evidence, "--public-key", key)
    check(code, said)
    if code == 0 and not same and name.suffix != ".sig":
        raise CaseFailed(f"{name} was changed, and the signature holds")
    nothing_more(folder, before)
    return f"{name}, {mutation}"


def evidence_folder(material: Material, folder: Path, draw: random.Random) -> str:
    """A file comes out only if it is the shipped one."""
    evidence = Path(shutil.copytree(material.evidence, folder / "evidence"))
    name = draw.choice([path for path in evidence.rglob("*") if path.is_file() and path.suffix != ".sig"])
    mutation = _spoil(name, draw)
    before, out = tree(folder), folder / "out.gguf"
    code, said = call("rebuild", material.model_stock, evidence, "-o", out, "-q")
    check(code, said)
    if code == 0 and out.read_bytes() != material.model_shipped.read_bytes():
        raise CaseFailed("another file came out")
    nothing_more(folder, before | ({"out.gguf"} if code == 0 else set()))
    return f"{name.name}, {mutation}"


def _spoil(path: Path, draw: random.Random) -> str:
    kind = "json" if path.suffix == ".sig" else path.suffix.removeprefix(".")
    mutation = draw.choice(list(BY_KIND[kind]))
    path.write_bytes(BY_KIND[kind][mutation](path.read_bytes(), draw))
    return mutation


def whole_model(material: Material, folder: Path, draw: random.Random) -> str:
    """A spoiled model that llama.cpp and torch open, in a process of its own; what is written is ``out`` or nothing."""
    path, mutation = spoiled(material, "model", folder, draw)
    before, out = tree(folder), folder / "out"
    commands = {
        "verify": ("verify", path, "--against", material.model, "--facts", material.facts),
        "verify against": ("verify", material.model, "--against", path, "--facts", material.facts),
        "attribute": ("attribute", path, material.facts, "--no-evidence"),
    }
    name = draw.choice(list(commands))
    code, said = child(*commands[name], "-o", out, "-q")
    if not (code == 3 and not said and _verdict(out) == 3):  # a report that says what could not be evaluated
        check(code, said)
    new = {left.split("/")[0] for left in tree(folder) - before}
    if new - {"out"} or (code == 2 and new):
        raise CaseFailed(f"exit code {code}, left {', '.join(sorted(new))}")
    return f"{name}, {mutation}"


def _verdict(report: Path) -> int | None:
    return int(json.loads(report.read_text())["verdict"]["exit_code"]) if report.is_file() else None
