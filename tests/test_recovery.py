"""Runs go on as if undisturbed wherever they were cut off, on one machine and on two."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from stages import TORCHRUN
from test_distributed import alive, wait_until
from test_train import (
    ALONE,
    ROOT,
    SIZE,
    Killed,
    assert_same_state,
    die_at,
    metrics,
    train,
    train_tokens,
)

from imagebart import checkpoint, perceptual
from imagebart.checkpoint import Checkpoints, sha256_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and parents as Linux has them"),
]

SCALE = f"""
import json, os, runpy, signal, sys, threading, time
sys.path[:0] = [{str(ROOT / "train")!r}]
import watching

folder, faults = sys.argv.pop(1), json.loads(sys.argv.pop(1))
attempt = sum(name.startswith("fault_") for name in os.listdir(folder))
rank = int(os.environ["RANK"])
at = {{after: rest for who, after, *rest in faults[attempt : attempt + 1] if who == rank}}
beat, first = watching.Watchdog.beat, []


def note(what, text=""):
    with open(f"{{folder}}/{{what}}", "w") as file:
        file.write(f"{{time.time()}} {{os.getpid()}} {{text}}")


def faulty(watchdog, step):
    beat(watchdog, step)
    if not first:
        first.append(step)
        note(f"began_{{attempt}}_{{rank}}", step)
    if step - first[0] in at:
        seconds, number = at[step - first[0]]
        note(f"fault_{{attempt}}", step)
        threading.Timer(seconds, os.kill, (os.getpid(), getattr(signal, number))).start()


watching.Watchdog.beat = faulty
runpy.run_path({str(ROOT / "train" / "scale.py")!r}, run_name="__main__")
"""
"""train/scale.py, whose rank WHO sends itself a signal SECONDS after so many STEPS, in each attempt
its own of `faults`: [WHO, STEPS, SECONDS, SIGNAL]. It leaves notes in FOLDER."""

DOCUMENTED = ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-conf", "join_timeout=30"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    train_tokens(folder, steps=2)
    return folder / "tokens"


def options(tokens: Path, out: Path, steps: int, *more) -> list[str]:
    """Of a run that saves every five steps."""
    given = ("--t", 2, "--tokens", tokens, "--out", out, "--precision", "fp32", "--steps", steps)
    often = ("--save-every", 5, "--look-every", 10**6)
    return [str(x) for x in (*SIZE, *given, *often, *more)]


@contextmanager
def launched(folder: Path, faults: list, launchers: list[list[str]], given: list[str]):
    """The launchers of one run, each a torchrun; their output is in `folder`."""
    script = folder / "faulty_scale.py"
    script.write_text(SCALE)
    agents = []
    for i, launcher in enumerate(launchers):
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, "--monitor-interval"]
        command += ["0.1", str(script), str(folder), json.dumps(faults), *given]
        with open(folder / f"output_{i}.txt", "w") as file:
            agents.append(subprocess.Popen(command, env=ALONE | TORCHRUN, stdout=file, stderr=file))
    try:
        yield agents
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def one_machine(restarts: int) -> list[list[str]]:
    return [["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]]


def two_machines(host: int = 0) -> list[list[str]]:
    """The documented command on each of two, here on one loopback: both would be HOST, where
    launchers meet, so one is told to be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--rdzv-endpoint", f"127.0.0.1:{port}", "--nnodes", "2", "--nproc-per-node", "1"]
    *documented, join = DOCUMENTED
    return [[*where, *documented, f"{join},is_host={int(i == host)}"] for i in (0, 1)]


def noted(folder: Path, name: str) -> tuple[float, int, int]:
    """When, by which process, at which step."""
    when, process, step = (folder / name).read_text().split()
    return float(when), int(process), int(step)


def has_begun(folder: Path, attempt: int = 0) -> bool:
    """Whether both ranks have made a step."""
    names = (f"began_{attempt}_{rank}" for rank in (0, 1))
    return all((folder / name).exists() and (folder / name).stat().st_size for name in names)


def parent_of(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("output_*.txt")))


def run_of(out: Path) -> Path:
    return out / "checkpoints" / "scale_2"


def random_kills(count: int, seed: int) -> list[tuple]:
    """One in each attempt: any rank, one to six steps after the checkpoint it began with."""
    choose = random.Random(seed)
    return [
        (choose.randint(0, 1), choose.randint(1, 6), 0.04 * choose.random(), "SIGKILL")
        for _ in range(count)
    ]


@pytest.mark.parametrize("machines, kills", [(1, 10), (2, 3)])
def test_a_killed_rank_comes_back_at_the_first_restart(tokens, tmp_path, machines, kills):
    """One in every attempt, at random moments: each restart goes on within a minute, and the run
    ends as an undisturbed one does, bit for bit."""
    faults = random_kills(kills, seed=machines)
    steps = 15 * kills  # some may be made before a signal comes
    launchers = one_machine(restarts=kills) if machines == 1 else two_machines()
    for name, planned in (("whole", []), ("killed", faults)):
        folder = tmp_path / name
        folder.mkdir()
        given = options(tokens, folder / "model", steps)
        with launched(folder, planned, launchers, given) as agents:
            assert [agent.wait(timeout=60 + 60 * kills) for agent in agents] == [0] * machines
        launchers = launchers if machines == 1 else two_machines()
    for attempt in range(kills):
        killed, again = noted(folder, f"fault_{attempt}"), noted(folder, f"began_{attempt + 1}_0")
        assert 0 < again[0] - killed[0] < 60
    whole, killed = tmp_path / "whole" / "model", folder / "model"
    assert_same_state(run_of(killed), run_of(whole))
    assert metrics(run_of(killed) / "metrics.jsonl") == metrics(run_of(whole) / "metrics.jsonl")
    names = [x / "scale_2.safetensors" for x in (killed, whole)]
    assert sha256_of(names[0]) == sha256_of(names[1])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_was_stopped_is_named_and_replaced(tokens, tmp_path, victim):
    """SIGSTOP: the other says so after `--timeout` seconds, and torchrun starts both again."""
    given = options(tokens, tmp_path / "model", 12, "--timeout", 5)
    faults = [(victim, 6, 0.01, "SIGSTOP")]
    with launched(tmp_path, faults, one_machine(restarts=1), given) as (agent,):
        assert agent.wait(timeout=180) == 0
    stopped, again = noted(tmp_path, "fault_0"), noted(tmp_path, "began_1_0")
    assert again[0] - stopped[0] < 60
    assert f"error: rank {1 - victim}: rank {victim} does not answer, " in outputs(tmp_path)
    assert Checkpoints(run_of(tmp_path / "model")).latest()[0] == 12


def test_a_rank_that_waits_ends_when_it_is_told_to(tokens, tmp_path):
    """Long before `--timeout`, and though Python's own handler cannot run."""
    given = options(tokens, tmp_path / "model", 10**5, "--timeout", 600)
    faults = [(1, 6, 0.01, "SIGSTOP")]
    with launched(tmp_path, faults, one_machine(restarts=0), given) as (agent,):
        wait_until(lambda: (tmp_path / "fault_0").exists() and has_begun(tmp_path), seconds=120)
        time.sleep(3)
        waiting, stopped = (noted(tmp_path, f"began_0_{rank}")[1] for rank in (0, 1))
        os.kill(waiting, signal.SIGTERM)
        wait_until(lambda: not alive(waiting), seconds=45)
        assert agent.wait(timeout=60) == 1
    assert not alive(stopped)
    assert "error: rank 0: rank 1 does not answer, " in outputs(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("host", [0, 1])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_a_launcher_ends_the_run_of_the_other(tokens, tmp_path, victim, host, number):
    """Within a minute, saved, with a sentence, whichever is on HOST; the same commands go on."""
    given = options(tokens, tmp_path / "model", 10**5)
    with launched(tmp_path, [], two_machines(host), given) as agents:
        wait_until(lambda: has_begun(tmp_path), seconds=120)
        time.sleep(2)
        agents[victim].send_signal(number)
        assert agents[1 - victim].wait(timeout=60) != 0
        ranks = [noted(tmp_path, f"began_0_{rank}")[1] for rank in (0, 1)]
        wait_until(lambda: not any(map(alive, ranks)), seconds=10)
    said = outputs(tmp_path)
    (line, *_) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.endswith("; the same command goes on from the last checkpoint")
    step, _ = Checkpoints(run_of(tmp_path / "model")).latest()
    assert step > 0 and f"{step}/100000" in said


@pytest.mark.parametrize("still", [0, 1])
def test_a_machine_that_stands_still_holds_no_rank_of_another(tokens, tmp_path, still):
    """Nor does its launcher, though that of rank 0 has the store where ranks met: they end within
    `--timeout` and half a minute, with a sentence."""
    given = options(tokens, tmp_path / "model", 10**5, "--timeout", 5)
    with launched(tmp_path, [], two_machines(), given):
        wait_until(lambda: has_begun(tmp_path), seconds=120)
        ranks = [noted(tmp_path, f"began_0_{rank}")[1] for rank in (0, 1)]
        for process in (ranks[still], parent_of(ranks[still])):
            os.kill(process, signal.SIGSTOP)
        wait_until(lambda: not alive(ranks[1 - still]), seconds=5 + 30)
        os.kill(ranks[still], signal.SIGKILL)
    who = "the store where ranks met" if still == 0 else "rank 1"
    assert f"error: rank {1 - still}: {who} does not answer, " in outputs(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_resumes_at_any_step(tokens, tmp_path, monkeypatch, seed):
    """A scale in two passes a step, a VQGAN with two loading processes, both killed in a random
    step: the same losses, the same bits."""
    step = random.Random(seed).randint(2, 11)
    often = ("--steps", 11, "--save-every", 3, "--look-every", 1, "--precision", "fp32")
    scale = ("--t", 2, "--tokens", tokens, "--at-once", 2)
    for script, module, name, more in (
        ("scale", checkpoint.EMA, "update", scale),
        ("compression", perceptual, "reconstruction_loss", ("--workers", 2)),
    ):
        whole, killed = tmp_path / script / "whole", tmp_path / script / "killed"
        train(script, *SIZE, *often, *more, "--out", whole)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, die_at(step, getattr(module, name)))
            train(script, *SIZE, *often, *more, "--out", killed)
        train(script, *SIZE, *often, *more, "--out", killed)
        (log,) = (path.relative_to(whole) for path in whole.rglob("metrics.jsonl"))
        assert metrics(killed / log) == metrics(whole / log)
        (newest,) = {path.parent.relative_to(whole) for path in whole.rglob("step_*.pt")}
        assert_same_state(killed / newest, whole / newest)
