"""eval/likelihood.py, reconstruction, pictures, completion and blind report true figures."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import blind
import completion
import erasing
import joints
import likelihood
import numpy as np
import pictures
import pytest
import reconstruction
import reporting
import torch
from einops import rearrange
from PIL import Image

from imagebart.checkpoint import read_json
from imagebart.conditions import text_shape
from imagebart.data import scenery
from imagebart.data.scenery.words import THING_LABEL
from imagebart.data.sources import open_data
from imagebart.guidance import encode_condition


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bound(folder):
    config = likelihood.Config(
        model=folder, baseline=folder, n=6, n_frequency=6, importance=3, batch=4, device="cpu"
    )
    return likelihood.main(config)


def test_a_baseline_of_another_vqgan_is_refused(folder, make_model, make_vqgan, tmp_path):
    other = make_model(T=2)
    other.vqgan = make_vqgan(seed=5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="baseline must have the model's VQGAN, got another"):
        likelihood.main(
            likelihood.Config(
                model=folder, baseline=tmp_path / "other", n=2, n_frequency=2, device="cpu"
            )
        )


def test_the_bound_is_the_sum_of_its_scales(bound):
    assert list(bound["scales"]) == [2, 3, 4]
    assert bound["sum"] == pytest.approx(sum(row["nats"] for row in bound["scales"].values()))
    assert bound["bits_per_token"] == pytest.approx(bound["sum"] / math.log(2))
    assert bound["baseline"]["sum"] == pytest.approx(bound["sum"])
    assert not bound["baseline"]["ours_minus_theirs"]["distinct"]
    low, high = bound["sum_interval"]
    assert low < bound["sum"] < high
    for row in bound["scales"].values():
        assert np.mean(row["map"]) == pytest.approx(row["nats"], abs=1e-3)


def test_weighted_chains_show_how_loose_the_bound_is(bound):
    row = bound["importance"]
    assert row["chains"] == 3 and row["gained"] == pytest.approx(row["nats_of_one"] - row["nats"])
    low, high = row["gained_interval"]
    assert 0 < low < row["gained"] < high
    assert "by 3 weighted chains" in likelihood.summary(bound)


def test_nats_are_those_of_a_plain_loop(bound, tiny):
    images = open_data("scenery", 32, "validation", 6)
    x_1 = torch.stack([tiny.vqgan.encode(images[i]["image"][None])[0] for i in range(6)])
    x_1 = rearrange(x_1, "b h w -> b (h w)")
    x_prev, x_t = tiny.diffusion.q_sample_pair(x_1, 3, torch.Generator().manual_seed(0))
    p = tiny.denoisers[3](x_prev, x_t).softmax(-1)
    q = tiny.diffusion.q_posterior(x_t, x_1, 3)
    assert bound["scales"][3]["nats"] == pytest.approx(
        (q * (q / p).log()).sum(-1).mean().item(), rel=1e-4
    )
    assert "t    nats/token" in likelihood.summary(bound)


def test_nats_are_told_given_each_condition(make_model, tmp_path):
    """Given nothing, all but the map, and all: as the denoiser's loss given those."""
    takes = {"text": text_shape(40), "map": len(scenery.LABELS)}
    model = make_model(T=2, conditions=takes, condition_dropout=True)
    model.names["map"] = list(scenery.LABELS)
    model.save_pretrained(tmp_path)
    config = likelihood.Config(model=tmp_path, n=3, n_frequency=2, device="cpu")
    report = likelihood.main(config)
    row, data = report["scales"][2], open_data("scenery", 32, "validation", 3)
    items = [data[i] for i in range(3)]
    pixels = torch.stack([item["image"] for item in items])
    x_1 = rearrange(model.vqgan.encode(pixels), "b h w -> b (h w)")
    pair = model.diffusion.q_sample_pair(x_1, 2, torch.Generator().manual_seed(0))
    words = {"prompt": [item["text"] for item in items]}
    maps = {"semantic_map": [item["map"] for item in items]}
    for figure, given in (
        ("nats", {}),
        ("nats_without_map", words),
        ("nats_conditional", words | maps),
    ):
        condition = encode_condition(model, 3, guidance=1.0, **given).condition
        logits = model.denoisers[2](*pair, condition)
        expected = model.diffusion.loss_t(logits, pair[1], x_1, 2).mean().item()
        assert row[figure] == pytest.approx(expected, rel=1e-5)
    assert len({round(row[figure], 5) for figure in row if figure.startswith("nats")}) == 3
    assert f"all but the map: {row['nats_without_map']:.3f}\n" in likelihood.summary(report)


def test_reconstructions_of_two_pictures_are_measured_and_of_one_refused(folder):
    report = reconstruction.main(reconstruction.Config(model=folder, n=2, device="cpu"))
    low, high = report["psnr_interval"]
    assert 0 < low <= report["psnr"] <= high and report["codes_in_use"] <= 1
    assert 1 <= report["perplexity"] <= 12 and report["rfid"]["name"] == "rprobe-FID@2"
    with pytest.raises(ValueError, match="n must be at least 2, got 1"):
        reconstruction.main(reconstruction.Config(model=folder, n=1, device="cpu"))


def test_figures_of_reconstructions_are_those_of_a_plain_loop(folder, tiny, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        blocks = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        blocks.resize((32, 32)).save(tmp_path / f"{i}.png")
    config = reconstruction.Config(model=folder, data=str(tmp_path), n=3, device="cpu")
    with pytest.raises(ValueError, match="held-out images must be at least 2, got 1"):
        reconstruction.main(config)  # two of the three are for training
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for i in range(3):
            Image.open(tmp_path / f"{i}.png").save(tmp_path / split / f"{i}.png")
    for i in range(3):
        (tmp_path / f"{i}.png").unlink()
    report = reconstruction.main(config)
    images = open_data(tmp_path, 32, "validation")
    images = torch.stack([images[i]["image"] for i in range(3)])
    tokens = torch.cat([tiny.vqgan.encode(image[None]) for image in images])
    back = tiny.vqgan.decode(tokens).clamp(-1, 1)
    mse = (images - back).square().mean((1, 2, 3))
    assert report["psnr"] == pytest.approx((10 * (4 / mse).log10()).mean().item(), rel=1e-4)
    p = torch.bincount(tokens.flatten(), minlength=12) / tokens.numel()
    assert report["codes_in_use"] == pytest.approx((p > 0).float().mean().item())
    assert report["perplexity"] == pytest.approx(torch.special.entr(p).sum().exp().item(), rel=1e-4)
    assert "stars_kept" not in report


def test_levels_cost_the_scales_that_are_still_to_come(folder, tiny, tmp_path):
    where = dict(model=folder, n=2, levels=True, device="cpu")
    report = reconstruction.main(reconstruction.Config(**where, picture=tmp_path / "levels.png"))
    assert Image.open(tmp_path / "levels.png").width > 2 * 32
    levels = report["levels"]
    assert [row["t"] for row in levels] == [1, 2, 3, 4] and levels[-1]["bits"] == 0
    assert levels[0]["psnr"] == pytest.approx(report["psnr"], rel=1e-4)  # x_1 is the image's
    images = open_data("scenery", 32, "validation", 2)
    bits = tiny.bits_per_token(torch.stack([(images[i]["image"] + 1) / 2 for i in range(2)]))
    step = (levels[1]["bits"] - levels[2]["bits"]) * 3 * 32 * 32 / 16
    assert step == pytest.approx(bits[3].mean().item(), rel=1e-4)


def test_a_perfect_codec_keeps_everything(folder, monkeypatch):
    vqgan = reconstruction.load_vqgan(folder)
    seen = {}
    vqgan.encode = lambda image: seen.update(image=image) or torch.zeros(1, 4, 4, dtype=torch.int64)
    vqgan.decode = lambda tokens: seen["image"]
    monkeypatch.setattr(reconstruction, "load_vqgan", lambda _: vqgan)
    report = reconstruction.main(reconstruction.Config(model=folder, n=40, device="cpu"))
    assert report["psnr"] == math.inf and report["ssim"] == pytest.approx(1)
    assert report["rfid"]["value"] == pytest.approx(0, abs=1e-3)
    assert report["sharpness"] == pytest.approx(1)
    assert report["stars_kept"] == pytest.approx(1)
    assert report["codes_in_use"] == pytest.approx(1 / vqgan.K)


def test_similarity_is_that_of_brightness_above_black():
    """Of two even greys a and b of [0, 1]: (2ab + c) / (a² + b² + c), c = 0.01²."""
    image, back = (torch.full((1, 3, 32, 32), 2 * grey - 1) for grey in (0.5, 0.6))
    found = reconstruction.distortion(image, back)
    assert found["ssim"].item() == pytest.approx((0.6 + 1e-4) / (0.61 + 1e-4), rel=1e-4)
    assert found["psnr"].item() == pytest.approx(20, rel=1e-4)


def test_held_out_images_are_those_of_the_share_that_training_held_out(tmp_path):
    for i in range(60):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    for share in (0.1, 0.5):
        trained = open_data(tmp_path, 32, "train", held_out=share)
        images = reconstruction.HeldOut(str(tmp_path), 32, 60, share)
        assert not {*trained.files} & {*images.data.files}
        assert len(trained) + len(images) == 60


def test_pictures_are_those_of_the_seed(make_model, tmp_path):
    model = make_model(T=3, conditions={"map": len(scenery.LABELS)}, condition_dropout=True)
    model.names["map"] = list(scenery.LABELS)
    model.save_pretrained(tmp_path / "model")
    for name in ("a", "b"):
        config = pictures.Config(model=tmp_path / "model", out=tmp_path / name, device="cpu")
        pictures.main(config)
    names = {"samples.png", "chain.png", "edits.png", "reconstructions.png", "maps.png"}
    names |= {"panorama.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert Image.open(tmp_path / "a" / name).width > 200


# ── completions ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "part"),
    [("upper", 0.5), ("lower", 0.5), ("centre", 0.25), ("blob10", 0.1), ("blob50", 0.5)],
)
def test_a_family_of_masks_has_its_size(family, part):
    mask = completion.mask_of(family, (64, 96), 3)
    assert mask.shape == (64, 96)
    assert mask.mean() == pytest.approx(part, abs=0.01)
    other = completion.mask_of(family, (64, 96), 4)
    assert (mask != other).any() == family.startswith("blob")


def test_a_seam_is_the_step_across_the_border():
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:, :] = 0.5
    image[..., 0, 0] = -1  # far from the border
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:, :] = True
    assert completion.border_step(image, mask) == pytest.approx(0.5)


def test_completions_are_measured_beside_their_cost(folder, tiny, tmp_path):
    what = dict(model=(str(folder),), process=("single",), masks=("upper",), n=2, device="cpu")
    report = completion.main(completion.Config(**what, picture=tmp_path / "completed.png"))
    assert Image.open(tmp_path / "completed.png").width > 2 * tiny.image_size[1]
    (row,) = report["rows"]
    assert row["known_exact"] == 1 and row["T"] == tiny.T and row["seam"] > 0
    assert row["masked_tokens"] == tiny.denoisers[2].n / 2
    assert row["hidden"] == 0 and row["spread_renders"] >= 1
    scales = tiny.T - 1
    assert scales <= row["passes"] <= scales * tiny.denoisers[2].n


def test_the_vqgan_s_psnr_is_that_of_known_pixels():
    """Whatever their share: a step of 0.2 everywhere is 20 dB."""
    x, marked = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    model = SimpleNamespace(generate=lambda tokens: torch.full_like(x, 0.2))
    for rows in (1, 6):
        marked[..., :rows, :] = True
        edit = SimpleNamespace(x=x, marked=marked, model=model)
        found = completion.of_pixels(edit, Image.new("RGB", (8, 8)), torch.zeros(1))
        assert found["known_psnr_of_vqgan"] == pytest.approx(20, rel=1e-4)


def test_what_the_encoder_sees_under_the_mask_is_compared(tiny):
    """Surroundings say nothing of it; the whole picture does, and has all of its own tokens."""
    one, two = (scenery.render(scenery.scene_seed("validation", i), 32, 32).image for i in (0, 1))
    mask = completion.mask_of("upper", (32, 32), 0)
    other = np.where(mask[..., None], two, one)
    for filling in completion.FILLINGS:
        edits = [completion.edit_filled(tiny, pixels, mask, filling) for pixels in (one, other)]
        assert torch.equal(edits[0].x_0, edits[1].x_0) == (filling != "none")
    assert torch.equal(edits[0].x_1(), tiny.encode(Image.fromarray(one)))


def test_a_spread_counts_values_by_how_often_they_come():
    assert completion.perplexity(["noon"] * 3) == pytest.approx(1)
    assert completion.perplexity(["noon", "dusk", "night", "dawn"]) == pytest.approx(4)


def test_numbers_of_resampling_passes_are_compared_where_there_are_any():
    config = completion.Config(process=("single", "annealed"), resampling_passes=(0, 3))
    single = [{"process": "single", "resampling_passes": n} for n in (0, 3)]
    assert completion.inpaint_options(config) == [*single, {"process": "annealed"}]
    config = completion.Config(process=("single",), particles=(4,), resampling_passes=(2,))
    both = [{"resampling_passes": 2}, {"particles": 4}]
    assert completion.inpaint_options(config) == [{"process": "single"} | one for one in both]
    assert completion.inpaint_options(completion.Config(process=("single",))) == [
        {"process": "single"}
    ]
    warm = completion.Config(process=("single",), temperature=0.5, seed=9)
    assert completion.inpaint_options(warm) == [{"process": "single", "temperature": 0.5}]


# ── a blind look ──────────────────────────────────────────────────────────────────────────────


def test_a_blind_sheet_holds_renders_and_samples_in_an_order_that_is_kept(folder, tiny, tmp_path):
    config = blind.Config(model=str(folder), n=4, seed=3, picture=tmp_path / "s.png", device="cpu")
    assert blind.main(config) == {}
    sheet = Image.open(tmp_path / "s.png")
    side = 2 * tiny.image_size[0]
    gap = (sheet.width - 4 * side) // 3
    scene = scenery.render(scenery.scene_seed("test", 12), *tiny.image_size)
    first = blind.order(4, 3).index("r")
    shown = sheet.crop((first * (side + gap), 0, first * (side + gap) + side, side))
    due = Image.fromarray(scene.image).resize((side, side), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(shown, float) - np.asarray(due, float)).mean() < 8
    assert sorted(blind.order(32, 0)) == ["r"] * 16 + ["s"] * 16
    assert blind.order(32, 0) != blind.order(32, 1)


def test_what_the_vqgan_gives_away_can_be_looked_at_alone(folder, tiny, tmp_path):
    where = dict(model=str(folder), n=2, picture=tmp_path / "s.png", device="cpu")
    blind.main(blind.Config(**where, of="edits"))
    assert Image.open(tmp_path / "s.png").height == 2 * tiny.image_size[0]
    blind.main(blind.Config(**where, of="reconstructions"))
    scene = scenery.render(scenery.scene_seed("test", 1), *tiny.image_size)
    (back,) = tiny.decode(tiny.encode(Image.fromarray(scene.image)))
    side, sheet = 2 * tiny.image_size[0], Image.open(tmp_path / "s.png")
    left = blind.order(2, 0).index("s") * (sheet.width - side)
    due = np.asarray(back.resize((side, side), Image.Resampling.BICUBIC), float)
    shown = np.asarray(sheet.crop((left, 0, left + side, side)), float)
    assert np.abs(shown - due).max() <= 1


def test_edits_keep_what_is_not_repainted(tiny):
    """Of each a part is another: the centre, the upper half, the right half."""
    scenes = [scenery.render(scenery.scene_seed("test", i), 32, 32).image for i in range(3)]
    edits = blind.edited_renders(tiny, [Image.fromarray(one) for one in scenes], seed=5)
    changed = [(np.asarray(edit) != one).any(2) for edit, one in zip(edits, scenes, strict=True)]
    parts = [
        (slice(8, 24), slice(8, 24)),
        (slice(0, 16), slice(0, 32)),
        (slice(0, 32), slice(16, 32)),
    ]
    for at, part in zip(changed, parts, strict=True):
        assert at[part].mean() > 0.8
        at[part] = False
        assert not at.any()


def test_a_blind_look_is_scored(folder, tmp_path):
    scores = blind.score("Rs Sr", "rsrs")
    assert {**scores, "right": 2, "sure": 2, "sure_and_right": 1, "right_share": 0.5} == scores
    assert blind.score("sssr", "ssss" + "")["right_by_chance"] == 0.75  # whatever the order
    sheet = blind.Config(model=str(folder), n=4, picture=tmp_path / "s.png", device="cpu")
    answered = replace(sheet, answers=blind.order(4, 0).upper())
    with pytest.raises(ValueError, match=r"s\.json must lie beside the sheet, got none"):
        blind.main(answered)
    blind.main(sheet)
    drawn, report = read_json(tmp_path / "s.json"), blind.main(answered)
    assert report["right"] == report["sure_and_right"] == 4
    assert {name: report[name] for name in ("commit", "models", "date")}.items() <= drawn.items()
    assert report["options"]["answers"] == answered.answers
    with pytest.raises(ValueError, match="must be of this sheet, got another seed"):
        blind.main(replace(answered, seed=1))
    assert 0.3 < report["right_by_chance"] < 0.7
    with pytest.raises(ValueError, match="answers must be 4 letters of r, s, R, S, got 'rs'"):
        blind.score("rs", "rsrs")
    with pytest.raises(ValueError, match="n must be even and at least 2, got 3"):
        blind.main(blind.Config(n=3))
    with pytest.raises(ValueError, match="picture must be given"):
        blind.main(blind.Config(n=4))


# ── how a script runs ─────────────────────────────────────────────────────────────────────────


def test_a_script_says_and_writes_its_report(monkeypatch, capsys, tmp_path):
    given, out = ["--n", "2", "--picture", str(tmp_path / "sheet.png")], tmp_path / "blind.json"

    def ran(*options, **how) -> str:
        monkeypatch.setattr("sys.argv", ["blind.py", *given, *options])
        reporting.run(blind.main, blind.Config, "A blind look.", **how)
        return capsys.readouterr().out

    ran()
    there = {*tmp_path.iterdir()}
    assert ran("--answers", "RS", "--out", str(out), summary=blind.summary).startswith("{'right': ")
    assert read_json(out)["n"] == 2
    assert ran("--answers", "RS") == ""  # nowhere to write, nothing to say
    assert {*tmp_path.iterdir()} == {*there, out}


def test_a_bad_option_ends_a_script_as_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["blind.py", "--n", "3", "--out", str(tmp_path / "blind.json")])
    with pytest.raises(SystemExit, match="error: n must be even and at least 2, got 3"):
        reporting.run(blind.main, blind.Config, "A blind look.")
    assert not list(tmp_path.iterdir())


# ── erased objects ────────────────────────────────────────────────────────────────────────────


def test_the_mask_of_an_object_covers_it_and_a_margin():
    scenes = [scenery.render(scenery.scene_seed("test", i), 64, 64) for i in range(40)]
    scenes = [scene for scene in scenes if "object" in scene.attributes][:6]
    for scene in scenes:
        there = scene.semantic_map == THING_LABEL[scene.attributes["object"]]
        assert np.array_equal(erasing.object_mask(scene, 0), there)
        rows, columns = np.nonzero(there)
        for i, j in itertools.product(range(64), range(0, 64, 3)):
            near = max(1, np.maximum(abs(rows - i), abs(columns - j)).min()) <= 3 or there[i, j]
            assert erasing.object_mask(scene, 3)[i, j] == near


def test_what_is_no_longer_found_is_gone(tiny, tmp_path, monkeypatch):
    """Of renders this probe finds every object; of edits it finds one in four."""
    first = [scenery.render(scenery.scene_seed("test", i), 32, 32) for i in range(60)]
    renders = {scene.image.tobytes(): scene.attributes.get("object", "none") for scene in first}
    wanted = [scene.attributes["object"] for scene in first if "object" in scene.attributes][:4]
    edits = iter([wanted[0], "none", "none", "none"])

    class Finder:
        def __init__(self, _):
            pass

        def to(self, _):
            return self

        def predict(self, images):
            (found,) = (renders.get(image.tobytes()) or next(edits) for image in images)
            return SimpleNamespace(values=lambda _: [found])

    tiny.save_pretrained(tmp_path)
    monkeypatch.setattr(erasing, "Probe", Finder)
    picture = tmp_path / "erased.png"
    report = erasing.main(erasing.Config(model=str(tmp_path), n=4, margin=1, picture=picture))
    assert report["gone"] == 0.75 and picture.exists()
    assert sum(row["edits"] for row in report["rows"]) == 4
    assert {row["object"] for row in report["rows"]} == {*wanted}


# ── joints of outpaintings ────────────────────────────────────────────────────────────────────


def test_a_joint_s_step_is_set_beside_those_nearby():
    """A ramp that goes up by 1 from column to column, and by 4 at the right side of the frame."""
    sides = {"left": 0, "right": 16, "top": 16, "bottom": 0}
    windows = joints.window_of_each((32, 32), sides)
    assert windows.shape == (48, 48) and (windows[16:, :32] == 0).all()
    places = [(axis, place, pair) for axis, place, _, pair in joints.joints_of(windows)]
    assert places == [(0, 15, (2, 0)), (0, 15, (3, 1)), (1, 31, (0, 1)), (1, 31, (2, 3))]
    ramp = np.arange(48) + 3 * (np.arange(48) > 31)
    pixels = np.broadcast_to(ramp[None, :, None], (48, 48, 3)).astype(np.uint8)
    steps = joints.steps_at(pixels, windows)
    assert steps == [0, 0, 4, 4]


def test_outpaintings_are_measured(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    report = joints.main(joints.Config(model=str(tmp_path), n=2, picture=tmp_path / "first.png"))
    frame, between, every = report["rows"]
    assert [row["joints"] for row in report["rows"]] == ["frame", "windows", "all"]
    assert (
        min(frame["step"], between["step"]) <= every["step"] <= max(frame["step"], between["step"])
    )
    assert every["largest"] == max(frame["largest"], between["largest"])
    assert 0 <= every["share_invisible"] <= 1 and (tmp_path / "first.png").exists()
