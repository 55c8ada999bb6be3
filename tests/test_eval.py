"""eval/likelihood.py, eval/reconstruction.py, eval/pictures.py: what they report is so."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from imagebart import scenery
from imagebart.sources import open_data

ROOT = Path(__file__).parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"eval_{name}", ROOT / "eval" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def likelihood(folder):
    module = script("likelihood")
    config = module.Config(model=folder, baseline=folder, n=6, n_frequency=6, batch=4, device="cpu")
    return module, module.main(config)


def test_the_bound_is_the_sum_of_its_scales(likelihood):
    _, report = likelihood
    assert list(report["scales"]) == [2, 3, 4]
    assert report["sum"] == pytest.approx(sum(row["nats"] for row in report["scales"].values()))
    assert report["bits_per_token"] == pytest.approx(report["sum"] / math.log(2))
    assert report["baseline"]["sum"] == pytest.approx(report["sum"])


def test_nats_are_those_of_a_plain_loop(likelihood, tiny):
    module, report = likelihood
    images = open_data("scenery", 32, "validation", 6)
    x_1 = torch.stack([tiny.vqgan.encode(images[i]["image"][None])[0] for i in range(6)])
    x_1 = rearrange(x_1, "b h w -> b (h w)")
    x_prev, x_t = tiny.diffusion.q_sample_pair(x_1, 3, torch.Generator().manual_seed(0))
    p = tiny.denoisers[3](x_prev, x_t).softmax(-1)
    q = tiny.diffusion.q_posterior(x_t, x_1, 3)
    assert report["scales"][3]["nats"] == pytest.approx(
        (q * (q / p).log()).sum(-1).mean().item(), rel=1e-4
    )
    assert "t    nats/token" in module.table(report)


def test_a_perfect_codec_keeps_everything(folder, monkeypatch):
    module = script("reconstruction")
    vqgan = module.load_vqgan(folder)
    seen = {}
    vqgan.encode = lambda image: seen.update(image=image) or torch.zeros(1, 4, 4, dtype=torch.int64)
    vqgan.decode = lambda tokens: seen["image"]
    monkeypatch.setattr(module, "load_vqgan", lambda _: vqgan)
    report = module.main(module.Config(model=folder, n=40, device="cpu"))
    assert report["psnr"] == pytest.approx(106, abs=0.5)  # the largest that is told apart from ∞
    assert report["sharpness"] == pytest.approx(1)
    assert report["stars_kept"] == pytest.approx(1)
    assert report["codes_in_use"] == pytest.approx(1 / vqgan.K)


def test_pictures_are_those_of_the_seed(folder, tmp_path):
    module = script("pictures")
    for name in ("a", "b"):
        module.main(module.Config(model=folder, out=tmp_path / name, device="cpu"))
    names = {"samples.png", "chain.png", "edits.png", "reconstructions.png", "maps.png"}
    names |= {"panorama.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert Image.open(tmp_path / "a" / name).width > 200


# ── completions ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def completion():
    sys.path.insert(0, str(ROOT / "eval"))  # as python does for the script's own folder
    try:
        return script("completion")
    finally:
        sys.path.remove(str(ROOT / "eval"))


@pytest.mark.parametrize(
    ("family", "part"),
    [("upper", 0.5), ("lower", 0.5), ("centre", 0.25), ("blob10", 0.1), ("blob50", 0.5)],
)
def test_a_family_of_holes_has_its_size(completion, family, part):
    mask = completion.hole_pixels_of(family, (64, 96), 3)
    assert mask.shape == (64, 96)
    assert mask.mean() == pytest.approx(part, abs=0.01)
    other = completion.hole_pixels_of(family, (64, 96), 4)
    assert (mask != other).any() == family.startswith("blob")


def test_a_seam_is_the_step_across_the_border(completion):
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:, :] = 0.5
    image[..., 0, 0] = -1  # far from the border
    hole = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hole[..., 2:, :] = True
    assert completion.border_step(image, hole) == pytest.approx(0.5)


def test_completions_are_measured_beside_their_cost(completion, folder, tiny, tmp_path):
    what = dict(model=(str(folder),), process=("single",), masks=("upper",), n=2, device="cpu")
    report = completion.main(completion.Config(**what, picture=tmp_path / "completed.png"))
    assert Image.open(tmp_path / "completed.png").width > 2 * tiny.image_size[1]
    (row,) = report["rows"]
    assert row["known_exact"] == 1 and row["T"] == tiny.T and row["seam"] > 0
    assert row["tokens_in_hole"] == tiny.denoisers[2].n / 2
    scales = tiny.T - 1
    assert scales <= row["passes"] <= scales * tiny.denoisers[2].n


def test_looks_around_are_compared_where_there_are_any(completion):
    config = completion.Config(process=("single", "annealed"), around=(0, 3))
    single = [{"process": "single", "around": around} for around in (0, 3)]
    assert completion.ways(config) == [*single, {"process": "annealed"}]
    assert completion.ways(completion.Config(process=("single",))) == [{"process": "single"}]


# ── a blind look ──────────────────────────────────────────────────────────────────────────────


def test_a_blind_sheet_holds_renders_and_samples_in_an_order_that_is_kept(folder, tiny, tmp_path):
    module = script("blind")
    config = module.Config(model=str(folder), n=4, seed=3, picture=tmp_path / "s.png", device="cpu")
    assert module.main(config) == {}
    sheet = Image.open(tmp_path / "s.png")
    side = 2 * tiny.image_size[0]
    gap = (sheet.width - 4 * side) // 3
    scene = scenery.render(scenery.scene_seed("test", 12), *tiny.image_size)
    first = module.order(4, 3).index("r")
    shown = sheet.crop((first * (side + gap), 0, first * (side + gap) + side, side))
    due = Image.fromarray(scene.image).resize((side, side), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(shown, float) - np.asarray(due, float)).mean() < 8
    assert sorted(module.order(32, 0)) == ["r"] * 16 + ["s"] * 16
    assert module.order(32, 0) != module.order(32, 1)


def test_a_blind_look_is_scored(folder):
    module = script("blind")
    assert module.score("Rs Sr", "rsrs") == {"n": 4, "right": 2, "sure": 2, "sure_and_right": 1}
    answers = module.order(4, 0).upper()
    report = module.main(module.Config(model=str(folder), n=4, answers=answers, device="cpu"))
    assert report["right"] == report["sure_and_right"] == 4 and "date" in report
    with pytest.raises(ValueError, match="answers must be 4 letters of r, s, R, S, got 'rs'"):
        module.score("rs", "rsrs")
    with pytest.raises(ValueError, match="n must be even and at least 2, got 3"):
        module.main(module.Config(n=3))
