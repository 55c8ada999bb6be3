"""Ranks: many see what one sees, each its own part, and a killed rank comes back."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imagebart import linear
from imagebart.distributed import (
    Ranks,
    autocast,
    by_main,
    finish,
    mean,
    of_all,
    on_any_rank,
    part_of,
    pick_device,
    precision_on,
    require_one_launcher,
    same_on_all,
    sent,
    share,
    split,
    start,
    total,
)

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")

WORKER = """
import glob, os, sys, time, torch
from torch.nn.parallel import DistributedDataParallel
from imagebart.distributed import finish, gathered, mean, on_any_rank, require_same, share, start
from imagebart.distributed import by_main, of_all, require_one_launcher, same_on_all, total

ranks = start("cpu")
me = float(ranks.rank)
assert mean(torch.tensor([me, 2.0]), ranks).tolist() == [0.5, 2]
assert total(torch.tensor([me, 2.0]), ranks).tolist() == [1, 4]
mine = torch.tensor([me])
assert total(mine, ranks) == 1 and mine == me
assert gathered(mine, ranks).tolist() == [0, 1]
assert on_any_rank(ranks.rank == 1, ranks) and not on_any_rank(False, ranks)
assert of_all([ranks.rank, "any"], ranks) == [[0, "any"], [1, "any"]]
here = {"a": [mine, (torch.tensor(True), "b")], "c": torch.ones(2, 3, dtype=torch.int16).T}
there = by_main(lambda: here, ranks)
assert there["a"][0] == 0 and there["a"][1] == (True, "b") and there["c"].shape == (3, 2)
assert there["c"].dtype == torch.int16 and there["c"].sum() == 6
def refuse():
    assert ranks.is_main
    raise ValueError("no such state")
try:
    by_main(refuse, ranks)
    raise AssertionError
except ValueError as error:
    assert str(error) == "no such state"
assert same_on_all(lambda: "f00", "the data", ranks) == "f00"
def refuse_at_rank_1():
    if not ranks.is_main:
        raise ValueError("no such data")
    return "f00"
for function, said in (
    (lambda: f"f0{ranks.rank}", "the data must be the same on all ranks, got others at rank 1"),
    (refuse_at_rank_1, "no such data"),
):
    try:
        same_on_all(function, "the data", ranks)
        raise AssertionError
    except ValueError as error:
        assert str(error) == said
require_one_launcher(True, ranks)
os.environ["GROUP_WORLD_SIZE"] = "2"
try:
    require_one_launcher(ranks.rank == 1, ranks)
    raise AssertionError
except ValueError as error:
    assert "must run to the last step, got SIGTERM at rank 1, perhaps as" in str(error)
require_same(7, "the step", ranks)
try:
    require_same(ranks.rank * 5, "the step", ranks)
    raise AssertionError
except ValueError as error:
    assert "the step must be the same on all ranks (one disk), got [0, 5]" in str(error)
assert share(10, ranks) == slice(5 * ranks.rank, 5 * ranks.rank + 5)
assert ranks.is_main == (ranks.rank == 0)

folder, victim = sys.argv[1], int(sys.argv[2])
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
if victim == ranks.rank and attempt == "0":
    os.kill(os.getpid(), 9)
if victim == -2:
    open(f"{folder}/pid_{os.getpid()}", "w").close()
    time.sleep(600)
mean(torch.zeros(1), ranks)
DistributedDataParallel(torch.nn.Linear(2, 2))(torch.ones(1, 2)).sum().backward()
open(f"{folder}/attempt_{attempt}_rank_{ranks.rank}", "w").close()
finish(ranks)
threads = [open(task).read() for task in glob.glob("/proc/self/task/*/comm")]
assert not any("gloo" in name for name in threads), threads  # they can abort a process as it ends
"""


def torchrun(folder, victim: int) -> subprocess.Popen:
    """Two ranks of WORKER; `victim` kills itself once (-1: nobody, -2: all wait to be killed)."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    return subprocess.Popen(
        [*command, str(script), str(folder), str(victim)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_a_killed_rank_comes_back_at_the_first_restart(tmp_path):
    # Before the death the ranks have met, agreed on means and flags, and each taken its share.
    assert torchrun(tmp_path, victim=1).wait(timeout=300) == 0
    done = sorted(path.name for path in tmp_path.glob("attempt_*"))
    assert done == ["attempt_1_rank_0", "attempt_1_rank_1"]


@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is told by Linux only")
def test_no_rank_outlives_torchrun(tmp_path):
    agent = torchrun(tmp_path, victim=-2)
    try:
        wait_until(lambda: len(list(tmp_path.glob("pid_*"))) == 2, seconds=300)
    finally:
        agent.kill()
        agent.wait()
    pids = [int(path.name.removeprefix("pid_")) for path in tmp_path.glob("pid_*")]
    wait_until(lambda: not any(alive(pid) for pid in pids), seconds=300)


def wait_until(truth, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_launcher_takes_a_stop_for_the_end_of_the_run(monkeypatch):
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    require_one_launcher(True, Ranks(0, 1, CPU))  # plain python
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="several launchers must run to the last step, got SIGTER"):
        require_one_launcher(True, Ranks(0, 1, CPU))


def test_plain_python_is_one_rank_without_a_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = start("cpu")
    assert ranks == Ranks(0, 1, CPU) and ranks.is_main
    assert not torch.distributed.is_initialized()
    assert share(7, ranks) == slice(0, 7)
    assert mean(torch.tensor(3.0, requires_grad=True), ranks) == 3
    assert total(torch.tensor(3), ranks) == 3
    assert not mean(torch.tensor(3.0, requires_grad=True), ranks).requires_grad
    assert on_any_rank(True, ranks) and not on_any_rank(False, ranks)
    assert sent(torch.tensor([3]), CPU) == 3 and of_all("any", ranks) == ["any"]
    assert by_main(lambda: "any", ranks) == same_on_all(lambda: "any", "what", ranks) == "any"
    finish(ranks)


def test_shares_tile_the_batch():
    parts = [list(range(12))[share(12, Ranks(rank, 4, CPU))] for rank in range(4)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(ValueError, match="images must be divisible by the number of ranks, got 10"):
        share(10, Ranks(0, 4, CPU), what="images")
    with pytest.raises(ValueError, match="got 0 over 4"):
        share(0, Ranks(0, 4, CPU))


def test_parts_tile_any_number_in_order():
    parts = [part_of(10, Ranks(rank, 3, CPU)) for rank in range(3)]
    assert [i for part in parts for i in part] == [*range(10)]
    assert [len(part) for part in parts] == [3, 3, 4]
    assert [len(part_of(1, Ranks(rank, 3, CPU))) for rank in range(3)] == [0, 0, 1]


def test_batches_tile_a_part():
    assert [*split(range(4, 11), 3)] == [range(4, 7), range(7, 10), range(10, 11)]
    assert [*split(range(0), 3)] == []
    with pytest.raises(ValueError, match="batch must be a whole number, at least 1, got 0"):
        split(range(3), 0)


def test_precision_is_what_its_name_says_where_the_processor_has_it(monkeypatch):
    a = torch.randn(4, 4)
    for has, used in (({torch.float32, torch.bfloat16}, torch.bfloat16), (set(), torch.float32)):
        monkeypatch.setattr(linear, "PRECISIONS", has)
        with autocast(CPU, "fp32"):
            assert (a @ a).dtype == torch.float32
        with autocast(CPU, "bf16"):
            assert (a @ a).dtype == used
    with pytest.raises(ValueError, match="fp32 or bf16, got 'fp16'"):
        autocast(CPU, "fp16")


@pytest.mark.parametrize("capability, used", [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_a_gpu_before_ampere_computes_in_float32(monkeypatch, capability, used):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_on(torch.device("cuda"), "bf16") == used
    assert precision_on(torch.device("cuda"), "fp32") == "fp32"


def test_the_device_named_is_the_device_used(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == pick_device("cuda") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x", "", "gpu"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got 'cuda' and 0 CUDA GPUs"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="without Metal"):
        pick_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="got 'cuda:1' and 1 CUDA GPUs"):
        pick_device("cuda:1")


def test_every_rank_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="a GPU of its own, got 2 GPUs for rank 2"):
        start("cuda")
    with pytest.raises(ValueError, match="must be cuda, cpu or auto when there are ranks"):
        start("cuda:0")
