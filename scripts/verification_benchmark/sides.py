"""What is timed. Each function runs in a process of its own and returns plain values."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verification_benchmark.work import Work

PROMPT_TOKENS = 512
_WARM_UP = 8  # questions


@dataclass(frozen=True)
class Measured:
    """Seconds by the clock and of the processor (all threads), the process's largest size, and the scores."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    values: np.ndarray


def _timed(work: Callable[[], list[np.ndarray]]) -> Measured:
    clock, processor = time.perf_counter(), time.process_time()
    values = work()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Measured(clock, processor, peak, np.concatenate(values))


def ours(file: Path, work: Work, threads: int) -> Measured:
    """The project's scorer, all questions in one call."""
    from gguf_forget.llama.scorer import Scorer

    with Scorer(file, threads=threads) as scorer:

        def score(part: Work) -> list[np.ndarray]:
            rows = scorer.continuation_log_probabilities(part.prompts, part.continuations)
            return [values for row in rows for values in row]

        score(work.first(_WARM_UP))
        return _timed(lambda: score(work))


def one_by_one(file: Path, work: Work, threads: int, *, exact: bool = False) -> Measured:
    """``Llama(logits_all=True)``, one sequence after the other; ``exact``: float32 cache, plain attention."""
    import llama_cpp

    options = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32} if exact else {}
    model = llama_cpp.Llama(
        str(file), n_ctx=512, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False, **options
    )

    def score(part: Work) -> list[np.ndarray]:
        starts = [len(p) for p, mine in zip(part.prompts, part.continuations, strict=True) for _ in mine]
        result = []
        for start, sequence in zip(starts, part.sequences, strict=True):
            model.reset()
            model.eval(sequence)
            logits = model.scores[start - 1 : len(sequence) - 1]
            logits = logits - logits.max(axis=1, keepdims=True)
            picked = logits[np.arange(len(logits)), sequence[start:]]
            result.append(picked - np.log(np.exp(logits).sum(axis=1)))
        return result

    score(work.first(_WARM_UP))
    return _timed(lambda: score(work))


def prompt_processing(file: Path, threads: int, share_of_logits: float, repeats: int) -> dict[str, float]:
    """Median tokens a second of ``llama_decode`` on 512 tokens: ``plain``, and ``with_logits`` of a share of them."""
    from gguf_forget.llama.library import load

    llama = load()
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = PROMPT_TOKENS
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama.llama_init_from_model(model, parameters)
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    tokens = np.random.default_rng(0).integers(size // 10, size, PROMPT_TOKENS)
    batch = llama.llama_batch_init(PROMPT_TOKENS, 0, 1)
    batch.n_tokens = PROMPT_TOKENS
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), i, 1, 0

    def decode(wanted: int) -> float:
        for i in range(PROMPT_TOKENS):
            batch.logits[i] = i >= PROMPT_TOKENS - wanted
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        clock = time.perf_counter()
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode the prompt")
        llama.llama_synchronize(context)
        return PROMPT_TOKENS / (time.perf_counter() - clock)

    some = max(1, round(share_of_logits * PROMPT_TOKENS))
    decode(some)
    rates = [(decode(1), decode(some)) for _ in range(repeats)]
    plain, with_logits = np.median(rates, axis=0)
    return {"plain": float(plain), "with_logits": float(with_logits)}
