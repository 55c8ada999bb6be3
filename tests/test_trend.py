"""eval/trend.py: the rows of table 3 are at equal parameters, and are compared over seeds."""

import numpy as np
import pytest
import torch
import trend

from imagebart.checkpoint import save_tensors, write_json
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.presets import PRESETS


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
        if name.startswith("eval/"):
            T, seed = (int(one) for one in out.parent.name[1:].split("-seed"))
            value = 20 - T + 0.1 * seed
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
    assert f"--preset mini-3 --seed 2 --t 3 --tokens {tmp_path}/tokens" in trained[-1]
    plain, longer = report["rows"]
    assert plain["probe_fid"]["value"] == pytest.approx(18.1)
    half = 4.302653 * np.std([18, 18.1, 18.2], ddof=1) / 3**0.5  # Student's t, two degrees
    assert plain["probe_fid"]["interval"] == pytest.approx([18.1 - half, 18.1 + half])
    apart = longer["against_2"]["probe_fid"]
    assert apart["value"] == pytest.approx(-1) and apart["distinct"]
    assert not longer["against_2"]["completion_time"]["distinct"]
    assert longer["resampled_fid"]["value"] == pytest.approx(longer["completion_fid"]["value"] - 1)
    assert len(report["models"]) == 6 and report["data"] == "digest"
    assert "T = 3: probe-FID 17.1" in trend.summary(report)
    with pytest.raises(ValueError, match="seeds must be two at least, T have 2"):
        trend.main(trend.Config(runs=tmp_path, seeds=(0,)))


@pytest.mark.slow
def test_two_chains_of_a_few_steps_are_measured(tmp_path):
    small = dict(T=(2,), seeds=(0, 1), n=20, steps=2, images=40)
    report = trend.main(trend.Config(runs=tmp_path / "runs", **small, device="cpu"))
    (row,) = report["rows"]
    assert row["probe_fid"]["interval"][0] <= row["probe_fid"]["value"]
    assert [*report["models"]] == [str(tmp_path / "runs" / f"T2-seed{seed}") for seed in (0, 1)]
