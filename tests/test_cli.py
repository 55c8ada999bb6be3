"""`python -m imagebart sample | edit | panorama`: files in, files out, errors in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebart.__main__ import main
from imagebart.conditions import text_tokens

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    """A model that takes text and classes, in a folder."""
    model = make_model(T=3, conditions={"class": 2, "text": 6}, condition_dropout=True)
    model.names["class"] = ["lake", "desert"]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    return model, ["--model", str(path), "--device", "cpu"]


def same(path, image) -> bool:
    return np.array_equal(np.asarray(Image.open(path)), np.asarray(image))


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_sample_writes_a_file_a_seed(folder, tmp_path, capsys):
    model, base = folder
    words = ["--prompt", "a lake", "--classes", "desert", "--guidance", "2", "--seed", "4"]
    main(["sample", *base, *words, "--num-images", "2", "--out", str(tmp_path / "new")])
    how = dict(prompt="a lake", classes="desert", guidance=2.0, seed=4)
    for i, image in enumerate(model.sample(2, **how)):
        assert same(tmp_path / "new" / f"seed_{4 + i}.png", image)
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'seed_4.png'} to seed_5.png\n"
    main(["sample", *base, "--classes", "1", "--out", str(tmp_path / "one")])
    assert same(tmp_path / "one" / "seed_0.png", model.sample(1, classes=1)[0])
    assert capsys.readouterr().out == f"{tmp_path / 'one' / 'seed_0.png'}\n"


def test_ranks_draw_what_one_process_draws(folder, tmp_path):
    """Five pictures, two processes: two and three of them."""
    model, base = folder
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "imagebart"]
    words = ["--prompt", "a lake", "--num-images", "5", "--seed", "3", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *run, "sample", *base, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and len(list(tmp_path.iterdir())) == 5
    for i, image in enumerate(model.sample(5, prompt="a lake", seed=3)):
        assert same(tmp_path / f"seed_{3 + i}.png", image)


def test_edit_repaints_what_was_said(folder, tmp_path):
    model, base = folder
    image, mask = picture(50, 40), np.zeros((40, 50), np.uint8)
    mask[5:9, 30] = 255
    image.save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    start = [
        "edit",
        str(tmp_path / "image.png"),
        *base,
        "--out",
        str(tmp_path),
        "--prompt",
        "night",
    ]
    how = dict(process="refined", passes=1, prompt="night")
    main([*start, "--mask", str(tmp_path / "mask.png"), "--passes", "1"])
    assert same(tmp_path / "seed_0.png", model.inpaint(image, mask > 0, **how)[0])
    main([*start, "--keep", "upper", "--passes", "1"])
    assert same(tmp_path / "seed_0.png", model.complete(image, keep="upper", **how)[0])
    main([*start, "--left", "9", "--passes", "1"])
    assert same(tmp_path / "seed_0.png", model.outpaint(image, left=9, **how)[0])


def test_a_mask_is_read_as_the_library_reads_it(folder, tmp_path):
    """White on transparent ground is not all white; 1000 of 65535 is not white."""
    model, base = folder
    image, white = picture(32, 32), np.zeros((32, 32, 4), np.uint8)
    image.save(tmp_path / "image.png")
    white[:8, :8] = 255
    start = ["edit", str(tmp_path / "image.png"), *base, "--out", str(tmp_path)]
    for mask in (Image.fromarray(white), Image.fromarray(np.full((32, 32), 1000, np.uint16))):
        mask.save(tmp_path / "mask.png")
        main([*start, "--mask", str(tmp_path / "mask.png")])
        expected = model.inpaint(image, mask, process="refined", passes=0)[0]
        assert same(tmp_path / "seed_0.png", expected)


def test_panorama_writes_one_file(folder, tmp_path):
    model, base = folder
    out = tmp_path / "deep" / "wide.png"
    words = ["--prompts", "a lake", "night", "--classes", "lake", "1", "--wrap"]
    main(["panorama", *base, "--width", "88", *words, "--out", str(out)])
    how = dict(prompts=["a lake", "night"], classes=["lake", 1], wrap=True)
    assert same(out, model.panorama(88, **how)[0])


def test_a_panorama_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(image, file, **_):
        Path(file).write_bytes(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SystemExit, match="error: no space left on device"):
        main(["panorama", *folder[1], "--width", "40", "--out", str(tmp_path / "wide.png")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["sample", "--classes", "laek"],
            "error: classes must be ids in [0, 2) or names (lake, desert)",
        ),
        (["panorama", "--width", "9"], "error: width must be at least the model's 32, got 9"),
        (["panorama", "--out", "pano"], "error: --out must be the name of a .png file, got pano"),
        (["panorama", "--out", "a.jpg"], "error: --out must be the name of a .png file, got a.jpg"),
        (["edit", "IMAGE", "--mask", "WIDE"], "error: the mask must be as large as the image, 32"),
        (["edit", "IMAGE", "--mask", "INK"], "error: the mask must be a picture of mode 1, L, LA"),
        (["edit", "IMAGE", "--mask", "no.png"], "error: no.png: must be a readable image, got "),
        (["edit", "IMAGE"], "error: give one of --mask, --keep, or --left"),
        (["edit", "IMAGE", "--keep", "left", "--top", "4"], "error: give one of --mask"),
        (["edit", "nowhere.png", "--keep", "left"], "error: nowhere.png: must be a readable image"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(folder, tmp_path, arguments, sentence):
    files = {name: str(tmp_path / name) for name in ("IMAGE", "WIDE", "INK")}
    picture(32, 32).save(files["IMAGE"], "PNG")
    picture(33, 32).save(files["WIDE"], "PNG")
    picture(32, 32).convert("CMYK").save(files["INK"], "TIFF")
    command, *rest = (files.get(a, a) for a in arguments)
    with pytest.raises(SystemExit) as stopped:
        main([command, *folder[1], *rest])
    assert str(stopped.value).startswith(sentence)
