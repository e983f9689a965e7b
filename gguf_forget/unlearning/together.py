"""Several processes that train one edit: each computes some parts of every batch, and their gradients are added.

All hold the same edit and take the same steps, so that they need to agree on nothing but sums. One process that cuts
its batches into as many parts computes the same, up to the order in which parts are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

Part = TypeVar("Part")
PATIENCE = timedelta(days=7)  # once they have met, a process that ends is noticed at once; a slow one is not given up


@dataclass(frozen=True)
class Together:
    """Process ``index`` of ``count``; one alone asks nobody."""

    index: int = 0
    count: int = 1

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        return parts[self.index :: self.count]

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into every tensor; all call it with the same shapes."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put what process 0 has into every tensor."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


ALONE = Together()


@contextmanager
def joined(index: int, count: int, meeting: Path, device: torch.device) -> Iterator[Together]:
    """One of ``count`` processes that meet through the file ``meeting``, which none has used before."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collective operations and shards take the current one
    store = distributed.FileStore(str(meeting), count)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=index, world_size=count, timeout=PATIENCE)
    try:
        yield Together(index, count)
    finally:
        distributed.destroy_process_group()


def shard(model: Any, layers: Sequence[Any], together: Together) -> None:
    """Leave this process its share of the weights of ``layers`` (FSDP2): each layer's are gathered while it computes.

    What is outside the layers, embeddings and output, stays whole: scoring calls them by themselves. From then on
    every process must run the model equally often. The model is on the device where it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (together.count,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)  # by default the outermost stays whole
