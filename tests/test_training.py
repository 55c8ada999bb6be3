"""What the training scripts share: the learning rate's course, and a log that survives kills."""

import errno
import itertools
import json
import math
import os
import resource
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import chart
import pytest
import torch
from saving import Saver, Skips, are_finite, checksum, snapshot
from training import (
    Log,
    Pace,
    report,
    require_same_run,
    run_alone,
    versions,
    warmup_cosine,
    write_run,
)

from imagebart.checkpoint import read_json


def test_a_run_has_its_folder_for_itself_and_is_refused_in_a_sentence(tmp_path):
    def main(config):
        assert (config.out / ".lock").read_text() == f"{os.getpid()}\n"
        raise ValueError("count must be at least 1, got 0")

    with pytest.raises(SystemExit, match=r"^error: count must be at least 1, got 0$"):
        run_alone(main, SimpleNamespace(out=tmp_path / "new"))


def test_the_rate_goes_up_a_line_and_down_a_cosine():
    course = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert course[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert course[10] == 1
    assert course[55] == pytest.approx(0.01 + 0.99 / 2)
    assert all(a > b for a, b in itertools.pairwise(course[10:]))
    assert course[100] == pytest.approx(0.01)


def test_the_rate_is_positive_for_any_run():
    for steps in range(1, 6):
        for warmup in range(6):
            assert all(0 < warmup_cosine(s, steps, warmup) <= 1 for s in range(steps + 2))


def test_a_run_is_resumed_as_what_it_was(tmp_path, capsys):
    run = {"preset": "tiny", "batch": 4, "seed": 0}
    require_same_run({"run": run}, dict(run), tmp_path)
    require_same_run({"weights": 1}, run, tmp_path)  # of a version that did not say
    assert capsys.readouterr().err.endswith(
        "its checkpoint does not say preset, batch, seed; taken to be the same\n"
    )
    other = run | {"batch": 8, "seed": 1}
    with pytest.raises(ValueError, match=r"keep its batch 4, seed 0, got batch 8, seed 1; --over"):
        require_same_run({"run": run}, other, tmp_path)
    assert not capsys.readouterr().err
    require_same_run({"run": run}, other, tmp_path, override=True)
    require_same_run({"run": run}, run | {"vqgan": "f00"}, tmp_path)
    require_same_run({"run": run, "versions": versions() | {"torch": "1.0"}}, run, tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("resumed with batch 8, seed 1, until now batch 4, seed 0")
    assert said[1].endswith("its checkpoint does not say vqgan; taken to be the same")
    assert "until now" in said[2] and "'torch': '1.0'" in said[2]


def test_a_run_keeps_its_options(tmp_path):
    @dataclass
    class Given:
        data: Path
        clip: float

    write_run(tmp_path, Given(Path("here"), math.inf), Given(Path("/"), 1.0), {"seed": 0}, {})
    record = read_json(tmp_path / "run.json")
    assert record["options"] == {"data": str(Path("here").resolve()), "clip": "inf"}
    assert record["recipe"]["clip"] == 1 and record["run"] == {"seed": 0}
    assert record["versions"]["torch"] == torch.__version__


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Log(path, 0, active=True)
    for step in (10, 20, 30):
        log.write(step, loss=step / 7)
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    resumed = Log(path, 20, active=True)
    assert [line["step"] for line in lines(path)] == [10, 20]
    resumed.write(30, loss=0.5, norm=2)
    last = lines(path)[-1]
    assert (last["step"], last["loss"], last["norm"]) == (30, 0.5, 2)
    assert lines(path)[0]["loss"] == pytest.approx(10 / 7, abs=1e-6)


def test_a_resumed_log_is_the_old_one_until_the_new_one_is_written(tmp_path, monkeypatch, capsys):
    """Whatever ends the process between; a full disk ends no run."""
    path = tmp_path / "metrics.jsonl"
    for step in (10, 20):
        Log(path, 20, active=True).write(step, loss=1)
    before = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: full_disk())
    Log(path, 10, active=True)
    assert path.read_text() == before
    assert f"{path} could not be written, the run goes on: " in capsys.readouterr().err
    monkeypatch.undo()
    path.write_text(before[:-1])  # all of a line but its end
    Log(path, 20, active=True).write(20, loss=2)
    assert [line["loss"] for line in lines(path)] == [1, 2]


def test_only_one_rank_writes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Log(path, 0, active=False).write(1, loss=1)
    assert not path.exists()


def test_a_report_never_ends_the_run(tmp_path, capsys):
    with report("the picture"):
        raise MemoryError
    log = Log(tmp_path / "metrics.jsonl", 0, active=True)
    log.path.mkdir()  # stands for a disk that cannot be written to
    log.write(1, loss=1.0)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "the picture could not be written, the run goes on: MemoryError"
    assert str(log.path) in said[1] and "the run goes on" in said[1]
    with pytest.raises(KeyboardInterrupt), report("the picture"):
        raise KeyboardInterrupt


def test_a_full_disk_leaves_no_half_line(tmp_path, capsys):
    """The next line is one of its own again."""
    log = Log(tmp_path / "metrics.jsonl", 0, active=True)
    log.write(1, loss=1.0)
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 9, most))
    try:
        log.write(2, loss=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written, the run goes on" in capsys.readouterr().err
    log.write(3, loss=3.0)
    assert [line["step"] for line in lines(log.path)] == [1, 3]


def test_the_log_is_strict_json(tmp_path):
    log = Log(tmp_path / "metrics.jsonl", 0, active=True)
    log.write(1, loss=float("nan"), norm=torch.tensor(float("inf")), rate=0.5)

    def refuse(name):
        raise AssertionError(name)

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert (row["loss"], row["norm"], row["rate"]) == (None, None, 0.5)


def test_the_pace_is_that_since_the_last_report(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    pace = Pace(batch=16, ranks=2, flops=(10**9, 10**12))
    assert pace.at(10) == {}
    assert pace.at(1010) == {"images/s": "8000.0", "MFU": "400%"}


# ── saves ─────────────────────────────────────────────────────────────────────────────────────


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "no space left")


def test_a_run_goes_on_while_it_is_saved():
    begun, goes_on, written = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert goes_on.wait(60)
        written.append(1)

    with Saver() as saver:
        saver.start(1, slow)
        assert begun.wait(60) and not written
        goes_on.set()
    assert written == [1]
    with pytest.raises(KeyboardInterrupt), Saver() as saver:
        saver.start(1, lambda: written.append(2))
        raise KeyboardInterrupt
    assert written == [1, 2]


def test_a_full_disk_ends_a_run_at_the_third_save_only(capsys):
    with Saver() as saver:
        for write in (full_disk, full_disk, lambda: None, full_disk, full_disk, lambda: None):
            saver.start(7, write)
    said = capsys.readouterr().err
    assert said.count("step 7 could not be saved, the run goes on: [Errno 28] no space left") == 4
    three = "must be saved now and then, got 3 failed saves in a row, the last: .*no space left"
    with pytest.raises(ValueError, match=three), Saver() as saver:
        for step in range(9):
            saver.start(step, full_disk)
    assert step == 3
    with pytest.raises(ValueError, match="got 1 failed saves in a row"), Saver() as saver:
        saver.start(1, full_disk)  # the last of a run
    with pytest.raises(ZeroDivisionError), Saver() as saver:
        saver.start(1, lambda: 1 / 0)  # a fault that is no disk's


def test_a_snapshot_stays_what_it_was():
    weights = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"a": [weights, 3], "b": {"c": (weights, "text")}}
    copy = snapshot(state)
    weights.fill_(1)
    for held in (copy["a"][0], copy["b"]["c"][0]):
        assert held.sum() == 0 and held.stride() == weights.stride()
    assert copy["a"][1] == 3 and copy["b"]["c"][1] == "text"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found(value):
    tensors = [torch.ones(3), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)]
    assert are_finite(tensors) and are_finite([])
    tensors[1][1] = value
    assert not are_finite(tensors)


def test_skips_are_counted_in_all_and_in_a_row():
    skips = Skips(torch.device("cpu"))
    for finite in (True, False, False, True, False):
        skips.note(torch.tensor(finite))
    assert (skips.all, skips.most, skips.in_a_row) == (3, 2, 1)
    skips.begin_anew()
    skips.note(torch.tensor(False))
    assert (skips.all, skips.most, skips.in_a_row) == (4, 1, 1)


def test_a_flipped_bit_changes_the_checksum():
    tensors = [torch.randn(3, 5), torch.randn(3, dtype=torch.bfloat16), torch.zeros(0)]
    before = checksum(tensors)
    assert checksum([x.clone() for x in tensors]) == before
    tensors[0][1, 1] = torch.nextafter(tensors[0][1, 1], torch.tensor(9.0))
    assert checksum(tensors) != before


@pytest.mark.parametrize("shape", [(), (4, 3, 1, 1), (1, 3, 4, 4)])
def test_a_checksum_is_of_numbers_in_any_layout(shape):
    """A convolution of 1×1 that has channels last counts as contiguous, with strides of its own."""
    x = torch.randn(shape)
    last = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x.clone()
    assert checksum([last]) == checksum([x]) != checksum([x + 1])


def test_the_log_for_tensorboard_has_the_same_numbers_or_is_refused(tmp_path, monkeypatch):
    written = []
    writer = SimpleNamespace(add_scalar=lambda *row: written.append(row))
    there = SimpleNamespace(
        SummaryWriter=lambda folder, purge_step: (folder, purge_step) and writer
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", there)
    log = Log(tmp_path / "metrics.jsonl", 0, active=True, tensorboard=True)
    log.write(3, loss=1.5, t=2)
    log.write(4, loss=math.nan, norm=0.5)
    assert written == [("loss t = 2", 1.5, 3), ("norm", 0.5, 4)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="--tensorboard needs `pip install tensorboard`"):
        Log(tmp_path / "metrics.jsonl", 0, active=True, tensorboard=True)


def test_a_chart_has_a_column_a_run_and_a_row_a_number(tmp_path, monkeypatch):
    pages = []
    drawn = chart.plt.subplots
    monkeypatch.setattr(
        chart.plt, "subplots", lambda *_, **k: pages.append(drawn(*_, **k)) or pages[-1]
    )
    for name, rows in {
        "a": [{"step": 1, "rec": 0.5}, {"step": 2, "rec": 0.25}, {"step": 2, "psnr": 20.0}],
        "b": [{"step": 1, "rec": None}, {"step": 3, "rec": 4.0}],
    }.items():
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    runs = (tmp_path / "a", tmp_path / "b")
    chart.main(chart.Config(runs, tmp_path / "out" / "chart.png"))
    ((_, axes),) = pages
    points = [[one.lines[0].get_xydata().tolist() for one in row] for row in axes]
    assert axes.shape == (2, 2) and axes[0, 1].get_title() == "b"
    assert points[0] == [[[1, 0.5], [2, 0.25]], [[3, 4]]] and points[1][0] == [[2, 20]]
    assert (tmp_path / "out" / "chart.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="logs must have one of norm, got none"):
        chart.main(chart.Config(runs, tmp_path / "c.png", ("norm",)))
