"""`imagebart sample | edit | reimagine | panorama`: files in, files out, errors in a sentence."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_colours import PROFILE
from tqdm import tqdm

from imagebart import ImageBART, __version__, streaming
from imagebart.__main__ import COMMANDS, main
from imagebart.checkpoint import atomic_write
from imagebart.conditions import text_tokens
from imagebart.settings import file_stem, settings_of

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
    files = [tmp_path / "new" / f"a-lake_seed{seed}.png" for seed in (4, 5)]
    assert all(same(*pair) for pair in zip(files, model.sample(2, **how), strict=True))
    assert capsys.readouterr().out == f"{files[0]}\n{files[1]}\n"
    main(["sample", *base, "--classes", "1", "-o", str(tmp_path / "one")])
    assert same(tmp_path / "one" / "seed0.png", model.sample(1, classes=1)[0])


def test_pictures_are_enlarged_on_request(folder, tmp_path):
    model, base = folder
    main(["sample", *base, "--enlarge", "2", "-o", str(tmp_path)])
    (image,) = model.sample(1)
    assert same(tmp_path / "seed0.png", image.resize((64, 64), Image.Resampling.LANCZOS))
    assert settings_of(Image.open(tmp_path / "seed0.png"))["enlarge"] == 2
    wide = tmp_path / "wide.png"
    main(["panorama", *base, "--width", "48", "--enlarge", "2", "-o", str(wide)])
    assert Image.open(wide).size == (96, 64) and settings_of(Image.open(wide))["enlarge"] == 2
    with pytest.raises(SystemExit, match="--enlarge must be a whole number, from 1 to 4, got 5"):
        main(["sample", *base, "--enlarge", "5"])


def test_a_prompt_needs_no_name(folder, tmp_path):
    model, base = folder
    picture(32, 32).save(tmp_path / "image.png")
    main(["sample", "a lake", *base, "-n", "1", "-o", str(tmp_path)])
    assert same(tmp_path / "a-lake_seed0.png", model.sample(1, prompt="a lake")[0])
    start = ["edit", str(tmp_path / "image.png"), "night", *base, "-o", str(tmp_path)]
    main([*start, "--keep", "upper"])
    expected = model.complete(picture(32, 32), keep="upper", prompt="night")[0]
    assert same(tmp_path / "night_seed0.png", expected)
    main(["panorama", "a lake", "night", *base, "--width", "48", "-o", str(tmp_path / "w.png")])
    assert same(tmp_path / "w.png", model.panorama(48, prompts=["a lake", "night"])[0])


def test_a_picture_holds_its_settings(folder, tmp_path, capsys):
    _, base = folder
    words = ["a lake", "--top-k", "3", "--seed", "7"]
    main(["sample", *words, *base, "-n", "2", "-o", str(tmp_path), "--jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for seed, line in zip((7, 8), lines, strict=True):
        said = {"prompt": "a lake", "top_k": 3, "seed": seed}
        assert line == {"file": str(tmp_path / f"a-lake_seed{seed}.png"), **said}
        found = settings_of(Image.open(line["file"]))
        assert found == {"command": "sample", "model": base[1], **said}


def test_an_edit_and_a_panorama_hold_where_they_were_drawn(folder, tmp_path):
    _, base = folder
    picture(32, 32).save(tmp_path / "image.png")
    edited = ["edit", str(tmp_path / "image.png"), *base, "--overwrite", "-o", str(tmp_path)]
    for words, where in (
        (["--keep", "lower"], {"keep": "lower"}),
        (["--right", "8", "--overlap", "4"], {"right": 8, "overlap": 4}),
    ):
        main([*edited, *words])
        own = {"command": "edit", "model": base[1], "seed": 0}
        assert settings_of(Image.open(tmp_path / "seed0.png")) == own | where
    main(["panorama", *base, "--width", "48", "-o", str(tmp_path / "wide.png")])
    assert {"width": 48, "height": 32}.items() <= settings_of(
        Image.open(tmp_path / "wide.png")
    ).items()


@pytest.mark.parametrize(
    "text", [None, "Steps: 20, Seed: 1", "[1]", "[" * 10_000, "{" + " " * 10**6]
)
def test_settings_of_other_programs_are_none(tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text, zip=True)
    picture(4, 4).save(tmp_path / "other.png", pnginfo=info)
    assert settings_of(Image.open(tmp_path / "other.png")) == {}


def test_names_of_files_are_plain():
    assert file_stem(5, "A lake, at dusk!") == "a-lake-at-dusk_seed5"
    assert file_stem(5, "../../etc/passwd") == "etc-passwd_seed5"
    assert file_stem(5) == file_stem(5, "?!") == "seed5"
    assert len(file_stem(5, "x" * 300)) == 200 + len("_seed5")
    assert file_stem(0, "one two three four five six seven") == "one-two-three-four-five-six_seed0"


@pytest.mark.parametrize("letter", ["x", "é", "湖", "\U00020000"])
def test_a_file_can_be_written_whatever_the_prompt(tmp_path, letter):
    """Names of files are counted in bytes."""
    stem = file_stem(2**63 - 1, letter * 300)
    with atomic_write(tmp_path / f"{stem}.png") as draft:
        draft.write_bytes(b"a picture")
    (path,) = tmp_path.iterdir()
    words, _, seed = path.stem.partition("_")
    assert {*words} == {letter} and len(words.encode()) > 196 and seed == f"seed{2**63 - 1}"


def test_no_file_is_overwritten_unasked(folder, tmp_path, monkeypatch):
    _, base = folder
    picture(32, 32).save(tmp_path / "image.png")
    runs = [
        ["sample", "a lake", "-n", "2", "-o", str(tmp_path)],
        ["edit", str(tmp_path / "image.png"), "night", "--keep", "left", "-o", str(tmp_path)],
        ["panorama", "--width", "48", "-o", str(tmp_path / "wide.png")],
    ]
    for run, name in zip(runs, ("a-lake_seed1", "night_seed0", "wide"), strict=True):
        path = tmp_path / f"{name}.png"
        path.write_text("kept")
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="is there already"):
            patch.setattr(ImageBART, "from_pretrained", None)  # refused before any work
            main([*run, *base])
        assert path.read_text() == "kept"
        main([*run, *base, "--overwrite"])
        assert Image.open(path).size


@pytest.mark.parametrize("run", [["sample"], ["panorama"]])
def test_what_cannot_be_written_is_said_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageBART, "from_pretrained", None)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    out = tmp_path / "file" / "wide.png"
    with pytest.raises(SystemExit, match=f"--out must lie in a folder .*, got {tmp_path}/file$"):
        main([*run, "-o", str(out)])
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit, match=f"that can be written to, got {tmp_path}$"):
        main([*run, "-o", str(tmp_path / "new" / "wide.png")])
    if run == ["panorama"]:
        with pytest.raises(SystemExit, match="must be the name of a file, got the folder"):
            main([*run, "--overwrite", "-o", str(tmp_path / "folder.png")])


def test_passes_are_counted_while_an_edit_runs(folder, tmp_path, capsys):
    _, base = folder
    picture(32, 32).save(tmp_path / "image.png")
    main(["edit", str(tmp_path / "image.png"), *base, "--keep", "left", "-o", str(tmp_path)])
    assert "scale 2: " in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_panorama_shows_how_much_is_done(folder, tmp_path, capsys, mode, monkeypatch):
    out, seen = tmp_path / "wide.png", []
    monkeypatch.setattr(tqdm, "update", lambda bar, n: seen.append(n))
    main(["panorama", *folder[1], "--width", "48", "--mode", mode, "-o", str(out)])
    assert len(seen) > 3 and seen == sorted(seen) and seen[-1] == 1  # of a bar that stays at 0
    assert same(out, folder[0].panorama(48, mode=mode)[0])


@pytest.mark.parametrize(
    "run", [["edit", "--keep", "left"], ["edit", "--right", "8"], ["reimagine"]]
)
def test_what_was_drawn_before_an_interruption_is_there(folder, tmp_path, monkeypatch, run):
    picture(32, 32).save(tmp_path / "image.png")
    command = [run[0], str(tmp_path / "image.png"), *run[1:], *folder[1], "-n", "3"]
    main([*command, "-o", str(tmp_path / "whole")])
    drawn, generate = [], ImageBART.generate

    def interrupted(model, *given):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return generate(model, *given)

    monkeypatch.setattr(ImageBART, "generate", interrupted)
    monkeypatch.setattr(streaming, "batch_that_fits", lambda *_: 1)
    with pytest.raises(SystemExit):
        main([*command, "-o", str(tmp_path / "part")])
    whole, part = ([*sorted((tmp_path / name).iterdir())] for name in ("whole", "part"))
    assert [path.name for path in part] == [path.name for path in whole[: len(part)]]
    assert len(whole) == 3 and part
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(part, whole, strict=False))


@pytest.mark.filterwarnings("always")
def test_a_warning_is_one_sentence(folder, tmp_path, capsys):
    main(["sample", "a zzyzx", *folder[1], "-o", str(tmp_path)])
    said = re.sub(r"\x1b\[\w", "", capsys.readouterr().err)  # where a bar moves the cursor
    (line,) = [x for x in re.split(r"[\r\n]", said) if "never seen" in x]
    assert line == "warning: prompt: this model has never seen zzy, zx"


def test_the_version_is_printed_and_the_command_is_installed(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"imagebart {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["imagebart"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_serve_is_app_py(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["imagebart"])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--host", "0.0.0.0"])
    assert stopped.value.code.startswith("error: --host 0.0.0.0 lets others in")
    monkeypatch.setattr("imagebart.__main__.__file__", "/usr/lib/imagebart/__main__.py")
    with pytest.raises(SystemExit, match=r"serve must run in a copy of the repository"):
        main(["serve"])


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return " ".join(word for word in capsys.readouterr().out.split() if word != "│")


def test_help_is_what_a_shell_can_use(capsys):
    assert "serve The page" in help_of(capsys) and "settings.py" not in help_of(capsys)
    edit = help_of(capsys, "edit")
    assert "single: every scale once; refined: then more passes at t = 2; annealed: several" in edit
    assert "single if nothing is given, refined if --passes is" in edit
    assert "another speed" in edit and "or a function" not in edit


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["smaple", "a lake"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "smaple" in said and all(name in said for name in COMMANDS)


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
    assert len(done.stdout.splitlines()) == 5 and len(list(tmp_path.iterdir())) == 5
    for i, image in enumerate(model.sample(5, prompt="a lake", seed=3)):
        assert same(tmp_path / f"a-lake_seed{3 + i}.png", image)


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
        "--overwrite",
        "--prompt",
        "night",
    ]
    how = dict(process="refined", passes=1, prompt="night")
    main([*start, "--mask", str(tmp_path / "mask.png"), "--passes", "1"])
    assert same(tmp_path / "night_seed0.png", model.inpaint(image, mask > 0, **how)[0])
    main([*start, "--mask", str(tmp_path / "mask.png"), "--passes", "1", "--invert-mask"])
    assert same(tmp_path / "night_seed0.png", model.inpaint(image, mask == 0, **how)[0])
    main([*start, "--keep", "upper", "--passes", "1"])
    assert same(tmp_path / "night_seed0.png", model.complete(image, keep="upper", **how)[0])
    main([*start, "--left", "9", "--overlap", "4", "--passes", "1"])
    assert same(tmp_path / "night_seed0.png", model.outpaint(image, left=9, overlap=4, **how)[0])


def test_a_process_that_is_given_is_the_one_that_runs(folder, tmp_path, capsys):
    """Also if it is the one that would run without."""
    model, base = folder
    picture(32, 32).save(tmp_path / "image.png")
    start = ["edit", str(tmp_path / "image.png"), *base, "--keep", "upper", "--overwrite"]
    start += ["--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="passes needs process='refined', got 'single'"):
        main([*start, "--process", "single", "--passes", "1"])
    main([*start, "--process", "single"])
    single = model.complete(picture(32, 32), keep="upper", process="single")[0]
    assert same(tmp_path / "seed0.png", single)


def test_a_mask_is_read_as_the_library_reads_it(folder, tmp_path):
    """White on transparent ground is not all white; 1000 of 65535 is not white."""
    model, base = folder
    image, white = picture(32, 32), np.zeros((32, 32, 4), np.uint8)
    image.save(tmp_path / "image.png")
    white[:8, :8] = 255
    start = ["edit", str(tmp_path / "image.png"), *base, "--overwrite", "--out", str(tmp_path)]
    for mask in (Image.fromarray(white), Image.fromarray(np.full((32, 32), 1000, np.uint16))):
        mask.save(tmp_path / "mask.png")
        main([*start, "--mask", str(tmp_path / "mask.png")])
        expected = model.inpaint(image, mask, process="refined", passes=0)[0]
        assert same(tmp_path / "seed0.png", expected)


def test_an_edit_keeps_profile_orientation_and_transparency(folder, tmp_path):
    model, base = folder
    image = picture(40, 32)
    image.putalpha(picture(40, 32).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=exif, icc_profile=PROFILE)
    out = ["--keep", "lower", "--out", str(tmp_path)]
    main(["edit", str(tmp_path / "photo.png"), *base, *out])
    edited = Image.open(tmp_path / "seed0.png")
    assert edited.mode == "RGBA" and edited.info["icc_profile"] == PROFILE
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(edited)[20:], np.asarray(upright)[20:])
    assert same(tmp_path / "seed0.png", model.complete(Image.open(tmp_path / "photo.png"))[0])


def test_an_empty_mask_is_a_sentence_and_no_error(folder, tmp_path, capsys):
    image = picture(32, 32)
    image.save(tmp_path / "image.png")
    Image.new("L", (32, 32)).save(tmp_path / "mask.png")
    where = ["--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path)]
    main(["edit", str(tmp_path / "image.png"), *folder[1], *where])
    said = "warning: the mask is empty: nothing is repainted, the result is the image"
    assert said in capsys.readouterr().err
    assert same(tmp_path / "seed0.png", image)


def test_a_picture_is_reimagined_a_file_a_seed(folder, tmp_path):
    model, base = folder
    picture(32, 32).save(tmp_path / "image.png")
    words = ["a lake", "--source-prompt", "night", "--strength", "0.5", "--seed", "3", "-n", "2"]
    main(["reimagine", str(tmp_path / "image.png"), *words, *base, "-o", str(tmp_path)])
    how = dict(prompt="a lake", source_prompt="night", strength=0.5, seed=3)
    for seed, image in zip((3, 4), model.reimagine(picture(32, 32), 2, **how), strict=True):
        path = tmp_path / f"a-lake_seed{seed}.png"
        assert same(path, image)
        about = {"command": "reimagine", "strength": 0.5, "seed": seed}
        assert about.items() <= settings_of(Image.open(path)).items()


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
        (
            ["edit", "IMAGE", "--mask", "WIDE"],
            "error: the mask must be as large as the image, 32",
        ),
        (["edit", "IMAGE", "--mask", "INK"], "error: the mask must be a picture of mode 1, L, LA"),
        (["edit", "IMAGE", "--mask", "no.png"], "error: no.png: must be a readable image, got "),
        (["sample", "--seed", "-1"], "error: --seed must be a whole number, at least 0, got -1"),
        (["sample", "--top-p", "2"], "error: --top-p must lie in (0, 1], got 2.0"),
        (["sample", "a", "--prompt", "b"], "error: the prompt must be given once, got 'a' and"),
        (
            ["edit", "IMAGE", "--keep", "left", "--invert-mask"],
            "error: --invert-mask needs a",
        ),
        (["edit", "IMAGE", "--keep", "left", "--overlap", "2"], "error: --overlap needs a --left"),
        (["edit", "IMAGE", "--top", "4", "--context", "1"], "error: --context needs a --mask or"),
        (["edit", "IMAGE"], "error: give one of --mask, --keep, or --left"),
        (["edit", "IMAGE", "--keep", "left", "--top", "4"], "error: give one of --mask"),
        (["edit", "nowhere.png", "--keep", "left"], "error: nowhere.png: must be a readable image"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(folder, tmp_path, capsys, arguments, sentence):
    files = {name: str(tmp_path / name) for name in ("IMAGE", "WIDE", "INK")}
    picture(32, 32).save(files["IMAGE"], "PNG")
    picture(33, 32).save(files["WIDE"], "PNG")
    picture(32, 32).convert("CMYK").save(files["INK"], "TIFF")
    command, *rest = (files.get(a, a) for a in arguments)
    with pytest.raises(SystemExit) as stopped:
        main([command, *folder[1], *rest])
    assert str(stopped.value).startswith(sentence)
    if sentence.startswith("error: --"):  # of an option: before anything is loaded or begun
        assert capsys.readouterr().err == ""
