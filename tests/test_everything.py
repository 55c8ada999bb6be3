"""From nothing to a model by one command: planned, resumed, told plainly."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import card
import everything
import pytest
import torch
import tyro
from PIL import Image
from progress import Progress, duration
from stages import Metrics, Stage, run_stage

from imagebart.checkpoint import read_json, sha256_of, write_json
from imagebart.data.sources import open_data
from imagebart.presets import find_preset

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, ROOT / "train" / "everything.py", "--preset", "tiny"]


FEW = {"vqgan": 20, "chain": 20, "images": 64, "held_out": 64}
CPU = everything.Computer(0, 2, {"vqgan": 1, "tokens": 1, "chain": 1}, 20, 3)
GPU = everything.Computer(1, 15, {"vqgan": 4, "tokens": 4, "chain": 16}, 130, 1)


def lines(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stage(code: str, **more) -> Stage:
    return Stage("toy", ("-c", code), {}, **more)


def ran(toy: Stage, out: Path, done: dict, requested: bool = False) -> None:
    with Progress() as progress:
        stop = SimpleNamespace(requested=requested)
        run_stage(toy, out, done, lambda: None, progress, stop)


@pytest.fixture
def rehearsed(tmp_path) -> Path:
    """A rehearsal in which the VQGAN made 2 steps a second and each scale 4."""
    rec = [{"step": 1, "seconds": 10.0, "rec": 1}, {"step": 20, "seconds": 19.5, "rec": 1}]
    lines(tmp_path / "vqgan" / "metrics.jsonl", *rec, {"step": 20, "seconds": 99.0, "psnr": 1})
    for t in (2, 3):
        loss = [{"step": 1, "seconds": 5.0, "loss": 1}, {"step": 21, "seconds": 10.0, "loss": 1}]
        lines(tmp_path / "model" / "checkpoints" / f"scale_{t}" / "metrics.jsonl", *loss)
    return tmp_path


def test_the_plan_is_the_presets_and_says_how_long_it_takes(rehearsed, tmp_path):
    tiny = find_preset("tiny")
    config = everything.Config(tmp_path, "tiny")
    plan = everything.plan(config, tiny, CPU, rehearsed, {})
    assert (plan["vqgan"], plan["chain"], plan["images"]) == (400, 400, 2000)
    encode_rate = 3 * 2 * tiny.compression.batch
    expected = 400 / 2 + 400 * 2 / 4 + 2 * (2000 + plan["held_out"]) / encode_rate
    assert plan["expected_seconds"] == round(expected)


def test_minutes_are_shared_between_the_stages(rehearsed, tmp_path):
    config = everything.Config(tmp_path, "tiny", minutes=11)
    spent = {"vqgan": {"seconds": 40.0}, "tokens": {"seconds": 20.0}}
    plan = everything.plan(config, find_preset("tiny"), CPU, rehearsed, spent)
    assert plan["vqgan"] == int(0.35 * 600 * 2) and plan["chain"] == int(0.45 * 600 * 4 / 2)
    assert plan["images"] == 2000  # time for more, but the preset wants no more
    assert plan["expected_seconds"] <= 600
    with pytest.raises(ValueError, match="minutes must leave time after the rehearsal, got 0 s"):
        everything.plan(replace(config, minutes=1), find_preset("tiny"), CPU, rehearsed, spent)


def test_minutes_bound_the_images_of_a_folder_too(rehearsed, tmp_path):
    """A preset that wants all images: as many as there are, with minutes those that fit."""
    data = tmp_path / "data"
    data.mkdir()
    for i in range(300):
        Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(data / f"{i}.png")
    config = everything.Config(tmp_path, "photos", data=str(data))
    photos = find_preset("photos")
    plan = everything.plan(config, photos, CPU, rehearsed, {})
    there = len(open_data(str(data), None, "train"))
    assert plan["images"] == there >= 285 and plan["held_out"] == max(64, there // 10)
    slow = replace(CPU, encoded_while_one_is_learned=0.2)
    plan = everything.plan(replace(config, minutes=10), photos, slow, rehearsed, {})
    twice = int(0.1 * 600 * 2 * photos.compression.batch * 0.2)
    assert plan["images"] == twice // 2 < there


def test_codes_of_a_small_folder_are_looked_for_in_all_its_images(tmp_path):
    """However few of them are held out."""
    options = options_of(CPU, tmp_path, "photos")["tokens"]
    assert options["--validation"] == FEW["held_out"] == 64
    assert options["--looked-at"] == 2000


def test_the_chain_has_a_tenth_of_its_steps_whatever_is_left(rehearsed, tmp_path):
    config = everything.Config(tmp_path, "tiny", minutes=1)
    record = {"rehearsal": {}, "stages": {"vqgan": {"seconds": 90.0}}, "plan": {"chain": 540}}
    assert everything.chain_steps(config, find_preset("tiny"), rehearsed, record) == 54


def options_of(
    computer: everything.Computer, tmp_path: Path, data: str = "scenery"
) -> dict[str, dict]:
    config = everything.Config(tmp_path, "tiny", data)
    stages = everything.training(config, find_preset("tiny"), computer, tmp_path, FEW)
    return {stage.name: stage.options for stage in stages}


def test_a_gpu_gets_larger_batches_and_all_cores_but_one(tmp_path):
    on_cpu, on_gpu = options_of(CPU, tmp_path), options_of(GPU, tmp_path)
    for name, times in (("vqgan", 4), ("tokens", 4), ("chain", 16)):
        assert on_gpu[name]["--batch"] == times * on_cpu[name]["--batch"]
    for name in ("vqgan", "tokens"):
        assert (on_cpu[name]["--workers"], on_gpu[name]["--workers"]) == (2, 15)
    three = options_of(replace(GPU, gpus=3), tmp_path)["vqgan"]["--batch"]
    assert three % 3 == 0 and three > on_gpu["vqgan"]["--batch"] - 3


@pytest.mark.parametrize("on_linux", [True, False])
def test_gpus_share_the_cores_that_the_run_may_use(monkeypatch, on_linux):
    cores = list(range(128))
    if on_linux:
        monkeypatch.setattr(os, "cpu_count", lambda: 512)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*cores}, raising=False)
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: len(cores))
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for gpus, workers in {1: 127, 8: 15, 0: 2}.items():
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        here = everything.Computer.here()
        assert (here.gpus, here.workers) == (gpus, workers)
        assert here.steps == (2 * workers + 100 if gpus else 20)
    del cores[4:]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert everything.Computer.here().workers == 1


def test_a_gpu_waits_for_scenery_once(rehearsed, tmp_path):
    """The VQGAN paints each of its scenes, and the chain has the tokens of these very scenes; in
    the rehearsal none is kept yet, so that a step takes as long as later."""
    tiny = find_preset("tiny")
    for name in ("vqgan", "tokens"):
        options = options_of(GPU, tmp_path)[name]
        assert options["--keep"] == tmp_path / "scenes" and options["--count"] == FEW["images"]
    for others in (options_of(CPU, tmp_path), options_of(GPU, tmp_path, "photos")):
        assert not any("--keep" in options for options in others.values())
        assert "--count" not in others["vqgan"]
    config = everything.Config(tmp_path, "tiny", minutes=11)
    spent = {"vqgan": {"seconds": 60.0}}
    plan = everything.plan(config, tiny, GPU, rehearsed, spent)
    assert plan["vqgan"] == int(0.35 * 600 * 2)
    assert plan["images"] == plan["vqgan"] * 4 * tiny.compression.batch
    plan = everything.plan(everything.Config(tmp_path, "tiny"), tiny, GPU, rehearsed, {})
    assert plan["images"] == 400 * 4 * tiny.compression.batch
    encoded = plan["images"] + 2000 + 2 * plan["held_out"]
    encode = encoded / (2 * 4 * tiny.compression.batch)
    assert plan["expected_seconds"] == round(400 / 2 + 400 * 2 / 4 + encode)
    few = GPU.rehearsal(tiny, "scenery")
    assert few["images"] == few["vqgan"] * 4 * tiny.compression.batch
    assert GPU.rehearsal(tiny, "photos")["images"] == CPU.rehearsal(tiny, "scenery")["images"] == 64


def test_the_chain_is_planned_again_in_the_time_that_is_left(rehearsed, tmp_path, monkeypatch):
    """The VQGAN took longer than planned, and the chain has fewer steps; the scenes are gone."""
    steps, scenes = [], []

    def run(stage, out, done, *_):
        done[stage.name] = {"seconds": 350.0 if stage.name == "vqgan" else 10.0, "done": True}
        steps.append((stage.name, stage.options.get("--steps")))
        scenes.append([*tmp_path.rglob("scenes")])

    monkeypatch.setattr(everything, "run_stage", run)
    monkeypatch.setattr(everything, "write_card", lambda *_: None)
    monkeypatch.setattr(everything.Computer, "here", lambda: CPU)
    config = everything.Config(tmp_path / "out", "tiny", minutes=11)
    record = everything.read_record(tmp_path / "out" / "everything.json", config)
    record["rehearsal"] = {"vqgan": {"seconds": 40.0}, "tokens": {"seconds": 20.0}}
    record["plan"] = {"vqgan": 420, "chain": 540, "images": 2000, "held_out": 200}
    for folder in (rehearsed, tmp_path / "out"):
        (folder / "scenes").mkdir(parents=True)
    (tmp_path / "out" / "rehearsal").symlink_to(rehearsed)
    write_json(record, tmp_path / "out" / "everything.json")
    everything.main(config)
    left = 660 - 60 - 350 - 10
    assert dict(steps[:3])["chain"] == pytest.approx(0.45 / 0.55 * left * 4 / 2, abs=1)
    assert (
        scenes[1] and not scenes[2]
    )  # there as tokens are made, and not any more as they are read


def test_a_joint_chain_is_one_run(rehearsed, tmp_path):
    joint = find_preset("scenery")
    (rehearsed / "model/checkpoints/scale_3/metrics.jsonl").unlink()
    plan = everything.plan(everything.Config(tmp_path), joint, CPU, rehearsed, {})
    encode_rate = 3 * 2 * joint.compression.batch
    seconds = joint.compression.steps / 2 + joint.scale.steps / 4
    seconds += (joint.token_images + 2000 + 2 * plan["held_out"]) / encode_rate
    assert plan["expected_seconds"] == round(seconds)
    assert card.steps_shared(joint) == "one network, t = 2 to 5 in turn"


def test_a_recipe_of_other_length_begins_its_parts_in_proportion():
    recipe = replace(find_preset("tiny").compression, steps=400, adversarial_start=300)
    assert recipe.lasting(400) == recipe
    half = recipe.lasting(200)
    assert (half.steps, half.adversarial_start, half.warmup_steps) == (200, 150, 10)


def test_a_run_with_other_options_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "everything.json"
    config = everything.Config(tmp_path, "tiny")
    write_json(everything.read_record(path, config), path)
    assert everything.read_record(path, config)["stages"] == {}
    with pytest.raises(ValueError, match=r"a run that is resumed must keep .*'seed': 0.*, got"):
        everything.read_record(path, replace(config, seed=1))
    monkeypatch.chdir(tmp_path)
    photos, same = (replace(config, data=name) for name in ("photos", "./photos"))
    write_json(everything.read_record(tmp_path / "new.json", photos), path)
    everything.read_record(path, same)  # the same folder


def test_metrics_count_whole_lines_of_all_runs(rehearsed):
    pattern = "model/checkpoints/scale_*/metrics.jsonl"
    with open(rehearsed / "model" / "checkpoints" / "scale_3" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "sec{"step": 30, "seconds": 12.0}\n\n')  # of a full disk
        file.write('{"step": 40, "sec')  # cut short
    metrics = Metrics(rehearsed, pattern)
    assert metrics.steps() == 42 and metrics.loss() == 1 and metrics.steps_a_second() == 4
    fourth = rehearsed / "model" / "checkpoints" / "scale_4" / "metrics.jsonl"
    lines(fourth, {"step": 1, "seconds": 5.0, "loss": 7})
    for seconds, loss in ((2e9, 7), (1e9, 1)):  # the last by name, changed last and changed first
        os.utime(fourth, (seconds, seconds))
        for t in (2, 3):
            os.utime(fourth.parents[1] / f"scale_{t}" / "metrics.jsonl", (1.5e9, 1.5e9))
        assert Metrics(rehearsed, pattern).loss() == loss
    assert Metrics(rehearsed, "nowhere/*.jsonl").steps() == 0


def test_a_stage_that_is_done_is_not_run_again(tmp_path):
    done = {}
    toy = stage("open('ran.txt', 'a').write('once'); print('said')")
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        ran(toy, tmp_path, done)
        ran(toy, tmp_path, done)
    finally:
        os.chdir(before)
    assert done["toy"]["done"] and (tmp_path / "ran.txt").read_text() == "once"
    assert (tmp_path / "toy.txt").read_text() == "said\n"


def test_a_rehearsal_that_was_stopped_begins_anew(tmp_path, monkeypatch):
    """What it left would give another time a step: its clock began twice."""
    left = tmp_path / "rehearsal" / "vqgan" / "metrics.jsonl"
    lines(left, {"step": 20, "seconds": 0.1, "rec": 1})
    found = []

    def stopped(stage, out, done, *_):
        found.append((left.exists(), dict(done)))
        sys.exit(143)

    monkeypatch.setattr(everything, "run_stage", stopped)
    config = everything.Config(tmp_path, "tiny")
    record = everything.read_record(tmp_path / "everything.json", config)
    record["rehearsal"] = {"vqgan": {"seconds": 40.0, "done": True}}
    write_json(record, tmp_path / "everything.json")
    with pytest.raises(SystemExit):
        everything.main(config)
    assert found == [(False, {})]


def test_a_stage_that_fails_is_named_with_its_last_words(tmp_path):
    done = {}
    with pytest.raises(ValueError, match=r"toy must succeed, see .*toy.txt, which ends: no data"):
        ran(stage("import sys; sys.exit('no data')"), tmp_path, done)
    assert not done["toy"]["done"]


def test_a_stopped_stage_is_told_and_waited_for(tmp_path):
    done = {}
    waits = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(600)"
    with pytest.raises(SystemExit):
        ran(stage(waits), tmp_path, done, requested=True)
    assert not done["toy"]["done"]


def test_progress_tells_what_is_left(capsys):
    with Progress() as progress:
        progress.show("vqgan", (50, 200), 0.5, 8, (50, 100.0), ended=True)
    assert capsys.readouterr().out == (
        "vqgan, steps 50 / 200, loss 0.500, images/s 4.0, for 0:01:40, left done\n"
    )
    assert duration(3661) == "1:01:01"


def test_the_card_says_what_the_records_say(make_model, tmp_path):
    wide = make_model(T=2, grid=(2, 4))
    wide.save_pretrained(tmp_path / "model")
    samples = tmp_path / "figures" / "samples"
    samples.mkdir(parents=True)
    for seed in range(4):
        Image.new("RGB", (8, 8), (seed, 0, 0)).save(samples / f"seed_{seed}.png")
    report = {"psnr": 21.5, "sharpness": 0.9, "n": 7, "hardware": "a chip"}
    write_json(report, tmp_path / "figures" / "reconstruction.json")
    record = {
        "options": {"preset": "tiny", "data": "scenery", "minutes": None, "seed": 3},
        "plan": {"vqgan": 400, "chain": 300, "images": 2000},
        "stages": {name: {"seconds": 12.0} for name in ("vqgan", "tokens", "chain")},
    }
    tiny_preset = find_preset("tiny")
    config = everything.Config(tmp_path, "tiny", "my photos", compile=True, figures=7, seed=3)
    card.write_card(vars(config), tiny_preset, CPU.batches(tiny_preset), record)
    text = (tmp_path / "model" / "README.md").read_text()
    (line,) = re.findall("^python train/everything.py .*$", text, re.MULTILINE)
    given = shlex.split(line)[2:]
    assert tyro.cli(everything.Config, args=given) == config and "--compile" in given
    assert "32×16 pixels: a VQGAN" in text  # not those that the VQGAN learned of
    assert "| vqgan | 400 × 16 | 12 |" in text and "| chain | 300 × 64" in text
    assert "| PSNR of reconstructions, dB | 21.500 | 7 held-out pictures, a chip |" in text
    assert "the bound" not in text  # not measured
    assert Image.open(tmp_path / "model" / "samples.png").size == (24, 24)


def test_the_card_says_what_the_bound_is_given(make_model, tmp_path):
    """A model that was never trained without its conditions has no unconditional bound."""
    write_json(
        {"sum": 3.5, "bits_per_token": 5.0, "n": 7, "hardware": "a chip"},
        tmp_path / "likelihood.json",
    )
    given = {"T": 2, "conditions": {"class": 3}}
    for model, said in (
        (make_model(T=2), "unconditional"),
        (make_model(**given, condition_dropout=True), "unconditional"),
        (make_model(**given), "conditional on class"),
    ):
        bound, bits = card.figure_rows(tmp_path, model)
        assert bound == f"| the bound, nats a token, {said} | 3.500 | 7 held-out pictures, a chip |"
        assert bits == "| … in bits a token | 5.000 | 7 held-out pictures, a chip |"


def test_a_killed_run_takes_its_stage_along_and_the_next_waits_for_it(tmp_path):
    """SIGKILL to the process that started a stage: the stage is told to stop and takes a second to
    save; only then does the next run start."""
    child = (
        "import signal, sys, time\n"
        "def save(*_): time.sleep(1); open('saved', 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save); open('runs', 'w').close(); time.sleep(600)"
    )
    parent = (
        "import sys, types; sys.path += sys.argv[1:3]; from pathlib import Path\n"
        "from stages import Stage, run_stage; from progress import Progress\n"
        "toy = Stage('toy', ('-c', sys.argv[3]), {})\n"
        "stop = types.SimpleNamespace(requested=False)\n"
        "run_stage(toy, Path(), {}, lambda: None, Progress(), stop)"
    )
    paths = str(ROOT), str(ROOT / "train")
    killed = subprocess.Popen([sys.executable, "-c", parent, *paths, child], cwd=tmp_path)
    while not (tmp_path / "runs").exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    ran(
        stage(f"import os, sys; sys.exit(not os.path.exists({str(tmp_path / 'saved')!r}))"),
        tmp_path,
        {},
    )


@pytest.mark.slow
def test_everything_from_nothing_killed_twice_is_as_if_undisturbed(tmp_path):
    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([*COMMAND, "--figures", "8", "--out", tmp_path / name])

    assert start("whole").wait() == 0
    for number, place in ((signal.SIGKILL, "vqgan"), (signal.SIGTERM, "model")):
        process = start("killed")
        while not list((tmp_path / "killed" / place).rglob("step_*")):
            assert process.poll() is None
            time.sleep(0.5)
        process.send_signal(number)
        assert process.wait() != 0
    assert start("killed").wait() == 0
    whole, killed = (tmp_path / name / "model" for name in ("whole", "killed"))
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(names) == 3
    for name in names:
        assert sha256_of(killed / name) == sha256_of(whole / name)
    assert read_json(tmp_path / "killed" / "everything.json")["stages"]["samples"]["done"]


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "motorcycle_left")
PHOTOGRAPHS += ("motorcycle_right", "retina", "ihc")


@pytest.mark.slow
def test_photographs_go_through_all_stages(tmp_path):
    """Cut from the nine that the wheel of scikit-image holds: a model that paints, its figures and
    its card come of one command, and it knows more than nothing."""
    package = find_spec("skimage")  # its files alone: it need not be importable
    if package is None or package.origin is None:
        pytest.skip("needs the pictures of scikit-image")
    for name in PHOTOGRAPHS:
        (path,) = (Path(package.origin).parent / "data").glob(f"{name}.*")
        image = Image.open(path).convert("RGB").resize((384, 384))
        for i in range(36):
            left, top = 64 * (i % 6), 64 * (i // 6)
            part = image.crop((left, top, left + 64, top + 64))
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            part.save(tmp_path / "photos" / name / f"{i:02}.jpg")
    out = tmp_path / "run"
    given = ["--data", tmp_path / "photos", "--figures", "4", "--out", out]
    done = subprocess.run([*COMMAND, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((out / "figures" / "samples").glob("*.png"))) == 16
    assert read_json(out / "everything.json")["stages"]["samples"]["done"]
    text = (out / "model" / "README.md").read_text()
    assert "the bound, nats a token" in text
    rows = [json.loads(line) for line in (out / "vqgan" / "metrics.jsonl").open()]
    psnr = [row["psnr"] for row in rows if row.get("psnr")]
    assert psnr[-1] > psnr[0] and psnr[-1] > 15
    log = out / "model" / "checkpoints" / "scale_2" / "metrics.jsonl"
    held_out = [row["held_out"] for row in map(json.loads, log.open()) if row.get("held_out")]
    assert held_out[-1] < math.log(64)
