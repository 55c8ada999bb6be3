"""What is written survives: kills, full disks, flipped bits; and averages are the reference's."""

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from imagebart import ImageBART, checkpoint
from imagebart.checkpoint import (
    EMA,
    Checkpoints,
    StopSignal,
    atomic_write,
    load_tensors,
    read_json,
    remove_drafts,
    run_lock,
    save_tensors,
    sha256_of,
    write_json,
)

ROOT = Path(__file__).parents[1]
LIT_EMA = ROOT / "tests/fixtures/official_a/ema_io.safetensors"


@contextmanager
def full_disk(limit: int):
    """No file may grow beyond `limit` bytes: to whoever writes, a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def python(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ── Files ─────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_write(path) as draft:
        draft.write_text("old")
        assert draft.parent == path.parent and not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as draft:
        draft.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(path.parent) == ["file"]
    with atomic_write(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new" and names(path.parent) == ["file"]


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, monkeypatch
):
    order = []
    fsync, replace = os.fsync, os.replace
    folder_inode = tmp_path.stat().st_ino

    def watched_fsync(descriptor):
        is_folder = os.fstat(descriptor).st_ino == folder_inode
        order.append("fsync folder" if is_folder else "fsync file")
        fsync(descriptor)

    def watched_replace(*paths):
        order.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with atomic_write(tmp_path / "file") as draft:
        draft.write_text("new")
    assert order == ["fsync file", "rename", "fsync folder"]


def test_json_comes_back(tmp_path):
    value = {"name": "Ærø", "alpha_bar": [1.0, 0.5, 0.0], "classes": None}
    write_json(value, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == value
    assert "Ærø" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: must be JSON"):
        read_json(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: must be a file that can be read, got No"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"scale_2\.safetensors: must be a file that can be read"):
        load_tensors(tmp_path / "scale_2.safetensors")


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json({"loss": float("nan")}, tmp_path / "a.json")
    assert names(tmp_path) == []


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == known


# ── Weights ───────────────────────────────────────────────────────────────────────────────────


def test_tensors_come_back_bit_for_bit(tmp_path):
    base = torch.randn(6, 4)
    tensors = {
        "plain": base,
        "transposed": base.T,  # not contiguous
        "tied": base,  # the same memory
        "view": base[1:3],
        "half": base.half(),
        "bf16": base.bfloat16(),
        "index": torch.arange(5),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
    }
    save_tensors(tensors, tmp_path / "a.safetensors")
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_are_finite_or_refused(tmp_path, value):
    tensors = {"good": torch.zeros(3), "bad": torch.tensor([0.0, value])}
    path = tmp_path / "scale_2.safetensors"
    with pytest.raises(ValueError, match=r"scale_2\.safetensors: weights must be finite.* in bad"):
        save_tensors(tensors, path)
    assert names(tmp_path) == []
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"scale_2\.safetensors: weights must be finite.* in bad"):
        load_tensors(path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_weight_file_gives_a_sentence_or_its_tensors(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    save_file({"w": torch.arange(12.0), "b": torch.arange(3)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert isinstance(load_tensors(path), dict)
    except ValueError as error:
        assert "mutated.safetensors: " in str(error)


def test_a_header_of_a_million_names_is_refused_at_once(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((60_000_000).to_bytes(8, "little") + b" " * 1000)
    with pytest.raises(ValueError, match="header must be at most"):
        load_tensors(path)


# ── The state of a run ────────────────────────────────────────────────────────────────────────


def state_of(step: int) -> dict:
    """A state that tells its step in every part."""
    return {"step": step, "weights": torch.full((50_000,), float(step)), "losses": [0.5] * step}


def test_a_state_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "best": (0.25, None, "validation"),
    }
    path = checkpoints.save(1234, state)
    assert path.name == "step_00001234.pt"
    step, loaded = checkpoints.latest()
    assert step == 1234 and loaded["best"] == state["best"]
    assert torch.equal(loaded["random"], state["random"])
    assert torch.equal(loaded["model"]["weight"], model.weight)
    optimiser.load_state_dict(loaded["optimiser"])
    # The seal at its end is no hindrance to torch itself.
    assert torch.load(path, weights_only=True)["best"] == state["best"]


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".step_00000001.pt.1234abcd.tmp").write_text("left by a run that was killed")
    (tmp_path / "metrics.jsonl").write_text("not ours")
    for step in (5, 500, 99_999_999, 100_000_000):
        checkpoints.save(step, state_of(1))
    kept = ["metrics.jsonl", "step_100000000.pt", "step_99999999.pt"]
    assert names(tmp_path) == kept
    assert checkpoints.latest()[0] == 100_000_000


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_seal(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_empty(path):
    path.write_bytes(b"")


def damage_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [damage_flip, damage_seal, damage_truncate, damage_empty, damage_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, damage):
    Checkpoints(tmp_path).save(100, state_of(100))
    newest = Checkpoints(tmp_path).save(200, state_of(200))
    damage(newest)
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"step_00000200\.pt.*going back to the one before"):
        step, state = checkpoints.latest()
    assert step == 100 and torch.equal(state["weights"], state_of(100)["weights"])
    assert newest.exists()


def test_a_good_save_clears_the_damaged_and_keeps_what_it_came_from(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(100, state_of(100))
    damage_flip(checkpoints.save(200, state_of(200)))
    with pytest.warns(UserWarning):
        checkpoints.latest()
    checkpoints.save(150, state_of(150))
    assert names(tmp_path) == ["step_00000100.pt", "step_00000150.pt"]
    assert checkpoints.latest()[0] == 150


def test_a_file_that_cannot_be_removed_does_not_end_the_run(tmp_path):
    (tmp_path / ".step_00000001.pt.1234abcd.tmp").mkdir()
    with pytest.warns(UserWarning, match="cannot be removed"):
        Checkpoints(tmp_path).save(2, state_of(2))
    assert Checkpoints(tmp_path).latest()[0] == 2


def test_if_all_are_damaged_the_run_does_not_begin_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        damage_flip(checkpoints.save(step, state_of(step)))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="got 2 damaged"):
        checkpoints.latest()
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.pt"]


def test_an_older_step_never_replaces_a_newer_one(tmp_path):
    Checkpoints(tmp_path).save(90_000, state_of(9))
    with pytest.raises(ValueError, match="step must be at least 90000, got 100"):
        Checkpoints(tmp_path).save(100, state_of(1))
    Checkpoints(tmp_path).save(90_000, state_of(8))  # the same step may be saved again
    assert Checkpoints(tmp_path).latest()[1]["step"] == 8
    assert names(tmp_path) == ["step_00090000.pt"]


def test_a_state_that_could_not_be_read_again_is_refused_now(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1))
    with pytest.raises(ValueError, match="state must hold only tensors, numbers, text"):
        checkpoints.save(2, {"path": Path("runs")})
    assert names(tmp_path) == ["step_00000001.pt"]


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.torch, "load", lambda *_, **__: None)  # skip the check on saving
    Checkpoints(tmp_path).save(1, {"evil": Evil(tmp_path / "ran")})
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(ValueError):
        Checkpoints(tmp_path).latest()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("limit", [0, 1000, 150_000, 200_500])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, limit):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1))
    size = (tmp_path / "step_00000001.pt").stat().st_size
    assert limit < size
    with pytest.raises(OSError), full_disk(limit):
        checkpoints.save(2, state_of(2))
    assert names(tmp_path) == ["step_00000001.pt"]
    assert checkpoints.latest()[0] == 1
    checkpoints.save(3, state_of(3))
    assert checkpoints.latest()[0] == 3


KILLS = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from imagebart.checkpoint import Checkpoints

warnings.simplefilter("error")
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(0)
drafts, last = 0, 0


def write_until_killed(acknowledge: int) -> None:
    found = Checkpoints(folder).latest()
    step = 0 if found is None else found[0]
    while True:
        step += 1
        Checkpoints(folder).save(step, {"weights": torch.full((500_000,), float(step))})
        os.write(acknowledge, step.to_bytes(8, "little"))


for _ in range(kills):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(writing)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        acknowledged = pipe.read(8)
        begin = time.monotonic()
        acknowledged = pipe.read(8)
        time.sleep(chance.uniform(0, 2) * (time.monotonic() - begin))  # within the next save or two
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged += pipe.read()
    last = int.from_bytes(acknowledged[-8:], "little")

    drafts += any(folder.glob(".step_*.tmp"))
    step, state = Checkpoints(folder).latest()
    assert step >= last, f"step {last} was acknowledged, {step} is the newest"
    assert (state["weights"] == step).all()
Checkpoints(folder).save(step + 1, {})
assert not any(folder.glob(".step_*.tmp"))
print(json.dumps([last, drafts]))
"""


def test_no_kill_loses_a_checkpoint_that_was_acknowledged(tmp_path):
    run = python(KILLS, str(tmp_path), "20")
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    saved, interrupted = json.loads(output)
    # The kills came where they hurt: saves went through before each, and some were cut in two.
    # Each is cut with a chance above 0.5, so fewer than 3 of 20 come once in 4000 runs.
    assert saved >= 40 and interrupted >= 3


# ── Averaged weights ──────────────────────────────────────────────────────────────────────────


class Tiny(nn.Module):
    """A weight, a bias, a buffer that counts, and a tied name."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3))
        self.b = nn.Parameter(torch.randn(2))
        self.tied = self.w
        self.register_buffer("seen", torch.tensor(0))


def wander(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter)
        module.seen += 1


def test_the_average_is_its_closed_form():
    module = Tiny().double()
    ema = EMA(module, decay=0.25)  # reached by the warm-up at n = 2
    decays = [2 / 11, 0.25, 0.25, 0.25]
    expected = module.w.detach().clone()
    for decay in decays:
        wander(module)
        ema.update()
        expected = decay * expected + (1 - decay) * module.w.detach()
    torch.testing.assert_close(ema.average["w"], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(ema.average["tied"], expected, rtol=0, atol=1e-14)
    assert ema.average["seen"] == 4  # buffers are copied


def test_the_average_is_that_of_the_released_code():
    reference = load_file(LIT_EMA)
    module = nn.Module()
    module.w = nn.Parameter(reference["w_init"])
    module.b = nn.Parameter(reference["b_init"])
    ema = EMA(module, decay=0.9999)
    for step in range(1, 13):
        with torch.no_grad():
            module.w.copy_(reference[f"step{step}.w"])
            module.b.copy_(reference[f"step{step}.b"])
        ema.update()
        for name in ("w", "b"):
            torch.testing.assert_close(ema.average[name], reference[f"step{step}.ema_{name}"])


def test_a_bf16_module_is_averaged_in_fp32():
    module = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(module.weight)
    ema = EMA(module, decay=0.9999)
    ema.updates = 10**6  # past the warm-up
    nn.init.constant_(module.weight, 2)
    for _ in range(10):
        ema.update()
    # Ten steps of 1e-4 would each be lost to bf16, whose next number after 1 is 1.0078.
    assert ema.average["weight"].item() == pytest.approx(2 - 0.9999**10, rel=1e-6)
    target = nn.Linear(1, 1, bias=False).bfloat16()
    ema.copy_to(target)
    assert target.weight.dtype == torch.bfloat16 and target.weight.item() == 1


def test_the_average_neither_follows_nor_disturbs_the_module():
    module, copy = Tiny(), Tiny()
    ema = EMA(module, decay=0.5)
    before = {name: tensor.clone() for name, tensor in ema.average.items()}
    wander(module)
    assert all(torch.equal(before[name], ema.average[name]) for name in before)
    weights = module.w.detach().clone()
    ema.update()
    ema.copy_to(copy)
    assert torch.equal(module.w, weights) and torch.equal(copy.w, ema.average["w"])
    assert copy.tied is copy.w


def test_an_average_goes_on_as_if_never_stopped(tmp_path):
    torch.manual_seed(0)
    module = Tiny()
    ema = EMA(module, decay=0.9)
    for _ in range(3):
        wander(module)
        ema.update()
    Checkpoints(tmp_path).save(3, {"module": module.state_dict(), "ema": ema.state_dict()})

    other = Tiny()
    resumed = EMA(other, decay=0.9)
    state = Checkpoints(tmp_path).latest()[1]
    other.load_state_dict(state["module"])
    resumed.load_state_dict(state["ema"])
    for running, averaging in ((module, ema), (other, resumed)):
        torch.manual_seed(1)
        for _ in range(3):
            wander(running)
            averaging.update()
    assert resumed.updates == 6
    assert all(torch.equal(ema.average[name], resumed.average[name]) for name in ema.average)


def test_the_average_of_another_module_is_refused():
    with pytest.raises(ValueError, match=r"names and shapes.*weight"):
        EMA(nn.Linear(2, 3)).load_state_dict(EMA(nn.Linear(2, 4)).state_dict())
    with pytest.raises(ValueError, match="decay must lie in"):
        EMA(nn.Linear(2, 3), decay=1.0)


# ── One run, told to stop ─────────────────────────────────────────────────────────────────────

HOLD = """
import sys
from imagebart.checkpoint import run_lock

with run_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
    open(f"{sys.argv[1]}/finished", "w").close()
"""


def test_a_folder_has_one_run_and_is_free_when_it_is_killed(tmp_path):
    first = python(HOLD, str(tmp_path))
    assert first.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"one run at a time.*process {first.pid} runs"):
        run_lock(tmp_path).__enter__()
    first.kill()
    first.wait()
    with run_lock(tmp_path):  # at once
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with run_lock(tmp_path):
        pass


def test_a_writer_can_wait_for_its_turn(tmp_path, monkeypatch):
    first = python(HOLD, str(tmp_path))
    assert first.stdout.readline() == "held\n"
    waiting = threading.Event()

    def release() -> None:
        assert waiting.wait(60)
        first.communicate("done\n")

    other = threading.Thread(target=release)
    other.start()
    lockf = fcntl.lockf
    monkeypatch.setattr(fcntl, "lockf", lambda *how: (waiting.set(), lockf(*how))[1])
    with run_lock(tmp_path, wait=True):
        assert (tmp_path / "finished").exists()
    other.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_request_that_the_loop_reads(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        wait_for(stop)
    assert signal.getsignal(number) == before


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # a background shell ignores it
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(stop)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)  # cut short by the signal
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_waits_like_the_first():
    with StopSignal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(stop)


def wait_for(stop: StopSignal) -> None:
    deadline = time.monotonic() + 60
    while not stop.requested:
        assert time.monotonic() < deadline


def test_reading_back_says_nothing_when_all_is_well(tmp_path):
    Checkpoints(tmp_path).save(1, state_of(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(tmp_path).latest()[0] == 1


def test_weights_may_be_read_by_whoever_may_read_any_new_file(tmp_path):
    save_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "plain").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("a.safetensors", "plain")}
    assert len(modes) == 1


@pytest.mark.slow
def test_two_hundred_kills_in_a_save_leave_nothing_that_cannot_be_loaded(tiny, tmp_path):
    """SIGKILL at random moments of a process that does nothing but save; each next one goes on."""
    checkpoints, delay, deaths = Checkpoints(tmp_path / "run"), random.Random(0), 0
    tiny.save_pretrained(tmp_path / "model")
    for _ in range(200):
        at, _ = checkpoints.latest() or (0, {})
        child = os.fork()
        if not child:
            try:
                for step in range(at + 1, at + 1000):
                    checkpoints.save(step, {"step": step, "weights": torch.full((10**5,), step)})
                    tiny.save_pretrained(tmp_path / "model")
            finally:
                os._exit(1)
        time.sleep(0.15 * delay.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        left = checkpoints.latest()
        if left is not None:
            step, state = left
            assert step >= at and state["step"] == step and (state["weights"] == step).all()
        deaths += any(path.name.endswith(".tmp") for path in tmp_path.rglob("*"))
        remove_drafts(tmp_path / "model")
        same = ImageBART.from_pretrained(tmp_path / "model", device="cpu").state_dict()
        assert all(torch.equal(x, same[name]) for name, x in tiny.state_dict().items())
    assert step > 20 and deaths > 50, "they died elsewhere"
