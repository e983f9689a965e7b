"""llama.cpp at arm's length: the scorer, or any function, in a child process.

llama.cpp aborts the process it runs in where a file holds what it did not expect, and the system ends a process that
takes too much memory. In a child that is an :class:`~gguf_forget.errors.EvaluationError` here: the file could not be
judged. A child takes some tenths of a second to start, and a call to it some tenths of a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from .process import Process
from .requests import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .scorer import TopLogProbabilities

Result = TypeVar("Result")


class ScorerOptions(TypedDict, total=False):
    """The options of :class:`.scorer.Scorer` that are plain values."""

    threads: int | None
    cells: int
    batch: int
    max_sequences: int
    gpu_layers: int
    tensor_split: Sequence[float]
    exact_attention: bool | None
    one_at_a_time: bool


def run_in_child(function: Callable[..., Result], *arguments: object, **keywords: object) -> Result:
    """``function(*arguments, **keywords)`` in a process of its own; all of it must be picklable.

    Raises:
        EvaluationError: the process died.
        Exception: whatever the function raised.
    """
    name = getattr(function, "__name__", repr(function))
    with Process(name) as process:
        result: Result = process.call("run", function, arguments, keywords)
        return result


class IsolatedScorer:
    """A :class:`.scorer.Scorer` in a child process: the same options, methods, errors and values.

    Should the child die, every call raises: the first :class:`~gguf_forget.errors.EvaluationError`, which says how,
    the following :class:`~gguf_forget.errors.LlamaError`, as after :meth:`close`.

    Args:
        progress: called in this process.
    """

    def __init__(self, model: Path, *, progress: Progress | None = None, **options: Unpack[ScorerOptions]) -> None:
        self.path = Path(model)
        self._progress = progress
        self._process = Process(str(self.path))
        try:
            self._vocabulary_size: int = self._process.call("open", self.path, dict(options))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child; closing twice is allowed."""
        self._process.close()

    def __enter__(self) -> IsolatedScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, name: str, *arguments: object, **keywords: object) -> Any:
        return self._process.call("ask", name, arguments, keywords, progress=self._progress)

    # What each of these does is said at the same name of Scorer.

    @property
    def vocabulary_size(self) -> int:
        return self._vocabulary_size

    @cached_property
    def end_of_generation(self) -> frozenset[int]:
        return self._ask("end_of_generation")

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return self._ask("tokenize", text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._ask("detokenize", tokens)

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        return self._ask("chat", messages, add_generation_prompt=add_generation_prompt)

    def continuation_log_probabilities(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[NDArray[np.float64]]]:
        return self._ask("continuation_log_probabilities", prompts, continuations)

    def continuation_argmax(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[NDArray[np.bool_]]]:
        return self._ask("continuation_argmax", prompts, continuations)

    def sequence_log_probabilities(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        return self._ask("sequence_log_probabilities", sequences)

    def top_log_probabilities(self, sequences: Sequence[Sequence[int]], *, k: int) -> list[TopLogProbabilities]:
        return self._ask("top_log_probabilities", sequences, k=k)

    def generate_greedy(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
        return self._ask("generate_greedy", prompts, max_new_tokens=max_new_tokens)

    def generate_sampled(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        samples: int,
        temperature: float = 1.0,
        seed: int,
    ) -> list[list[list[int]]]:
        return self._ask(
            "generate_sampled",
            prompts,
            max_new_tokens=max_new_tokens,
            samples=samples,
            temperature=temperature,
            seed=seed,
        )
