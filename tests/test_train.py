"""The scripts: from an empty folder to pictures, through kills, signals and wrong inputs."""

import ast
import contextlib
import copy
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import memory
import numpy as np
import pytest
import stages
import torch
from adversarial import Adversaries, Usage
from PIL import Image
from safetensors.torch import load_file
from saving import are_finite
from torch.distributed.launcher.api import LaunchConfig
from torch.overrides import TorchFunctionMode
from training import warmup_cosine
from watching import Watchdog

from imagebart import ImageBART, checkpoint, perceptual, presets
from imagebart.checkpoint import Checkpoints, read_json, run_lock, save_tensors, sha256_of
from imagebart.conditions import ABSENT, ConditionShape, pieces_of, text_shape, text_tokens
from imagebart.data import scenery
from imagebart.data.maps import commonest_kinds
from imagebart.data.tokens import TokenFile, TokenWriter
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import Ranks
from imagebart.folders import load_vqgan, save_vqgan
from imagebart.vqgan import VQGAN

ROOT = Path(__file__).parents[1]
ALONE = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ONE_RANK = Ranks(0, 1, torch.device("cpu"))
SIZE = ("--preset", "tiny", "--batch", "4")


def train(script: str, *arguments) -> None:
    """Run train/<script>.py in this process, as `python` would; SystemExit is its exit."""
    before = sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "train" / f"{script}.py"), run_name="__main__")
    finally:
        sys.argv = before


def script(name: str) -> dict:
    """What train/<name>.py defines."""
    return runpy.run_path(str(ROOT / "train" / f"{name}.py"))


def train_scale(chain: Path, out: Path, *arguments, t: int | None = 2) -> None:
    which = () if t is None else ("--t", t)
    given = (*which, "--tokens", chain / "tokens", "--out", out, "--precision", "fp32")
    train("scale", *SIZE, *given, *arguments)


def launch(*command) -> subprocess.Popen:
    """A script as a process of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(path: Path) -> list[dict]:
    """The log without its clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def digests(folder: Path) -> dict[str, str]:
    """Every file but the lock's, by content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def flat(state, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor and number in a checkpoint, by its path."""
    if isinstance(state, dict):
        return {k: v for key in state for k, v in flat(state[key], f"{name}/{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, item in enumerate(state) for k, v in flat(item, f"{name}/{i}").items()}
    return {name: torch.as_tensor(state)} if isinstance(state, torch.Tensor | int | float) else {}


def assert_same_state(a: Path, b: Path) -> None:
    """Bit for bit: weights, averages, optimisers."""
    (step_a, state_a), (step_b, state_b) = Checkpoints(a).latest(), Checkpoints(b).latest()
    first, second = flat(state_a), flat(state_b)
    assert step_a == step_b and first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def train_tokens(folder: Path, steps: int) -> None:
    """The committed commands on the `tiny` preset up to its tokens: `vqgan`, `tokens`."""
    few = ("--workers", 0, "--out")
    train("compression", *SIZE, "--steps", steps, *few, folder / "vqgan")
    counts = ("--count", 24, "--validation", 16, "--batch", 8, "--vqgan", folder / "vqgan")
    train("encode", *counts, *few, folder / "tokens")


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """All of them, a few steps each: `model` as well."""
    folder = tmp_path_factory.mktemp("chain")
    train_tokens(folder, steps=4)
    for t in (2, 3):
        train_scale(folder, folder / "model", "--steps", 4, t=t)
    return folder


# ── from an empty folder to pictures ──────────────────────────────────────────────────────────


def test_an_empty_folder_becomes_a_model_that_paints(chain):
    model = ImageBART.from_pretrained(chain / "model", device="cpu")
    images = model.sample(2, seed=0)
    assert [image.size for image in images] == [(64, 64)] * 2
    tokens = TokenFile(chain / "tokens" / "train")
    assert (len(tokens), tokens.height, tokens.width, tokens.K) == (24, 8, 8, model.K)
    assert tokens.vqgan_sha256 == sha256_of(chain / "tokens" / "vqgan" / "vqgan.safetensors")
    assert tokens.vqgan_sha256 == sha256_of(chain / "model" / "vqgan.safetensors")
    validation = TokenFile(chain / "tokens" / "validation")
    shapes = {name: rows.shape for name, rows in validation.conditions.items()}
    assert shapes == {"class": (16, 1), "text": (16, 77), "map": (16, 64)}
    scene = scenery.render(scenery.scene_seed("validation", 5), 64, 64)
    assert (
        validation.conditions["map"][5].reshape(8, 8) == commonest_kinds(scene.semantic_map, (8, 8))
    ).all()
    assert validation.names["map"] == scenery.LABELS


def test_a_scale_that_is_told_things_starts_from_one_that_was_not(chain, tmp_path, monkeypatch):
    """Told nothing it is that one; and it learns what the words of its captions mean."""
    tiny = presets.PRESETS["tiny"]
    takes = {"class": ConditionShape(12, 1), "text": text_shape(24, vectors=128)}
    shapes = {name: replace(getattr(tiny, name), conditions=takes) for name in ("between", "last")}
    row = replace(tiny, **shapes)
    monkeypatch.setitem(presets.PRESETS, "tiny", row)
    with pytest.raises(SystemExit, match="must be a file that can be read"):
        train_scale(chain, tmp_path / "none", "--steps", 1, "--init", tmp_path)
    shapes = {name: replace(shape, condition_dropout=True) for name, shape in shapes.items()}
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, **shapes))
    with pytest.raises(SystemExit, match="condition_dropout must be False for chances of"):
        train_scale(chain, tmp_path / "none", "--steps", 1)
    drops = replace(tiny.scale, condition_dropout={"class": 0.5, "text": 0.25})
    defaults = {"guidance": 2.0, "draws_class": True}
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, **shapes, scale=drops, **defaults))

    frozen = ("--steps", 1, "--learning-rate", 0, "--init", chain / "model")
    for t in (2, 3):
        train_scale(chain, tmp_path / "model", *frozen, t=t)
    conditional, plain = (
        ImageBART.from_pretrained(folder / "model", device="cpu") for folder in (tmp_path, chain)
    )
    assert conditional.names["class"] == tuple(scenery.KINDS) and plain.names["class"] == ()
    assert {name: getattr(conditional, name) for name in defaults} == defaults
    conditional.draws_class = False
    for a, b in zip(
        conditional.sample_steps(2, seed=3), plain.sample_steps(2, seed=3), strict=True
    ):
        assert torch.equal(a.tokens, b.tokens)

    train_scale(chain, tmp_path / "taught", "--steps", 3, t=3)
    (_, before), (_, after) = (
        Checkpoints(tmp_path / name / "checkpoints" / "scale_3").latest()
        for name in ("model", "taught")
    )
    row = after["denoiser"]["prefix.text.row"]
    assert torch.equal(row, before["denoiser"]["prefix.text.row"])
    texts = TokenFile(chain / "tokens" / "train").condition(range(24), {"text": takes["text"]})
    assert torch.equal((row >= 0).nonzero()[:, 0], pieces_of(texts))


def test_words_that_the_initial_model_does_not_know_get_free_rows(
    make_denoiser, make_vqgan, tmp_path
):
    """Its own words keep theirs; of a table of another size nothing is taken."""
    begin, path = script("scale")["begin"], tmp_path / "scale_2.safetensors"

    def denoiser_of(vectors: int, seed: int = 0) -> Denoiser:
        return make_denoiser(2, seed=seed, conditions={"text": text_shape(8, vectors)})

    def captioned(text: str) -> TokenFile:
        ids, _ = text_tokens(["a lake", text], 8)
        with TokenWriter(tmp_path / text, 2, (4, 4), 12) as writer:
            writer.append(torch.zeros(2, 4, 4, dtype=torch.int64), {"text": ids.numpy()})
        return TokenFile(tmp_path / text)

    initial, vqgan = denoiser_of(8), make_vqgan()
    initial.know_text(text_tokens(["a sea"], 8)[0])
    save_tensors(initial.state_dict(), path)
    for vectors, known in {8: "a lake volcano sea", 9: "a lake volcano"}.items():
        denoiser = denoiser_of(vectors, seed=1)
        begin(denoiser, vqgan, captioned("volcano"), path)
        row, pieces = denoiser.text_rows, pieces_of(text_tokens([known], 8)[0])
        assert torch.equal((row != ABSENT).nonzero()[:, 0], pieces)
        assert len(row[pieces].unique()) == len(pieces)
        of_sea = pieces_of(text_tokens(["a sea"], 8)[0])
        assert torch.equal(row[of_sea], initial.text_rows[of_sea]) == (vectors == 8)
        shutil.rmtree(tmp_path / "volcano")
    with pytest.raises(ValueError, match="vectors of text must be at least 9, got 8"):
        begin(denoiser_of(8), vqgan, captioned("one two three four"), path)


def joint_tiny() -> presets.Preset:
    """`tiny` as one network for all scales, with all that it can be told."""
    tiny = presets.PRESETS["tiny"]
    one = dict(joint=True, rotary=True, qk_norm=True, encoder_depth=1)
    takes = {"class": ConditionShape(12, 1), "text": text_shape(24, vectors=128)}
    takes["map"] = ConditionShape(18, 8 * 8)
    shape = replace(tiny.between, conditions=takes, condition_dropout=True, **one)
    dropout = {"class": 0.5, "text": 0.25, "map": 0.5}
    scale = replace(tiny.scale, condition_dropout=dropout)
    return replace(tiny, between=shape, last=shape, scale=scale)


@pytest.fixture
def joint(monkeypatch) -> None:
    """The preset `tiny` is a joint one."""
    monkeypatch.setitem(presets.PRESETS, "tiny", joint_tiny())


def test_a_joint_run_learns_every_scale_in_one_file(chain, joint, tmp_path):
    train_scale(chain, tmp_path, "--steps", 3, t=None)
    log = metrics(tmp_path / "checkpoints" / "scale_joint" / "metrics.jsonl")
    for number in ("loss", "held_out"):
        assert {row["t"] for row in log if number in row} == {2, 3}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "scale_joint.safetensors",
        "vqgan.safetensors",
    }
    model = ImageBART.from_pretrained(tmp_path, device="cpu")
    assert model.denoisers[2].head is model.denoisers[3].head
    words = dict(classes="desert", prompt="a desert at night", guidance=2.0)
    assert [image.size for image in model.sample(1, **words)] == [(64, 64)]
    train_scale(chain, tmp_path / "more", "--steps", 1, "--init", tmp_path, t=None)


def test_a_preset_says_whether_scales_are_trained_apart(chain, monkeypatch, tmp_path):
    given = ("scale", *SIZE, "--tokens", chain / "tokens", "--out", tmp_path)
    assert "--t must be given for tiny, 2 to 3, got none" in refusal(*given)
    monkeypatch.setitem(presets.PRESETS, "tiny", joint_tiny())
    assert "--t must not be given for tiny, one network for all" in refusal(*given, "--t", 2)


def test_only_the_decoder_learns(chain, tmp_path, monkeypatch):
    """Beside a discriminator and where codes would be revived; every token stays what it was."""
    tiny = presets.PRESETS["tiny"]
    options = dict(adversarial_start=0, revive_every=2, quantise_start=9, edges=1.0)
    recipe = replace(tiny.compression, **options)
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, compression=recipe))
    few = ("--train", "decoder", "--steps", 5, "--workers", 0, "--out", tmp_path)
    assert "needs a trained VQGAN, --init" in refusal("compression", *SIZE, *few)
    train("compression", *SIZE, "--init", chain / "vqgan", *few)

    old, new = (load_file(folder / "vqgan.safetensors") for folder in (chain / "vqgan", tmp_path))
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert same == {name for name in old if not name.startswith(("decoder", "post_quant_conv"))}
    rows = [row for row in metrics(tmp_path / "metrics.jsonl") if "rec" in row]
    assert rows[-1]["discriminator"] > 0 and rows[-1]["balance"] > 0


def test_what_fits_known_pixels_learns_alone_and_resumes(chain, tmp_path):
    """All else stays; a run that goes on after half its steps ends as one that was not stopped."""
    vqgan = chain / "vqgan"
    given = (*SIZE, "--train", "known", "--init", vqgan, "--steps", 6, "--workers", 0)
    given += ("--learning-rate", 1e-2, "--save-every", 3, "--look-every", 3, "--out", tmp_path)
    ends = []
    for _ in range(2):
        train("compression", *given)
        ends.append(load_file(tmp_path / "vqgan.safetensors"))
        (tmp_path / "checkpoints" / "step_00000006.pt").unlink()
    old, (new, resumed) = load_file(vqgan / "vqgan.safetensors"), ends
    assert {name for name in new if name not in old} == {n for n in new if n.startswith("known.")}
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert all(new[name].abs().sum() > 0 for name in new if name.startswith("known.conv_out"))
    assert all(torch.equal(new[name], resumed[name]) for name in new)
    steps = [row["step"] for row in metrics(tmp_path / "metrics.jsonl") if "psnr" in row]
    assert steps == [3, 6] and (tmp_path / "reconstructions_000006.png").exists()


def test_the_saved_vqgan_has_the_averaged_weights(tmp_path, monkeypatch):
    tiny = presets.PRESETS["tiny"]
    recipe = replace(tiny.compression, ema_decay=0.9)
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, compression=recipe))
    train("compression", *SIZE, "--steps", 3, "--workers", 0, "--out", tmp_path)
    _, state = checkpoint.Checkpoints(tmp_path / "checkpoints").latest()
    saved = load_vqgan(tmp_path).state_dict()["decoder.conv_in.weight"]
    assert torch.equal(saved, state["ema"]["average"]["decoder.conv_in.weight"])
    assert not torch.equal(saved, state["vqgan"]["decoder.conv_in.weight"])


def test_the_discriminator_has_a_head_start(tmp_path, monkeypatch):
    tiny = presets.PRESETS["tiny"]
    recipe = replace(tiny.compression, steps=4, adversarial_start=3, discriminator_head_start=2)
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, compression=recipe))
    judged, forward = [], perceptual.PatchDiscriminator.forward

    def spy(discriminator, image):
        judged.append(len(image))
        return forward(discriminator, image)

    monkeypatch.setattr(perceptual.PatchDiscriminator, "forward", spy)
    train("compression", *SIZE, "--steps", 4, "--workers", 0, "--out", tmp_path)
    assert judged == [8, 8, 4, 8]  # 4 images and 4 reconstructions; then 4 it has a word on


def test_the_gradients_of_several_passes_are_those_of_one():
    """Of both networks, the discriminator in its head start; the last pass is shorter."""
    tiny = presets.PRESETS["tiny"]
    options = dict(precision="fp32", adversarial_start=9, discriminator_head_start=9)
    recipe = replace(tiny.compression, lecam_weight=0.1, **options)
    torch.manual_seed(0)
    vqgan, image = VQGAN(tiny.vqgan), torch.rand(8, 3, 64, 64) * 2 - 1
    both, seen, codes = [], [], []
    for at_once in (8, 3):
        torch.manual_seed(0)
        one = Adversaries(copy.deepcopy(vqgan), recipe, ONE_RANK, by_known=False, at_once=at_once)
        one.judgements.averages.copy_(torch.tensor([0.2, -0.2]))
        measured, finite = one.learn(image, True, 0, quantised=True)
        assert finite
        both.append(one)
        seen.append(measured)
        codes.append(one.usage.total())
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*(one.judgements.averages for one in both))
    assert torch.equal(*codes) and codes[0].sum(1).tolist() == [8 * 64] * 2
    for networks in zip(*((one.vqgan, one.discriminator) for one in both), strict=True):
        for a, b in zip(*(network.parameters() for network in networks), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    seed = torch.random.get_rng_state()
    for one in both:
        one.revive(image, 0, 0)
    torch.testing.assert_close(*(one.vqgan.quantiser.token_vectors() for one in both))
    assert torch.equal(torch.random.get_rng_state(), seed)


def test_a_vqgan_learns_in_several_passes_a_step(tmp_path, monkeypatch, capsys):
    """With the discriminator's word; as many as fit where there is a GPU, whose memory is said."""
    tiny = presets.PRESETS["tiny"]
    recipe = replace(tiny.compression, batch=4, adversarial_start=0)
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, compression=recipe))
    few = ("--steps", 1, "--workers", 0)
    given = ("compression", *SIZE, *few, "--out", tmp_path / "three")
    train(*given, "--at-once", 3)
    assert read_json(tmp_path / "three" / "run.json")["machine"]["images_at_once"] == 3
    assert "at_once must be at least 1, got 0" in refusal(*given, "--at-once", 0)

    needs = memory.cost_of_compression(tiny.vqgan, recipe)
    room = int(needs.bytes(2) / memory.FILLED) + 1
    monkeypatch.setattr(memory, "memory_of", lambda device: room)
    assert memory.images_at_once(None, 4, 4, ONE_RANK, lambda: needs, "") == (2, needs)
    assert "batch 4: 1 ranks × 2 images × 2 passes, about" in capsys.readouterr().err


def test_codes_that_fall_out_of_use_are_seen_at_the_next_report(chain, tmp_path, monkeypatch):
    """Also where none is revived any more."""
    usage = Usage(64, ONE_RANK)
    usage.note(torch.arange(10), torch.tensor(True))
    assert (usage.reported(), usage.reported()) == (10, 0)
    usage.note(torch.tensor([3, 20]), torch.tensor(True))
    usage.note(torch.tensor([30]), torch.tensor(False))
    resumed = Usage(64, ONE_RANK)
    resumed.load_state_dict(usage.state_dict())
    assert resumed.reported() == 2 and resumed.unused().sum() == 64 - 11
    assert resumed.unused().all()

    note = Usage.note
    codes = iter([torch.arange(64), *torch.zeros(4, 1, dtype=torch.int64)])
    monkeypatch.setattr(Usage, "note", lambda usage, _, finite: note(usage, next(codes), finite))
    few = ("--train", "decoder", "--init", chain / "vqgan", "--steps", 5, "--workers", 0)
    train("compression", *SIZE, *few, "--out", tmp_path)
    rows = [row for row in metrics(tmp_path / "metrics.jsonl") if "codes" in row]
    assert [(row["step"], row["codes"]) for row in rows] == [(1, 64), (5, 1)]


def test_any_number_of_held_out_pictures_is_shown():
    """Rows of at most eight: pictures above, what came back below, white where there are none."""
    sheet_of = script("compression")["sheet_of"]
    for count, size in {1: (8, 4), 7: (8, 28), 9: (16, 32), 16: (16, 32)}.items():
        image, back = torch.zeros(count, 3, 4, 4), torch.full((count, 3, 4, 4), 0.5)
        (sheet,) = sheet_of(image, back)
        assert sheet.shape == (3, *size)
        assert (sheet == 0).sum() == image.numel() and (sheet == 0.5).sum() == back.numel()
        assert (sheet[:, :4] == 0).all() and (sheet[:, 4:8] == 0.5).all()


def test_tokens_are_those_of_the_images(chain):
    from imagebart.data.sources import open_data

    vqgan = load_vqgan(chain / "tokens" / "vqgan").eval()
    images = open_data("scenery", 64, "train", 24)
    x_1 = TokenFile(chain / "tokens" / "train").batch([0, 23])
    image = torch.stack([images[0]["image"], images[23]["image"]])
    with torch.inference_mode():
        expected = vqgan.encode(image).flatten(1)
    assert (x_1 == expected).float().mean() > 0.9  # encoded in bf16, where ties may fall otherwise


def test_a_run_tells_what_it_measured(chain):
    rows = metrics(chain / "vqgan" / "metrics.jsonl")
    assert rows[-1]["step"] == 4 and {"rec", "psnr"} <= {key for row in rows for key in row}
    for t in (2, 3):
        rows = metrics(chain / "model" / "checkpoints" / f"scale_{t}" / "metrics.jsonl")
        assert {"loss", "held_out"} <= {key for row in rows for key in row}
    assert (chain / "vqgan" / "reconstructions_000004.png").stat().st_size > 1000


def test_a_finished_run_changes_nothing(chain):
    before = digests(chain)
    train("compression", *SIZE, "--steps", 4, "--workers", 0, "--out", chain / "vqgan")
    train_scale(chain, chain / "model", "--steps", 4)
    assert digests(chain) == before


# ── through kills and signals ─────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """What no script catches."""


def die_at(call: int, function):
    """`function`, until it is called for the `call`-th time."""
    calls = []

    def mortal(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return function(*arguments)

    return mortal


def learn_by_muon(monkeypatch) -> None:
    tiny = presets.PRESETS["tiny"]
    row = replace(tiny, scale=replace(tiny.scale, muon=0.01))
    monkeypatch.setitem(presets.PRESETS, "tiny", row)


@pytest.mark.parametrize("t, how", [(2, "adamw"), (3, "adamw"), (2, "muon"), (None, "joint")])
def test_a_killed_scale_resumes_as_if_never_stopped(chain, tmp_path, monkeypatch, t, how):
    """Killed in step 6 of 8, two steps after its checkpoint: same log, same bits."""
    if how == "muon":
        learn_by_muon(monkeypatch)
    if how == "joint":
        monkeypatch.setitem(presets.PRESETS, "tiny", joint_tiny())
    steps = ("--steps", 8, "--save-every", 4, "--look-every", 1)
    train_scale(chain, tmp_path / "whole", *steps, t=t)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.EMA, "update", die_at(6, checkpoint.EMA.update))
        train_scale(chain, tmp_path / "killed", *steps, t=t)
    scale = f"scale_{t or 'joint'}"
    run = Path("checkpoints", scale)
    assert Checkpoints(tmp_path / "killed" / run).latest()[0] == 4
    train_scale(chain, tmp_path / "killed", *steps, t=t)

    whole, resumed = (tmp_path / name / run for name in ("whole", "killed"))
    assert metrics(resumed / "metrics.jsonl") == metrics(whole / "metrics.jsonl")
    assert_same_state(resumed, whole)
    name = f"{scale}.safetensors"
    assert sha256_of(tmp_path / "killed" / name) == sha256_of(tmp_path / "whole" / name)


def test_a_killed_compression_resumes_as_if_never_stopped(tmp_path, monkeypatch):
    """With the discriminator on, codes being revived, and weights averaged."""
    tiny = presets.PRESETS["tiny"]
    options = dict(steps=5, adversarial_start=1, lecam_weight=0.1, ema_decay=0.9, revive_every=2)
    recipe = replace(tiny.compression, precision="fp32", **options)
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, compression=recipe))

    def run(out: Path) -> None:
        often = ("--save-every", 2, "--look-every", 5)
        train("compression", *SIZE, "--steps", 5, *often, "--workers", 0, "--out", out)

    run(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(perceptual, "reconstruction_loss", die_at(4, perceptual.reconstruction_loss))
        run(tmp_path / "killed")
    run(tmp_path / "killed")
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    assert metrics(resumed / "metrics.jsonl") == metrics(whole / "metrics.jsonl")
    assert_same_state(resumed / "checkpoints", whole / "checkpoints")
    assert sha256_of(resumed / "vqgan.safetensors") == sha256_of(whole / "vqgan.safetensors")


ENCODE = ("--count", 24, "--validation", 16, "--batch", 8, "--workers", 0)


def test_a_schedule_of_equal_degradation(chain, capsys):
    """ᾱ from 1 to 0, at equal heights of the measured curve."""
    given = ("schedule", "--tokens", chain / "tokens", "--perceptual", "random", "--n", 8)
    train(*given, "--T", 4)
    *curve, last = capsys.readouterr().out.splitlines()
    alpha_bar = ast.literal_eval(last.removeprefix("alpha_bar="))
    assert len(alpha_bar) == 4 and MultinomialDiffusion(alpha_bar, 4).T == 4
    at, heights = zip(*(map(float, re.findall(r"[\d.]+", line)[:2]) for line in curve), strict=True)
    measured = np.interp(alpha_bar[::-1], at[::-1], heights[::-1])[::-1]
    wanted = np.linspace(0, heights[-1], 4)
    np.testing.assert_allclose(measured, wanted, atol=1e-3 * heights[-1] + 2e-4)
    assert "T must be at least 2, got 1" in refusal(*given, "--T", 1)
    assert "n must be at least 1, got 0" in refusal(*given[:-1], 0)
    train(*given[:-1], 99)  # of 16
    assert "alpha_bar=(1.0, " in capsys.readouterr().out
    assert "take a larger --n" in refusal(*given[:-1], 1)
    with pytest.raises(ValueError, match="the distance must rise as ᾱ falls"):
        script("schedule")["equal_degradation"]([0.0, 2.0, 1.0], 3)


def test_a_killed_encode_goes_on(chain, tmp_path, monkeypatch):
    """Killed when the training split was there: it is not encoded again, and all is as if never
    stopped."""
    given = ("encode", *ENCODE, "--vqgan", chain / "vqgan", "--out", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TokenWriter, "close", die_at(2, TokenWriter.close))
        train(*given)
    assert (tmp_path / "train" / "tokens.json").exists()
    encoded, latents = [], VQGAN.latents
    monkeypatch.setattr(VQGAN, "latents", lambda self, x: encoded.append(x) or latents(self, x))
    train(*given)
    assert [len(image) for image in encoded] == [8, 8]
    assert digests(tmp_path) == digests(chain / "tokens")
    train(*given)
    assert len(encoded) == 2


def test_two_ranks_encode_what_one_does(chain, tmp_path):
    """25 images in batches of two times 8: the last of one image, which only one rank has."""
    counts = ("--count", 25, "--validation", 16, "--batch", 8, "--precision", "fp32")
    given = (*counts, "--vqgan", chain / "vqgan", "--workers", 0, "--out")
    train("encode", *given, tmp_path / "one")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    process = launch(*torchrun, ROOT / "train/encode.py", *given, tmp_path / "two")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_training_images_are_encoded_mirrored_too(chain, tmp_path):
    given = (*ENCODE, "--precision", "fp32", "--vqgan", chain / "vqgan", "--out", tmp_path)
    train("encode", *given, "--flips")
    tokens = TokenFile(tmp_path / "train")
    assert len(tokens) == 48 and len(TokenFile(tmp_path / "validation")) == 16
    maps = torch.from_numpy(tokens.conditions["map"].copy()).unflatten(1, (8, 8))
    assert torch.equal(maps[24:], maps[:24].flip(2)) and not torch.equal(maps[24:], maps[:24])
    assert (tokens.conditions["class"][24:] == tokens.conditions["class"][:24]).all()
    assert "count is 24" in refusal("encode", *given)
    mirrored_text = script("encode")["mirrored_text"]
    assert mirrored_text("Left of a lake, right-hand; bright") == (
        "Right of a lake, left-hand; bright"
    )


@pytest.fixture
def other_vqgan(chain, tmp_path) -> Path:
    """The folder of a VQGAN of the same shape."""
    vqgan = load_vqgan(chain / "vqgan")
    torch.nn.init.normal_(vqgan.quantiser.codebook.weight)
    save_vqgan(vqgan, tmp_path / "other")
    return tmp_path / "other"


def test_tokens_and_their_vqgan_stay_together(chain, tmp_path, other_vqgan):
    tokens = tmp_path / "tokens"
    shutil.copytree(chain / "tokens", tokens)
    shutil.rmtree(tokens / "validation")
    before = digests(tokens)
    given = ("encode", *ENCODE, "--out", tokens, "--vqgan")
    assert "no finished tokens of another VQGAN" in refusal(*given, other_vqgan)
    assert digests(tokens) == before

    shutil.copytree(chain / "tokens" / "validation", tokens / "validation")
    save_vqgan(load_vqgan(other_vqgan), tokens / "vqgan")
    scale = ("scale", *SIZE, "--t", 2, "--tokens", tokens, "--out", tmp_path / "model")
    assert "must hold tokens of the VQGAN beside it" in refusal(*scale)
    assert "vqgan_sha256 is " in refusal(*given, other_vqgan, "--no-shrink")


def test_codes_of_training_images_are_in_use(chain, tmp_path):
    """Of a small folder, whose few held-out images use few codes, no token becomes a random one."""
    few = ("--count", 12, "--validation", 2, "--workers", 0, "--vqgan", chain / "vqgan")
    train("encode", *few, "--out", tmp_path / "shrunk")
    train("encode", *few, "--no-shrink", "--out", tmp_path / "whole")
    shrunk = load_vqgan(tmp_path / "shrunk" / "vqgan").quantiser
    for split, count in {"train": 12, "validation": 2}.items():
        folders = tmp_path / "shrunk" / split, tmp_path / "whole" / split
        tokens, codes = (TokenFile(folder).batch(range(count)) for folder in folders)
        assert torch.equal(shrunk.used[tokens], codes), split


def test_a_vqgan_that_learns_on_has_a_token_for_every_code(chain, tmp_path, capsys):
    """Its tokens are other codes' once it has learned; a decoder alone keeps them. How many codes
    have no token of their own is said."""
    vqgan = load_vqgan(chain / "vqgan")
    vqgan.quantiser.shrink(torch.arange(2))
    save_vqgan(vqgan, tmp_path / "shrunk")
    few = ("--init", tmp_path / "shrunk", "--steps", 1, "--workers", 0, "--out")
    for part, K in {"all": 64, "decoder": 2}.items():
        train("compression", *SIZE, "--train", part, *few, tmp_path / part)
        assert load_vqgan(tmp_path / part).K == K
        train("encode", *ENCODE, "--vqgan", tmp_path / part, "--out", tmp_path / f"{part}_tokens")
        said = capsys.readouterr().out
        assert (load_vqgan(tmp_path / f"{part}_tokens" / "vqgan").K == 2) == (K == 2)
        for split in ("train", "validation"):
            (share,) = re.findall(rf"^{split}: ([\d.]+)% of its codes have no token", said, re.M)
            assert (float(share) > 10) == (K == 2)


def test_finished_tokens_of_all_codes_are_not_taken_for_shrunk_ones(chain, tmp_path):
    given = ("encode", *ENCODE, "--vqgan", chain / "vqgan", "--out", tmp_path)
    train(*given, "--no-shrink")
    assert "must hold no finished tokens of all codes, got some" in refusal(*given)
    assert "seed is 5, got 0" in refusal(*given, "--no-shrink", "--seed", 5)
    train(*given, "--no-shrink")  # the same command again


def test_a_run_is_resumed_as_what_it_was(chain, tmp_path, capsys):
    """Other numbers are refused, or said; a checkpoint of before they were kept is taken."""
    run = ("--steps", 4, "--workers", 0, "--out", chain / "vqgan")
    said = refusal("compression", "--preset", "scenery-2", "--batch", 8, *run)
    assert re.search("must keep its preset tiny, batch 4, data .*, learning_rate 0.002", said)
    assert re.search("got preset scenery-2, batch 8, data .*, learning_rate 0.001", said)
    scale = ("scale", *SIZE, "--t", 2, "--tokens", chain / "tokens", "--out", chain / "model")
    said = refusal(*scale, "--steps", 5, "--seed", 1)
    assert "keep its seed 0, steps 4, precision fp32, got seed 1, steps 5, precision bf16" in said

    shutil.copytree(chain / "model" / "checkpoints", tmp_path / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "scale_2")
    step, state = checkpoints.latest()
    assert state["run"]["vqgan"] == sha256_of(chain / "tokens" / "vqgan" / "vqgan.safetensors")
    checkpoints.save(step, {name: part for name, part in state.items() if name != "run"})
    train_scale(chain, tmp_path, "--steps", 5, "--seed", 1)
    assert "does not say preset, batch, seed, vqgan, data, steps" in capsys.readouterr().err
    train_scale(chain, tmp_path, "--steps", 6, "--seed", 1, "--override")
    assert "resumed with steps 6, until now steps 5" in capsys.readouterr().err
    assert checkpoints.latest()[0] == 6


def spoiled_at(call: int, function, spoil):
    """`function`, whose result is spoiled when it is called for the `call`-th time."""
    calls = []

    def spoiling(*arguments):
        calls.append(1)
        result = function(*arguments)
        return spoil(result, arguments) if len(calls) == call else result

    return spoiling


def broken_at(call: int, update):
    """EMA.update, after whose `call`-th call the network holds NaN."""
    calls = []

    def breaking(ema) -> None:
        calls.append(1)
        update(ema)
        if len(calls) == call:
            next(iter(ema.module.parameters())).data.fill_(torch.nan)

    return breaking


def test_a_vqgan_does_not_learn_from_what_is_not_finite(tmp_path, monkeypatch, capsys):
    """A loss, or only its gradient, is counted and said, and weights stay finite; weights that are
    NaN lead back to the last checkpoint; ten such losses in a row end a run that has none."""
    run = ("compression", *SIZE, "--steps", 3, "--save-every", 1, "--workers", 0, "--out")
    true = perceptual.reconstruction_loss

    def steep(loss, arguments):  # 0, but its gradient is not finite
        return loss + (0 * arguments[1]).abs().sqrt().sum()

    for name, spoil in {"loss": lambda loss, _: loss * torch.nan, "gradient": steep}.items():
        with monkeypatch.context() as patch:
            patch.setattr(perceptual, "reconstruction_loss", spoiled_at(2, true, spoil))
            train(*run, tmp_path / name)
        said = capsys.readouterr().err
        assert "1 steps were made without gradients, which were not finite" in said
        (last,) = [row for row in metrics(tmp_path / name / "metrics.jsonl") if row.get("rec")][1:]
        assert last["step"] == 3 and last["skipped"] == 1
        assert are_finite(load_file(tmp_path / name / "vqgan.safetensors").values())

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.EMA, "update", broken_at(2, checkpoint.EMA.update))
        train(*run, tmp_path / "back")
    assert "NaN or infinity in weights or gradients: back to step 1" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "back" / "checkpoints").latest()[0] == 3

    monkeypatch.setattr(perceptual, "reconstruction_loss", lambda *_: true(*_) * torch.nan)
    said = refusal("compression", *SIZE, "--steps", 30, "--workers", 0, "--out", tmp_path / "all")
    assert "must be finite, got NaN or infinity before step 10; a lower --learning-rate" in said


def test_a_scale_goes_back_to_its_last_finite_checkpoint(chain, tmp_path, monkeypatch, capsys):
    """Once: what follows is as if nothing had happened. The second time the run ends."""
    steps = ("--steps", 4, "--save-every", 2)
    train_scale(chain, tmp_path / "whole", *steps)
    update = checkpoint.EMA.update

    def broken(ema) -> None:
        update(ema)
        next(iter(ema.module.parameters())).data.fill_(torch.nan)

    for times, name in ((1, "once"), (2, "twice")):
        calls = []

        def sometimes(ema, times=times, calls=calls) -> None:
            calls.append(1)
            (broken if len(calls) in (4, 6)[:times] else update)(ema)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.EMA, "update", sometimes)
            if times == 1:
                train_scale(chain, tmp_path / name, *steps)
                continue
            with pytest.raises(SystemExit, match="got NaN or infinity before step 4 again"):
                train_scale(chain, tmp_path / name, *steps)
    assert capsys.readouterr().err.count("back to step 2") == 2
    runs = [tmp_path / name / "checkpoints" / "scale_2" for name in ("whole", "once")]
    assert metrics(runs[1] / "metrics.jsonl") == metrics(runs[0] / "metrics.jsonl")
    assert_same_state(*runs)
    assert Checkpoints(tmp_path / "twice" / "checkpoints" / "scale_2").latest()[0] == 2


def test_a_gradient_that_is_not_finite_is_not_learned_from(chain, tmp_path, monkeypatch, capsys):
    """One is counted and said, and weights stay finite; ten in a row lead back, at the next report,
    to the last checkpoint, and end the run if they come again."""
    loss = Denoiser.loss

    def spoiled(where):
        calls = []

        def spoiling(*arguments):
            calls.append(1)
            return loss(*arguments) * (torch.nan if len(calls) in where else 1)

        monkeypatch.setattr(Denoiser, "loss", spoiling)

    never = ("--look-every", 10**6)  # a look computes a loss too
    spoiled({3})
    train_scale(chain, tmp_path / "one", "--steps", 4, "--save-every", 3, *never)
    assert "1 steps were made without gradients, which were not finite" in capsys.readouterr().err
    rows = metrics(tmp_path / "one" / "checkpoints" / "scale_2" / "metrics.jsonl")
    assert [row.get("skipped") for row in rows if "loss" in row] == [None, 1]
    assert are_finite(load_file(tmp_path / "one" / "scale_2.safetensors").values())

    steps = ("--steps", 20, "--save-every", 5, *never)
    spoiled(range(8, 18))
    train_scale(chain, tmp_path / "back", *steps)
    assert "in weights or gradients: back to step 15" in capsys.readouterr().err
    spoiled(range(8, 100))
    steps = ("--steps", 40, "--save-every", 15, *never)
    with pytest.raises(SystemExit, match="got NaN or infinity before step 30 again"):
        train_scale(chain, tmp_path / "all", *steps)


class Looks(TorchFunctionMode):
    """Notes when a script of train/ takes a number out of a tensor."""

    def __init__(self):
        super().__init__()
        self.step, self.steps = 0, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        names = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy"}
        caller = sys._getframe(1).f_code.co_filename
        if function.__name__ in names and "/train/" in caller:
            self.steps.append(self.step)
        return function(*args, **(kwargs or {}))


def test_only_steps_that_are_reported_or_saved_look_at_numbers(chain, tmp_path, monkeypatch):
    """A GPU would have to end all that it computes first."""
    looks = Looks()
    monkeypatch.setattr(Watchdog, "beat", lambda _, step: setattr(looks, "step", step + 1))
    with looks:
        train_scale(chain, tmp_path, "--steps", 15, "--save-every", 6, "--look-every", 100)
    assert {*looks.steps} - {0} == {1, 6, 10, 12, 15}


def test_an_epoch_has_the_images_that_the_recipe_repeats(chain, tmp_path, monkeypatch):
    learned, batch = [], TokenFile.batch
    monkeypatch.setattr(TokenFile, "repeated", lambda *_: np.array([1, 1, 3]))
    monkeypatch.setattr(TokenFile, "batch", lambda *of: (learned.append(of[1]), batch(*of))[1])
    train_scale(chain, tmp_path, "--steps", 3, "--batch", 2)
    in_order = [int(i) for indices in learned[:-1] for i in indices]  # before the held-out ones
    assert sorted(in_order[:3]) == sorted(in_order[3:]) == [1, 1, 3]


def test_the_best_weights_are_kept(chain, tmp_path, monkeypatch):
    """Those of the lowest held-out loss, also if a later one is higher."""
    look = ("--steps", 3, "--look-every", 1, "--save-every", 1)
    with monkeypatch.context() as patch:  # from the second step on, learning destroys
        patch.setattr(checkpoint.EMA, "update", spoilt_from(2, checkpoint.EMA.update))
        train_scale(chain, tmp_path, *look)
    run = tmp_path / "checkpoints" / "scale_2"
    held_out = [row["held_out"] for row in metrics(run / "metrics.jsonl") if "held_out" in row]
    best = read_json(run / "best.json")
    assert best["step"] == 1 and best["held_out"] == pytest.approx(min(held_out), abs=1e-6)
    assert held_out[0] < min(held_out[1:])
    kept, last = load_file(run / "best.safetensors"), load_file(tmp_path / "scale_2.safetensors")
    assert kept.keys() == last.keys() and not torch.equal(kept["head.weight"], last["head.weight"])
    train("compression", *SIZE, "--steps", 1, "--workers", 0, "--out", tmp_path / "vqgan")
    assert load_vqgan(tmp_path / "vqgan" / "best").config == load_vqgan(chain / "vqgan").config
    assert read_json(tmp_path / "vqgan" / "best" / "best.json")["step"] == 1


def spoilt_from(call: int, update):
    """`EMA.update`, after which the averaged weights are three times as large from a call on."""
    calls = []

    def spoiling(ema) -> None:
        calls.append(1)
        update(ema)
        if len(calls) >= call:
            for x in ema.average.values():
                x.mul_(3)

    return spoiling


def test_a_model_is_of_one_kind(chain, tmp_path, joint, monkeypatch):
    """A joint network does not go into the folder of a chain, nor the other way round."""
    out = tmp_path / "chain"
    shutil.copytree(chain / "model", out)
    given = ("scale", *SIZE, "--tokens", chain / "tokens", "--out")
    before = digests(out)
    said = refusal(*given, out)
    assert "must hold one network for all scales or nothing, got scales 2, 3" in said
    assert digests(out) == before
    train_scale(chain, tmp_path / "joint", "--steps", 1, t=None)
    monkeypatch.undo()
    said = refusal(*given, tmp_path / "joint", "--t", 2)
    assert "must hold a network a scale or nothing, got scales joint" in said


def test_a_preset_has_as_many_classes_as_the_data(chain, tmp_path, monkeypatch):
    tiny = presets.PRESETS["tiny"]
    shape = replace(tiny.between, conditions={"class": ConditionShape(7, 1)})
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(tiny, between=shape))
    given = ("scale", *SIZE, "--t", 2, "--tokens", chain / "tokens", "--out", tmp_path)
    assert "must have 7 names of class for this preset, got 12" in refusal(*given)


def test_every_image_must_have_what_is_never_left_out(make_denoiser, tmp_path):
    """Said before the first step, wherever in the file the image is."""
    require_tokens_fit = script("scale")["require_tokens_fit"]
    takes = {"class": ConditionShape(3, 1), "map": ConditionShape(2, 16)}
    shape = make_denoiser(2, conditions=takes).config
    may_lack = replace(shape, condition_dropout=True)
    rows = {name: np.zeros((9000, one.length), np.int64) for name, one in takes.items()}
    rows["map"][8500, 3] = ABSENT  # a place that is open

    def tokens_of(name: str) -> TokenFile:
        with TokenWriter(tmp_path / name, 9000, (4, 4), 12, vqgan_sha256="f00") as writer:
            writer.append(torch.zeros(9000, 4, 4, dtype=torch.int64), rows)
        return TokenFile(tmp_path / name)

    require_tokens_fit(tokens_of("all"), shape, "f00")
    rows["class"][[8600, 8700]] = ABSENT
    require_tokens_fit(without := tokens_of("without"), may_lack, "f00")
    said = "every image must have a class for .*, got 2 images that have none, first image 8600"
    with pytest.raises(ValueError, match=said):
        require_tokens_fit(without, shape, "f00")
    rows["class"][8999] = 3
    said = r"class must lie in \[0, 3\), got -1 to 3 in images 8192 to 8999"
    with pytest.raises(ValueError, match=said):
        require_tokens_fit(tokens_of("beyond"), may_lack, "f00")


def test_a_batch_in_parts_is_that_batch(chain, tmp_path):
    """Four images one after another, or four at once: sums are ordered differently."""
    for name, more in {"once": (), "parts": ("--at-once", 3, "--recompute")}.items():
        train_scale(chain, tmp_path / name, "--steps", 2, *more)
    one, two = (load_file(tmp_path / x / "scale_2.safetensors") for x in ("once", "parts"))
    for key, weight in one.items():
        torch.testing.assert_close(two[key], weight, rtol=0, atol=2e-5)
    given = ("scale", *SIZE, "--t", 2, "--tokens", chain / "tokens", "--out", tmp_path / "none")
    assert "at_once must be at least 1, got 0" in refusal(*given, "--at-once", 0)


def test_ten_pictures_are_enough(tmp_path, monkeypatch):
    """In one folder: one is held out, the same in every stage; other pictures are other data."""
    for i in range(10):
        picture(tmp_path / "photos" / f"{i}.jpg", i)
    data, few = ("--data", tmp_path / "photos"), ("--workers", 0, "--out")
    train("compression", *SIZE, *data, "--steps", 1, *few, tmp_path / "vqgan")
    given = ("encode", "--vqgan", tmp_path / "vqgan", *data, *few, tmp_path / "tokens")
    train(*given)
    counts = [len(TokenFile(tmp_path / "tokens" / split)) for split in ("train", "validation")]
    assert counts == [9, 1]
    train_scale(tmp_path, tmp_path / "model", "--steps", 1)
    train(*given)  # nothing to do
    monkeypatch.chdir(tmp_path)
    train(*given[:3], "--data", "./photos", *given[5:])  # the same folder
    for i in range(10):
        picture(tmp_path / "photos" / f"{i}.jpg", 20 + i)
    assert "whose data_sha256 is " in refusal(*given)
    said = refusal("compression", *SIZE, *data, "--steps", 1, *few, tmp_path / "vqgan")
    assert "must keep its data " in said


def picture(path: Path, seed: int) -> None:
    """A photograph, nearly: a landscape under another name."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(scenery.render(seed, 64, 64).image).save(path)


def test_matrices_decay_and_vectors_do_not(make_denoiser):
    """A layer's are Muon's, if it has a rate; gains and biases stand still without a gradient."""
    denoiser = make_denoiser(2, conditions={"class": 3})
    for muon in (0.0, 0.01):
        recipe = presets.ScaleRecipe(10, 4, learning_rate=0.5, weight_decay=0.1, muon=muon)
        optimisers = script("scale")["optimisers_of"](denoiser, recipe, "fp32")
        assert [*optimisers] == (["optimiser", "muon"] if muon else ["optimiser"])
        decay = {
            id(p): group["weight_decay"]
            for optimiser in optimisers.values()
            for group in optimiser.param_groups
            for p in group["params"]
        }
        for name, p in denoiser.named_parameters():
            assert decay[id(p)] == (0.1 if p.ndim > 1 else 0), name
        assert len(decay) == len(list(denoiser.parameters()))


def test_another_learning_rate_changes_muon_in_proportion():
    recipe = presets.ScaleRecipe(10, 4, learning_rate=0.5, muon=0.2, clip=2.0).at_rate(0.25)
    assert recipe == presets.ScaleRecipe(10, 4, learning_rate=0.25, muon=0.1, clip=2.0)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_recipe_is_about_conditions_that_its_preset_takes(name):
    """Images are repeated by their text only where text is learned."""
    preset = presets.PRESETS[name]
    for shape in (preset.between, preset.last):
        assert preset.scale.condition_dropout.keys() <= shape.conditions.keys()
        assert not preset.scale.repeated or "text" in shape.conditions


def test_muon_moves_the_matrices_of_the_layers(chain, tmp_path, monkeypatch):
    """One step: nearer to an orthogonal one, singular values more alike; AdamW's elsewhere.

    Both at their own rates: Muon's longest singular value is 0.2 · rate · √side
    (`match_rms_adamw`), a first step of AdamW is its rate for every number.
    """
    step = ("--steps", 1, "--init", chain / "model")
    before = load_file(chain / "model" / "scale_2.safetensors")
    train_scale(chain, tmp_path / "adamw", *step)
    learn_by_muon(monkeypatch)
    train_scale(chain, tmp_path / "muon", *step)
    moved, recipe = {}, presets.PRESETS["tiny"].scale.lasting(1)
    factor = warmup_cosine(0, 1, recipe.warmup_steps)
    for name in ("adamw", "muon"):
        _, state = Checkpoints(tmp_path / name / "checkpoints" / "scale_2").latest()
        moved[name] = {key: state["denoiser"][key] - old for key, old in before.items()}
    for name, by_adamw in moved["adamw"].items():
        by_muon = moved["muon"][name]
        in_a_layer = ".blocks." in name and by_adamw.ndim == 2
        assert torch.equal(by_muon, by_adamw) != in_a_layer, name
        if in_a_layer:
            steep, even = (torch.linalg.svdvals(x) for x in (by_adamw, by_muon))
            assert even[3] / even[0] > 1.2 * steep[3] / steep[0], name  # few tokens: of low rank
            longest = 0.2 * factor * recipe.muon * max(by_muon.shape) ** 0.5
            assert even[0].item() == pytest.approx(longest, rel=0.3), name
            rate = factor * recipe.learning_rate
            assert by_adamw.abs().median().item() == pytest.approx(rate, rel=0.1), name


def test_a_run_told_to_stop_saves_first(chain, tmp_path):
    """SIGTERM, far from any checkpoint that was due: exit code 0, and the work is on the disk."""
    run = tmp_path / "checkpoints" / "scale_2"
    endless = ("--steps", 10**6, "--save-every", 10**6, "--look-every", 2)
    scale = ("train/scale.py", *SIZE, "--t", 2, "--tokens", chain / "tokens", "--out", tmp_path)
    process = launch(ROOT / scale[0], *scale[1:], *endless)
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert Checkpoints(run).latest()[0] >= 2
    assert (tmp_path / "scale_2.safetensors").exists()


JOINT_SCALE = f"""
import runpy, sys
sys.path[:0] = {[str(ROOT / "tests"), str(ROOT / "train")]!r}
import test_train
test_train.presets.PRESETS["tiny"] = test_train.joint_tiny()
runpy.run_path({str(ROOT / "train" / "scale.py")!r}, run_name="__main__")
"""


@pytest.mark.parametrize("t, ranks", [(2, 2), (None, 2), (2, 4)])
def test_several_ranks_learn_what_one_does(chain, tmp_path, monkeypatch, t, ranks):
    """The same five images, one to three a rank, three in parts, in fp32: sums are ordered
    differently, nothing else."""
    name, which, script = f"scale_{t or 'joint'}", ("--t", t), ROOT / "train/scale.py"
    if t is None:
        monkeypatch.setitem(presets.PRESETS, "tiny", joint_tiny())
        which, script = (), tmp_path / "joint_scale.py"
        script.write_text(JOINT_SCALE)
    steps = ("--steps", 4, "--look-every", 4)
    size = ("--preset", "tiny", "--batch", 5, *steps, "--tokens", chain / "tokens")
    size += (*(() if t is None else which), "--precision", "fp32", "--out")
    train("scale", *size, tmp_path / "one")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
    process = launch(*torchrun, script, *size, tmp_path / "all", "--at-once", 2)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said

    one, more = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("one", "all"))
    for key, weight in one.items():
        torch.testing.assert_close(more[key], weight, rtol=0, atol=2e-5)
    run = Path("checkpoints", name, "metrics.jsonl")
    for a, b in zip(metrics(tmp_path / "one" / run), metrics(tmp_path / "all" / run), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


OWN_TOKENS = f"""
import os, runpy, sys
sys.path[:0] = [{str(ROOT / "train")!r}]
sys.argv[sys.argv.index("--tokens") + 1] += os.environ["RANK"]
runpy.run_path({str(ROOT / "train" / "scale.py")!r}, run_name="__main__")
"""


def test_ranks_learn_from_the_same_tokens(chain, tmp_path):
    """One that reads others is named by all, before the first step."""
    for rank in (0, 1):
        shutil.copytree(chain / "tokens", tmp_path / f"tokens{rank}")
    path, script = tmp_path / "tokens1" / "train" / "tokens.npy", tmp_path / "own_tokens.py"
    np.save(path, np.load(path)[::-1].copy())
    script.write_text(OWN_TOKENS)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    given = (*SIZE, "--t", 2, "--steps", 1, "--tokens", tmp_path / "tokens", "--out")
    process = launch(*torchrun, script, *given, tmp_path / "out")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1
    sentence = "error: the tokens must be the same on all ranks, got others at rank 1"
    assert said.count(sentence) == 2


def test_weights_in_shards_learn_the_same(chain, tmp_path):
    """A checkpoint has them whole: two ranks go on from it bit for bit, and so does one."""
    given = ("--preset", "tiny", "--t", 2, "--batch", 4, "--tokens", chain / "tokens")
    given += ("--steps", 4, "--save-every", 2, "--look-every", 4, "--precision", "fp32", "--out")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    two_ranks = (*torchrun, ROOT / "train/scale.py", *given, tmp_path / "two")
    run, name = Path("checkpoints", "scale_2"), "scale_2.safetensors"
    ends = []
    for _ in range(2):
        process = launch(*two_ranks, "--shard", "--recompute", "--at-once", 1)
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        ends.append(load_file(tmp_path / "two" / name))
        shutil.copytree(tmp_path / "two", tmp_path / "more", dirs_exist_ok=True)
        (tmp_path / "two" / run / "step_00000004.pt").unlink()
    (tmp_path / "more" / run / "step_00000004.pt").unlink()
    train("scale", *given, tmp_path / "one")
    train("scale", *given, tmp_path / "more")
    once, resumed = ends
    one, more = (load_file(tmp_path / out / name) for out in ("one", "more"))
    for key, weight in one.items():
        assert torch.equal(once[key], resumed[key])
        torch.testing.assert_close(once[key], weight, rtol=0, atol=2e-5)
        torch.testing.assert_close(more[key], weight, rtol=0, atol=2e-5)
    logs = [metrics(tmp_path / out / run / "metrics.jsonl") for out in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_shards_are_refused_for_muon(tmp_path):
    scale, ranks = script("scale"), Ranks(0, 2, torch.device("cpu"))
    config = scale["Config"](tokens=tmp_path, out=tmp_path, preset="scenery", shard=True)
    with pytest.raises(ValueError, match="--shard must be given for AdamW alone, got scenery with"):
        scale["main"](config, ranks)


def test_ranks_in_shards_make_as_many_passes(tmp_path):
    """Each gathers weights from all ranks: one that makes fewer passes would leave others waiting.
    Without shards parts of 3 and 4 images are as good."""
    scale, ranks = script("scale"), [Ranks(i, 2, torch.device("cpu")) for i in range(2)]
    config = scale["Config"](tokens=tmp_path, out=tmp_path, preset="tiny", t=2, batch=7, shard=True)
    for one in ranks:
        with pytest.raises(ValueError, match=r"batch of --shard must be divisible by .* 7 over 2"):
            scale["main"](config, one)
    parts = {batch: [scale["part_of_batch"](batch, one, True) for one in ranks] for batch in (2, 6)}
    assert parts == {2: [range(1), range(1, 2)], 6: [range(3), range(3, 6)]}
    assert [len(scale["part_of_batch"](7, one, False)) for one in ranks] == [3, 4]


def test_two_ranks_compress_as_one_does(tmp_path):
    """Codes are revived from the latents of all ranks, so they are the same ones; how often they
    were used is counted over all ranks, also in a run that was resumed.

    Weights before a normalisation are not compared: their gradient is rounding, and Adam's first
    steps make whole steps of it.
    """
    steps = ("--steps", 2, "--precision", "fp32", "--workers", 0, "--out")
    train("compression", *SIZE, *steps, tmp_path / "one")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    two_ranks = (*torchrun, ROOT / "train/compression.py", *SIZE)
    process = launch(*two_ranks, *steps, tmp_path / "two")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    process = launch(*two_ranks, "--steps", 3, *steps[2:], tmp_path / "resumed", "--override")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    for name, steps_done in {"one": 2, "two": 2, "resumed": 3}.items():
        _, state = Checkpoints(tmp_path / name / "checkpoints").latest()
        assert state["usage"][0].sum() == steps_done * 4 * 64  # images of 64 tokens

    one, two = (load_file(tmp_path / name / "vqgan.safetensors") for name in ("one", "two"))
    codebook = "quantiser.codebook.weight"
    torch.testing.assert_close(two[codebook], one[codebook], rtol=0, atol=1e-6)
    logs = (metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


# ── all scales ────────────────────────────────────────────────────────────────────────────────


def test_gpus_are_dealt_out_to_scales():
    deal = script("chain")["deal"]
    assert deal([], 3) == [[]]
    assert deal(["4", "5"], 3) == [["4"], ["5"]]
    assert deal(list("01234567"), 3) == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert deal(["0"], 3) == [["0"]]


def test_gpus_are_called_as_the_parent_calls_them(monkeypatch):
    """A child numbers what it sees from 0, so the parent's numbers are no use to it."""
    gpus = script("chain")["gpus"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus(None) == ["0", "1"] and gpus(1) == ["0"] and gpus(0) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8932f937")
    assert gpus(None) == ["4", "GPU-8932f937"]
    for count in (3, -1):
        with pytest.raises(ValueError, match=rf"gpus must lie in \[0, 2\], .* got {count}"):
            gpus(count)


def test_a_joint_chain_is_one_run_on_all_gpus(tmp_path, monkeypatch, joint):
    started = []

    class Done:
        returncode = 0

        def __init__(self, command, env, **_):
            started.append((command, env["CUDA_VISIBLE_DEVICES"]))

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Done)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    chain = script("chain")
    assert chain["main"](chain["Config"](tokens=tmp_path, out=tmp_path, preset="tiny")) == 0
    ((command, gpus),) = started
    assert gpus == "4,5" and command[command.index("--nproc-per-node") + 1] == "2"
    assert "--t" not in command
    assert (tmp_path / "checkpoints" / "scale_joint" / "output.txt").exists()


def test_a_scale_that_was_killed_starts_again_alone(tmp_path, monkeypatch, capsys):
    """And one that fails after steps, three times; one that fails before its first step does not.
    The table shows loss, pace and MFU."""
    started = []

    class Process:
        def __init__(self, command, **_):
            t = command[command.index("--t") + 1]
            started.append(t)
            run = tmp_path / "checkpoints" / f"scale_{t}"
            if t == "2":
                rows = [dict(step=9, seconds=90.0, loss=1.5)]  # of an earlier process
                rows += [dict(step=s, seconds=2 * s, loss=1.5) for s in (10, 10 + len(started))]
                rows += [dict(step=10 + len(started), seconds=rows[-1]["seconds"], loss=1.5)]
                path = run / "metrics.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                machine = {"ranks": 1, "image_flops": 100, "peak_flops": 1000}
                (run / "run.json").write_text(json.dumps({"machine": machine}))
            self.returncode = {"2": [-9, 1, 1, 1], "3": [1]}[t][started.count(t) - 1]

        def poll(self):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    chain = script("chain")
    config = chain["Config"](tokens=tmp_path, out=tmp_path, preset="tiny", batch=4, gpus=0)
    assert chain["main"](config) == 2
    assert started == ["2", "2", "2", "2", "3"]
    said = capsys.readouterr().out
    assert said.replace("\n", "").count("it is started again") == 3
    assert "scale 2, steps 11 / 400, nats 1.500, images/s 2.0, MFU 20%, left 0:12:58" in said


def test_a_scale_that_fails_after_steps_is_started_again_however_far_it_was_before(tmp_path):
    """Killed at 980, it resumes at 500: its log is cut there, and begins to grow from there."""
    chain = script("chain")
    config = chain["Config"](tokens=tmp_path, out=tmp_path, preset="tiny")
    log = chain["output"](config, "2").with_name("metrics.jsonl")
    log.parent.mkdir(parents=True)

    def write(first: int, resumed: int = 500) -> None:
        """Up to step `first` of the first process, from 500 to `resumed` of the second."""
        rows = [dict(step=step, seconds=float(step)) for step in range(20, first + 1, 20)]
        rows += [dict(step=s, seconds=s - 499.5) for s in range(520, resumed + 1, 20)]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(980)
    failed = subprocess.CompletedProcess("scale.py", 1)
    scale = chain["Scale"]("2", [], failed, chain["reports"](config, "2"))
    # fails before the log is cut, before its first report, before step 980, after it
    for steps, learned in {(980, 500): 0, (500, 500): 0, (500, 900): 1, (500, 1000): 1}.items():
        write(*steps)
        assert chain["may_go_on"](config, scale) == learned


def test_a_chain_hands_on_what_a_scale_takes(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    chain = script("chain")
    given = dict(precision="bf16", learning_rate=0.5, seed=3, at_once=2, recompute=True)
    config = chain["Config"](tokens=tmp_path, out=tmp_path, override=True, **given)
    chain["start_scale"](config, "2", [])
    (command,) = started
    words = " ".join(command)
    for said in ("--precision bf16", "--learning-rate 0.5", "--seed 3", "--at-once 2"):
        assert said in words
    assert {"--recompute", "--override"} <= {*command} and "--compile" not in command


@pytest.mark.parametrize("given", [None, "500"])
def test_ranks_of_a_chain_have_time_to_save(tmp_path, monkeypatch, given):
    """Or as much as is given; torchrun kills after 30 seconds."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", given)
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda _, env, **__: started.append(env))
    chain = script("chain")
    chain["start_scale"](chain["Config"](tokens=tmp_path, out=tmp_path), "2", ["0", "1"])
    stages.started(stages.Stage("toy", ("-c", ""), {}, gpus=2), tmp_path / "toy.txt")
    for env in started:
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", env)
            assert LaunchConfig(1, 1, 2).shutdown_timeout == int(given or 110)
    assert len(started) == 2


@pytest.mark.slow
def test_a_chain_through_kills(chain, tmp_path):
    """A scale killed comes back alone and resumes; the chain killed leaves nothing running."""
    run = tmp_path / "checkpoints" / "scale_2"
    given = ("--preset", "tiny", "--batch", 4, "--steps", 10**6, "--gpus", 0)
    process = launch(
        ROOT / "train/chain.py", *given, "--tokens", chain / "tokens", "--out", tmp_path
    )

    def scale_that_learns(since: float = 0.0) -> int:
        """Its process, once it has made steps: the log that it found there is older."""
        deadline = time.monotonic() + 300
        while True:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int((run / ".lock").read_text())
                rows = metrics(run / "metrics.jsonl")
                written = (run / "metrics.jsonl").stat().st_mtime
                if written > since and rows[-1]["step"] >= 10:
                    return pid

    first = scale_that_learns()
    os.kill(first, signal.SIGKILL)
    second = scale_that_learns(since=time.time())
    assert second != first
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 120
    while True:
        try:
            os.kill(second, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert Checkpoints(run).latest()[0] >= 10  # it saved before it ended


def test_a_scale_that_was_given_a_gpu_does_not_take_the_cpu(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: started.append(command))
    chain = script("chain")
    config = chain["Config"](tokens=tmp_path, out=tmp_path)
    for share in ([], ["5"]):
        chain["start_scale"](config, "2", share)
    on_cpu, on_gpu = started
    assert on_gpu == [*on_cpu, "--device", "cuda"] and "--device" not in on_cpu


def test_a_chain_told_to_stop_stops_its_scales(chain, tmp_path):
    run = tmp_path / "checkpoints" / "scale_2"
    given = ("--preset", "tiny", "--batch", 4, "--steps", 10**6, "--gpus", 0)
    command = (*given, "--tokens", chain / "tokens", "--out", tmp_path)
    process = launch(ROOT / "train/chain.py", *command)
    log, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    scale = int((run / ".lock").read_text())
    try:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert Checkpoints(run).latest()[0] >= 1
        with pytest.raises(ProcessLookupError):
            os.kill(scale, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(scale, signal.SIGKILL)


def test_a_chain_is_its_scales_trained_alone(chain, tmp_path):
    given = ("--preset", "tiny", "--batch", 4, "--steps", 4, "--gpus", 0)
    command = (*given, "--tokens", chain / "tokens", "--out", tmp_path)
    process = launch(ROOT / "train/chain.py", *command)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    model = ImageBART.from_pretrained(tmp_path, device="cpu")
    alone = ImageBART.from_pretrained(chain / "model", device="cpu")
    for t in (2, 3):  # in bf16 here, fp32 there
        for a, b in zip(
            model.denoisers[t].parameters(), alone.denoisers[t].parameters(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


def test_a_scale_that_fails_is_named(tmp_path):
    command = ("--preset", "tiny", "--gpus", 0, "--tokens", tmp_path, "--out", tmp_path / "out")
    process = launch(ROOT / "train/chain.py", *command)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "scale 2 failed" in said and "scale 3 failed" in said
    output = (tmp_path / "out" / "checkpoints" / "scale_2" / "output.txt").read_text()
    assert output.startswith("error: ")


# ── wrong inputs ──────────────────────────────────────────────────────────────────────────────


def refusal(*arguments) -> str:
    """What a script says when it exits with code 1: one sentence."""
    with pytest.raises(SystemExit) as raised:
        train(*arguments)
    said = raised.value.code
    assert isinstance(said, str) and said.startswith("error: ") and "\n" not in said
    return said


@pytest.mark.parametrize("part", ["decoder", "known"])
def test_a_part_is_learned_of_a_trained_vqgan(tmp_path, part):
    said = refusal("compression", *SIZE, "--out", tmp_path, "--train", part)
    assert f"--train {part} needs a trained VQGAN, --init, got none" in said


def test_a_chart_is_of_folders_with_a_log(tmp_path):
    said = refusal("chart", "--runs", tmp_path, "--out", tmp_path / "a.png")
    assert f"{tmp_path}: must be a run's folder with a metrics.jsonl, got none" in said


def test_what_stops_a_measured_run_is_said(tmp_path):
    given = ("pace", "--tokens", tmp_path, "--preset", "tiny", "--device", "cpu")
    assert "rounds must be a whole number, at least 1, got 0" in refusal(*given, "--rounds", 0)
    assert str(tmp_path) in refusal(*given)
    pace = script("pace")
    with pytest.raises(ValueError, match=rf"train/scale\.py must succeed, it says: {tmp_path}.*"):
        pace["real_seconds"](pace["Config"](tmp_path, "tiny", 1, "cpu"))


@pytest.mark.parametrize("script", ["compression", "scale", "chain"])
def test_the_presets_are_listed(script, capsys):
    with pytest.raises(SystemExit) as ended:
        train(script, "--preset", "list")
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets.PRESETS)
    assert all(line.endswith(presets.PRESETS[line.split()[0]].about) for line in lines)


def test_wrong_inputs_give_one_sentence(chain, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out, tokens = ("--out", tmp_path / "out"), ("--tokens", chain / "tokens")
    for said, arguments in {
        "preset must be one of": ("compression", "--preset", "huge", *out),
        "preset must be one of tiny,": ("scale", "--preset", "huge", "--t", 2, *tokens, *out),
        "empty": ("compression", *SIZE, "--data", empty, *out),
        "must hold finished tokens": ("scale", *SIZE, "--t", 2, "--tokens", empty, *out),
        "train: must hold tokens of a grid of (16, 16), got (8, 8)": (
            *("scale", "--preset", "scenery"),
            *(*tokens, *out),
        ),
        "t must lie in [2, 3], got 4": ("scale", *SIZE, "--t", 4, *tokens, *out),
        "t must lie in [2, 3], got 1": ("scale", *SIZE, "--t", 1, *tokens, *out),
        "precision must be fp32 or bf16": (
            *("scale", *SIZE, "--t", 2, "--precision", "fp8"),
            *(*tokens, *out),
        ),
        "config.json: must be a file": ("encode", "--vqgan", empty, *out),
        "must hold no finished token file": (
            *("encode", "--vqgan", chain / "vqgan", "--count", 8, "--validation", 8),
            *("--workers", 0, "--out", chain / "tokens"),
        ),
        "device must be": ("compression", *SIZE, "--device", "quantum", *out),
    }.items():
        assert said in refusal(*arguments)


def test_a_second_run_in_the_same_folder_is_refused(chain, tmp_path):
    run = tmp_path / "checkpoints" / "scale_2"
    with run_lock(run):
        tokens = ("--tokens", chain / "tokens", "--out", tmp_path)
        process = launch(ROOT / "train/scale.py", *SIZE, "--t", 2, *tokens)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert said.startswith("error: ") and said.count("\n") == 1
    assert f"one run at a time must use a folder, got a second one while process {os.getpid()}" in (
        said
    )


# ── the whole of it ───────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_tiny_preset_goes_from_nothing_to_pictures(tmp_path, capfd):
    """The commands of the README as processes, every step of them: some five minutes on two
    cores. Scales must know more than the frequencies of tokens, reconstructions show the scene."""
    began = time.monotonic()
    vqgan, tokens, model = (tmp_path / name for name in ("vqgan", "tokens", "model"))
    tiny = ("--preset", "tiny")
    commands = [
        ("train/compression.py", *tiny, "--out", vqgan),
        ("train/encode.py", "--vqgan", vqgan, "--count", 4000, "--out", tokens),
        *(("train/scale.py", *tiny, "--t", t, "--tokens", tokens, "--out", model) for t in (2, 3)),
    ]
    for script, *arguments in commands:
        process = launch(ROOT / script, *arguments)
        _, said = process.communicate(timeout=1800)
        assert process.returncode == 0, said
    images = ImageBART.from_pretrained(model, device="cpu").sample(16, seed=0)
    with capfd.disabled():
        print(f"\nfrom an empty folder to {len(images)} pictures: {time.monotonic() - began:.0f} s")

    psnr = [row["psnr"] for row in metrics(vqgan / "metrics.jsonl") if "psnr" in row]
    assert psnr[-1] > 16
    counts = torch.bincount(TokenFile(tokens / "train").batch(range(4000)).flatten()).double()
    p = counts[counts > 0] / counts.sum()
    log = metrics(model / "checkpoints" / "scale_2" / "metrics.jsonl")
    held_out = [row["held_out"] for row in log if "held_out" in row]
    assert held_out[-1] < -(p * p.log()).sum()
    digest = {hashlib.sha256(image.tobytes()).hexdigest() for image in images}
    assert len(digest) == 16
