"""Whole runs on a tiny model that are killed, run out of disk or meet a second one; repeated, all give the same bytes.

Each run is a fork of this process, which has loaded the libraries but used none of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fuzzing.harness import CaseFailed, check
from fuzzing.places import small_disk

RECIPE = """
[model]
path = "model.gguf"
[facts]
path = "facts.jsonl"
[attribute]
budget = 0.05
integration_steps = 2
layer_cap = 1.0
evidence_pairs = 2
[unlearn]
steps = 6
keep_every = 2
learning_rate = 0.3
fisher_examples = 4
batch_forget = 6
batch_retain = 6
grid = "Q8_0"
[export]
types = ["F16", "Q8_0"]
[verify]
max_new_tokens = 2
perplexity_tokens = 256
baselines = false
"""
SECONDS = 600  # for one run; it takes a few


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed: its exit code, how long it took, and every file by hash."""

    recipe: Path
    code: int
    seconds: float
    files: Mapping[str, str]
    names: frozenset[str]


def files_of(folder: Path) -> dict[str, str]:
    """Visible files by hash; records of when things happened are left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "stage.json"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def names_of(folder: Path) -> frozenset[str]:
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def start(recipe: Path, out: Path, said: Path) -> int:
    """The process id of a run into ``out``, whose messages go to ``said``."""
    process = os.fork()
    if process:
        return process
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        from gguf_forget.cli import main

        main(["run", str(recipe), "-o", str(out), "--quiet"])
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException as error:
        os.write(2, f"{type(error).__name__} came out: {error}".encode())
    os._exit(99)


def end(process: int, said: Path) -> tuple[int, str]:
    """Exit code and messages, once it has ended by itself."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise CaseFailed(f"took more than {SECONDS} s")


def prepare(folder: Path) -> Reference:
    """A model, facts and a recipe, and the run that nothing disturbs. Imports everything that a run will."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    import llama_cpp  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import transformers  # noqa: F401
    from test_pipeline import facts
    from tiny import build_tiny_gguf

    from gguf_forget.facts.schema import dump_facts

    texts = [f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts + fact.held_out_prompts]
    build_tiny_gguf(folder / "model.gguf", texts=texts * 4, hidden=64, feed_forward=128)
    (folder / "facts.jsonl").write_bytes(dump_facts(facts()))
    (folder / "recipe.toml").write_text(RECIPE)
    recipe, out, said = folder / "recipe.toml", folder / "reference", folder / "said"
    started = time.monotonic()
    code, message = end(start(recipe, out, said), said)
    if code not in (0, 1):
        raise CaseFailed(f"the undisturbed run: exit code {code}: {message}")
    return Reference(recipe, code, time.monotonic() - started, files_of(out), names_of(out))


def nothing_half(reference: Reference, out: Path) -> None:
    """Whatever is visible is a file of the undisturbed run, whole."""
    for name, digest in files_of(out).items():
        if reference.files.get(name) != digest:
            raise CaseFailed(f"{name} is not what an undisturbed run writes")


def again(reference: Reference, out: Path, said: Path) -> None:
    """The same command ends as the undisturbed run did, in the same bytes, with nothing left over."""
    code, message = end(start(reference.recipe, out, said), said)
    if code != reference.code:
        raise CaseFailed(f"run again: exit code {code}, needed {reference.code}: {message[:400]}")
    nothing_half(reference, out)
    if (names := names_of(out)) != reference.names:
        raise CaseFailed(f"run again, other files: {', '.join(sorted(names ^ reference.names)[:9])}")


def killed(reference: Reference, folder: Path, draw: random.Random) -> None:
    out, said = folder / "run", folder / "said"
    process = start(reference.recipe, out, said)
    time.sleep(draw.uniform(0, reference.seconds))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    nothing_half(reference, out)
    again(reference, out, said)


def full_disk(reference: Reference, folder: Path, draw: random.Random) -> None:
    disk, said = folder / "disk", folder / "said"
    disk.mkdir()
    with small_disk(disk, int(2 ** draw.uniform(12, 20))) as enlarge:
        out = disk / "run"
        check(*end(start(reference.recipe, out, said), said))
        nothing_half(reference, out)
        enlarge()
        again(reference, out, said)


def two_at_once(reference: Reference, folder: Path, draw: random.Random) -> None:
    """One of two goes on as if alone, the other is refused with exit code 2."""
    out, said, other = folder / "run", folder / "said", folder / "said-too"
    first = start(reference.recipe, out, said)
    time.sleep(draw.uniform(0, reference.seconds / 2))
    if os.waitpid(first, os.WNOHANG)[0]:  # over already: the machine has less to do than when the reference was timed
        shutil.rmtree(out)
        first = start(reference.recipe, out, said)
    second = start(reference.recipe, out, other)
    ends = sorted((end(second, other), end(first, said)), key=lambda pair: pair[0] == 2)
    if ends[0][0] != reference.code or ends[1][0] != 2 or "is in use" not in ends[1][1]:
        raise CaseFailed(f"found {ends}, needed exit codes {reference.code} and 2")
    nothing_half(reference, out)
    if names_of(out) != reference.names:
        raise CaseFailed("other files")


KINDS: Mapping[str, Callable[[Reference, Path, random.Random], None]] = {
    "killed": killed,
    "full disk": full_disk,
    "two at once": two_at_once,
}


def kind_of(index: int) -> str:
    """Ten of twelve are killed."""
    return {10: "full disk", 11: "two at once"}.get(index % 12, "killed")


def one_run(reference: Reference, index: int, seed: int, folder: Path) -> str:
    """Run case ``index``; returns its kind, raises CaseFailed."""
    kind = kind_of(index)
    work = folder / f"run-{index}"
    work.mkdir()
    try:
        KINDS[kind](reference, work, random.Random(f"{seed}/run/{index}"))
    except CaseFailed as error:
        raise CaseFailed(f"run {index}, {kind}: {error}") from error
    finally:
        shutil.rmtree(work)
    return f"{kind} run"
