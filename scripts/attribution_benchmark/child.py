"""A child process of the attribution benchmark: loads one model, then scores edges whenever it is asked.

One process per side and model, so that neither's memory is counted for the other; they answer in turn, so
that a machine that gets slower or faster meanwhile does so for both. One request or answer is one line of
JSON, on stdin and stdout; whatever else a library prints goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from attribution_benchmark.work import SHAPES, Prompts, Shape, prompts
from benchmark_support.memory import peak, reset_peak, status


@dataclass(frozen=True)
class Request:
    """Score ``pairs`` pairs with ``steps`` integration steps; keep the scores at ``keep`` (npz) if given.

    ``own_points``: integrate at the points the side would take by itself, where the other's are the default.
    """

    pairs: int
    steps: int
    batch_size: int
    keep: str | None = None
    own_points: bool = False


@dataclass(frozen=True)
class Edges:
    """Scores [U, V] with the names of sources and destinations; NaN where there is no edge.

    Names are those of gguf_forget.circuit.graph: sources ``embedding``, ``a0.h0``, ``m0``; destinations ``a0.h0.q``,
    ``a0.g0.k``, ``a0.g0.v`` (g: group of heads with one key and value), ``m0``, ``logits``.
    """

    sources: list[str]
    destinations: list[str]
    scores: np.ndarray


@dataclass(frozen=True)
class Loaded:
    """A side with its model: ``score`` does the work, ``metric`` is L of each clean prompt (a check of sameness)."""

    score: Callable[[list[Prompts], Request], Edges]
    metric: Callable[[list[Prompts]], list[float]]


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "transformer-lens"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def serve(load: Callable[[Shape], Loaded]) -> None:
    """Answer requests until stdin ends. Arguments of the process: the name of a shape, the number of threads."""
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    import torch

    shape = SHAPES[sys.argv[1]]
    torch.set_num_threads(int(sys.argv[2]))
    side = load(shape)
    reset_peak()
    resident = status("VmRSS") or peak()
    answer({"resident": resident, "metric": side.metric(prompts(shape, 2)), "versions": _versions()})
    for line in sys.stdin:
        request = Request(**json.loads(line))
        pairs = prompts(shape, request.pairs)
        reset_peak()
        start, start_busy = time.perf_counter(), time.process_time()
        edges = side.score(pairs, request)
        seconds, busy = time.perf_counter() - start, time.process_time() - start_busy
        largest = peak()
        if request.keep is not None:
            np.savez(request.keep, **asdict(edges))
        answer({"seconds": seconds, "processor_seconds": busy, "peak": largest})
