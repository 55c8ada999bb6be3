"""The probe: what it is trained on, that it learns, and that its folder says the same again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import probe
import pytest
import torch
from PIL import Image
from test_train import train

from imagebart.checkpoint import Checkpoints
from imagebart.data import scenery
from imagebart.data.scenery.world import WATER
from imagebart.folders import load_vqgan, save_vqgan
from imagebart.probe import ATTRIBUTES, Probe, ProbeHeads, read


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_model_folder):
    """The folder of a probe that saw 48 pictures a few times."""
    out = tmp_path_factory.mktemp("probe") / "probe"
    given = ("--count", 48, "--held-out", 8, "--steps", 40, "--batch", 16, "--save-every", 20)
    size = ("--width", 32, "--depth", 1, "--workers", 0, "--learning-rate", 3e-3)
    train(
        "probe", "--out", out, "--through", make_model_folder, "--precision", "fp32", *given, *size
    )
    return out


@pytest.fixture(scope="module")
def make_model_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(folder)
    return folder


def test_pictures_are_kept_by_all_that_they_are_made_of(make_model_folder, tmp_path, monkeypatch):
    """Those of another renderer, VQGAN or precision, or fewer, are made anew."""
    drawn, rebuilt = [], probe.rebuilt

    def counted(vqgan, images, precision):
        drawn.append(len(images))
        return rebuilt(vqgan, images, precision)

    monkeypatch.setattr(probe, "rebuilt", counted)
    vqgan = load_vqgan(make_model_folder)
    torch.nn.init.zeros_(next(vqgan.parameters()))
    save_vqgan(vqgan, other := tmp_path / "model")

    def made(n: int = 4, precision: str = "fp32", through=make_model_folder) -> int:
        """How many pictures go through the VQGAN for these."""
        drawn.clear()
        config = probe.Config(tmp_path, through, precision=precision, workers=0)
        vqgan = load_vqgan(through).eval()
        probe.ProbeImages("train", n, vqgan, config, every_other=True)
        return sum(drawn)

    assert [made(), made()] == [2, 0]
    assert [made(2), made(precision="bf16"), made(through=other), made()] == [1, 2, 2, 0]
    render = scenery.render

    def darker(*at) -> scenery.Scene:
        scene = render(*at)
        return replace(scene, image=scene.image // 2)

    monkeypatch.setattr(scenery, "render", darker)
    assert [made(), made()] == [2, 0]


def test_pictures_are_kept_whole(trained, make_model_folder, tmp_path):
    """A kill while they are written leaves none."""
    assert {path.name.split("_")[0] for path in trained.glob("*.npz")} == {"train", "validation"}

    savez = np.savez

    def killed(file, **arrays) -> None:
        savez(file, **{name: arrays[name] for name in ("images", "kinds")})
        raise KeyboardInterrupt

    given = ("--count", 4, "--held-out", 4, "--workers", 0, "--through", make_model_folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "savez", killed)
        train("probe", "--out", tmp_path, *given)
    assert not list(tmp_path.glob("*.npz"))


def renders(n: int) -> list[Image.Image]:
    seeds = [scenery.scene_seed("train", i) for i in range(n)]
    return [Image.fromarray(scenery.render(seed).image) for seed in seeds]


def test_it_learns_and_says_how_well(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if "render_kind" in line)
    assert (first["step"], last["step"]) == (20, 40)
    assert last["render_places"] > 0.3 > 1 / len(scenery.LABELS)
    assert all(
        0 <= last[f"{way}_{name}"] <= 1 for way in ("render", "through") for name in ATTRIBUTES
    )


def test_what_it_sees_is_its_heads_reading(trained):
    probe, images = Probe(trained), renders(3)
    seen = probe.predict(images, batch=2)
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images])
    pixels = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    summary, patches = read(probe.model, pixels)
    told, places = probe.heads(summary, patches)
    torch.testing.assert_close(seen.features, summary)
    for name, logits in told.items():
        torch.testing.assert_close(seen.attributes[name], logits.softmax(1))
        assert seen.values(name) == [ATTRIBUTES[name][i] for i in logits.argmax(1)]
    assert torch.equal(seen.kinds.flatten(1), places.argmax(-1))
    lake = ATTRIBUTES["kind"].index("lake")
    chances = seen.attributes["kind"][:, lake].tolist()
    assert probe.being("kind", "lake")(images) == pytest.approx(chances)
    assert len(probe.likeness("a lake")(images)) == 3


def test_places_lie_where_their_patches_do():
    """A patch that only says "water" at its right lower place is read there."""
    heads = ProbeHeads(8)
    torch.nn.init.zeros_(heads.places.weight)
    torch.nn.init.zeros_(heads.places.bias)
    heads.places.weight.data[3 * len(scenery.LABELS) + WATER, 0] = 1.0
    patches = torch.zeros(1, 64, 8)
    patches[0, 8 * 2 + 5, 0] = 1.0
    _, places = heads(torch.zeros(1, 8), patches)
    expected = torch.zeros(16, 16)
    expected[2 * 2 + 1, 2 * 5 + 1] = 1
    assert torch.equal(places[0, :, WATER].reshape(16, 16), expected)


def test_a_second_start_goes_on(trained, make_model_folder, tmp_path, capsys):
    out = tmp_path / "probe"
    shutil.copytree(trained, out)
    given = ("--count", 48, "--held-out", 8, "--steps", 40, "--batch", 16, "--save-every", 20)
    size = ("--width", 32, "--depth", 1, "--workers", 0, "--learning-rate", 3e-3)
    train(
        "probe", "--out", out, "--through", make_model_folder, "--precision", "fp32", *given, *size
    )
    assert (out / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


@pytest.mark.parametrize("change", [("--batch", 8), ("--count", 40), ("--precision", "bf16")])
def test_a_run_is_not_resumed_with_other_options(trained, make_model_folder, tmp_path, change):
    out, (name, value) = tmp_path / "probe", change
    shutil.copytree(trained, out)
    given = {"--count": 48, "--held-out": 8, "--steps": 40, "--batch": 16, "--save-every": 20}
    given |= {"--width": 32, "--depth": 1, "--workers": 0, "--learning-rate": 3e-3}
    given |= {"--precision": "fp32", "--through": make_model_folder}
    words = [x for pair in (given | {name: value}).items() for x in pair]
    key = name.removeprefix("--")
    with pytest.raises(SystemExit, match=f"must keep its {key} {given[name]}, got {key} {value};"):
        train("probe", "--out", out, *words)
    train("probe", "--out", out, *words, "--override")
    assert Checkpoints(out / "checkpoints").latest()[1]["run"].keys() >= {key, "vqgan", "data"}


def test_wrong_folders_and_values_are_one_sentence(trained, tmp_path):
    with pytest.raises(ValueError, match="clip must be the folder of a CLIP model"):
        Probe(tmp_path)
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'ocean'"):
        Probe(trained).being("kind", "ocean")
    with pytest.raises(ValueError, match=r"an attribute must be one of kind, time, .*, got 'mood'"):
        Probe(trained).being("mood", "sad")
