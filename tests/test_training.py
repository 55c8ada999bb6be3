"""What the training scripts share: the learning rate's course, and a log that survives kills."""

import itertools
import json

import pytest
import torch
from training import Log, report, require_same_run, warmup_cosine


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


def test_a_run_is_resumed_as_what_it_was(tmp_path):
    run = {"preset": "tiny", "batch": 4, "seed": 0}
    require_same_run({"run": run}, dict(run), tmp_path)
    require_same_run({"weights": 1}, run, tmp_path)  # of a version that did not say
    with pytest.raises(ValueError, match=r"must keep its batch 4, seed 0, got batch 8, seed 1"):
        require_same_run({"run": run}, run | {"batch": 8, "seed": 1}, tmp_path)
    require_same_run({"run": run}, run | {"vqgan": "f00"}, tmp_path)


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


def test_the_log_is_strict_json(tmp_path):
    log = Log(tmp_path / "metrics.jsonl", 0, active=True)
    log.write(1, loss=float("nan"), norm=torch.tensor(float("inf")), rate=0.5)

    def refuse(name):
        raise AssertionError(name)

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert (row["loss"], row["norm"], row["rate"]) == (None, None, 0.5)
