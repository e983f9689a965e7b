"""Processes beside this one: what they add and share, and what becomes of one that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from other_processes import Gone, add_own, fail, fall_at_the_end, share_a_model, tiny_llama, vanish

from gguf_forget.errors import EvaluationError
from gguf_forget.stages.helpers import together
from gguf_forget.unlearning.together import Together


def test_sums_and_the_first_ones_values_reach_all() -> None:
    with together(3, "cpu", add_own, (2,)) as three:
        assert three == Together(0, 3)
        assert three.mine("abcdefg") == "adg"
        for number in (1.0, 5.0):
            tensor = torch.tensor([number])
            three.add([tensor])
            assert tensor.item() == number + 20
            three.share([tensor])
            assert tensor.item() == number + 20


def test_a_share_of_every_layer_computes_as_the_whole() -> None:
    with torch.no_grad():
        whole = tiny_llama()(input_ids=torch.tensor([[5, 6, 7]])).logits
    with together(2, "cpu", share_a_model, ()) as two:
        gate, embeddings, logits = share_a_model(two)
    assert (gate, embeddings) == ([20, 24], [60, 24])  # of [40, 24] and [60, 24]
    torch.testing.assert_close(logits, whole)


def test_a_process_that_has_done_its_part_cannot_fail() -> None:
    """Threads that torch leaves behind may abort Python's end, now and then."""
    with together(2, "cpu", fall_at_the_end, ()) as two:
        tensor = torch.tensor([1.0])
        two.add([tensor])
    assert tensor.item() == 11


def test_alone_there_is_nobody_to_ask() -> None:
    with together(1, "cpu", fail, ("never called",)) as alone:
        tensor = torch.tensor([3.0])
        alone.add([tensor])
        alone.share([tensor])
    assert (alone.index, alone.count, tensor.item()) == (0, 1, 3.0)


@pytest.mark.parametrize(
    ("function", "arguments", "message", "cause"),
    [
        (fail, ("the other has no such file",), "process 1 of 2 ended with code 1", "the other has no such file"),
        (vanish, (), "process 1 of 2 ended with code 7", None),
        (vanish, (Gone(),), "process 1 of 2 ended with code 9", None),
    ],
)
def test_a_process_that_fails_ends_the_others(
    function: Any, arguments: tuple[Any, ...], message: str, cause: str | None
) -> None:
    with pytest.raises(EvaluationError) as failed, together(2, "cpu", function, arguments) as two:
        two.add([torch.tensor([1.0])])
    assert (failed.value.message, failed.value.cause) == (message, cause)
