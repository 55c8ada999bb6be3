"""What a step takes is known before it is run, from fake tensors."""

import pytest
import torch
from memory import GIB, Cost, cost_of
from test_train import train

from imagebart import presets
from imagebart.diffusion import MultinomialDiffusion

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
    # 6 operations a weight and token, and attention's, which are few of so few tokens
    tokens = tiny.between.grid[0] * tiny.between.grid[1]
    assert 0.9 < plain.image_flops / (6 * plain.parameters * tokens) < 1.5

    train("plan", "--preset", "tiny", "--gpus", 64)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny, t = 2, 0 M parameters, ")
    assert "64 GPUs: 1 images × 1 passes" in last


def test_as_many_images_as_fit_in_equal_parts():
    cost = Cost(1, state_bytes=10 * GIB, fixed_bytes=GIB, image_bytes=2 * GIB, image_flops=1)
    assert cost.bytes(3) == 17 * GIB
    assert cost.fitting(32, 100 * GIB) == 32
    assert cost.fitting(32, 40 * GIB) == 11  # 33 of 34 GiB: three passes of 11, 11 and 10
    assert cost.fitting(5, 40 * GIB) == 5
    with pytest.raises(ValueError, match=r"a GPU must have 15\.3 GiB for this network, got 14\.0"):
        cost.fitting(32, 14 * GIB)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_every_preset_of_the_paper_fits_a_gpu_of_80_gib(name, capsys):
    train("plan", "--preset", name)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all("passes, about" in line for line in lines)
