"""What a step takes is known before it is run, from fake tensors."""

import re
from dataclasses import replace

import pytest
import torch
from memory import CHAIN_ADVICE, GIB, Cost, cost_of, cost_of_compression, peak_flops
from saving import Skips
from test_train import refusal, script, train
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from training import machine_of

from imagebart import distributed, linear, presets
from imagebart.checkpoint import EMA
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import Ranks, part_of, share, split
from imagebart.vqgan import VQGAN

PAPER = [name for name, row in presets.PRESETS.items() if row.vqgan.image_size == 256]


def test_more_images_take_more_and_recomputed_ones_less(capsys):
    tiny = presets.PRESETS["tiny"]
    diffusion = MultinomialDiffusion(tiny.alpha_bar, tiny.K)
    before = torch.random.get_rng_state()
    plain = cost_of(tiny.between, diffusion, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    less, more = (
        cost_of(tiny.between, diffusion, 2, recompute=True),
        cost_of(tiny.between, diffusion, 2, precision="fp32", ranks=2),
    )
    assert less.image_bytes < plain.image_bytes / 2 and less.image_flops == plain.image_flops
    assert plain.image_bytes < more.image_bytes and plain.state_bytes < more.state_bytes
    eight, cut = (cost_of(tiny.between, diffusion, 2, ranks=8, in_shards=x) for x in (False, True))
    assert cut.image_bytes == eight.image_bytes and cut.state_bytes > plain.state_bytes / 8
    assert cut.state_bytes < eight.state_bytes / 2
    # 6 operations a weight and token, and attention's, which are few of so few tokens
    tokens = tiny.between.grid[0] * tiny.between.grid[1]
    assert 0.9 < plain.image_flops / (6 * plain.parameters * tokens) < 1.5

    train("plan", "--preset", "tiny", "--gpus", 64)
    vqgan, first, last = capsys.readouterr().out.splitlines()
    assert vqgan.startswith("tiny, VQGAN, 0 M parameters, ")
    assert first.startswith("tiny, t = 2, 0 M parameters, ")
    assert "64 GPUs: 1 images × 1 passes" in last


def test_a_vqgan_and_its_judge_take_more_for_more_images():
    """Of every perceptual network, without its weights on disk."""
    tiny = presets.PRESETS["tiny"]
    numbers = sum(p.numel() for p in VQGAN(tiny.vqgan).parameters())
    costs = {
        name: cost_of_compression(tiny.vqgan, replace(tiny.compression, perceptual=name))
        for name in ("random", "imagenet", "lpips")
    }
    for one in costs.values():
        assert one.parameters == numbers and one.state_bytes > 4 * 5 * numbers
        pixels = 64 * 64 * 3
        assert one.image_bytes > 4 * pixels and one.image_flops > pixels
    assert costs["random"].bytes(8) < costs["imagenet"].bytes(8) < costs["lpips"].bytes(8)
    full = replace(tiny.compression, precision="fp32")
    assert cost_of_compression(tiny.vqgan, full, 2).bytes(8) > costs["random"].bytes(8)


def test_as_many_images_as_fit_in_equal_parts():
    cost = Cost(1, state_bytes=10 * GIB, fixed_bytes=GIB, image_bytes=2 * GIB, image_flops=1)
    assert cost.bytes(3) == 17 * GIB
    assert cost.fitting(32, 100 * GIB, CHAIN_ADVICE) == 32
    assert cost.fitting(32, 40 * GIB, CHAIN_ADVICE) == 11  # 33 of 34 GiB: passes of 11, 11 and 10
    assert cost.fitting(5, 40 * GIB, CHAIN_ADVICE) == 5
    says = r"a GPU must have 15\.3 GiB for this network, got 14\.0: buy another$"
    with pytest.raises(ValueError, match=says):
        cost.fitting(32, 14 * GIB, "buy another")


def test_advice_names_options_that_the_stage_has(capsys):
    train("plan", "--preset", "tiny", "--gpus", 1, "--memory", 0)
    vqgan, *chain = capsys.readouterr().out.splitlines()
    options = {"compression": [vqgan], "scale": chain}
    for name, said in options.items():
        fields = script(name)["Config"].__dataclass_fields__
        for line in said:
            named = re.findall(r"--(\w+)", line)
            assert "precision" in named and set(named) <= set(fields)
    assert all("--recompute" in line for line in chain)


def test_a_plan_is_for_a_gpu_at_least():
    said = refusal("plan", "--preset", "tiny", "--gpus", 1, 0)
    assert "--gpus must be a whole number, at least 1, got 0" in said


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA L400", None),
    ],
)
def test_a_gpu_is_known_by_whole_words(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_starts_on_any_number_of_gpus(name, gpus):
    """Its batch is the same: each image once, in parts of any size, all of one weight."""
    preset = presets.PRESETS[name]
    ranks = [Ranks(rank, gpus, torch.device("cpu")) for rank in range(gpus)]
    batch = preset.scale.batch
    for at_once in (1, 3, batch):
        pieces = [[*split(part_of(batch, rank), at_once)] for rank in ranks]
        assert [i for of_rank in pieces for piece in of_rank for i in piece] == [*range(batch)]
        # as scale.py weighs the mean of a piece, of which DDP takes the mean over ranks
        weights = [len(piece) * gpus / batch / gpus for of_rank in pieces for piece in of_rank]
        assert sum(weights) == pytest.approx(1)
    shares = [share(preset.compression.batch, rank) for rank in ranks]
    rows = [i for one in shares for i in range(one.start, one.stop)]
    assert rows == [*range(preset.compression.batch)]


def fake_step(preset: presets.Preset, t: int, images: int, precision: str, look: bool) -> None:
    """What train/scale.py does in a step with so many images at once, on shapes alone."""
    learn, optimisers_of = (script("scale")[name] for name in ("learn", "optimisers_of"))
    diffusion = MultinomialDiffusion(preset.alpha_bar, preset.K)
    shape = replace(preset.denoiser(t), output="plain")
    with torch.random.fork_rng(), FakeTensorMode(allow_non_fake_inputs=True):
        denoiser = Denoiser(shape, diffusion, t)
        denoiser._checked = lambda condition: condition
        ema, optimisers = EMA(denoiser), optimisers_of(denoiser, preset.scale, precision)
        x = torch.zeros(images, denoiser.n, dtype=torch.int64)
        length = sum(one.length for one in shape.conditions.values())
        condition = torch.zeros(images, length, dtype=torch.int64) if length else None
        with distributed.autocast(x.device, precision):
            loss = denoiser.loss(x, x, x, condition).mean()
        loss.backward()
        norm = learn(denoiser, optimisers, ema, preset.scale.clip, Skips(x.device))
        assert norm.shape == () and all(p.grad is not None for p in denoiser.parameters())
        if look:
            norm.item()


@pytest.mark.parametrize("name", ["tiny", "scenery"])
def test_a_step_waits_for_no_number(name):
    """With AdamW alone, and with Muon: numbers of fake tensors cannot be looked at."""
    preset = presets.PRESETS[name]
    for t in (2, preset.T):
        fake_step(preset, t, 2, "bf16", look=False)
    with pytest.raises(DataDependentOutputException):
        fake_step(preset, 2, 2, "bf16", look=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_every_preset_of_the_paper_takes_a_step(name, capsys):
    """On 1 and on 8 GPUs of 80 GiB its memory is printed; as many images as fit take a step of
    fake tensors."""
    preset = presets.PRESETS[name]
    train("plan", "--preset", name)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("passes, about" in line for line in lines)
    for line in (line for line in lines if "VQGAN" not in line):
        t, images = (int(re.search(x, line)[1]) for x in (r"t = (\d+)", r"(\d+) images"))
        fake_step(preset, t, images, preset.scale.precision, look=False)


@pytest.mark.parametrize("has, used", [({torch.bfloat16}, "bf16"), (set(), "fp32")])
def test_a_run_says_and_records_what_it_computes_in(monkeypatch, capsys, has, used):
    monkeypatch.setattr(linear, "PRECISIONS", has)
    machine = machine_of(Ranks(0, 1, torch.device("cpu")), "bf16", 3)
    assert machine == {"ranks": 1, "device": "cpu", "images_at_once": 3, "precision": used}
    assert ("has no products in bfloat16" in capsys.readouterr().err) == (used == "fp32")
