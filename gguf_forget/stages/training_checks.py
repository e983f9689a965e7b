"""What training cannot use, told as early as can be: options alone, then the facts, then the grid of the circuit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gguf_forget.errors import InputError
from gguf_forget.facts.schema import Fact
from gguf_forget.recipe import UnlearnSection
from gguf_forget.unlearning.code_moves import CodeMoves


def check_parts(options: UnlearnSection) -> None:
    """Raises InputError for more parts of a batch than it has prompts, or shards of a single process."""
    if options.shard and options.processes == 1:
        raise InputError(
            "unlearn.shard: found true, but unlearn.processes is 1", hint="set unlearn.processes to 2 or more"
        )
    parts, least = options.processes * options.accumulation, min(options.batch_forget, options.batch_retain)
    if options.processes > 1 and parts > least:
        raise InputError(
            f"unlearn.processes: found {options.processes}, which with unlearn.accumulation cuts every batch into "
            f"{parts} parts; needed at most {least}, the smaller of batch_forget and batch_retain",
            hint="lower processes or accumulation, or raise the batches",
        )


def check_facts(options: UnlearnSection, facts: Sequence[Fact]) -> None:
    """Raises InputError for a validation phrasing that no forgotten fact can spare."""
    counts = [len(fact.prompts) for fact in facts if fact.split == "forget" and len(fact.prompts) > 1]
    most = max(counts, default=0)
    if options.validation_phrasing >= most:
        found = f"numbers up to {most - 1}" if most else "no forgotten fact has more than one prompt"
        raise InputError(
            f"unlearn.validation_phrasing: found {options.validation_phrasing}, needed the number of a phrasing (from "
            f"0) of forgotten facts that have more than one: {found}",
            hint="add prompts to the facts, or set it to -1",
        )


def check_floor(edits: Sequence[CodeMoves], options: UnlearnSection) -> None:
    """Raises InputError for a floor that no weight of ``edits`` has room for on its grid."""
    room = max(
        (float(torch.maximum(edit.highest, -edit.lowest).max()) for edit in edits if edit.step.numel()), default=0.0
    )
    if edits and options.floor > room:
        raise InputError(
            f"unlearn.floor: found {options.floor}, but no weight of the circuit can move further than {room:.0f} "
            f"steps of the {options.grid} grid",
            hint="lower unlearn.floor",
        )
