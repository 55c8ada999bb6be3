"""A new kind of condition is a row of the table, its functions and a data set: a depth map."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from imagebart import ImageBART, presets
from imagebart.checkpoint import Checkpoints
from imagebart.conditions import (
    ABSENT,
    CONDITIONS,
    ConditionKind,
    ConditionShape,
    PlacedVectors,
    drop,
)
from imagebart.data import sources
from imagebart.data.tokens import TokenFile
from imagebart.folders import save_vqgan
from imagebart.guidance import encode_condition
from imagebart.sampling import Filter, decode_parallel, gumbel, uniform_tokens

ROOT = Path(__file__).parents[1]
LEVELS = 4


# ── all that a depth map needs ────────────────────────────────────────────────────────────────


def levels(depth: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Tokens (h, w) of a depth map (H, W) in [0, 1): the level of each place's mean."""
    (H, W), (h, w) = depth.shape, grid
    mean = np.asarray(depth).reshape(h, H // h, w, W // w).mean((1, 3))
    return (mean * LEVELS).astype(np.int64)


def tokenise_depth(maps, grid: tuple[int, int]) -> np.ndarray:
    return np.stack([levels(np.asarray(one), grid).reshape(-1) for one in maps])


def encode_depth(model, values, option: str) -> torch.Tensor:
    nothing = np.full(model.grid, ABSENT)
    rows = [nothing if one is None else levels(one, model.grid) for one in values]
    return torch.from_numpy(np.stack(rows).reshape(len(rows), -1))


DEPTH = ConditionKind(
    option="depth",
    value=np.ndarray,
    encode=encode_depth,
    tokenise=tokenise_depth,
    stored=np.int16,
    spatial=True,
    embed=PlacedVectors,
    weights="depth",
)


class Ramps(Dataset):
    """Pictures (3, 32, 32) of one grey, and as their depth maps ramps (32, 32)."""

    def __init__(self):
        self.names = {}

    def __len__(self) -> int:
        return 8

    def digest(self) -> str:
        return "of the ramps"

    def __getitem__(self, i: int) -> dict:
        if i >= len(self):
            raise IndexError(i)
        return {"image": torch.full((3, 32, 32), i / 4 - 1), "depth": ramp(i)}


def ramp(i: int) -> np.ndarray:
    """Falling from left to right, or rising; a little nearer for every second one."""
    row = np.linspace(0, 0.7, 32) + 0.2 * (i // 2 % 2)
    return np.tile(row[::-1] if i % 2 else row, (32, 1))


# ── from the data to a sample ─────────────────────────────────────────────────────────────────


def run(script: str, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / "train" / f"{script}.py"), run_name="__main__")


@pytest.fixture
def depth(monkeypatch):
    monkeypatch.setitem(CONDITIONS, "depth", DEPTH)


@pytest.mark.usefixtures("depth")
def test_a_registered_condition_is_encoded_trained_dropped_and_sampled_with(
    make_vqgan, tmp_path, monkeypatch
):
    save_vqgan(make_vqgan(), tmp_path / "vqgan")
    monkeypatch.setattr(sources, "open_data", lambda *_, **__: Ramps())
    encoded = ("--vqgan", tmp_path / "vqgan", "--out", tmp_path / "tokens", "--no-shrink")
    run("encode", monkeypatch, *encoded, "--workers", 0, "--precision", "fp32")
    tokens = TokenFile(tmp_path / "tokens" / "train")
    assert tokens.conditions.keys() == {"depth"}
    first = tokens.conditions["depth"][0].reshape(4, 4)
    assert first.tolist() == [[0, 1, 1, 2]] * 4

    small = dict(grid=(4, 4), width=16, heads=2, head_width=8, encoder_depth=1, decoder_depth=1)
    takes = dict(conditions={"depth": ConditionShape(LEVELS, 16)}, condition_dropout=True)
    last = presets.DenoiserConfig(**small, **takes)
    tiny = presets.PRESETS["tiny"]
    recipe = replace(tiny.scale, condition_dropout={"depth": 0.5})
    row = replace(tiny, alpha_bar=(1.0, 0.0), between=last, last=last, scale=recipe)
    monkeypatch.setitem(presets.PRESETS, "tiny", row)
    given = ("--preset", "tiny", "--t", 2, "--tokens", tmp_path / "tokens", "--out", tmp_path / "m")
    run("scale", monkeypatch, *given, "--steps", 1, "--batch", 4, "--precision", "fp32")
    _, state = Checkpoints(tmp_path / "m" / "checkpoints" / "scale_2").latest()
    moments = state["optimiser"]["state"].values()
    assert {"prefix.depth.tokens.weight", "prefix.depth.positions"} <= state["denoiser"].keys()
    assert all(moment["exp_avg"].abs().sum() > 0 for moment in moments)  # every tensor learns

    model = ImageBART.from_pretrained(tmp_path / "m", device="cpu")
    assert model.conditions == takes["conditions"]
    generator = torch.Generator().manual_seed(0)
    for weights in model.denoisers[2].parameters():  # large, so that every input shows
        weights.copy_(torch.randn(weights.shape, generator=generator))

    x_T, noise = uniform_tokens([0, 1], 2, 16, model.K), gumbel([0, 1], 2, 16, model.K)

    def drawn(**given) -> torch.Tensor:
        encoded = encode_condition(model, 2, **given)
        guided = encoded.steered(model.denoisers[2])[0]
        return decode_parallel(guided, x_T, noise, Filter(), encoded.condition)

    near, far = ramp(0), ramp(1)
    assert not torch.equal(drawn(depth=near), drawn(depth=far))
    assert not torch.equal(drawn(depth=near), drawn())
    assert torch.equal(drawn(depth=near, guidance=0.0), drawn())
    assert not torch.equal(drawn(depth=near, guidance=4.0), drawn(depth=near))
    with pytest.raises(ValueError, match="depth must be a NumPy array H×W: one, or 2 of them"):
        drawn(depth=[near])


@pytest.mark.usefixtures("depth")
def test_a_registered_spatial_condition_is_dropped_whole_or_in_a_box():
    shapes = {"depth": ConditionShape(LEVELS, 16)}
    rows = torch.zeros(400, 16, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    gone = (drop(rows, shapes, {"depth": 0.5}, (4, 4), generator) == ABSENT).float().mean(1)
    assert (gone == 1).sum() > 50 and (gone == 0).sum() > 150 and ((gone > 0) & (gone < 1)).any()
