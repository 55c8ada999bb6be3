"""eval/ablation.py: one field at a time, compared seed by seed."""

import json
from dataclasses import fields, replace

import ablation
import numpy as np
import pytest
import split
import torch
import trend

from imagebart.checkpoint import save_tensors, write_json
from imagebart.data.tokens import TokenWriter
from imagebart.diffusion import MultinomialDiffusion
from imagebart.presets import find_preset


def test_each_row_changes_what_it_says():
    """In the scale that is trained or in its recipe; all else is that of the plain row."""
    first, *others = ablation.ROWS["fields"]
    plain = find_preset(first)
    for name in others:
        changed = find_preset(name)
        pairs = ((changed.between, plain.between), (changed.scale, plain.scale))
        names = {
            field.name
            for one, other in pairs
            for field in fields(one)
            if getattr(one, field.name) != getattr(other, field.name)
        }
        assert (
            names
            == {
                "mini-5-place-vectors": {"axial_positions"},
                "mini-5-rotary": {"rotary"},
                "mini-5-qk-norm": {"qk_norm"},
                "mini-5-rotary-qk-norm": {"rotary", "qk_norm"},
                "mini-5-muon": {"muon"},
                "mini-5-residual-output": {"output"},
                "mini-5-plain-output": {"output"},
            }[name]
        )
        assert (changed.vqgan, changed.alpha_bar, changed.last, changed.compression) == (
            *(plain.vqgan, plain.alpha_bar, plain.last, plain.compression),
        )
        assert changed.T > ablation.ABLATED_T  # so the scale has an encoder


def test_layers_are_moved_at_equal_parameters():
    """From the encoder to the decoder, and nothing else changes."""
    presets = [find_preset(name) for name in ablation.ROWS["layers"]]
    shapes = [preset.between for preset in presets]
    plain = replace(shapes[0], encoder_depth=0, decoder_depth=1)
    assert all(replace(one, encoder_depth=0, decoder_depth=1) == plain for one in shapes)
    diffusion = MultinomialDiffusion(presets[0].alpha_bar, presets[0].K)
    sizes = [split.parameters(one, diffusion) for one in shapes]
    assert max(sizes) <= 1.06 * min(sizes)
    depths = [one.decoder_depth for one in shapes]
    assert depths == sorted({*depths}) and depths[0] == 1
    same = [replace(preset, about="", between=plain) for preset in presets]
    assert all(one == same[0] for one in same)


def test_differences_are_taken_seed_by_seed(tmp_path, monkeypatch):
    """Rotary positions gain 0.1 nats, whatever the seed adds."""
    called = []

    def script(name, *options):
        called.append(" ".join(map(str, [name, *options])))
        if name != "train/scale.py":
            return
        given = dict(zip(options[::2], options[1::2], strict=True))
        out = given["--out"]
        rotary = given["--preset"] == "mini-5-rotary"
        nats = 2 + given["--seed"] - 0.1 * rotary
        last = {"step": given["--steps"]}
        rows = [{"step": 1, "held_out": 9.0}, last | {"loss": 5.0}, last | {"held_out": nats}]
        log = out / "checkpoints" / "scale_3" / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text("\n".join(map(json.dumps, rows)) + "\n")
        log.with_name(f"step_{given['--steps']}.pt").touch()
        save_tensors({"a": torch.zeros(1)}, out / "scale_3.safetensors")
        write_json({}, out / "config.json")

    monkeypatch.setattr(trend, "script", script)
    with TokenWriter(tmp_path / "tokens" / "validation", 7, (2, 3), 9) as writer:
        writer.append(torch.zeros(7, 2, 3, dtype=torch.int64))
    config = ablation.Config(runs=tmp_path, steps=90, device="cpu")
    report = ablation.main(config)
    trained = [line for line in called if line.startswith("train/scale.py")]
    assert len(trained) == 8 * 3
    assert trained[0].startswith("train/scale.py --preset mini-5 --seed 0 --tokens")
    assert trained[0].endswith("--steps 90 --t 3")
    rows = {row["preset"]: row for row in report["rows"]}
    assert rows["mini-5"]["seeds"] == [2, 3, 4] and rows["mini-5"]["nats"]["value"] == 3
    half = 4.302653 / 3**0.5  # Student's t, two degrees of freedom
    assert rows["mini-5"]["nats"]["interval"] == pytest.approx([3 - half, 3 + half])
    gained = rows["mini-5-rotary"]["against"]
    assert gained["value"] == pytest.approx(-0.1) and gained["distinct"]
    assert np.ptp(gained["interval"]) < 1e-9
    assert not rows["mini-5-muon"]["against"]["distinct"]
    assert report["n"] == 7 and len(report["models"]) == 24
    assert "mini-5-rotary: 2.900 nats" in ablation.summary(report)
    assert "-0.100 from mini-5" in ablation.summary(report)


def test_one_seed_is_no_comparison(tmp_path):
    with pytest.raises(ValueError, match=r"^seeds must be two at least, got \(0,\)$"):
        ablation.main(ablation.Config(runs=tmp_path, seeds=(0,)))
