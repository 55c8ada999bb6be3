"""Weights in shards (FSDP2): of every weight, its gradient, its average and what the optimiser
knows of it a rank holds a part; those of a layer are gathered while it computes.

Checkpoints have the whole of them: a run may go on with other ranks, or without shards.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from imagebart.checkpoint import EMA
from imagebart.distributed import Ranks, with_tensors


def shard(loss: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks) -> None:
    """Cut the weights of each block, and of what is left of a module, into a shard a rank."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)


def whole(x: Tensor) -> Tensor:
    """The whole of a tensor in shards, on every rank, all of which must call this; else itself."""
    return x.full_tensor() if isinstance(x, DTensor) else x


class Whole:
    """A part of a checkpoint, whose state is read and written whole although it is in shards.

    All ranks must call both; rank 0 alone gets the state, on the CPU.
    """

    def __init__(self, part: nn.Module | EMA | torch.optim.Optimizer, ranks: Ranks):
        self.part, self.ranks = part, ranks

    def state_dict(self) -> dict[str, Any]:
        return with_tensors(self.part.state_dict(), self._gathered)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.part, torch.optim.Optimizer):
            weights = [p for group in self.part.param_groups for p in group["params"]]
            of = {i: dict.fromkeys(known, weights[i]) for i, known in state["state"].items()}
            self.part.load_state_dict(state | {"state": cut(state["state"], of)})
        else:
            self.part.load_state_dict(cut(state, self.part.state_dict()))

    def _gathered(self, x: Tensor) -> Tensor:
        gathered = whole(x)
        return gathered.cpu() if self.ranks.is_main else x


def cut(state: Any, like: Any) -> Any:
    """Nested dictionaries of whole tensors, in shards where those of `like` are."""
    if isinstance(state, dict):
        return {name: cut(part, like[name]) for name, part in state.items()}
    if isinstance(like, DTensor) and state.shape == like.shape:  # a step's number is no weight's
        here = state.to(like.device)
        return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
    return state
