"""eval/speed.py: what it times is what it says."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagebart import sampling

EVAL = Path(__file__).parents[1] / "eval"
sys.path.insert(0, str(EVAL))

import passes  # noqa: E402
import speed  # noqa: E402


@pytest.fixture(scope="module")
def report(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(folder)
    return speed.main(speed.Config(folder, batches=(1, 2), repeats=2, device="cpu"))


def test_sequential_takes_a_pass_a_token_and_parallel_fewer(report):
    for rows in report["chain"].values():
        assert rows["sequential"]["passes"] == 3 * 16
        assert 3 <= rows["parallel"]["passes"] < 3 * 16
    assert sum(rows["sequential"]["passes"] for rows in report["scales"].values()) == 3 * 16
    assert json.loads(json.dumps(report))["tokens"] == 16


def test_every_rival_is_in_the_table(report):
    text = speed.table(report)
    for name in ("sequential", "parallel", "naive", "BART", "edit of a tenth", "VQGAN decoder"):
        assert name in text
    for rows in report["scales"].values():
        assert rows["naive"]["median_s"] > 0 and rows["bart"]["median_s"] > 0
        assert rows["roofline"]["bandwidth"] > 0 and 0 < rows["roofline"]["peak"] < 1


def test_the_naive_decoder_computes_what_ours_does(make_denoiser):
    """Its last logits, timed with x_t for a prefix, are the teacher-forced ones."""
    denoiser, seen = make_denoiser(2, T=3), []
    denoiser.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x_t = torch.randint(12, (1, 16), generator=torch.Generator().manual_seed(0))
    speed.naive_seconds(denoiser, x_t, None, 1)
    denoiser(x_t, x_t)
    places = [int((i + 0.5) / speed.PREFIXES * 16) for i in range(speed.PREFIXES)]
    for hidden, place in zip(seen[:-1:2], places, strict=True):
        torch.testing.assert_close(hidden[0], seen[-1][0, place], rtol=0, atol=2e-5)


def test_a_time_is_the_median_without_the_first_call():
    pauses = iter([0.2, 0.01, 0.03, 0.02])
    row = speed.timed(lambda: time.sleep(next(pauses)), 3, torch.device("cpu"), 4)
    assert 0.02 <= row["median_s"] < 0.03 <= row["p95_s"] + 0.002 < 0.1
    assert row["images_per_s"] == pytest.approx(4 / row["median_s"])


def test_a_tenth_is_about_a_tenth(tiny):
    assert speed.tenth(tiny, 0).shape == (1, 4, 4) and 1 <= speed.tenth(tiny, 0).sum() <= 2


def test_a_shape_has_the_sizes_of_its_preset():
    model = speed.random_model("tiny")
    assert model.K == 64 and model.T == 3 and model.grid == (8, 8)


def test_passes_are_those_of_the_window(make_model, tmp_path):
    """A window of one position takes a pass a token, wider ones fewer; the choice is given back."""
    model = make_model(T=3)
    model.save_pretrained(tmp_path / "model")
    config = passes.Config(
        model=(str(tmp_path / "model"),), windows=(1, 4, 16), n=2, picture=tmp_path / "passes.png"
    )
    rows = passes.main(config)["rows"]
    assert [(row["window"], row["t"]) for row in rows] == [
        (w, t) for w in (1, 4, 16) for t in (3, 2)
    ]
    for row in rows:
        assert row["beta"] == pytest.approx({3: 1.0, 2: 0.5}[row["t"]]) and row["tokens"] == 16
        assert 16 / row["window"] <= row["passes"] <= 16
    assert all(row["passes"] < 16 for row in rows if row["window"] == 16)
    assert sampling.window(model.device, 1) == sampling.WINDOW["cpu"]
    given = {"model": config.model, "windows": (8,), "n": 4}
    both = passes.main(passes.Config(**given, guess=("x_t", "belief")))["rows"]
    assert [row["guess"] for row in both] == ["x_t", "x_t", "belief", "belief"]
    assert both[0]["passes"] != both[2]["passes"]
    assert Image.open(tmp_path / "passes.png").width > 300
