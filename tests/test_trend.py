"""eval/trend.py: the rows of table 3 are at equal parameters, and are compared over seeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trend

from imagebart.checkpoint import save_tensors, write_json
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.presets import PRESETS, find_preset


def test_chains_of_all_lengths_have_equal_parameters_and_steps():
    totals, steps = [], set()
    for T in trend.Config().T:
        preset = PRESETS[f"mini-{T}"]
        diffusion = MultinomialDiffusion(preset.alpha_bar, preset.K)
        with torch.device("meta"):
            scales = [Denoiser(preset.denoiser(t), diffusion, t) for t in range(2, T + 1)]
        totals.append(sum(p.numel() for scale in scales for p in scale.parameters()))
        steps.add((preset.scale.steps, preset.scale.batch, preset.vqgan, preset.compression))
        assert preset.T == T
    assert max(totals) < 1.05 * min(totals) and len(steps) == 1


def made(model: Path, *options) -> None:
    """The checkpoint of a scale that was trained to its end."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    folder = model / "checkpoints" / f"scale_{given.get('--t', 'joint')}"
    folder.mkdir(parents=True)
    (folder / f"step_{given['--steps']}.pt").touch()


@pytest.fixture
def scripts(monkeypatch) -> list[str]:
    """Scripts that are not run: a chain's figures follow from its T and its training seed."""
    called = []

    def script(name, *options):
        called.append(" ".join(map(str, [name, *options])))
        out = options[options.index("--out") + 1]
        if name == "train/scale.py":
            save_tensors({"a": torch.zeros(1)}, out / "scale_2.safetensors")
            write_json({}, out / "config.json")
            made(out, *options)
        if name.startswith("eval/"):
            chain, seed = out.parent.name.split("-seed")
            value = 20 - find_preset(chain).T + 0.1 * int(seed) + 5 * chain.endswith("joint")
            measured = {"value": value, "interval": [0.0, 0.0]}
            rows = [{"probe_fid": value + k, "found": {"time": 0.5}} for k in (1, 0, 2)]
            metrics = {"probe-fid": measured, "probe-is": measured}
            write_json({"metrics": metrics, "rows": rows, "data": "digest"}, out)

    monkeypatch.setattr(trend, "script", script)
    return called


def test_every_length_is_trained_by_several_seeds_and_compared_with_t_2(scripts, tmp_path):
    report = trend.main(trend.Config(runs=tmp_path, T=(2, 3), seeds=(0, 1, 2), device="cpu"))
    trained = [line for line in scripts if line.startswith("train/scale.py")]
    assert len(trained) == 3 * 1 + 3 * 2
    assert trained[-1].startswith(f"train/scale.py --preset mini-3 --seed 2 --tokens {tmp_path}/")
    assert trained[-1].endswith("mini-3-seed2 --steps 1500 --t 3")
    plain, longer = report["rows"]
    assert plain["probe_fid"]["value"] == pytest.approx(18.1)
    half = 4.302653 * np.std([18, 18.1, 18.2], ddof=1) / 3**0.5  # Student's t, two degrees
    assert plain["probe_fid"]["interval"] == pytest.approx([18.1 - half, 18.1 + half])
    apart = longer["against"]
    assert apart["preset"] == "mini-2" and "against" not in plain
    assert apart["probe_fid"]["value"] == pytest.approx(-1) and apart["probe_fid"]["distinct"]
    assert not apart["completion_time"]["distinct"]
    assert longer["resampled_fid"]["value"] == pytest.approx(longer["completion_fid"]["value"] - 1)
    assert len(report["models"]) == 6 and report["data"] == "digest"
    assert "mini-3: probe-FID 17.1" in trend.summary(report)
    with pytest.raises(ValueError, match="seeds must be two at least, T have 2"):
        trend.main(trend.Config(runs=tmp_path, seeds=(0,)))


def test_a_joint_network_is_trained_as_long_as_all_scales_and_compared_with_them(scripts, tmp_path):
    options = dict(T=(2, 5), seeds=(0, 1), steps=3, device="cpu")
    *_, joint = trend.main(trend.Config(runs=tmp_path, **options))["rows"]
    assert scripts[-3].startswith("train/scale.py --preset mini-5-joint --seed 1 --tokens")
    assert scripts[-3].endswith("--steps 12") and "--t " not in scripts[-3]
    assert joint["preset"] == "mini-5-joint" and joint["against"]["preset"] == "mini-5"
    assert joint["against"]["probe_fid"]["value"] == pytest.approx(5)


def test_a_chain_that_was_stopped_is_not_measured(tmp_path, monkeypatch):
    """A script that is told to stop saves, and has not failed."""
    monkeypatch.setattr(trend, "script", lambda *_: None)
    with pytest.raises(ValueError, match="scale_2 must have made 7 steps, got None: the same comm"):
        trend.main(trend.Config(runs=tmp_path, steps=7, device="cpu"))


def test_chains_at_a_time_change_no_figure(scripts, tmp_path):
    options = dict(T=(2, 3), seeds=(0, 1, 2), device="cpu")
    rows = [
        trend.main(trend.Config(runs=tmp_path / str(workers), **options, workers=workers))["rows"]
        for workers in (1, 3)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 2


def test_joint_and_independent_scales_are_trained_by_equal_compute():
    apart, joint = PRESETS["mini-5"], PRESETS["mini-5-joint"]
    assert joint.joint and joint.scale.steps == 4 * apart.scale.steps
    assert replace(joint.between, joint=False) == apart.between == apart.denoiser(3)
    assert joint.vqgan == apart.vqgan and joint.alpha_bar == apart.alpha_bar
    diffusion = MultinomialDiffusion(apart.alpha_bar, apart.K)
    with torch.device("meta"):
        scales = [Denoiser(apart.denoiser(t), diffusion, t) for t in range(2, 6)]
        one = Denoiser(joint.last, diffusion, 5)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (*scales, one)]
    assert sizes[-1] == pytest.approx(sum(sizes[:-1]) / 4, rel=0.1)


@pytest.mark.slow
def test_two_chains_of_a_few_steps_are_measured(tmp_path):
    small = dict(T=(2,), seeds=(0, 1), n=20, steps=2, images=40)
    report = trend.main(trend.Config(runs=tmp_path / "runs", **small, device="cpu"))
    (row,) = report["rows"]
    assert row["probe_fid"]["interval"][0] <= row["probe_fid"]["value"]
    assert [*report["models"]] == [str(tmp_path / "runs" / f"mini-2-seed{seed}") for seed in (0, 1)]
