"""The demo: what programs get from its endpoints, what a visitor gets in a browser."""

import ctypes
import inspect
import re
import socket
import time
import warnings
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import psutil
import pytest
import torch
from browser import DESKTOP, PHONE, browsing, same_seed, served, settled, shown
from gradio.exceptions import Error
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageColor
from server import Server
from test_colours import PROFILE

import app
from demo import change, edit, parts, pictures, requests, serving
from demo import editor as editing
from demo.chain import chain_tab, noisy
from demo.change import MOST_UNDOS, change_tab, remembered, taken, undone
from demo.edit import inpaint, outpaint, reimagine
from demo.editor import MASKS, mask_layer
from demo.files import REFUSED
from demo.paint import semantic
from demo.panorama import panorama, wide_for_editor
from demo.parts import IDEAS, panel
from demo.pictures import (
    MOST_SHOWN,
    example_pictures,
    from_file,
    growing,
    read_editor,
    read_picture,
    with_source,
)
from demo.ready import READY, draw_ready, ready_pictures
from demo.requests import MARGINS, Late, read_classes
from demo.sample import SampleRequest, sample, sample_each, sampling_work, settings_of_link
from demo.style import PAINT, SEEN
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.choice import FILTERS
from imagebart.conditions import class_id, text_shape, text_tokens
from imagebart.data import scenery
from imagebart.data.images import as_given, to_rgb
from imagebart.data.maps import kind_colours, paint_kinds, read_kinds
from imagebart.editing.masks import pixel_mask
from imagebart.folders import SHIPPED
from imagebart.options import (
    EditingOptions,
    InpaintOptions,
    PanoramaOptions,
    ReimaginingOptions,
    SamplingOptions,
    rows,
)
from imagebart.probe import Probe
from imagebart.ranking import CLIP, best_edits, best_of
from imagebart.sampling import Filter, Request, reverse_steps
from imagebart.settings import chunk_of, settings_of

LONG = f"text of at most 1000 characters, got '{39 * 'x'}…"

ROOT = Path(__file__).parents[1]
AXE = ROOT / "node_modules/axe-core/axe.min.js"
INSTALL_AXE = "npm install --no-save axe-core@4.14.1"


# ── a server, its model, and what to send it ──────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def conditional(make_model, tmp_path_factory) -> ImageBART:
    """A model that takes maps and text, and knows the words of "a lake at night"."""
    model = make_model(T=3, conditions={"text": 6, "map": 3}, condition_dropout=True)
    model.names["map"] = ["sky", "water", "grass"]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    model.folder = tmp_path_factory.mktemp("conditional")
    model.save_pretrained(model.folder)
    return model


@pytest.fixture(scope="module")
def conditional_server(conditional, clip, tmp_path_factory):
    """A server of `conditional`, with a CLIP model that ranks."""
    arguments = "--model", str(conditional.folder), "--clip", str(clip)
    with Server(tmp_path_factory.mktemp("conditional-files"), *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Client:
    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("got"))


def pixels(images) -> list[np.ndarray]:
    """RGB of a gallery that a client got, or of PIL images."""
    if not isinstance(images[0], Image.Image):
        images = [Image.open(entry["image"]) for entry in images]
    return [np.asarray(image.convert("RGB")) for image in images]


def assert_same(got, expected) -> None:
    assert len(got) == len(expected)
    for one, other in zip(pixels(got), pixels(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def stroke(width: int, height: int) -> tuple[np.ndarray, Image.Image]:
    """A thin stroke: where it is, and as an editor's layer."""
    masked = np.zeros((height, width), bool)
    masked[height // 5 : height // 2, width // 3] = True
    layer = np.zeros((height, width, 4), np.uint8)
    layer[masked] = 255, 150, 60, 255
    return masked, Image.fromarray(layer)


def saved(image: Image.Image, folder: Path, name: str = "image.png", **options):
    image.save(folder / name, **options)
    return handle_file(folder / name)


def editor(background, layer=None) -> dict:
    return {"background": background, "layers": [layer] if layer else [], "composite": None}


# ── the endpoints ─────────────────────────────────────────────────────────────────────────────


def test_endpoints_have_these_names_and_defaults(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    chain = {
        "seed": 0,
        "temperature": 1,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "negative_prompt": "",
        "guidance": 1,
    }
    options = {**chain, "prompt": "", "num_images": 1, "classes": ""}
    edits = {**options, "passes": 0, "feather": 0, "candidates": 1}
    inpainting = {"editor": None, **edits, "context": 0, "invert_mask": False}
    got = {
        name: {p["parameter_name"]: p["parameter_default"] for p in endpoint["parameters"]}
        for name, endpoint in named.items()
    }
    assert got == {
        "/sample": {**options, "num_images": 4, "candidates": 1, "enlarge": 1},
        "/inpaint": inpainting,
        "/outpaint": {"editor": None, **edits, **dict.fromkeys((*MARGINS, "overlap"), 0)},
        "/panorama": {**chain, "prompts": "", "width": 192, "wrap": False, "exact": False},
        "/chain": {"image": None, "t": 2, "seed": 0},
        "/draw_again": {"image": None, "seed": 0},
    }


CHAIN = {"method": "the tokens are the same", "semantic_map": "painted, at /semantic"}
EDITS = CHAIN | dict.fromkeys(
    ["process", "resampling_passes", "particles", "chains"], "the app refines"
)
WIDE = {"method": CHAIN["method"], "mode": "called exact", "classes": "said in the prompts"}
INTERFACES = {  # endpoint → the table of its options, and those that it lacks: why
    "/sample": (SamplingOptions, CHAIN),
    "/inpaint": (InpaintOptions, EDITS),
    "/outpaint": (EditingOptions, EDITS),
    "/panorama": (PanoramaOptions, WIDE),
}


def test_every_option_reaches_the_app(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name, (table, missing) in INTERFACES.items():
        shown = {p["parameter_name"] for p in named[name]["parameters"]}
        assert rows(table).keys() - shown == missing.keys(), name


def test_numbers_reach_the_chain(model, monkeypatch):
    given, numbers = [], {name: 0.5 if name != "top_k" else 3 for name in FILTERS}
    monkeypatch.setattr(ImageBART, "sample_steps", lambda *_, **how: given.append(how) or iter([]))
    assert list(sample(model, **numbers)) == [] and numbers.items() <= given[0].items()


def test_a_picture_is_forgotten_level_by_level(client, model, tmp_path):
    image = saved(picture(*model.image_size[::-1]), tmp_path)
    shown, line, levels = client.predict(image, t=1, seed=3, api_name="/chain")
    x_1 = model.encode(Image.open(image["path"]))
    np.testing.assert_array_equal(pixels([Image.open(shown)])[0], pixels(model.decode(x_1))[0])
    assert "At t = 1, 100% of the" in line and "bits per token" in line
    kept = [int(re.search(r"(\d+)% kept", level["caption"]).group(1)) for level in levels]
    assert len(kept) == model.T and kept[0] == 100 and kept == sorted(kept, reverse=True)
    noise, *_ = client.predict(image, t=model.T, seed=3, api_name="/chain")
    assert_same([Image.open(noise)], [Image.open(levels[-1]["image"])])
    other, *_ = client.predict(image, t=model.T, seed=4, api_name="/chain")
    assert (pixels([Image.open(noise)])[0] != pixels([Image.open(other)])[0]).any()


def test_a_picture_is_drawn_again_from_every_level(client, model, tmp_path):
    """From t = T nothing of it is left: a seed draws the same of any picture; from t = 1 all is."""
    images = [saved(picture(32, 32, seed=i), tmp_path, f"{i}.png") for i in range(2)]
    drawn = [client.predict(image, seed=3, api_name="/draw_again")[1] for image in images]
    for image, got in zip(images, drawn, strict=True):
        assert [one["caption"] for one in got] == [f"from t = {t}" for t in (1, 2, 3)]
        x_1 = model.encode(Image.open(image["path"]))
        assert_same(got[:1], model.decode(x_1))
        request = Request.of(model, 1, {"seed": 3})
        (step,) = reverse_steps(model, request, noisy(model, x_1.flatten(1), 2, 3), 2)
        assert_same(got[1:2], model.decode(step.tokens))
    assert_same(drawn[0][2:], drawn[1][2:])
    assert (pixels(drawn[0][1:2])[0] != pixels(drawn[0][2:])[0]).any()
    with pytest.raises(AppError, match=r"^there is no image yet"):
        client.predict(None, api_name="/draw_again")
    with pytest.raises(AppError, match=r"^seed must be a whole number, from 0 to"):
        client.predict(images[0], seed=-1, api_name="/draw_again")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"t": 0}, "t must be a whole number, from 1 to 3, got 0"),
        ({"t": 4}, "t must be a whole number, from 1 to 3, got 4"),
        ({"seed": -1}, "seed must be a whole number, from 0 to"),
        ({"image": None}, "there is no image yet"),
    ],
)
def test_a_wrong_level_comes_back_as_one_sentence(client, tmp_path, values, sentence):
    image = saved(picture(64, 64), tmp_path)
    with pytest.raises(AppError, match=sentence):
        client.predict(**{"image": image, **values}, api_name="/chain")


def test_sample_gives_what_the_model_gives(client, model):
    chain, status, gallery = client.predict(num_images=1, api_name="/sample")
    assert_same(gallery, model.sample(1, seed=0))
    assert [frame["caption"] for frame in chain] == ["t = 3, noise", "t = 2", "t = 1, image"]
    assert_same(chain[-1:], gallery)
    assert status.startswith("Seed 0, ")

    options = {"num_images": 3, "seed": 7, "temperature": 0.7, "top_k": 4}
    *_, gallery = client.predict(**options, api_name="/sample")
    assert_same(gallery, model.sample(3, seed=7, temperature=0.7, top_k=4))


def test_a_picture_has_its_seed_below_it_and_its_settings_in_it(client, conditional):
    *_, gallery = client.predict(num_images=2, seed=7, top_k=3, api_name="/sample")
    for seed, entry in zip((7, 8), gallery, strict=True):
        assert entry["caption"] == f"seed {seed}" and Path(entry["image"]).stem == f"seed{seed}"
        found = settings_of(Image.open(entry["image"]))
        assert {"command": "sample", "seed": seed, "top_k": 3}.items() <= found.items()
        assert "temperature" not in found
    *_, (_, _, images) = sample(conditional, "a lake at night", 1, 3)
    (path, _) = images[0]
    assert Path(path).stem == "a-lake-at-night_seed3"
    assert settings_of(Image.open(path))["prompt"] == "a lake at night"


def test_results_are_enlarged_on_request(client, model, conditional, tmp_path):
    *_, gallery = client.predict(num_images=1, enlarge=3, api_name="/sample")
    (image,) = model.sample(1, seed=0)
    larger = image.resize((96, 96), Image.Resampling.LANCZOS)
    assert_same(gallery, [larger])
    assert settings_of(Image.open(gallery[0]["image"]))["enlarge"] == 3
    paint_kinds(np.zeros((32, 32), int), kind_colours(["sky", "water", "grass"])).save(
        tmp_path / "map.png"
    )
    painted = editor({"path": str(tmp_path / "map.png")})
    *_, (_, _, images) = semantic(conditional, painted, enlarge=2)
    assert [one.size for one in opened_all(images)] == [(64, 64)]
    for wrong in (0, 5, 1.5, "much"):
        sentence = f"enlarge must be a whole number, from 1 to 4, got {wrong!r}"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            next(sample(model, enlarge=wrong))
    with pytest.raises(ValueError, match="all pictures together must have at most 16 million"):
        requests.read_enlarge(SimpleNamespace(image_size=(512, 512), K=12), 4, 5)


def test_every_scale_is_streamed(client, model):
    job = client.submit(num_images=2, seed=3, api_name="/sample")
    steps = list(job)
    assert [len(chain) for chain, _, _ in steps] == [1, 2, 3]
    for step, (_, _, gallery) in zip(model.sample_steps(2, seed=3), steps, strict=True):
        assert_same(gallery, model.decode(step.tokens))


@pytest.mark.parametrize("size", [(32, 32), (75, 50)])
def test_an_edit_keeps_every_pixel_outside_the_painted_tokens(client, model, tmp_path, size):
    image, (masked, layer) = picture(*size), stroke(*size)
    request = editor(saved(image, tmp_path), saved(layer, tmp_path, "layer.png"))
    *_, gallery = client.predict(request, num_images=2, seed=5, api_name="/inpaint")
    assert_same(gallery, model.inpaint(image, masked, 2, seed=5))

    kept, before = ~masked, np.asarray(image)
    assert 0 < kept.sum() < kept.size
    for result in pixels(gallery):
        np.testing.assert_array_equal(result[kept], before[kept])
        assert (result[~kept] != before[~kept]).any()


def test_no_pixel_under_the_stroke_reaches_an_edit(client, tmp_path):
    """What is shown of the input as well: another picture under the stroke, the same answer."""
    image, (masked, layer) = picture(75, 50), stroke(75, 50)
    other = Image.fromarray(np.where(masked[..., None], 255 - np.asarray(image), image))
    answers = []
    for one in (image, other):
        request = editor(saved(one, tmp_path), saved(layer, tmp_path, "layer.png"))
        shown, strip, _, gallery = client.predict(request, passes=2, seed=5, api_name="/inpaint")
        answers.append(
            [Image.open(shown), *(Image.open(step["image"]) for step in strip + gallery)]
        )
    assert_same(*answers)


def test_a_picture_goes_on_beyond_its_borders(client, model, tmp_path):
    image, how = picture(32, 32), {"left": 8, "bottom": 20, "overlap": 4, "seed": 4, "passes": 1}
    request = editor(saved(image, tmp_path))
    _, line, gallery = client.predict(request, num_images=2, **how, api_name="/outpaint")
    assert line.startswith("Seeds 4 to 5, ")
    assert_same(gallery, model.outpaint(image, 2, process="refined", **how))
    assert pixels(gallery)[0].shape == (52, 40, 3)
    for values, sentence in (
        ({}, "there is nothing to add yet"),
        ({"top": 1025}, "top must be a whole number, from 0 to 1024, got 1025"),
        ({"top": 8, "overlap": 9}, "overlap must be a whole number, from 0 to 8, got 9"),
    ):
        with pytest.raises(AppError, match=f"^{sentence}"):
            client.predict(request, **values, api_name="/outpaint")


def test_a_panorama_is_the_models_and_grows(client, model):
    job = client.submit(width=104, seed=3, wrap=True, api_name="/panorama")
    line, picture = job.result()
    assert line.startswith("Seed 3, ")
    assert_same([Image.open(picture)], model.panorama(104, seed=3, wrap=True))
    lines = [line for line, _ in job.outputs()]
    assert len(lines) > 4 and all("Drawing" in line for line in lines[:-1])
    _, exact = client.predict(width=40, seed=3, exact=True, api_name="/panorama")
    assert_same([Image.open(exact)], model.panorama(40, seed=3, mode="exact"))
    for values, sentence in (
        ({"width": 31}, "width must be at least the model's 32, got 31"),
        ({"width": 4097}, "width must be a whole number, from 0 to 4096, got 4097"),
        ({"wrap": 1}, "wrap must be true or false, got 1"),
        ({"prompts": "x" * 1001}, f"prompts must be {LONG}"),
    ):
        with pytest.raises(AppError, match=f"^{re.escape(sentence)}$"):
            client.predict(**values, api_name="/panorama")


def test_prompts_of_a_panorama_are_its_lines(make_model):
    model = make_model(T=3, conditions={"class": 2, "text": 6}, condition_dropout=True)
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    *_, (line, got) = panorama(model, "lake\n\nvolcano night ", width=96, seed=2, guidance=2)
    with pytest.warns(UserWarning, match="volcano"):
        expected = model.panorama(96, prompts=["lake", "volcano night"], seed=2, guidance=2)
    assert_same([Image.open(got)], expected)
    assert line.endswith("prompt: this model has never seen volcano.")


def test_a_mask_means_the_same_here_and_in_the_library(model, tmp_path):
    """Faint strokes do not mark, nor does what is dark in 16 bits."""
    image, (masked, layer) = picture(32, 32), stroke(32, 32)
    white = Image.fromarray(masked)
    faint = layer.copy()
    faint.putalpha(layer.getchannel("A").point(lambda alpha: alpha // 3))
    dark = Image.fromarray(np.full((32, 32), 1000, np.uint16))
    layers = [layer, faint, dark, *(white.convert(mode) for mode in ("L", "LA", "RGBA", "P"))]
    for mask in layers:
        _, got = read_editor(request_of(image, mask, tmp_path))
        assert np.array_equal(got, pixel_mask(mask, (32, 32)))
        assert np.array_equal(got > 0, masked & (mask is not faint and mask is not dark))
    assert np.array_equal(
        read_editor(request_of(image, mask_layer("Upper half", (32, 32)), tmp_path))[1] > 0,
        np.arange(32)[:, None].repeat(32, 1) < 16,
    )


def test_a_layer_without_transparency_marks_where_it_is_white(client, model, tmp_path):
    image, (masked, _) = picture(32, 32), stroke(32, 32)
    layer = saved(Image.fromarray(masked), tmp_path, "mask.png")
    request = editor(saved(image, tmp_path), layer)
    *_, gallery = client.predict(request, api_name="/inpaint")
    assert_same(gallery, model.inpaint(image, masked))
    *_, gallery = client.predict(request, invert_mask=True, api_name="/inpaint")
    assert_same(gallery, model.inpaint(image, ~masked))
    with pytest.raises(AppError, match=r"^invert_mask must be true or false, got 1$"):
        client.predict(request, invert_mask=1, api_name="/inpaint")


def test_the_picture_in_the_editor_is_the_one_that_was_put_there(tmp_path):
    """Not the browser's copy, without profile and transparency, unless the file is too old."""
    given = picture(32, 32)
    given.putalpha(picture(32, 32, "L", seed=1))
    given.save(tmp_path / "given.png", icc_profile=PROFILE)
    seen = to_rgb(Image.open(tmp_path / "given.png"))
    request = request_of(seen, None, tmp_path)
    for source, expected in ((str(tmp_path / "given.png"), given), (None, seen), ("gone", seen)):
        got, _ = read_editor(request, source)
        assert got.mode == expected.mode
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    reduced = request_of(picture(MOST_SHOWN, 32), None, tmp_path)
    with pytest.raises(
        ValueError, match="must be a file uploaded to this app within the last hour"
    ):
        read_editor(reduced, "gone")


def test_a_large_picture_is_shown_smaller(tmp_path, model):
    """Its edits have its pixels, and the mask that was painted over what is shown."""
    width, height = 3 * MOST_SHOWN, 3 * 200
    given = picture(width, height)
    given.save(tmp_path / "given.jpeg", quality=95)
    path = str(tmp_path / "given.jpeg")
    value, source = from_file({"path": path})
    assert source == path and Image.open(value["background"]).size == (MOST_SHOWN, 200)
    request = editor({"path": value["background"]})
    masked = editing.with_mask("Left half", request)
    assert masked["background"] == value["background"]
    layers = [{"path": layer} for layer in masked["layers"]]
    got, mask = read_editor(request | {"layers": layers}, source)
    assert_same([got], [to_rgb(Image.open(path))])
    assert np.array_equal(mask > 0, np.arange(width)[None].repeat(height, 0) < width // 2)
    small = picture(40, 30)
    value, source = with_source(small)
    assert source == value["background"]
    assert_same([Image.open(source)], [small])
    with pytest.raises(Error, match="there is no image yet"):
        editing.with_mask("Left half", None)


def test_a_seed_means_the_same_picture_among_other_visitors(client, server, model):
    others = Client(server.url, verbose=False, download_files=client.download_files)
    seeds = [0, 1, 2**53 + 1, str(2**63 - 1), 4, 5, 6, "7"]
    jobs = [
        visitor.submit(num_images=1, seed=seed, api_name="/sample")
        for seed, visitor in zip(seeds, [client, others] * 4, strict=True)
    ]
    for seed, job in zip(seeds, jobs, strict=True):
        assert_same(job.result()[-1], model.sample(1, seed=int(seed)))


def test_requests_that_differ_in_words_and_seeds_are_drawn_as_one_batch(make_model):
    """Each has its own pictures, chain, remark and error, as if it were alone."""
    model = make_model(T=3, conditions={"class": 2, "text": 6}, condition_dropout=True)
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    first = dict.fromkeys(("prompt", "classes", "negative_prompt"), "") | {
        **dict(num_images=1, seed=0, guidance=2, candidates=1, enlarge=1),
        **{name: getattr(Filter(), name) for name in FILTERS},
    }
    calls = [first, first | {"seed": "9", "num_images": 2, "prompt": "a lake", "classes": "1"}]
    calls += [first | {"seed": -1}, first | {"prompt": "a volcano", "negative_prompt": "night"}]
    calls[1] |= {"enlarge": 2}
    calls += [first | {"unknown": 1}]
    works = [sampling_work(model, None, **call) for call in calls]
    assert len({work.key for work in works}) == 1 and [work.size for work in works] == [
        1,
        2,
        1,
        1,
        1,
    ]
    assert sampling_work(model, None, **first | {"temperature": 0.5}).key != works[0].key
    assert sampling_work(model, None, **first | {"candidates": 2}).key is None

    errors, *steps = works[0].run([work.request for work in works])
    assert [type(error) for error in (errors[2], errors[4])] == [ValueError, TypeError]
    for i, call in enumerate(calls):
        if errors[i] is not None:
            assert i in (2, 4) and {outputs[i] for outputs in steps} == {None}
            continue
        for got, (chain, line, images) in zip(steps, sample(model, **call), strict=True):
            assert_same(opened_all(got[i][2]), opened_all(images))
            assert_same(opened_all(got[i][0]), opened_all(chain))
            assert re.sub(r"[\d.]+ s\.", "", got[i][1]) == re.sub(r"[\d.]+ s\.", "", line)
    assert "volcano" in steps[-1][3][1] and "volcano" not in steps[-1][1][1]


def opened_all(items) -> list[Image.Image]:
    """The pictures of a gallery's (file, caption)."""
    return [Image.open(path) for path, _ in items]


# ── wrong values ──────────────────────────────────────────────────────────────────────────────

COUNT = "num_images must be a whole number, from 1 to 16, got"
SEED = f"seed must be a whole number, from 0 to {2**63 - 1}, got"
WRONG = [
    ({"num_images": 0}, f"{COUNT} 0"),
    ({"num_images": 17}, f"{COUNT} 17"),
    ({"num_images": 1.5}, f"{COUNT} 1.5"),
    ({"num_images": True}, f"{COUNT} True"),
    ({"seed": -1}, f"{SEED} -1"),
    ({"seed": 2**63}, f"{SEED} {2**63}"),
    ({"seed": "abc"}, f"{SEED} 'abc'"),
    ({"seed": None}, f"{SEED} None"),
    ({"seed": [1]}, f"{SEED} [1]"),
    ({"temperature": 5.5}, "temperature must be a number from 0 to 5, got 5.5"),
    ({"temperature": "hot"}, "temperature must be a number from 0 to 5, got 'hot'"),
    ({"top_k": -1}, "top_k must be a whole number, from 0 to 12, got -1"),
    ({"prompt": "x" * 1001}, f"prompt must be {LONG}"),
    ({"negative_prompt": 3}, "negative_prompt must be text of at most 1000 characters, got 3"),
    ({"classes": "lake"}, "this model takes no class, got classes ['lake']"),
    ({"guidance": "much"}, "guidance must be a number from 0 to 20, got 'much'"),
    (
        {"guidance": 2},
        "guidance must be 1 for a model that was trained without condition dropout, got 2.0",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG)
def test_a_wrong_value_comes_back_as_one_sentence(client, values, sentence):
    with pytest.raises(AppError, match=f"^{re.escape(sentence)}$"):
        client.predict(**{"num_images": 1} | values, api_name="/sample")


def test_an_edit_says_what_it_misses(client, tmp_path):
    with pytest.raises(AppError, match=r"^there is no image yet"):
        client.predict(None, api_name="/inpaint")
    image = saved(picture(32, 32), tmp_path)
    clear = saved(Image.new("RGBA", (32, 32)), tmp_path, "clear.png")
    for request in (editor(image), editor(image, clear)):
        with pytest.raises(AppError, match=r"^the mask is empty"):
            client.predict(request, api_name="/inpaint")
    layer = saved(stroke(20, 32)[1], tmp_path, "narrow.png")
    with pytest.raises(
        AppError, match=r"^the mask must be as large as the image, 32×32, got 20×32"
    ):
        client.predict(editor(image, layer), api_name="/inpaint")


def test_a_prompt_is_answered_by_a_remark(client, model):
    _, status, gallery = client.predict("a lake at dawn", 1, api_name="/sample")
    assert status.endswith("This model takes no text: the prompt was not used.")
    assert_same(gallery, model.sample(1, seed=0))


def test_each_image_has_the_class_that_was_asked_for(make_model):
    model = make_model(T=3, conditions={"class": 5})
    *_, (_, _, by_class) = sample(model, num_images=2, seed=3, classes="4")
    assert_same([Image.open(path) for path, _ in by_class], model.sample(2, seed=3, classes=4))
    *_, (_, _, mixed) = sample(model, num_images=2, seed=3)
    assert_same([Image.open(path) for path, _ in mixed], model.sample(2, seed=3, classes=[3, 4]))
    with pytest.raises(ValueError, match="classes must be a whole number, from 0 to 4, got 5"):
        next(sample(model, classes=5))


def test_words_reach_the_chain(make_model):
    """Prompt, negative prompt, class and guidance are the model's; what it cannot read is said."""
    said = dict(conditions={"class": 2, "text": 6}, condition_dropout=True)
    model = make_model(T=3, **said)
    model.names["class"] = ["lake", "desert"]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake at night"], 6)[0])
    words = {"classes": "desert", "negative_prompt": "night", "guidance": 2.5}
    *_, (_, line, got) = sample(model, "a lake", seed=3, **words)
    expected = model.sample(1, prompt="a lake", seed=3, **words)
    assert_same([Image.open(path) for path, _ in got], expected)
    assert "never" not in line
    *_, (_, line, _) = sample(model, "a volcano", seed=3)
    assert line.endswith("prompt: this model has never seen volcano.")
    with pytest.raises(ValueError, match="desert"):
        next(sample(model, classes="dessert"))


def test_an_edit_is_refined_as_often_as_asked(model, tmp_path):
    image = picture(32, 32)
    layer = mask_layer("Upper half", (32, 32))
    files = [tmp_path / "image.png", tmp_path / "layer.png"]
    for one, file in zip((image, layer), files, strict=True):
        one.save(file)
    request = editor(*({"path": str(file)} for file in files))
    *steps, (*_, got, _) = inpaint(model, request, seed=3, passes=2)
    mask = layer
    expected = model.inpaint(image, mask, seed=3, process="refined", passes=2)
    assert_same([Image.open(path) for path, _ in got], expected)
    assert len(steps) in (model.T, model.T + 1)
    with pytest.raises(ValueError, match="passes must be a whole number, from 0 to 16, got 17"):
        next(inpaint(model, request, passes=17))


# ── odd pictures ──────────────────────────────────────────────────────────────────────────────


def odd_pictures() -> dict[str, tuple[Image.Image, str, dict]]:
    clear = picture(32, 32, "RGBA", 1)
    clear.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))))
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)
    turned = Image.Exif()
    turned[0x0112] = 6
    animated = {"lossless": True, "save_all": True, "append_images": [picture(32, 32, seed=2)]}
    return {
        "palette": (picture(32, 32, "P"), "png", {}),
        "alpha": (clear, "png", {}),
        "16-bit": (deep, "png", {}),
        "turned": (picture(40, 32), "jpg", {"exif": turned}),
        "profile": (picture(32, 32), "jpg", {"icc_profile": PROFILE}),
        "CMYK": (picture(32, 32, "CMYK"), "jpg", {}),
        "one pixel": (picture(1, 1), "png", {}),
        "a line": (picture(2000, 10), "png", {}),
        "animated": (picture(32, 32), "webp", animated),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_odd_pictures_are_read_as_the_library_reads_them(client, model, tmp_path, name):
    image, suffix, options = odd_pictures()[name]
    background = saved(image, tmp_path, f"odd.{suffix}", **options)
    given = as_given(Image.open(tmp_path / f"odd.{suffix}"))
    mask = np.ones(given.size[::-1], bool)
    mask[: given.height // 2] = False
    layer = saved(Image.fromarray(mask), tmp_path, "mask.png")
    *_, gallery = client.predict(editor(background, layer), seed=2, api_name="/inpaint")
    got, (expected,) = Image.open(gallery[0]["image"]), model.inpaint(given, mask, seed=2)
    assert got.mode == expected.mode == given.mode
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(got)[~mask], np.asarray(given)[~mask])
    assert got.info.get("icc_profile") == given.info.get("icc_profile")


def broken_pictures() -> dict[str, bytes]:
    whole, huge = BytesIO(), BytesIO()
    picture(64, 64).save(whole, "PNG")
    Image.new("1", (5000, 5000)).save(huge, "PNG")
    return {
        "truncated": whole.getvalue()[:5000],
        "text": b"not a picture",
        "empty": b"",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "huge": huge.getvalue(),
    }


@pytest.mark.parametrize("name", broken_pictures())
def test_a_broken_picture_comes_back_as_one_sentence(client, tmp_path, name):
    (tmp_path / "broken.png").write_bytes(broken_pictures()[name])
    expected = "at most 16 million pixels" if name == "huge" else "must be a whole file, one of PNG"
    with pytest.raises(AppError, match=expected) as error:
        client.predict(editor(handle_file(tmp_path / "broken.png")), api_name="/inpaint")
    assert "/" not in str(error.value)


# ── who may ask ───────────────────────────────────────────────────────────────────────────────


def test_files_of_the_machine_stay_here(server):
    for path in ("/etc/passwd", ROOT / "app.py", ROOT / "imagebart/model.py"):
        assert httpx.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{server.url}/monitoring").status_code in (403, 404)
    big = httpx.post(f"{server.url}/gradio_api/upload", files={"files": b"0" * 11_000_000})
    assert big.status_code == 413


def test_pictures_are_uploads_at_every_endpoint(server):
    """No endpoint, named, private or by number, opens another file or fetches an address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        page = httpx.Client(base_url=f"{server.url}/gradio_api/", timeout=60)
        functions = page.get(f"{server.url}/config").json()["dependencies"]
        targets = [("call/chain", 0), ("run/chain", 0), ("call/v2/inpaint", 0)]
        targets += [("queue/join", one["id"]) for one in functions]
        for path in ("/etc/passwd", "/etc/none", "/dev/ptmx", address):
            file = {"path": path, "url": address, "meta": {"_type": "gradio.FileData"}}
            for i, (endpoint, number) in enumerate(targets):
                value = [file, {"background": file, "layers": []}, [{"image": file}]][i % 3]
                body = {"data": [value] * 4, "session_hash": "one", "fn_index": number}
                assert page.post(endpoint, json=body).json() == {"detail": REFUSED}
            for prefix in ("file=", "file/", "proxy="):
                assert page.get(f"{prefix}{path}").status_code == 404
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_the_queue_is_the_only_way_to_the_model(server):
    """Direct calls are refused, by name and by number."""
    page = httpx.Client(base_url=f"{server.url}/gradio_api/", timeout=60)
    for one in page.get(f"{server.url}/config").json()["dependencies"]:
        if one["api_visibility"] == "public":
            for name in (one["api_name"], "x"):
                body = {"data": [None] * len(one["inputs"]), "fn_index": one["id"]}
                assert page.post(f"run/{name}", json=body).status_code == 404


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_job_ends_at_once_when_its_visitor_stops_it_or_leaves(server, how):
    page = httpx.Client(base_url=f"{server.url}/gradio_api/", timeout=60)
    functions = page.get(f"{server.url}/config").json()["dependencies"]
    (number,) = (one["id"] for one in functions if one["api_name"] == "panorama")
    named = page.get("info").json()["named_endpoints"]["/panorama"]["parameters"]
    wide = {one["parameter_name"]: one["parameter_default"] for one in named}
    values = [*(wide | {"width": 4096, "exact": True}).values()]
    body = {"data": values, "fn_index": number, "session_hash": how}

    def wait_until(text: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while text not in page.get(f"{server.url}/metrics").text:
            assert time.monotonic() < until, text
            time.sleep(0.02)

    event = page.post("queue/join", json=body).json()["event_id"]
    with page.stream("GET", "queue/data", params={"session_hash": how}):
        wait_until("imagebart_jobs_running 1", 60)
        if how == "stop":
            page.post("cancel", json=body | {"event_id": event})
            wait_until("imagebart_jobs_running 0", 2)
    wait_until("imagebart_jobs_running 0", 2)


def test_a_server_ends_in_the_midst_of_a_job(model, tmp_path):
    """Within five seconds, with 0, leaving no file. A proxy in the environment is no hindrance."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    server = Server(tmp_path, "--model", str(model.folder), no_proxy="", **nowhere)
    with server:
        Client(server.url, verbose=False).submit(width=4096, exact=True, api_name="/panorama")
        while "imagebart_jobs_running 1" not in httpx.get(f"{server.url}/metrics", timeout=60).text:
            time.sleep(0.1)
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(timeout=60) == 0
        assert time.monotonic() - began < 5 and not list(tmp_path.glob("imagebart-*"))


def test_visitors_who_left_are_forgotten():
    """At the second look, what nobody read and what was stopped; jobs that run stay."""
    sessions = {"reads": {"running"}, "done": set(), "unread": {"over"}, "evicted": {"x"}}
    queue = SimpleNamespace(
        pending_event_ids_session=sessions,
        pending_messages_per_session=dict.fromkeys(("reads", "done", "unread", "left")),
        event_ids_to_events={"running": None},
    )
    files, stopped = {"image.png"}, SimpleNamespace(iterators_to_reset={"running", "over"})
    page = SimpleNamespace(_queue=queue, temp_file_sets=[files], app=stopped)
    app.file_upload_statuses.track("an upload")
    idle = app.forget(page, set())
    assert idle >= {"done", "unread", "left", "an upload"}
    assert sessions.keys() == {"reads", "done", "unread"}
    assert not files and stopped.iterators_to_reset == {"running"}
    app.forget(page, idle)
    assert sessions.keys() == queue.pending_messages_per_session.keys() == {"reads"}
    assert "an upload" not in app.file_upload_statuses._signals


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_free_memory_is_given_back():
    """Also what lies below a piece that is in use."""
    pieces = [b"x" * 50_000 for _ in range(2000)]
    last = pieces.pop()
    del pieces
    before = psutil.Process().memory_info().rss
    app.give_back()
    assert before - psutil.Process().memory_info().rss > 50e6 and last


def test_pictures_lie_in_a_folder_of_ones_own(client, server):
    client.predict(api_name="/sample")
    [folder] = server.folder.glob("imagebart-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob("*/image.png"))


def test_other_sites_are_refused(server):
    assert httpx.get(server.url, headers={"host": "evil.example"}).status_code == 400
    assert httpx.get(server.url, headers={"origin": "http://evil.example"}).status_code == 403
    for nowhere in ({"host": "["}, {"origin": "http://["}):
        assert httpx.get(server.url, headers=nowhere).status_code == 400
    own = httpx.get(server.url, headers={"origin": server.url})
    assert own.status_code == 200
    assert own.headers["content-security-policy"] == "frame-ancestors 'self'"


def test_a_browser_keeps_pictures(client, server):
    client.predict(api_name="/sample")
    path, *_ = server.folder.glob("imagebart-*/*/image.png")
    got = httpx.get(f"{server.url}/gradio_api/file={path}")
    assert got.headers["cache-control"] == "private, max-age=3600"
    assert "cache-control" not in httpx.get(f"{server.url}/gradio_api/file=/etc/passwd").headers


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org"])
def test_others_come_in_with_a_password_only(host):
    with pytest.raises(ValueError, match="--auth USER:PASSWORD must be given, got none"):
        app.main(app.Config(host=host))
    assert serving.read_auth(host, "anna:a:b") == ("anna", "a:b")
    for auth in ("", "anna", "anna:", ":secret"):
        with pytest.raises(ValueError, match="--auth must be USER:PASSWORD"):
            serving.read_auth(host, auth)


def test_this_machine_needs_no_password():
    for host in ("127.0.0.1", "localhost", "::1"):
        assert serving.read_auth(host, None) is None


def test_a_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="must be a folder or a Hub id"):
        app.main(app.Config(model=str(tmp_path / "none")))


def test_stop_ends_the_run_it_stands_beside(make_model):
    model = make_model(T=3, conditions={"map": 3}, condition_dropout=True)
    model.names["map"] = ["sky", "water", "grass"]
    functions = app.build(Worker(), model).config["dependencies"]
    named = {f["api_name"]: f["id"] for f in functions if f["api_visibility"] == "public"}
    cancelled = [f["cancels"] for f in functions if f["cancels"]]
    runs = ("sample", "inpaint", "outpaint", "semantic", "panorama", "draw_again")
    assert cancelled[:-1] == [[named[name]] for name in runs]
    assert cancelled[-1] == [named["draw_again"]]  # another picture ends it too


def test_no_event_takes_or_tells_an_editor(make_model):
    """Gradio asks what it tells of an event for its value, and an editor uploads its picture."""
    model = make_model(T=3, conditions={"text": 6, "map": 3}, condition_dropout=True)
    model.names["map"] = ["sky", "water", "grass"]
    config = app.build(Worker(), model).config
    kinds = {one["id"]: one for one in config["components"]}
    holding = {"imageeditor", "tabs", "tabitem", "accordion", "row", "column"}
    seen = {i for i, one in kinds.items() if one["type"] in holding and one["props"]["visible"]}
    editors = {i for i in seen if kinds[i]["type"] == "imageeditor"}
    assert len(editors) == 2
    for one in config["dependencies"]:
        reached = one["outputs"] if one["show_progress_on"] is None else one["show_progress_on"]
        if one["backend_fn"]:
            assert not seen & {*one["inputs"], *reached}, one["api_name"]
    looks = [one for one in config["dependencies"] if editors & {*one["inputs"]}]
    assert len(looks) == 13 and not any(one["backend_fn"] for one in looks)


def test_no_event_of_the_queue_follows_another(make_model):
    """Gradio ends a page's stream with its last event: one that joins just then is lost, or the
    page reloads itself."""
    model = make_model(T=3, conditions={"text": 6, "map": 3}, condition_dropout=True)
    model.names["map"] = ["sky", "water", "grass"]
    functions = app.build(Worker(), model).config["dependencies"]
    queued = {one["id"]: one for one in functions if one["backend_fn"] and one["queue"]}
    changed = {i: {(output, "change") for output in one["outputs"]} for i, one in queued.items()}
    followers = [
        (one["api_name"], other["api_name"])
        for i, one in queued.items()
        for other in queued.values()
        if other["trigger_after"] == i or changed[i] & set(map(tuple, other["targets"]))
    ]
    assert len(queued) > 20 and followers == []


def test_a_picture_is_reimagined_by_words(conditional, tmp_path):
    """As the library does it; a model that takes no text has no such endpoint."""
    image, words = picture(50, 40), "a lake at night"
    request, how = request_of(image, None, tmp_path), {"strength": 0.5, "seed": 2}
    steps = list(reimagine(conditional, request, words, 2, **how, source_prompt="a lake"))
    *_, (line, images, before) = steps
    expected = conditional.reimagine(image, 2, prompt=words, source_prompt="a lake", **how)
    assert_same([Image.open(path) for path, _ in images], expected)
    assert len(steps) == 2 and line.startswith("Seeds 2 to 3, ")
    assert Image.open(before).size == conditional.image_size[::-1]
    about = settings_of(Image.open(images[0][0]))
    said = {"command": "reimagine", "source_prompt": "a lake", "strength": 0.5}
    assert said.items() <= about.items()
    with pytest.raises(ValueError, match="source_prompt must be text of at most 1000 characters"):
        next(reimagine(conditional, request, words, source_prompt="a" * 1001))
    *_, (line, _, _) = reimagine(conditional, request, words, strength=0, source_prompt="a zzyzx")
    assert line.endswith(" source_prompt: this model has never seen zzy, zx.")
    with pytest.raises(ValueError, match=r"^strength must be a number from 0 to 1, got 2$"):
        next(reimagine(conditional, request, strength=2))

    functions = app.build(Worker(), conditional).fns.values()
    (page,) = [one for one in functions if one.api_name == "reimagine"]
    missing = {"method", "semantic_map", "source_semantic_map", "source_classes"}
    shown = inspect.signature(page.fn).parameters.keys()
    assert rows(ReimaginingOptions).keys() - shown == missing


def test_a_painted_map_reaches_the_chain(make_model, tmp_path):
    painter = make_model(T=3, conditions={"map": 3}, condition_dropout=True)
    painter.names["map"] = ["sky", "water", "grass"]
    colours = kind_colours(painter.names["map"])
    kinds = np.full((32, 32), -1)
    kinds[:16], kinds[16:, :8] = 0, 1
    background = paint_kinds(kinds, colours)
    background.save(tmp_path / "map.png")
    value = {"background": {"path": str(tmp_path / "map.png")}, "layers": []}
    *_, (read, _, got) = semantic(painter, value, seed=2, guidance=2)
    assert_same([Image.open(read)], [background])
    expected = painter.sample(1, seed=2, guidance=2.0, semantic_map=kinds)
    assert_same([Image.open(path) for path, _ in got], expected)

    layer = np.zeros((32, 32, 4), np.uint8)
    layer[16:, 8:] = *colours[2], 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    value["layers"] = [{"path": str(tmp_path / "layer.png")}]
    kinds[16:, 8:] = 2
    *_, (_, _, got) = semantic(painter, value, seed=2, guidance=2)
    expected = painter.sample(1, seed=2, guidance=2.0, semantic_map=kinds)
    assert_same([Image.open(path) for path, _ in got], expected)


def test_the_best_landscapes_of_a_map_are_shown(make_model, clip, tmp_path):
    painter, ranker = (
        make_model(T=3, conditions={"text": text_shape(9), "map": 3}, condition_dropout=True),
        CLIP(clip),
    )
    painter.names["map"] = ["sky", "water", "grass"]
    kinds = np.zeros((32, 32), int)
    paint_kinds(kinds, kind_colours(painter.names["map"])).save(tmp_path / "map.png")
    value = {"background": {"path": str(tmp_path / "map.png")}, "layers": []}
    *_, (_, line, got) = semantic(painter, value, "a lake", 2, 5, candidates=3, ranker=ranker)
    score, how = ranker.likeness("a lake"), dict(prompt="a lake", semantic_map=kinds)
    best = best_of(painter, 2, 6, score, seed=5, **how)
    assert_same([Image.open(path) for path, _ in got], [one.image for one in best])
    assert "The best of 6." in line


def test_what_will_be_added_is_seen_before(tmp_path):
    """In small, with the size of the picture itself; nothing without a picture."""
    image, path = picture(3000, 2000), str(tmp_path / "large.png")
    image.save(path)
    frame = change.extended(path, 8, "2", 4, 0, 12)
    seen = Image.open(BytesIO(b64decode(frame.pop("picture").partition(",")[2])))
    assert seen.size == (384, 256)
    near = np.asarray(image.resize(seen.size)).astype(int) - np.asarray(seen)
    assert np.abs(near).mean() < 8  # as JPEG
    assert frame == {"size": [3000, 2000], "left": 8, "right": 2, "top": 4, "bottom": 0} | {
        "overlap": 12
    }
    assert change.extended(None, 8, 0, 0, 0, 0) is None
    for wrong, sentence in (
        ((1025, 0, 0, 0, 0), "left must be a whole number, from 0 to 1024, got 1025"),
        ((8, 0, 0, 0, 501), "overlap must be a whole number, from 0 to 500, got 501"),
    ):
        with pytest.raises(Error, match=sentence):
            change.extended(path, *wrong)


def test_a_mask_is_seen_before_it_is_drawn(model, tmp_path):
    """Tinted what is drawn, dark what lies outside the crop, the rest as it is."""
    image, layer = Image.new("RGB", (64, 32), "#204060"), np.zeros((32, 64), np.uint8)
    layer[:16, :20] = 255
    request = request_of(image, Image.fromarray(layer), tmp_path)

    def look(context=0, feather=0, invert=False) -> np.ndarray:
        shown = change.previewed(model, request, None, context, feather, invert)
        assert shown.visible
        return np.asarray(Image.open(shown.value["path"])).astype(int)

    own, tint = np.array([0x20, 0x40, 0x60]), np.array(ImageColor.getrgb(PAINT))
    seen = look()
    assert np.abs(seen[8, 10] - (own + (tint - own) * SEEN)).max() <= 2
    assert (seen[24, 10] == own).all() and (seen[8, 30] == own).all()
    assert (seen[8, 50] < own).any() and (seen[8, 50] > 0).all()  # the crop is the left square
    assert (look(context=1)[8, 30] != own).any()  # a token, 8 pixels, more
    soft = look(feather=8)[8, :20, 0]
    assert (np.diff(soft) <= 0).all() and soft[0] > soft[-1] > own[0]
    assert (look(invert=True)[24, 10] != own).any() and (look(invert=True)[8, 10] == own).all()
    with pytest.raises(Error, match="the mask is empty"):
        change.previewed(model, request_of(image, None, tmp_path), None, 0, 0, False)
    with pytest.raises(Error, match="context must be a whole number, from 0 to 4, got 5"):
        look(context=5)


@pytest.mark.parametrize(("share", "radius"), [(6, [2, 36, 38]), ("25", [5, 150, 160])])
def test_a_brush_is_as_large_as_the_picture_asks(tmp_path, share, radius):
    """In pixels of what is shown; never so small that nothing is seen."""
    picture(900, 600).save(tmp_path / "small.png")
    picture(1600, 1000).save(tmp_path / "photo.png")
    paths = (None, str(tmp_path / "small.png"), str(tmp_path / "photo.png"))
    for path, expected in zip(paths, radius, strict=True):
        brushed = editing.brushed(20, [(PAINT, SEEN)], share, path)
        assert brushed.brush.default_size == brushed.eraser.default_size == expected
        assert brushed.brush.colors == [(PAINT, SEEN)]
    for wrong in (0, 31, "much"):
        with pytest.raises(Error, match="the brush must be a number from 1 to 30"):
            editing.brushed(20, [PAINT], wrong)


def test_a_picture_is_resized_on_request(tmp_path):
    """It keeps its shape, colours and transparency; Undo has the one before."""
    given = picture(64, 32, "RGBA")
    given.putalpha(picture(64, 32, seed=1).convert("L"))
    given.info["icc_profile"] = PROFILE
    given.save(tmp_path / "given.png", icc_profile=PROFILE)
    path = str(tmp_path / "given.png")
    value, source, history = change.at_length(40, {"background": {"path": path}}, path, [])
    small = Image.open(source)
    assert source == value["background"] and history == [path] and value["layers"] == []
    assert small.size == (40, 20) and small.info["icc_profile"] == PROFILE
    assert_same([small], [given.resize((40, 20), Image.Resampling.LANCZOS)])
    alpha = given.resize((40, 20), Image.Resampling.LANCZOS).getchannel("A")
    np.testing.assert_array_equal(np.asarray(small.getchannel("A")), np.asarray(alpha))
    with pytest.raises(Error, match="the longer side must be a whole number, from 32 to 4096"):
        change.at_length(31, {"background": {"path": path}}, path, [])
    with pytest.raises(Error, match="there is no image yet"):
        change.at_length(64, None, None, [])


def test_a_panorama_goes_on_in_the_editor(tmp_path):
    picture(96, 32).save(tmp_path / "wide.png")
    value, source = wide_for_editor({"path": str(tmp_path / "wide.png")})
    assert source == str(tmp_path / "wide.png")
    assert_same([Image.open(value["background"])], [picture(96, 32)])
    with pytest.raises(Error, match="there is no picture yet"):
        wide_for_editor(None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 second"),
        (40.4, "about 40 seconds"),
        (89, "about 89 seconds"),
        (91, "about 2 minutes"),
        (600, "about 10 minutes"),
    ],
)
def test_how_long_a_job_will_go_on_is_said_in_words(monkeypatch, seconds, words):
    """At the pace so far: after a quarter three times as long as until then."""
    monkeypatch.setattr(requests.time, "perf_counter", lambda: 100 + seconds / 3)
    assert requests.progress(0.25, 100) == f"Drawing: 25%, {words} left …"
    assert requests.progress(0, 100) == "Drawing …"


def test_the_page_says_what_it_does(model, conditional):
    plain, by_words = parts.title(model), parts.title(conditional)
    assert all("32×32 pixels" in one and "1 million parameters" in one for one in (plain, by_words))
    assert "pictures, 32" in plain and "pictures from your words, 32" in by_words
    assert not any("click" in one for one in (plain, by_words))  # it stands above all tabs


def test_each_way_to_pictures_says_what_to_click(conditional):
    """Where its status comes later, and with the words of the button."""
    page = app.build(Worker(), conditional)
    blocks = page.config["components"]
    lines = {one["props"].get("elem_id"): one["props"].get("value") for one in blocks}
    buttons = {one["props"].get("value") for one in blocks if one["type"] == "button"}
    for place in ("sample-status", "edit-status", "semantic-status"):
        before, button, after = lines[place].split("**")
        assert before.endswith("click ") and button in buttons and after == "."


def test_undo_goes_back_picture_by_picture(tmp_path):
    paths = []
    for i in range(3):
        picture(20, 20, seed=i).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    history = remembered(None, None, [])
    for path in paths:
        history = remembered({"background": {"path": path}}, None, history)
    assert history == paths
    for i in (2, 1, 0):
        value, source, history = undone(history)
        assert source == paths[i]
        assert_same([Image.open(value["background"])], [Image.open(source)])
        assert history == paths[:i]
    with pytest.raises(Error, match="there is nothing to undo"):
        undone(history)
    large = str(tmp_path / "large.png")
    Image.new("1", (5000, 5000)).save(large)
    with pytest.raises(Error, match="at most 16 million pixels"):
        undone([large])
    most = MOST_UNDOS
    many = remembered({"background": {"path": paths[0]}}, None, [paths[1]] * most)
    assert len(many) == most and many[-1] == paths[0]


def test_what_undo_remembers_comes_with_a_result(tmp_path):
    files = [str(tmp_path / name) for name in ("edited.png", "result.png")]
    for i, file in enumerate(files):
        picture(20, 20, seed=i).save(file)
    background, result = ({"path": file} for file in files)
    chosen = [{"image": result, "caption": None}], 0
    now, source, history = taken(*chosen, {"background": background}, None, [])
    assert source == files[1]
    assert_same([Image.open(now["background"])], [Image.open(source)])
    assert history == files[:1]
    assert taken(*chosen, {"background": background}, source, history)[2] == history
    for nothing in (None, [], [{"image": {"path": "gone.png"}, "caption": None}]):
        with pytest.raises(Error, match=r"there is no picture yet|within the last hour"):
            taken(nothing, 0, {"background": background}, None, history)


# ── what a request may take ───────────────────────────────────────────────────────────────────


def test_pictures_of_a_request_are_bounded_together():
    for fits in ((1, 4096, 4096), (4, 2048, 2048), (16, 1024, 1024)):
        requests.check_pixels(*fits)
    sentence = "all pictures together must have at most 16 million pixels, got 16 of 1024×1025"
    with pytest.raises(ValueError, match=sentence):
        requests.check_pixels(16, 1024, 1025)


def test_large_results_are_refused_before_anything_is_drawn(model, conditional, clip, tmp_path):
    most = "^all pictures together must have at most 16 million pixels, got"
    request = request_of(
        Image.new("RGB", (2100, 2100)), Image.new("L", (2100, 2100), 255), tmp_path
    )
    with pytest.raises(ValueError, match=f"{most} 4 of 2100×2100$"):
        next(inpaint(model, request, num_images=4))
    request = request_of(picture(128, 128), None, tmp_path)
    sides = dict.fromkeys(("left", "right", "top", "bottom"), 1024)
    with pytest.raises(ValueError, match=f"{most} 4 of 2176×2176$"):
        next(outpaint(model, request, num_images=4, **sides))
    many = dict(num_images=2, candidates=2, ranker=CLIP(clip))
    with pytest.raises(ValueError, match=f"{most} 4 of 2176×2176$"):
        next(outpaint(conditional, request, "a lake", **many, **sides))


def test_candidates_of_all_images_are_bounded_together(conditional, clip, tmp_path):
    sentence = "^candidates must be at most 64 for all images together, got 5 for each of 13$"
    request = request_of(picture(32, 32), Image.new("L", (32, 32), 255), tmp_path)
    words = dict(prompt="a lake", num_images=13, candidates=5, ranker=CLIP(clip))
    for steps in (
        sample(conditional, **words),
        inpaint(conditional, request, **words),
        outpaint(conditional, request, left=8, **words),
        semantic(conditional, request, **words),
    ):
        with pytest.raises(ValueError, match=sentence):
            next(steps)


def test_layers_are_counted(model, conditional, tmp_path):
    request = request_of(picture(32, 32), Image.new("L", (32, 32), 255), tmp_path)
    request["layers"] *= 8
    next(inpaint(model, request))
    request["layers"] += request["layers"][:1]
    for steps in (inpaint(model, request), semantic(conditional, request)):
        with pytest.raises(ValueError, match=r"^there must be at most 8 layers, got 9$"):
            next(steps)


def test_large_candidates_are_drawn_by_ones_and_twos(conditional, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "MOST_PIXELS", 2 * 32 * 32)
    request = request_of(picture(32, 32), Image.new("L", (32, 32), 255), tmp_path)
    steps = inpaint(conditional, request, "a lake", candidates=4, ranker=CLIP(clip))
    assert [next(steps)[2] for _ in range(2)] == [f"{n} of 4 candidates drawn …" for n in (2, 4)]
    assert [requests.at_once(*size) for size in ((32, 32), (16, 16), (64, 64))] == [2, 4, 1]


def test_a_picture_that_grows_is_looked_at_now_and_then(monkeypatch):
    """Once every 2 seconds, and at the end."""
    now = 100.0
    monkeypatch.setattr(pictures.time, "perf_counter", lambda: now)
    seen = []
    grown = ((picture(8, 8), i / 21) for i in range(22))
    for i, (file, part) in enumerate(growing(grown, {"seed": 3})):
        assert part == i / 21
        seen.append(file)
        now += 0.5
    firsts = [seen.index(file) for file in seen]
    assert firsts == [0] * 5 + [5] * 5 + [10] * 5 + [15] * 5 + [20, 21]


def test_what_takes_long_is_looked_at_less_often(monkeypatch):
    """A fifth of the time at most goes into previews that take seconds."""
    now = 100.0
    monkeypatch.setattr(pictures.time, "perf_counter", lambda: now)
    throttle, drawn = pictures.Throttle(), []
    for i in range(40):
        if throttle.due(i / 39):
            drawn.append(i)
            with throttle.drawing():
                now += 3
        now += 1
    assert drawn == [0, 13, 26, 39]


def test_pixels_are_counted_whatever_others_do_with_warnings(tmp_path):
    Image.new("1", (4097, 4096)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="at most 16 million pixels, 32768 a side, got more"):
            read_picture({"path": str(tmp_path / "large.png")})
    Image.new("1", (1, 2**15 + 1)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="32768 a side, got more"):
        read_picture({"path": str(tmp_path / "long.png")})


def test_what_ranks_is_where_the_model_is(monkeypatch, clip):
    model = SimpleNamespace(device=torch.device("meta"), conditions={})
    found = []
    monkeypatch.setattr(app.ImageBART, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(app, "build", lambda *given: found.append(given[2]))
    monkeypatch.setattr(app, "launch", lambda *_: None)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    app.main(app.Config(clip=clip))
    app.main(app.Config())
    app.main(app.Config(model="somewhere"))
    assert [type(ranker) for ranker in found] == [CLIP, Late, type(None)]
    assert found[1].load() is found[1].load() and type(found[1].load()) is Probe
    loaded = found[0], found[1].load()
    assert {p.device.type for ranker in loaded for p in ranker.parameters()} == {"meta"}


def test_nothing_painted_is_one_sentence(make_model, tmp_path):
    painter = make_model(T=3, conditions={"map": 3}, condition_dropout=True)
    painter.names["map"] = ["sky", "water", "grass"]
    with pytest.raises(ValueError, match="there is no map yet"):
        next(semantic(painter, None))
    Image.new("RGB", (9, 9), "white").save(tmp_path / "white.png")
    with pytest.raises(ValueError, match="nothing is painted yet"):
        next(semantic(painter, {"background": {"path": str(tmp_path / "white.png")}}))


def request_of(image: Image.Image, layer: Image.Image | None, folder: Path) -> dict:
    """What the editor sends, for an endpoint that is called here."""
    named = {"image.png": image} | ({"layer.png": layer} if layer else {})
    for name, one in named.items():
        one.save(folder / name)
    background, *layers = ({"path": str(folder / name)} for name in named)
    return editor(background, *layers)


def test_large_results_are_stored_at_first_and_at_last(model, tmp_path, monkeypatch):
    monkeypatch.setattr(edit, "EVERY_STEP", 2 * 32 * 32 - 1)
    monkeypatch.setattr(pictures, "SECONDS_BETWEEN_PREVIEWS", 1e9)
    image, (_, layer) = picture(32, 32), stroke(32, 32)
    request = request_of(image, layer, tmp_path)
    steps = list(inpaint(model, request, seed=2, num_images=2, passes=2))
    assert steps[-1][1][0][1] == "t = 3, noise"
    assert [len(strip) for _, strip, *_ in steps] == [1] * (len(steps) - 1) + [2]
    assert len({path for *_, images, _ in steps for path, _ in images}) == 4
    assert len(list(inpaint(model, request, seed=2, passes=2))[-1][1]) == len(steps)  # one is small


def test_an_edit_tells_how_it_settled(model, tmp_path):
    """A picture a scale, then one a pass; those of the first result, the last is the result."""
    image, (masked, layer) = picture(32, 32), stroke(32, 32)
    request = request_of(image, layer, tmp_path)
    steps = list(inpaint(model, request, seed=2, num_images=2, passes=16))
    strips = [strip for _, strip, *_ in steps]
    assert [len(strip) for strip in strips] == list(range(1, len(steps) + 1))
    passes = len(steps) - model.T
    names = ["t = 3, noise", "t = 2", "t = 1, image"]
    assert [name for _, name in strips[-1]] == names + [f"pass {i + 1}" for i in range(passes)]
    assert 0 < passes < 16 and steps[-1][2].endswith(f" s. Converged after {passes} passes.")
    for strip, (*_, images, before) in zip(strips, steps, strict=True):
        assert strip[-1][0] == images[0][0]
        assert_same([Image.open(before)], [image])
    kept = ~masked
    for seen in pixels([Image.open(path) for path, _ in strips[-1]]):
        np.testing.assert_array_equal(seen[kept], np.asarray(image)[kept])


def test_the_best_edits_are_shown_and_the_best_first(conditional, clip, tmp_path):
    image, layer = picture(40, 32), mask_layer("Lower half", (40, 32))
    request, ranker = request_of(image, layer, tmp_path), CLIP(clip)
    how = dict(seed=5, passes=1)
    *steps, (_, strip, line, got, _) = inpaint(
        conditional, request, "a lake", 2, candidates=3, ranker=ranker, **how
    )
    mask, how = layer, how | {"process": "refined", "prompt": "a lake"}
    images = conditional.inpaint(image, mask, 6, **how)
    best = np.argsort(ranker.likeness("a lake")(images))[::-1][:2]
    assert [line for _, _, line, *_ in steps[:2]] == [
        "4 of 6 candidates drawn …",
        "6 of 6 candidates drawn …",
    ]
    assert len(steps) > 3 and all(images == got for _, _, _, images, _ in steps[2:])
    assert line.startswith(f"Seeds {5 + best[0]}, {5 + best[1]}, ")
    assert_same([Image.open(path) for path, _ in got], [images[i] for i in best])
    assert_same([Image.open(strip[-1][0])], [images[best[0]]])

    beyond = dict(left=32, candidates=2, ranker=ranker, passes=1, seed=5)
    *_, (_, line, got) = outpaint(conditional, request, "a lake", 1, **beyond)
    images = conditional.outpaint(image, 2, left=32, **how)
    best = int(np.argmax(ranker.likeness("a lake")(images)))
    assert line.startswith(f"Seed {5 + best}, ")
    assert_same([Image.open(path) for path, _ in got], [images[best]])


def test_classes_of_candidates_are_those_of_what_is_shown(make_model, clip, tmp_path):
    """A model that must have a class is given one by its seed; candidates all have the first."""
    model, ranker = make_model(T=2, conditions={"class": 5, "text": 6}), CLIP(clip)
    words = dict(prompt="a lake", num_images=2, seed=3, candidates=2, ranker=ranker)
    *steps, (_, _, got) = sample(model, **words)
    assert_same(*([Image.open(path) for path, _ in shelf] for shelf in (got, steps[0][2])))


def test_a_picture_grows_window_by_window(model, tmp_path):
    request = request_of(picture(32, 32), None, tmp_path)
    steps = list(outpaint(model, request, num_images=2, seed=3, right=32))
    lines = [line for _, line, _ in steps]
    assert lines[0] == "Drawing …"
    assert [line.split(",")[0] for line in lines[1:3]] == ["Drawing: 25%", "Drawing: 50%"]
    assert [len(images) for *_, images in steps] == [1, 1, 1, 2, 2, 2, 2]
    assert {Image.open(path).size for *_, images in steps for path, _ in images} == {(64, 32)}


@pytest.mark.parametrize("name", MASKS)
def test_a_preset_marks_what_it_says(name):
    masked = pixel_mask(mask_layer(name, (8, 8)), (8, 8)) > 0
    upper, left = np.arange(8)[:, None] < 4, np.arange(8)[None] < 4
    middle = (abs(np.arange(8) - 3.5) < 2)[:, None] & (abs(np.arange(8) - 3.5) < 2)
    says = {"Upper half": upper, "Lower half": ~upper, "Left half": left, "Right half": ~left}
    says |= {"Centre": middle, "Outer frame": ~middle}
    np.testing.assert_array_equal(masked, np.broadcast_to(says[name], (8, 8)))


ODD_WORDS = {
    "NUL": ("a \0 lake", None),
    "lone surrogate": ("a lake \ud800", "prompt: this model has never seen"),
    "emoji": ("🏔️ 🌊", "prompt: this model has never seen"),
    "right to left": ("בוקר טוב", "prompt: only its first 4 pieces are read"),
    "many": ("lake " * 200, "prompt: only its first 4 pieces are read"),
}


def test_what_fails_of_one_request_ends_that_one_alone(conditional, monkeypatch):
    """Requests of a batch are drawn together; one of them cannot be shown."""
    given = [{"prompt": "a lake", "num_images": 1, "seed": seed} for seed in (1, 2)]
    usual = {"candidates": 1, "enlarge": 1, "temperature": 1.0}
    store = SampleRequest.shown

    def shown(request, *how):
        if request.options["seed"] == 2:
            raise OSError("no room")
        return store(request, *how)

    monkeypatch.setattr(SampleRequest, "shown", shown)
    first, *steps = sample_each(conditional, [usual | one for one in given])
    assert first == [None, None] and len(steps) == conditional.T
    assert {str(error) for _, error in steps} == {"no room"}
    (_, line, ((path, _),)), _ = steps[-1]
    assert_same([Image.open(path)], conditional.sample(1, prompt="a lake", seed=1))
    assert line.startswith("Seed 1, ")


@pytest.mark.parametrize("name", ODD_WORDS)
def test_odd_words_are_read_as_far_as_they_can_be(conditional, name):
    prompt, remark = ODD_WORDS[name]
    *_, (_, line, images) = sample(conditional, prompt, seed=1)
    assert len(images) == 1
    assert f" s. {remark}" in line if remark else line.endswith(" s.")
    with pytest.raises(ValueError, match="prompt must be text of at most 1000 characters"):
        next(sample(conditional, "lake " * 10_000))


def test_a_visitor_hears_of_own_words_alone(conditional, monkeypatch):
    """Not what the interpreter warns of, nor what another thread says meanwhile."""
    shown = warnings.showwarning

    def encode(*_, **__):
        warnings.warn("unclosed event loop", ResourceWarning, stacklevel=2)
        other = Thread(target=warnings.warn, args=("another's words",))
        other.start()
        other.join()
        warnings.warn("own words", stacklevel=2)

    monkeypatch.setattr(requests, "encode_condition", encode)
    _, remark = requests.read_words(conditional, 0, 1, "a lake")
    assert remark == " own words."
    assert warnings.showwarning is shown


def test_a_panorama_has_room_for_its_prompts(conditional):
    lines = "\n".join(["a lake"] * 5)
    with pytest.raises(ValueError, match="prompts and classes must be at most 4, got 5"):
        next(panorama(conditional, lines, width=32))
    *_, (_, wide) = panorama(conditional, lines, width=37)  # not a multiple of f
    assert Image.open(wide).size == (37, 32)


def test_a_link_restores_settings(conditional):
    """Checked as those of a request; without settings in it nothing changes."""
    with gr.Blocks():
        inputs = panel(conditional, "Sample", "status", "To begin,").inputs
    query = "?prompt=a+lake%26&seed=5&top_p=0.5&enlarge=2&num_images=3&unknown=1"
    *values, fresh = settings_of_link(inputs, query)
    said = {"prompt": "a lake&", "seed": 5, "top_p": 0.5, "enlarge": 2, "num_images": 3}
    usual = {name: field.value for name, field in inputs.items()}
    assert dict(zip(inputs, values, strict=True)) == usual | said and fresh is False
    assert settings_of_link(inputs, "?prompt=night")[-1] is True
    for nothing in ("", "?", "?__theme=dark"):
        assert {repr(value) for value in settings_of_link(inputs, nothing)} == {repr(gr.skip())}
    for query, sentence in (
        ("seed=-1", "seed must be a whole number, from 0 to"),
        ("seed=9007199254740993", "seed must be a whole number, from 0 to 9007199254740992, got"),
        ("temperature=nan", "temperature must be a number from 0 to 5, got nan"),
        ("top_k=2.5", "top_k must be a whole number, from 0 to 12, got '2.5'"),
        ("num_images=17", "num_images must be a whole number, from 1 to 16, got 17"),
        ("classes=volcano", "classes must be one of 0 classes, got 'volcano'"),
        (f"prompt={'x' * 1001}", "prompt must be text of at most 1000 characters"),
        (f"prompt={'x' * 8001}", "a link must have at most 8000 characters"),
        ("a=1&" * 33, "Max number of fields exceeded"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            settings_of_link(inputs, query)


def test_settings_of_an_edit_come_back_with_margins_mask_and_words(make_model, tmp_path):
    """All that the page writes, yes and no too; and a class by its id, as the shell says it."""
    shapes = {"class": 2, "text": 6}
    model = make_model(T=3, conditions=shapes, condition_dropout=True)
    model.names["class"] = ["city", "lake"]
    with gr.Blocks() as page:
        change_tab(Worker(), model, [Image.new("RGB", (32, 32))])
    (read,) = (one for one in page.fns.values() if len(one.outputs) > 20)  # all fields
    about = {"command": "edit", "seed": 4, "classes": 1, "guidance": 12.0, "strength": 0.5}
    about |= {"right": 64, "overlap": 8, "invert_mask": True, "source_prompt": "noon"}
    path = tmp_path / "edit.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunk_of(about))
    said = read.fn({"path": str(path), "meta": {"_type": "gradio.FileData"}})
    back = {one.label: value for one, value in zip(read.outputs, said, strict=True)}
    assert back["Class"] == "lake" and back["Guidance"] == 12 and back["Seed"] == 4
    assert back["Pixels to the right"] == 64 and back["Overlap"] == 8 and back["Strength"] == 0.5
    assert back["Invert the mask"] is True and back["The picture shows"] == "noon"
    assert back["New seed each time"] is False and back["Pixels above"] == 0


def test_one_number_moves_guidance_along_the_models_own(make_model, tmp_path):
    """At 1 none is guided, at the slider's start all are as if nobody had said a number; what is
    written into a file comes back to the slider, and to the library."""
    model = make_model(T=4, conditions={"class": 2}, condition_dropout=True)
    assert requests.along_own(model, 2.5) == 2.5
    model.guidance = [8.0, 1.0, 4.0]  # of t = 2, 3, 4
    assert requests.along_own(model, 4) == model.guidance
    assert requests.along_own(model, 1) == [1, 1, 1]
    assert requests.along_own(model, 0) == [0, 1, 0]
    assert requests.along_own(model, 2.5) == [4.5, 1, 2.5]
    guidance = parts.controls_of_words(model)["guidance"]
    assert guidance.value == 4
    *_, (_, _, ((path, _),)) = sample(model, seed=3, classes=1, guidance=guidance.value)
    assert_same([Image.open(path)], model.sample(1, seed=3, classes=1))
    assert settings_of(Image.open(path))["guidance"] == model.guidance
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert parts.settings_from(model, {"guidance": guidance}, file) == [4]


def test_what_no_field_can_have_of_a_picture_s_settings_is_said(make_model, tmp_path):
    """One number of the library is that of every scale, the page's is along the model's own."""
    model = make_model(T=4, conditions={"class": 2}, condition_dropout=True)
    model.guidance = [8.0, 1.0, 4.0]
    inputs = {"seed": gr.Number(0), "guidance": parts.controls_of_words(model)["guidance"]}
    path = tmp_path / "edit.png"
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    about = {"command": "edit", "model": "shipped", "seed": 4, "process": "annealed", "chains": 3}
    for given, strength, lost in (
        (2.0, 4, "process, chains, guidance"),
        ([4.5, 1, 3], 4, "process, chains, guidance"),
        ("much", 4, "process, chains, guidance"),
        ([4.5, 1, 2.5], 2.5, "process, chains"),
    ):
        Image.new("RGB", (8, 8)).save(path, pnginfo=chunk_of(about | {"guidance": given}))
        with pytest.warns(UserWarning, match=f"^Not taken from the picture: {lost}.$"):
            assert parts.settings_from(model, inputs, file) == [4, strength]


def test_a_class_named_with_a_digit_is_that_class(make_model):
    model = make_model(conditions={"class": 3})
    model.names["class"] = ["1", "2", "3"]
    assert read_classes(model, "1", 0, 1) == ["1"] and read_classes(model, 1, 0, 1) == [1]
    assert class_id(model, read_classes(model, "3", 0, 1)[0], "classes") == 2


def test_a_model_that_must_have_a_class_draws_nothing_without_one(make_model):
    for dropout in (False, True):
        model = make_model(T=3, conditions={"class": 3}, condition_dropout=dropout)
        with gr.Blocks() as page, gr.Tab("Understand") as tab:
            chain_tab(Worker(), model, [Image.new("RGB", (32, 32))], tab)
        assert ("draw_again" in {fn.api_name for fn in page.fns.values()}) is dropout


def test_the_best_of_several_are_shown(make_model, clip):
    model, ranker = make_model(T=3, conditions={"text": 6}, condition_dropout=True), CLIP(clip)
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake"], 6)[0])
    steps = [*sample(model, "a lake", 2, 5, candidates=3, ranker=ranker)]
    chain, line, got = steps[-1]
    assert len(chain) == model.T and all(shown == got for _, _, shown in steps[-model.T :])
    images = model.sample(6, prompt="a lake", seed=5)
    best = np.argsort(ranker.likeness("a lake")(images))[::-1][:2]
    assert line.startswith(f"Seeds {5 + best[0]}, {5 + best[1]}, ")
    assert line.endswith("The best of 6.")
    assert_same([Image.open(path) for path, _ in got], [images[i] for i in best])


def test_an_unknown_word_is_said_to_its_visitor_alone(conditional_server, tmp_path):
    client = Client(conditional_server.url, verbose=False, download_files=tmp_path)
    _, line, _ = client.predict("a zzyzx", api_name="/sample")
    assert line.endswith(" prompt: this model has never seen zzy, zx.")
    assert "zzy" not in conditional_server.log.read_text()


def test_candidates_need_a_prompt_and_something_that_ranks(make_model, clip):
    model = make_model(T=3)
    with pytest.raises(ValueError, match="candidates must be 1 for this model"):
        next(sample(model, "a lake", candidates=2))
    with pytest.raises(ValueError, match=r'candidates \("Best of"\) must be 1 without a prompt'):
        next(sample(model, " ", candidates=2, ranker=CLIP(clip)))
    with pytest.raises(ValueError, match="candidates must be a whole number, from 1 to 64, got 65"):
        next(sample(model, candidates=65))


# ── in a browser ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[DESKTOP])
def page(server, request):
    """The page of `model`; parametrise with the width and height of another screen."""
    with browsing(server.url, request.param) as page:
        yield page


@pytest.fixture(params=[DESKTOP])
def conditional_page(conditional_server, request):
    """The page of `conditional`."""
    with browsing(conditional_server.url, request.param) as page:
        yield page


def dab(page, row: int, column: int, model, where: str = "#editor") -> None:
    """Touch the middle of one token with the brush, which is smaller than a token."""
    (h, w), (H, W) = model.grid, model.image_size
    zoom, box = settled(page, where)
    x = box["x"] + box["width"] / 2 + ((column + 0.5) / w - 0.5) * W * zoom
    y = box["y"] + box["height"] / 2 + ((row + 0.5) / h - 0.5) * H * zoom
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 1, y + 1)
    page.mouse.up()
    page.wait_for_timeout(500)


def apart(page, where: str) -> None:
    """The tools of an editor are seen, and not over its picture."""
    tools, canvas = (
        page.locator(f"{where} {one}").first.bounding_box()
        for one in (".toolbar-wrap:has(> .half-container)", "canvas")
    )
    beside = tools["x"] + tools["width"] <= canvas["x"]
    below = tools["y"] >= canvas["y"] + canvas["height"]
    assert min(tools["width"], tools["height"]) > 20 and (beside or below)


def pull(page, side: str, pixels: int) -> None:
    """Drag an edge of the frame by so many pixels of the screen, right or down."""
    handle = page.locator(f"#frame .handle.{side}")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    along = side in ("left", "right")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels * along, y + pixels * (not along), steps=3)
    page.mouse.up()
    page.wait_for_timeout(1000)


def repaint(page, seed: int, line: str = "") -> np.ndarray:
    """The first result, once the status says that it has this seed, or what `line` says."""
    line = line or f"Seed {seed},"
    same_seed(page, "Change")
    tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Repaint"))
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    for _ in range(10):  # until the mask has come to the editor
        tab.get_by_role("button", name="Repaint", exact=True).click()
        page.wait_for_timeout(2000)
        page.locator("#edit-status").get_by_text("Seed").or_(
            tab.get_by_text("Error", exact=True)
        ).first.wait_for()
        if page.locator("#edit-status").get_by_text(line).is_visible():
            return shown(page, "#edits")
        page.get_by_role("tab", name="Picture", exact=True).click()
    raise AssertionError("nothing was ever masked")


def test_every_run_has_a_new_seed_unless_told_otherwise(page, model):
    """And what is sent to another tab is what is selected, of the last run."""
    prompt, line = page.get_by_label("Prompt", exact=True).first, page.locator("#sample-status")
    seen = [""]
    for _ in range(2):
        prompt.press("Enter")
        page.wait_for_function(
            """seen => {
                const text = document.querySelector("#sample-status").innerText.trim();
                return /^Seeds .* s\\.$/.test(text) && !seen.includes(text);
            }""",
            arg=seen,
        )
        seen.append(line.inner_text().strip())
        page.locator("#samples .thumbnail-item").nth(2).click()  # selected until the next run
        page.wait_for_timeout(500)
    seeds = [re.search(r"Seeds (\d+) to", text).group(1) for text in seen[1:]]
    assert seeds[0] != seeds[1]
    assert page.get_by_label("Seed", exact=True).first.input_value() == seeds[1]
    same_seed(page, "Make")
    page.get_by_label("Seed", exact=True).first.fill("5")
    prompt.press("Enter")
    line.get_by_text("Seeds 5 to 8").wait_for()
    page.get_by_role("button", name="Send the selected image to Change").click()
    page.locator("#editor canvas").first.wait_for()
    settled(page)
    page.get_by_role("button", name="Upper half").click()
    expected = np.asarray(model.sample(1, seed=5)[0])
    np.testing.assert_array_equal(repaint(page, 9)[16:], expected[16:])

    page.get_by_role("tab", name="Make", exact=True).click()
    page.get_by_role("button", name="Link to these settings").click()
    page.wait_for_url("**/?*seed=5*")
    page.reload()
    seed = page.get_by_label("Seed", exact=True).first
    for _ in range(60):  # the page first shows its usual settings
        if seed.input_value() == "5":
            break
        page.wait_for_timeout(500)
    assert seed.input_value() == "5"
    assert not page.get_by_label("New seed each time").first.is_checked()
    page.get_by_label("Prompt", exact=True).first.focus()
    page.keyboard.press("Tab")  # from the prompt to the button, which a key presses too
    page.keyboard.press("Space")
    line.get_by_text("Seeds 5 to 8").wait_for()
    page.get_by_role("button", name="This visit").click()
    page.locator("#visit .thumbnail-item").nth(2).click()  # it comes back with its settings
    page.wait_for_function("document.querySelectorAll('#samples .thumbnail-item').length === 1")
    np.testing.assert_array_equal(shown(page, "#samples"), np.asarray(model.sample(1, seed=7)[0]))
    assert seed.input_value() == "7"
    page.goto(re.sub("seed=5", "seed=-5", page.url))
    page.get_by_text("seed must be a whole number, from 0 to").first.wait_for()
    assert page.complaints == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, way):
    """Twice as large as the first one, so it is seen half as large."""
    file = BytesIO()
    picture(64, 64).save(file, "PNG")
    page.get_by_role("tab", name="Change", exact=True).click()
    settled(page)
    page.evaluate(
        """([way, bytes]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
            const how = {bubbles: true, cancelable: true};
            if (way == "drop") document.getElementById("editor").dispatchEvent(
                new DragEvent("drop", {...how, dataTransfer: files}));
            else document.body.dispatchEvent(
                new ClipboardEvent("paste", {...how, clipboardData: files}));
        }""",
        [way, [*file.getvalue()]],
    )
    settled(page, least=5, most=7)
    assert page.complaints == []


def test_an_editor_uploads_its_picture_when_it_is_used_only(page):
    """Gradio asks an editor for its picture at every step of any event that it is told of."""
    sent = []
    page.get_by_role("tab", name="Change", exact=True).click()
    settled(page)
    same_seed(page, "Make")
    page.on("request", lambda request: "/upload" in request.url and sent.append(request.url))
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample-status").get_by_text("Seeds 0 to 3,").wait_for()
    page.wait_for_timeout(1000)
    assert sent == []
    page.get_by_role("tab", name="Change", exact=True).click()
    page.get_by_role("button", name="Upper half").click()
    page.wait_for_timeout(2000)
    assert sent


def test_clearing_an_editor_takes_its_mask_only(page):
    page.get_by_role("tab", name="Change", exact=True).click()
    settled(page)
    page.get_by_role("button", name="Upper half").click()
    page.wait_for_timeout(1000)
    page.locator("#editor").get_by_role("button", name="Clear canvas").click()
    page.wait_for_timeout(1000)
    settled(page)  # an empty canvas would be seen at its own size
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.locator("#edit-status").get_by_text("the mask is empty").wait_for()
    assert page.complaints == []


def test_what_was_wrong_stays_when_its_message_is_closed(page):
    page.get_by_role("tab", name="Change", exact=True).click()
    page.get_by_role("button", name="Repaint", exact=True).click()
    said = page.locator("#edit-status").get_by_text("the mask is empty: paint over what")
    said.wait_for()
    page.get_by_test_id("toast-close").click()
    page.get_by_test_id("toast-body").wait_for(state="detached")
    assert said.is_visible() and page.complaints == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True)
def test_the_click_after_stop_counts(page, model):
    """Three times, and no error is shown, not even one of before."""
    page.get_by_role("tab", name="Change", exact=True).click()
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.get_by_test_id("toast-text").wait_for()
    same_seed(page, "Panorama")
    width = page.get_by_role("spinbutton", name="Width in pixels")
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    draw, line = page.get_by_role("button", name="Draw", exact=True), "#panorama-status"
    stop = page.get_by_role("button", name="Stop").locator("visible=true")
    for i in range(3):
        width.fill("4096")
        page.get_by_label("Exact").check()
        draw.click()
        page.locator(line).get_by_text("Drawing").wait_for()
        if i == 0:
            page.locator(line).get_by_text(re.compile(r"Drawing: \d+%, about .* left")).wait_for()
            done = "line => parseInt(line.style.getPropertyValue('--done'))"
            said = re.search(r"(\d+)%", page.locator(line).inner_text()).group(1)
            assert page.locator(line).evaluate(done) >= int(said)  # the bar
        stop.click()
        page.locator(line).get_by_text("Stopped.").wait_for()
        page.wait_for_timeout(500)
        assert page.locator(line).inner_text() == "Stopped."  # still
        width.fill("40")
        page.get_by_label("Exact").uncheck()
        draw.click()
        page.locator(line).get_by_text("Seed 0,").wait_for()
        assert not page.locator(line).evaluate("line => line.style.getPropertyValue('--done')")
        assert_same([served(page, page.locator("#panorama img").first)], model.panorama(40))
    assert not page.get_by_test_id("toast-body").count() and page.complaints == []


def test_a_visitor_samples_paints_and_repaints(page, model, tmp_path):
    same_seed(page, "Make")
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample-status").get_by_text("Seeds 0 to 3,").wait_for()
    sampled = shown(page, "#samples")
    np.testing.assert_array_equal(sampled, np.asarray(model.sample(1, seed=0)[0]))

    page.get_by_role("button", name="Send the selected image to Change").click()
    page.locator("#editor canvas").first.wait_for()
    dab(page, 1, 2, model)
    edited = repaint(page, 9)
    kept = np.ones((4, 4), bool)
    kept[1, 2] = False
    kept = kept.repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(edited[kept], sampled[kept])
    assert (edited[~kept] != sampled[~kept]).any()

    uploaded = picture(64, 64, seed=4)
    uploaded.putalpha(mask_layer("Centre", (64, 64)).getchannel("A").point(lambda a: 255 - a))
    uploaded.save(tmp_path / "photo.png", icc_profile=PROFILE)
    page.get_by_role("tab", name="Picture", exact=True).click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a picture").click()
    chooser.value.set_files(tmp_path / "photo.png")
    settled(page, least=4, most=9)  # larger than the picture before
    page.get_by_role("button", name="Upper half").click()
    edited, before = repaint(page, 10), np.asarray(uploaded.convert("RGB"))
    assert edited.shape == before.shape  # a picture keeps its size
    result = page.locator("#edits .grid-container img").first.get_attribute("src")
    result = Image.open(BytesIO(page.request.get(result).body()))
    assert result.info["icc_profile"] == PROFILE  # and its colours and transparency
    np.testing.assert_array_equal(np.asarray(result)[32:], np.asarray(uploaded)[32:])
    np.testing.assert_array_equal(edited[32:], before[32:])
    assert (edited[:32] != before[:32]).any()
    compared = page.locator("#compare img")
    for _ in range(60):  # it follows the results, by an event of its own
        if np.array_equal(after := np.asarray(served(page, compared.last)), edited):
            break
        page.wait_for_timeout(500)
    np.testing.assert_array_equal(after, edited)
    np.testing.assert_array_equal(np.asarray(served(page, compared.first)), before)

    page.get_by_role("button", name="Use the selected result as input").click()
    page.wait_for_timeout(2000)
    settled(page, least=4)
    page.get_by_role("tab", name="Result", exact=True).click()
    page.locator("#undo").click()
    page.wait_for_timeout(2000)
    settled(page, least=4)
    page.get_by_role("button", name="Upper half").click()
    np.testing.assert_array_equal(repaint(page, 10), edited)
    assert page.complaints == []


@pytest.mark.parametrize("conditional_page", [DESKTOP, PHONE], indirect=True)
def test_a_visitor_repaints_with_a_prompt_and_paints_a_map(conditional_page, conditional, clip):
    page, words, example = conditional_page, "a lake at night", example_pictures(conditional)[1]
    page.get_by_role("tab", name="Change", exact=True).click()
    tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Repaint"))
    settled(page)  # the page's first picture is there and will not replace the chosen one
    page.locator("#examples .thumbnail-item").nth(1).click()
    page.wait_for_timeout(2000)
    settled(page)
    page.get_by_role("button", name="Lower half").click()
    tab.get_by_label("Prompt", exact=True).fill(words)
    tab.get_by_role("button", name="Advanced").click()
    tab.get_by_role("button", name="The mask").click()
    for name in ("Refinement passes", "Best of"):
        tab.get_by_role("spinbutton", name=name).fill("2")
    edited = repaint(page, 9, "The best of 2.")
    mask = np.zeros((32, 32), bool)
    mask[16:] = True
    how = dict(seed=9, process="refined", passes=2, prompt=words)
    (best,) = best_edits(conditional, example, mask, 1, 2, CLIP(clip).likeness(words), **how)
    np.testing.assert_array_equal(edited, np.asarray(best.image))
    tab.get_by_role("button", name="How it works").click()
    page.locator("#first-result .grid-container img").nth(conditional.T).wait_for()

    tab.get_by_role("button", name="Extend beyond the borders").click()
    tab.get_by_role("button", name="Left", exact=True).click()
    assert tab.get_by_role("spinbutton", name="Pixels to the left").input_value() == "16"

    same_seed(page, "Paint a map")
    page.get_by_role("group", name="Brush").get_by_role("button", name="water").press("Enter")
    size = page.get_by_role("spinbutton", name="Brush size").locator("visible=true")
    size.fill("10")
    size.press("Enter")
    page.wait_for_timeout(2000)
    apart(page, "#painting")
    dab(page, 1, 2, conditional, "#painting")  # still of water
    page.locator("#painting").get_by_role("button", name="Color").click()
    page.locator("#painting").get_by_role("button", name="grass").click()
    dab(page, 2, 2, conditional, "#painting")  # the palette has closed, the stroke counts
    pressed = page.locator(".legend [aria-pressed=true]")
    assert pressed.all_inner_texts() == ["grass"]
    tab = page.get_by_role("tabpanel").filter(has=page.locator("#painting"))
    tab.get_by_label("Prompt", exact=True).fill(words)
    tab.get_by_role("button", name="Draw the landscape").click()
    page.locator("#semantic-status").get_by_text("Seed 0,").wait_for()
    tab.get_by_role("button", name="How it works").click()
    kinds = read_kinds(
        served(page, page.locator("#read img")), kind_colours(conditional.names["map"])
    )
    assert set(np.unique(kinds)) == {-1, 1, 2} and not (kinds[:8] > 0).any()
    assert np.flatnonzero((kinds == 1).any(1)).mean() < np.flatnonzero((kinds == 2).any(1)).mean()
    expected = conditional.sample(1, seed=0, prompt=words, semantic_map=kinds)
    np.testing.assert_array_equal(shown(page, "#painted"), pixels(expected)[0])
    tab.get_by_role("button", name="Send the selected image to Change").click()
    page.locator("#editor canvas").first.wait_for()
    settled(page)
    apart(page, "#editor")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0 and page.complaints == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True)
def test_a_visitor_draws_a_panorama_and_outpaints(page, model, tmp_path):
    same_seed(page, "Panorama")
    page.get_by_role("spinbutton", name="Width in pixels").fill("80")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#panorama-status").get_by_text("Seed 0,").wait_for()
    seen = served(page, page.locator("#panorama img").first)
    assert_same([seen], model.panorama(80, seed=0))
    page.get_by_role("button", name="Send the panorama to Change").click()
    page.locator("#editor canvas").first.wait_for()
    settled(page, least=2, most=8)  # wider than the picture before

    same_seed(page, "Change")
    page.get_by_role("button", name="Extend beyond the borders").click()
    small = page.locator("#frame .size").get_by_text("32×32 pixels")
    for _ in range(10):  # a click may come before the panorama is in the editor
        page.locator("#examples .thumbnail-item").first.click()
        page.locator("#editor canvas").first.wait_for()
        page.wait_for_timeout(2000)
        if small.is_visible():
            break
    small.wait_for()
    pull(page, "left", -60)
    left = page.get_by_role("spinbutton", name="Pixels to the left")
    (wide,) = re.findall(r"(\d+)×32 pixels", page.locator("#frame .size").inner_text())
    assert int(wide) > 32 and int(left.input_value()) == int(wide) - 32
    below = page.get_by_role("spinbutton", name="Pixels below")
    for number, value, size in ((left, "0", "32×32 pixels"), (below, "16", "32×48 pixels")):
        number.fill(value)
        page.keyboard.press("Enter")
        page.locator("#frame .size").get_by_text(size).wait_for()
    pull(page, "top", 60)  # inwards, where nothing can be added
    assert page.get_by_role("spinbutton", name="Pixels above").input_value() == "0"
    for _ in range(10):  # until the picture has come to the editor
        page.get_by_role("button", name="Outpaint", exact=True).click()
        page.wait_for_timeout(2000)
        page.locator("#edit-status").get_by_text("Seed").or_(
            page.get_by_text("Error", exact=True)
        ).first.wait_for()
        if page.locator("#edit-status").get_by_text("Seed 0,").is_visible():
            break
    example = example_pictures(model)[0]
    np.testing.assert_array_equal(shown(page, "#edits")[:32], np.asarray(example))
    assert shown(page, "#edits").shape == (48, 32, 3)
    assert page.complaints == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True)
def test_a_visitor_slides_the_chain(page, model):
    page.get_by_role("tab", name="Understand").click()
    line = page.locator("#chain-status")
    page.locator("#noisy img").wait_for()  # of the first example, without a click
    page.locator("#starts .thumbnail-item").nth(1).click()
    line.get_by_text("At t = 2,").wait_for()
    slider = page.locator("#level input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    line.get_by_text("At t = 3, ").wait_for()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    line.get_by_text("At t = 1, 100%").wait_for()
    seen = np.asarray(served(page, page.locator("#noisy img")))
    start = example_pictures(model)[1]
    np.testing.assert_array_equal(seen, pixels(model.decode(model.encode(start)))[0])
    page.get_by_role("button", name="Draw again from every level").click()
    page.locator("#redrawn .thumbnail-item").nth(model.T - 1).wait_for()
    np.testing.assert_array_equal(shown(page, "#redrawn"), seen)
    page.locator("#starts .thumbnail-item").nth(2).click()
    page.locator("#redrawn .thumbnail-item").first.wait_for(state="detached")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0 and page.complaints == []


@pytest.mark.skipif(not AXE.is_file(), reason=f"no axe-core in this checkout: {INSTALL_AXE}")
def test_accessibility_has_no_serious_finding(conditional_page):
    """On every tab with all its folds open, in light and dark, on a desktop and a phone, and with
    the mouse on the button that runs."""
    page, found = conditional_page, set()
    page.add_script_tag(path=AXE)
    page.add_style_tag(content="* { transition: none !important; }")  # colours at their ends
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample-status").get_by_text("Seeds").wait_for()
    for size in (DESKTOP, PHONE):
        page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        for tab in ("Make", "Change", "Paint a map", "Panorama", "Understand"):
            page.get_by_role("tab", name=tab, exact=True).click()
            for fold in page.locator(".label-wrap:not(.open)").locator("visible=true").all()[::-1]:
                fold.click()
            run = page.locator("button.primary").locator("visible=true")
            for dark in (False, True):
                page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
                if run.count():
                    run.first.hover()
                page.wait_for_timeout(500)
                found |= {f"{tab} {size} {dark}: {one}" for one in findings(page)}
    assert not found, "\n".join(sorted(found))


def findings(page) -> set[str]:
    """What axe-core finds serious in what the page shows: a rule, and the first element."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return {f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in serious}


# ── the shipped model ─────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(
    not (SHIPPED / "config.json").exists(), reason="no shipped model in this checkout"
)
def test_the_shipped_model_answers(tmp_path):
    with Server(tmp_path) as server:
        client = Client(server.url, verbose=False, download_files=tmp_path)
        *_, gallery = client.predict(num_images=2, seed=1, api_name="/sample")
        colours = kind_colours(scenery.LABELS)
        kinds = scenery.render(3).semantic_map
        painted = saved(paint_kinds(kinds, colours), tmp_path, "map.png")
        words = {"prompt": "a lake at night", "num_images": 1, "seed": 4}
        *_, by_map = client.predict(editor(painted), **words, api_name="/semantic")
        _, line, best = client.predict(**words, candidates=3, api_name="/sample")
    model = ImageBART.from_pretrained(device="cpu")
    assert_same(gallery, model.sample(2, seed=1))
    expected = model.sample(1, seed=4, prompt="a lake at night", semantic_map=kinds)
    assert_same(by_map, expected)
    likeness = Probe().likeness("a lake at night")
    (ranked,) = best_of(model, 1, 3, likeness, seed=4, prompt="a lake at night")
    assert line.startswith(f"Seed {ranked.seed}, ")
    assert_same(best, [ranked.image])


def test_the_first_pictures_of_the_page_are_the_shipped_model_s():
    """Each of the ideas', drawn by its settings; else draw them anew: python -m demo.ready"""
    kept = ready_pictures()
    said = [settings_of(Image.open(path)) for path, _ in kept]
    assert [prompt for _, prompt in kept] == [*IDEAS.values()] == [one["prompt"] for one in said]
    assert len(kept) == len([*READY.glob("*.png")])
    model = ImageBART.from_pretrained(device="cpu")
    options = {"prompt": [*IDEAS.values()], "seed": [one["seed"] for one in said]}
    assert_same([Image.open(path) for path, _ in kept], model.sample(len(kept), **options))


@pytest.mark.filterwarnings("ignore:prompt.")
def test_the_first_pictures_are_the_best_of_eight(conditional, tmp_path):
    (tmp_path / "old.png").touch()
    draw_ready(conditional, ranker := Probe(), tmp_path)
    paths = sorted(tmp_path.iterdir(), key=lambda path: settings_of(Image.open(path))["seed"])
    for i, (path, prompt) in enumerate(zip(paths, IDEAS.values(), strict=True)):
        drawn = conditional.sample(8, prompt=prompt, seed=8 * i)
        best = int(np.argmax(ranker.likeness(prompt)(drawn)))
        assert_same([Image.open(path)], [drawn[best]])
        own = {"command": "sample", "seed": 8 * i + best, "prompt": prompt}
        assert settings_of(Image.open(path)) == own


def test_what_is_shipped_is_small():
    sizes = [path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * 2**20 and sum(sizes) <= 64 * 2**20
