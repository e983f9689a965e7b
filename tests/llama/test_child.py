"""llama.cpp in a child process: the same values, its death as one error, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_faults
import numpy as np
import psutil
import pytest
from gguf_with import copy_with

from gguf_forget.errors import EvaluationError, InputError, LlamaError
from gguf_forget.llama.child import IsolatedScorer, run_in_child
from gguf_forget.llama.scorer import Scorer


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def children() -> set[int]:
    """The processes started here that were not waited for, zombies among them."""
    return {child.pid for child in psutil.Process().children()}


def gone(process: int) -> bool:
    """Whether a process has ended; somebody else may still have to wait for it."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def aborting_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loads, but the first forward pass fails an assertion of llama.cpp."""
    target = tmp_path_factory.mktemp("aborting") / "aborting.gguf"
    return copy_with(tiny_model, target, {gguf.Keys.Attention.LAYERNORM_RMS_EPS.format(arch="llama"): -1.0})


def test_every_method_gives_what_the_scorer_gives(tiny_model: Path) -> None:
    prompts, continuations = [[5, 6, 7], [8, 9]], [[[10], [11, 12]], [[13]]]
    messages = [{"role": "user", "content": "Where?"}]
    options = {"threads": 2, "cells": 256, "batch": 64, "max_sequences": 8, "exact_attention": False}
    with Scorer(tiny_model, **options) as near, IsolatedScorer(tiny_model, **options) as far:  # type: ignore[arg-type]
        assert far.vocabulary_size == near.vocabulary_size == 493
        assert far.end_of_generation == near.end_of_generation
        tokens = far.tokenize("The river<|im_end|>", add_special=False)
        assert tokens == near.tokenize("The river<|im_end|>", add_special=False)
        assert far.detokenize(tokens) == "The river<|im_end|>"
        assert far.chat(messages) == near.chat(messages)
        assert far.chat(messages, add_generation_prompt=False) == near.chat(messages, add_generation_prompt=False)
        for ask in (
            lambda s: s.continuation_log_probabilities(prompts, continuations),
            lambda s: s.continuation_argmax(prompts, continuations),
            lambda s: s.sequence_log_probabilities(prompts),
            lambda s: s.top_log_probabilities(prompts, k=3),
            lambda s: s.generate_greedy(prompts, max_new_tokens=3),
            lambda s: s.generate_sampled(prompts, max_new_tokens=3, samples=2, temperature=0.5, seed=4),
        ):
            assert pickle.dumps(ask(far)) == pickle.dumps(ask(near))  # the same bits and the same types


def test_the_child_has_every_public_method() -> None:
    public = {name for name in dir(Scorer) if not name.startswith("_")}
    assert public - set(dir(IsolatedScorer)) == set()


def test_errors_arrive_whole_and_the_child_lives_on(tiny_model: Path, tmp_path: Path) -> None:
    with IsolatedScorer(tiny_model, threads=2) as scorer:
        with pytest.raises(InputError, match="prompt 0 has 5000 tokens") as caught:
            scorer.continuation_log_probabilities([[5] * 5000], [[[5]]])
        assert caught.value.hint == "shorten it, or open the model with more cells"
        assert "in check_tokens" in str(caught.value.__cause__)
        assert len(scorer.sequence_log_probabilities([[5, 6]])[0]) == 1
    with pytest.raises(LlamaError, match="was closed"):
        scorer.tokenize("a")
    with pytest.raises(InputError, match="no such model file"):
        IsolatedScorer(tmp_path / "absent.gguf")


def test_progress_is_heard_here(tiny_model: Path) -> None:
    heard: list[tuple[int, int]] = []
    with IsolatedScorer(
        tiny_model, threads=2, cells=16, max_sequences=1, progress=lambda done, total: heard.append((done, total))
    ) as scorer:
        scorer.sequence_log_probabilities([[5, 6], [7, 8, 9], [10, 11]])
        assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
        heard.clear()
        scorer.generate_greedy([[5], [6]], max_new_tokens=2)
        assert heard == [(0, 2), (1, 2), (2, 2)]


def test_an_assertion_of_llama_is_one_error_with_exit_code_3(aborting_model: Path) -> None:
    before = children()
    with IsolatedScorer(aborting_model, threads=2) as scorer:
        assert scorer.tokenize("The river")
        with pytest.raises(EvaluationError, match=r"was ended by SIGABRT .*aborting\.gguf") as caught:
            scorer.sequence_log_probabilities([[5, 6, 7]])
        assert caught.value.exit_code == 3
        assert "GGML_ASSERT(eps >= 0.0f) failed" in str(caught.value.cause)
        assert str(caught.value.cause).startswith("ggml/src/")  # not the folder it was compiled in
        with pytest.raises(LlamaError, match="was closed"):
            scorer.sequence_log_probabilities([[5, 6, 7]])
    assert children() == before


def test_values_that_are_not_finite_stay_an_evaluation_error(tiny_model: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(tiny_model.read_bytes())
    reader = gguf.GGUFReader(huge, "r+")
    next(t for t in reader.tensors if t.name == "output_norm.weight").data[:] = 3e38
    del reader
    with IsolatedScorer(huge, threads=2) as scorer, pytest.raises(EvaluationError, match=r"sequence 0: .* not finite"):
        scorer.sequence_log_probabilities([[77, 6, 7]])


@pytest.mark.parametrize(
    ("function", "arguments", "message", "cause"),
    [
        (llama_faults.abort_in_llama, (), "SIGABRT", "ggml/src/some.cpp:7: GGML_ASSERT(x > 0) failed"),
        (llama_faults.segmentation_fault, (), "SIGSEGV", None),
        (signal.raise_signal, (signal.SIGKILL,), "SIGKILL", None),
        (signal.raise_signal, (signal.SIGILL,), "SIGILL", None),
        (llama_faults.print_and_leave, (), "ended with code 7", "on stdout"),
    ],
)
def test_every_death_is_told(
    function: Callable[..., object], arguments: tuple, message: str, cause: str | None
) -> None:
    before = children()
    with pytest.raises(EvaluationError, match=message) as caught:
        run_in_child(function, *arguments)
    assert caught.value.cause == cause
    assert ("memory runs out" in str(caught.value.hint)) == (message == "SIGKILL")
    assert ("compile it here again" in str(caught.value.hint)) == (message == "SIGILL")
    assert children() == before


def test_functions_return_and_raise_as_they_do_here() -> None:
    assert run_in_child(divmod, 7, 2) == (3, 1)
    assert run_in_child(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    with pytest.raises(LookupError, match="no such thing") as caught:
        run_in_child(llama_faults.refuse)
    assert "in refuse" in str(caught.value.__cause__)


def test_a_large_request_and_a_large_result() -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    assert run_in_child(bytes.upper, data) == data.upper()


def test_the_child_loads_no_more_than_it_needs() -> None:
    assert run_in_child(llama_faults.loaded_modules) & {"torch", "transformers", "llama_cpp", "gguf", "rich"} == set()


def test_ctrl_c_ends_the_child_at_once(tmp_path: Path) -> None:
    """The terminal sends SIGINT to both processes; here only the parent hears it, while it waits."""
    file = tmp_path / "id"

    def interrupt() -> None:
        wait_for(lambda: file.exists() and file.read_text())
        os.kill(int(file.read_text()), signal.SIGINT)  # the child takes no notice
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A shell starts what it puts in the background with SIGINT ignored, and Python leaves it so.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_in_child(llama_faults.sleep_as, str(file), 600.0)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert time.monotonic() - started < 300
    assert not psutil.pid_exists(int(file.read_text()))


def test_a_child_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "id"
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import llama_faults\nfrom gguf_forget.llama.child import run_in_child\n"
        f"run_in_child(llama_faults.sleep_as, {str(file)!r}, 600.0)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: file.exists() and file.read_text())
    child = int(file.read_text())
    assert not gone(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(child))


def test_a_scorer_that_was_forgotten_leaves_no_process(tiny_model: Path) -> None:
    before = children()
    scorer = IsolatedScorer(tiny_model, threads=2)
    assert len(children()) == len(before) + 1
    del scorer
    assert children() == before
