"""What is called with what is spoiled. A case returns the name of its mutation, or raises CaseFailed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from fuzzing import doors
from fuzzing.harness import CaseFailed, api, call, check, child, nothing_more, spoiled, tree
from fuzzing.material import Material
from fuzzing.places import sealed, small_disk

Case = Callable[[Material, Path, random.Random], str]


def diff(material: Material, folder: Path, draw: random.Random) -> str:
    path, mutation = spoiled(material, "shipped", folder, draw)
    before = tree(folder)
    pair = (material.stock, path) if draw.random() < 0.5 else (path, material.stock)
    check(*call("diff", *pair, "--json", "-q"))
    nothing_more(folder, before)
    return mutation


def rebuild(material: Material, folder: Path, draw: random.Random) -> str:
    """A result is either absent or the shipped file."""
    name = draw.choice(("moves", "moves", "stock"))
    path, mutation = spoiled(material, name, folder, draw)
    before = tree(folder)
    out = folder / "out.gguf"
    inputs = (material.stock, path) if name == "moves" else (path, material.moves)
    code, said = call("rebuild", *inputs, "-o", out, "-q")
    check(code, said)
    if code == 0 and out.read_bytes() != material.shipped.read_bytes():
        raise CaseFailed("another file came out")
    nothing_more(folder, before | ({"out.gguf"} if code == 0 else set()))
    return mutation


def recompute(material: Material, folder: Path, draw: random.Random) -> str:
    path, mutation = spoiled(material, "report", folder, draw)
    before = tree(folder)
    check(*call(draw.choice(("report", "verify")), "--recompute", path, "--html", folder / "x.html"))
    nothing_more(folder, before)
    return mutation


def recipes(material: Material, folder: Path, draw: random.Random) -> str:
    path, mutation = spoiled(material, "recipe", folder, draw)
    before = tree(folder)
    check(*call("run", path, "-o", folder / "run", "--dry-run", "--json"))
    nothing_more(folder, before)
    return mutation


def facts(material: Material, folder: Path, draw: random.Random) -> str:
    from gguf_forget.facts.schema import read_facts

    path, mutation = spoiled(material, "facts", folder, draw)
    check(*api(lambda: read_facts(path)))
    return mutation


def circuits(material: Material, folder: Path, draw: random.Random) -> str:
    from gguf_forget.circuit.artifact import load_circuit

    path, mutation = spoiled(material, "circuit", folder, draw)
    check(*api(lambda: load_circuit(path)))
    return mutation


def edits(material: Material, folder: Path, draw: random.Random) -> str:
    from gguf_forget.export.edit import load_edits

    path, mutation = spoiled(material, "edit", folder, draw)
    check(*api(lambda: load_edits(path)))
    return mutation


def unwritable(material: Material, folder: Path, draw: random.Random) -> str:
    """A directory where the result belongs, or a folder that is not there or is a file."""
    kind = draw.choice(("a directory", "no folder", "a file as folder", "an input"))
    out = folder / "out.gguf"
    if kind == "a directory":
        out.mkdir()
    elif kind == "no folder":
        out = folder / "absent" / "out.gguf"
    elif kind == "a file as folder":
        (folder / "file").write_bytes(b"mine")
        out = folder / "file" / "out.gguf"
    else:
        out = material.stock
    before, stock = tree(folder), material.stock.read_bytes()
    code, said = call("rebuild", material.stock, material.moves, "-o", out, "-q")
    check(code, said)
    if code != 2:
        raise CaseFailed(f"exit code {code}, needed 2")
    nothing_more(folder, before)
    if material.stock.read_bytes() != stock:
        raise CaseFailed("an input was changed")
    return kind


def _writers(material: Material, folder: Path) -> list[tuple[tuple[object, ...], Path]]:
    """Commands that write one file into ``folder``, and which."""
    return [
        (("rebuild", material.stock, material.moves, "-o", folder / "out.gguf", "-q"), folder / "out.gguf"),
        (("init", "capitals", "-o", folder / "recipe.toml"), folder / "recipe.toml"),
        (("diff", material.stock, material.shipped, "--plot", folder / "plot.svg", "-q"), folder / "plot.svg"),
    ]


def read_only(material: Material, folder: Path, draw: random.Random) -> str:
    """What works in another folder ends with exit code 2 in one that cannot be written."""
    kind = draw.randrange(3)
    for name in ("open", "closed"):
        (folder / name).mkdir()
    arguments, result = _writers(material, folder / "open")[kind]
    code, said = call(*arguments)
    if code != 0 or not result.is_file():
        raise CaseFailed(f"in a folder like others: exit code {code}: {said[:300]}")
    check(*call("load", material.recipe, "-o", folder / "open" / "run", "--dry-run"))  # loads what nobody may not
    with sealed(folder / "closed"):
        code, said = call(*_writers(material, folder / "closed")[kind][0])
        check(code, said)
        if code != 2:
            raise CaseFailed(f"exit code {code}, needed 2")
        code, said = call("load", material.recipe, "-o", folder / "closed" / "run", "-q")
        check(code, said)
        if code != 2:
            raise CaseFailed(f"a run: exit code {code}, needed 2")
    nothing_more(folder / "closed", set())
    return f"{arguments[0]} in a read-only folder"


def full_disk(material: Material, folder: Path, draw: random.Random) -> str:
    """On a disk with too little room a result is absent or whole, and with more room the same command works."""
    kind = draw.randrange(3)
    (folder / "roomy").mkdir()
    whole = _writers(material, folder / "roomy")[kind]
    call(*whole[0])
    disk = folder / "disk"
    disk.mkdir()
    with small_disk(disk, draw.choice((4096, 8192, 16384, 32768, 65536))) as enlarge:
        arguments, result = _writers(material, disk)[kind]
        code, said = call(*arguments)
        check(code, said)
        nothing_more(disk, {result.name} if code == 0 else set())
        enlarge()
        result.unlink(missing_ok=True)
        code, said = call(*arguments)
        if code != 0 or result.read_bytes() != whole[1].read_bytes():
            raise CaseFailed(f"with more room: exit code {code}: {said[:300]}")
    return f"{arguments[0]} on a full disk"


def two_runs(material: Material, folder: Path, draw: random.Random) -> str:
    """A second process (here: a second lock) in a run directory is refused and changes nothing."""
    from gguf_forget.run_directory import RunDirectory

    with RunDirectory(folder / "run"):
        before = tree(folder)
        code, said = api(lambda: RunDirectory(folder / "run").stage("one", {}, lambda out: None))
        check(code, said)
        if code != 2:
            raise CaseFailed(f"exit code {code}, needed 2")
        nothing_more(folder, before)
    return "a lock that is held"


def through_llama(material: Material, folder: Path, draw: random.Random) -> str:
    """quantize asks llama.cpp about the original: in a process of its own, whose end is looked at."""
    path, mutation = spoiled(material, "stock", folder, draw)
    before = tree(folder)
    code, said = child("quantize", path, material.shipped, folder / "out.gguf", "Q8_0", "-q")
    check(code, said)
    nothing_more(folder, before | ({"out.gguf"} if code == 0 else set()))
    return mutation


def killed(material: Material, folder: Path, draw: random.Random) -> str:
    """Killed at a random moment, the result is absent or whole, and the same command works afterwards."""
    out = folder / "out.gguf"
    arguments = ("rebuild", material.stock, material.moves, "-o", out, "-q")
    child(*arguments, kill_after=draw.uniform(0.05, 1.5))
    whole = material.shipped.read_bytes()
    if out.exists() and out.read_bytes() != whole:
        raise CaseFailed("half a file")
    code, said = call(*arguments)
    if code != 0 or out.read_bytes() != whole:
        raise CaseFailed(f"afterwards: exit code {code}: {said[:300]}")
    return "SIGKILL"


CASES: Mapping[str, Case] = {
    "diff": diff,
    "rebuild": rebuild,
    "recompute": recompute,
    "recipe": recipes,
    "facts": facts,
    "circuit": circuits,
    "edit": edits,
    "unwritable": unwritable,
    "read only": read_only,
    "full disk": full_disk,
    "two runs": two_runs,
    "questions": doors.questions,
    "doctor": doors.doctor,
    "survival": doors.survival,
    "importance": doors.importance,
    "signature": doors.signature,
    "evidence": doors.evidence_folder,
}
CHILDREN: Mapping[str, Case] = {"quantize": through_llama, "killed": killed, "whole model": doors.whole_model}
