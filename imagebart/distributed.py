"""Ranks and devices: one process or many, the same script.

Under `torchrun` every rank reads its place from the environment; under plain `python` there is one
rank and no process group, and every function here still holds. Ranks only ever exchange gradients
(DDP's work), a mean and a flag: each computes its own part of a global batch by itself.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from imagebart import linear
from imagebart.arguments import as_int


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: `rank` of `world`, computing on `device`."""

    rank: int
    world: int
    device: torch.device
    store: dist.Store | None = field(default=None, compare=False)
    """Where several ranks met, and may leave notes for each other."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that logs and saves."""
        return self.rank == 0


def start(device: str | None = None, timeout: float = 600) -> Ranks:
    """Take this process's place: torchrun's (RANK, WORLD_SIZE, LOCAL_RANK), else rank 0 of 1.

    `device` is as in `pick_device`; with several ranks "cuda" is one GPU a rank, and ranks talk
    over NCCL there, over gloo elsewhere. A rank that waits for others for twice `timeout` seconds
    fails; NCCL's flight recorder then writes what each rank was doing. ValueError if the machine
    has too few GPUs for its ranks, or ranks do not meet in that time.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = pick_device(device)
    if world > 1 and chosen.type == "cuda":
        chosen = _own_gpu(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)

    if "RANK" in os.environ:
        _die_with_parent()
    store = None
    if world > 1:
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        # Imported when the group is there (as DDP does), its default arguments would hold the group
        # and its threads until the interpreter is gone, and these abort some runs as they end.
        importlib.import_module("torch.distributed.nn.functional")
        # Flags go from CPU to CPU: a GPU's would be read only when all that it computes is done.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=(store := _fresh_store(rank, world, timeout)),
            timeout=timedelta(seconds=2 * timeout),
            rank=rank,
            world_size=world,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    return Ranks(rank, world, chosen, store)


def finish(ranks: Ranks) -> None:
    """Leave together: nobody takes the group down while another rank still needs it."""
    meet(ranks)
    if ranks.world > 1:
        dist.destroy_process_group()


def meet(ranks: Ranks) -> None:
    """Wait until every rank has come here."""
    if ranks.world > 1:
        dist.barrier()


def share(total: int, ranks: Ranks, what: str = "batch") -> slice:
    """This rank's equal part of a global `total`, as a slice of it; ValueError if it has none."""
    if total % ranks.world or total < ranks.world:
        raise ValueError(
            f"{what} must be divisible by the number of ranks, got {total} over {ranks.world}"
        )
    part = total // ranks.world
    return slice(ranks.rank * part, (ranks.rank + 1) * part)


def part_of(total: int, ranks: Ranks) -> range:
    """This rank's stretch of 0 .. total-1, as even as can be; rank after rank they are in order."""
    return range(total * ranks.rank // ranks.world, total * (ranks.rank + 1) // ranks.world)


def split(part: range, batch: int) -> Iterator[range]:
    """A stretch in batches, the last one shorter; ValueError if there is nothing in a batch."""
    batch = as_int(batch, "batch", 1)
    return (part[k : k + batch] for k in range(0, len(part), batch))


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A CPU's `x` on `device`; nothing waits for what a GPU still computes."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def gathering(module: nn.Module, is_last: bool) -> AbstractContextManager:
    """Around a pass of several that make a step: DDP sums the gradients of all ranks in the last
    one alone, and what is no DDP needs nothing."""
    if isinstance(module, DistributedDataParallel) and not is_last:
        return module.no_sync()
    return nullcontext()


def mean(value: Tensor, ranks: Ranks) -> Tensor:
    """The mean of `value` over ranks, on every rank, detached; `value` itself is untouched."""
    return total(value, ranks) / ranks.world


def total(value: Tensor, ranks: Ranks) -> Tensor:
    """The sum of `value` over ranks, on every rank, detached; `value` itself is untouched."""
    summed = value.detach().clone()
    if ranks.world > 1:
        dist.all_reduce(summed)
    return summed


def gathered(value: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks, in their order, on every rank, detached."""
    value = value.detach().contiguous()
    if ranks.world == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(ranks.world)]
    dist.all_gather(parts, value)
    return torch.cat(parts)


def of_all(value: Any, ranks: Ranks) -> list[Any]:
    """The values of all ranks, of any type that can be pickled, in their order, on every rank."""
    if ranks.world == 1:
        return [value]
    values: list[Any] = [None] * ranks.world
    dist.all_gather_object(values, value)
    return values


def by_main(function: Callable[[], Any], ranks: Ranks) -> Any:
    """What `function` returns, on every rank: the main rank alone calls it, others call nothing.

    It may be of any type that can be pickled; tensors, which lie on the CPU, are sent one after
    another. Its ValueError is raised on every rank.
    """
    if ranks.world == 1:
        return function()
    result: Any = None
    if ranks.is_main:
        try:
            result = function()
        except ValueError as error:
            result = error
    shapes = [with_tensors(result, lambda x: x.to("meta"))]
    dist.broadcast_object_list(shapes, src=0)
    if isinstance(shapes[0], ValueError):
        _until_all_know(ranks)
        raise shapes[0]

    def sent_by_main(x: Tensor) -> Tensor:
        here = x if ranks.is_main else torch.empty_like(x, device="cpu")
        packed = here.contiguous()
        dist.broadcast(packed.flatten().view(torch.uint8), src=0)
        return here if ranks.is_main else here.copy_(packed)

    return with_tensors(result if ranks.is_main else shapes[0], sent_by_main)


def same_on_all(function: Callable[[], str], what: str, ranks: Ranks) -> str:
    """What `function`, which every rank calls, returns on all of them: say the digest of its data.

    ValueError on every rank if one returns something else than the main rank, or raises one.
    """
    if ranks.world == 1:
        return function()
    result: str | ValueError
    try:
        result = function()
    except ValueError as error:
        result = error
    main, *others = results = of_all(result, ranks)
    failed = [one for one in results if isinstance(one, ValueError)]
    differ = ", ".join(str(rank) for rank, one in enumerate(others, 1) if one != main)
    if failed or differ:
        _until_all_know(ranks)
    if failed:
        raise failed[0]
    if differ:
        raise ValueError(f"{what} must be the same on all ranks, got others at rank {differ}")
    return main


def with_tensors(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested dictionaries, lists and tuples in which `change` was called on every tensor."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {name: with_tensors(part, change) for name, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(with_tensors(part, change) for part in state)
    return state


def on_any_rank(flag: bool, ranks: Ranks) -> bool:
    """True on every rank if `flag` is true on one: how ranks stop, or skip a step, together."""
    if ranks.world == 1:
        return flag
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def require_one_launcher(told_to_stop: bool, ranks: Ranks) -> None:
    """ValueError on every rank of a run that several launchers started, one torchrun a machine; for
    runs that stop before their last step, as a rank was told to.

    A launcher takes ranks that end without an error for the end of the run, and waits for the other
    launchers to say the same: minutes, and in vain if one was killed, or told to stop itself. After
    an error it starts its ranks again if all launchers are there, else it ends.
    """
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
        return
    goes_on = "the same command goes on from the last checkpoint"
    try:
        stops = gathered(torch.tensor([int(told_to_stop)]), ranks).tolist()
    except RuntimeError:
        raise ValueError(f"every rank must stop by itself, got one that ended; {goes_on}") from None
    _until_all_know(ranks)
    stopped = ", ".join(str(rank) for rank, flag in enumerate(stops) if flag)
    raise ValueError(
        f"ranks of several launchers must run to the last step, got SIGTERM at rank {stopped}, "
        f"perhaps as its launcher has ended; {goes_on}"
    )


def require_same(value: int, what: str, ranks: Ranks) -> None:
    """ValueError on every rank if `value` is not the same on all of them."""
    values = gathered(torch.tensor([value]), ranks).tolist()
    if len(set(values)) > 1:
        _until_all_know(ranks)
        raise ValueError(f"{what} must be the same on all ranks (one disk), got {values}")


def _until_all_know(ranks: Ranks) -> None:
    """Wait until every rank has the result of the last exchange: one that leaves earlier takes the
    connection along, and the others fail in it without a sentence."""
    with suppress(RuntimeError):  # of a rank that all have told already
        meet(ranks)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Compute in `precision_on` this device: "fp32" as written, "bf16" with matrix products in
    bfloat16."""
    if precision_on(device, precision) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def precision_on(device: torch.device, precision: str) -> str:
    """`precision`, but "fp32" for "bf16" on a device that does not multiply in bfloat16: there
    PyTorch emulates it, and a product takes up to 200 times as long.

    Such are processors with AVX2 alone, and GPUs before Ampere. ValueError for another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    if device.type == "cpu" and torch.bfloat16 not in linear.PRECISIONS:
        return "fp32"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "fp32"
    return precision


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`; None or "auto" is the first CUDA GPU if there is one, else the CPU.

    "mps" is taken only when named. ValueError for a device that is unknown or not in the machine.
    """
    cuda = torch.cuda.is_available()
    if name is None or name == "auto":
        name = "cuda" if cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # not a device that computes: refused below
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")

    gpus = torch.cuda.device_count() if cuda else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device must be in this machine, got {name!r} and {gpus} CUDA GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device must be in this machine, got 'mps' without Metal")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _own_gpu(name: str | None) -> torch.device:
    """One GPU a rank: the LOCAL_RANK-th of this machine."""
    if name not in (None, "auto", "cuda"):
        raise ValueError(f"device must be cuda, cpu or auto when there are ranks, got {name!r}")
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise ValueError(f"every rank needs a GPU of its own, got {gpus} GPUs for rank {local}")
    return torch.device("cuda", local)


def _fresh_store(rank: int, world: int, timeout: float) -> dist.Store:
    """The store where ranks find each other, holding no address of a previous attempt.

    When a rank dies torchrun starts all of them again over the *same* store, and ranks may dial
    the addresses of the dead, on several machines for minutes.
    """
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    return dist.PrefixStore(f"attempt {attempt(store, rank, world, timeout)}", store)


def attempt(store: dist.Store, rank: int, world: int, timeout: float) -> str:
    """A name for this attempt that all its ranks know, and none of the dead knew.

    Rank 0 makes one up and shows it; the others answer under it with numbers of their own, and
    accept it when it shows theirs. ValueError after `timeout` seconds.
    """
    own, deadline = uuid4().hex, time.monotonic() + timeout
    if rank == 0:
        store.set("attempt", own)
        try:
            answers = [store.get(f"{own}/{other}").decode() for other in range(1, world)]
        except dist.DistError as error:
            raise ValueError(f"{world} ranks must meet in {timeout:.0f} s, got {error}") from None
        store.set(f"{own}/all", " ".join(answers))
        return own
    while time.monotonic() < deadline:
        if store.check(["attempt"]):
            name = store.get("attempt").decode()
            store.set(f"{name}/{rank}", own)
            everyone = f"{name}/all"
            if store.check([everyone]) and own in store.get(everyone).decode().split():
                return name
        time.sleep(0.05)
    raise ValueError(f"{world} ranks must meet in {timeout:.0f} s, got no answer from rank 0")


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when torchrun is killed: no orphan goes on training unseen."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
