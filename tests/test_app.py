"""The demo: what programs get from its endpoints, and who may ask."""

import ctypes
import inspect
import math
import re
import socket
import time
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
from gradio.exceptions import Error
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image, ImageColor
from server import Server
from test_colours import PROFILE
from visitors import (
    LONG,
    assert_same,
    editor,
    opened_all,
    picture,
    pixels,
    request_of,
    saved,
    source_for,
    stroke,
)

import app
from demo import change, files, parts, pictures, requests, serving
from demo import editor as editing
from demo.chain import noisy
from demo.edit import reimagine
from demo.editor import MOST_UNDOS, mask_layer, remembered, remembering, undone
from demo.files import REFUSED
from demo.paint import semantic
from demo.panorama import panorama, wide_for_editor
from demo.parts import IDEAS
from demo.pictures import (
    MOST_SHOWN,
    chosen_for_editor,
    from_file,
    read_editor,
    shown_size,
    with_source,
)
from demo.ready import READY, draw_ready, ready_pictures
from demo.requests import MARGINS
from demo.sample import sample, sampling_work
from demo.style import PAINT, SEEN
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.choice import FILTERS
from imagebart.conditions import text_shape, text_tokens
from imagebart.data import scenery
from imagebart.data.images import to_rgb
from imagebart.data.maps import kind_colours, paint_kinds
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
from imagebart.ranking import CLIP, best_of
from imagebart.sampling import Filter, Request, reverse_steps
from imagebart.settings import settings_of

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("own_files")


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


def test_a_picture_has_its_seed_below_it_and_its_settings_in_it(client, mapped):
    *_, gallery = client.predict(num_images=2, seed=7, top_k=3, api_name="/sample")
    for seed, entry in zip((7, 8), gallery, strict=True):
        assert entry["caption"] == f"seed {seed}" and Path(entry["image"]).stem == f"seed{seed}"
        found = settings_of(Image.open(entry["image"]))
        assert {"command": "sample", "seed": seed, "top_k": 3}.items() <= found.items()
        assert "temperature" not in found
    *_, (_, _, images) = sample(mapped, "a lake at night", 1, 3)
    (path, _) = images[0]
    assert Path(path).stem == "a-lake-at-night_seed3"
    assert settings_of(Image.open(path))["prompt"] == "a lake at night"


def test_results_are_enlarged_on_request(client, model, mapped, tmp_path):
    *_, gallery = client.predict(num_images=1, enlarge=3, api_name="/sample")
    (image,) = model.sample(1, seed=0)
    larger = image.resize((96, 96), Image.Resampling.LANCZOS)
    assert_same(gallery, [larger])
    assert settings_of(Image.open(gallery[0]["image"]))["enlarge"] == 3
    paint_kinds(np.zeros((32, 32), int), kind_colours(["sky", "water", "grass"])).save(
        tmp_path / "map.png"
    )
    painted = editor({"path": str(tmp_path / "map.png")})
    *_, (_, _, images) = semantic(mapped, painted, enlarge=2)
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
    line, gallery = client.predict(request, num_images=2, **how, api_name="/outpaint")
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
    path, gone = str(tmp_path / "given.png"), str(tmp_path / "gone.png")
    for source, expected in (
        (source_for(path), given),
        (None, seen),
        (source_for(path) | {"path": gone}, seen),
    ):
        got, _ = read_editor(request | {"source": source})
        assert got.mode == expected.mode
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    large = {"path": gone, "shown": path, "size": [64, 64]}  # the editor has fewer pixels
    for wrong, sentence in (
        (large, "must be a file uploaded to this app within the last hour"),
        (
            large | {"path": "/etc/passwd"},
            "must be a file uploaded to this app within the last hour",
        ),
        (large | {"size": [0, 9]}, "must be one that the page put into the editor"),
        (path, "must be one that the page put into the editor"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_editor(request | {"source": wrong})


def test_the_picture_in_the_editor_is_not_the_first_to_go(tmp_path, monkeypatch):
    """Files that are used count as new."""
    monkeypatch.setattr(files, "MOST_STORED", 3000)
    picture(20, 20).save(tmp_path / "given.png")
    time.sleep(0.02)
    (tmp_path / "later").write_bytes(bytes(2500))
    source = source_for(str(tmp_path / "given.png"))
    pictures.source_of(editor({"path": source["path"]}) | {"source": source})
    files.tidy()
    assert (tmp_path / "given.png").exists() and not (tmp_path / "later").exists()


def test_a_large_picture_is_shown_smaller(tmp_path, model):
    """Its edits have its pixels, and the mask that was painted over what is shown."""
    width, height = 3 * 2048, 3 * 512
    given = picture(width, height)
    given.save(tmp_path / "given.jpeg", quality=95)
    path = str(tmp_path / "given.jpeg")
    value, source = from_file({"path": path})
    assert source == {"path": path, "shown": value["background"], "size": [width, height]}
    assert Image.open(value["background"]).size == (2048, 512)
    masked = editing.with_mask("Left half", source)
    assert masked["background"] == value["background"]
    layers = [{"path": layer} for layer in masked["layers"]]
    request = editor({"path": value["background"]}) | {"layers": layers, "source": source}
    got, mask = read_editor(request)
    assert_same([got], [to_rgb(Image.open(path))])
    assert np.array_equal(mask > 0, np.arange(width)[None].repeat(height, 0) < width // 2)
    for small in (picture(40, 30), picture(4096, 128)):
        value, source = with_source(small)
        assert source["path"] == source["shown"] == value["background"]
        assert_same([Image.open(source["path"])], [small])
    for odd in ((4001, 2999), (16_000, 999), (1025, 1024)):
        assert 1 <= math.prod(shown_size(odd)) / MOST_SHOWN < 1.01
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
    cancelled = [f["cancels"] for f in functions if {*f["cancels"]} & {*named.values()}]
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
    assert len(looks) == 6 and not any(one["backend_fn"] for one in looks)


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


def test_a_picture_is_reimagined_by_words(mapped, tmp_path):
    """As the library does it; a model that takes no text has no such endpoint."""
    image, words = picture(50, 40), "a lake at night"
    request, how = request_of(image, None, tmp_path), {"strength": 0.5, "seed": 2}
    steps = list(reimagine(mapped, request, words, 2, **how, source_prompt="a lake"))
    *_, (line, images, before) = steps
    expected = mapped.reimagine(image, 2, prompt=words, source_prompt="a lake", **how)
    assert_same([Image.open(path) for path, _ in images], expected)
    assert len(steps) == 2 and line.startswith("Seeds 2 to 3, ")
    assert Image.open(before).size == mapped.image_size[::-1]
    about = settings_of(Image.open(images[0][0]))
    said = {"command": "reimagine", "source_prompt": "a lake", "strength": 0.5}
    assert said.items() <= about.items()
    with pytest.raises(ValueError, match="source_prompt must be text of at most 1000 characters"):
        next(reimagine(mapped, request, words, source_prompt="a" * 1001))
    *_, (line, _, _) = reimagine(mapped, request, words, strength=0, source_prompt="a zzyzx")
    assert line.endswith(" source_prompt: this model has never seen zzy, zx.")
    with pytest.raises(ValueError, match=r"^strength must be a number from 0 to 1, got 2$"):
        next(reimagine(mapped, request, strength=2))

    functions = app.build(Worker(), mapped).fns.values()
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
    _, source = from_file({"path": path})
    frame = change.extended(source, 8, "2", 4, 0, 12)
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
        ((8, 0, 0, 0, 513), "overlap must be a whole number, from 0 to 512, got 513"),
    ):
        with pytest.raises(Error, match=sentence):
            change.extended(source, *wrong)
    # what another picture could have
    assert change.extended(source_for(path), 0, 0, 0, 0, 512)["overlap"] == 500


def test_a_mask_is_seen_before_it_is_drawn(model, tmp_path):
    """Tinted what is drawn, dark what lies outside the crop, the rest as it is."""
    image, layer = Image.new("RGB", (64, 32), "#204060"), np.zeros((32, 64), np.uint8)
    layer[:16, :20] = 255
    request = request_of(image, Image.fromarray(layer), tmp_path)

    def look(context=0, feather=0, invert=False) -> np.ndarray:
        shown = change.previewed(model, request, context, feather, invert)
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
        change.previewed(model, request_of(image, None, tmp_path), 0, 0, False)
    with pytest.raises(Error, match="context must be a whole number, from 0 to 4, got 5"):
        look(context=5)


@pytest.mark.parametrize(("share", "radius"), [(6, [2, 36, 49]), ("25", [5, 150, 202])])
def test_a_brush_is_as_large_as_the_picture_asks(tmp_path, share, radius):
    """In pixels of what is shown; never so small that nothing is seen."""
    picture(900, 600).save(tmp_path / "small.png")
    picture(1600, 1000).save(tmp_path / "photo.png")
    sources = (None, *(source_for(str(tmp_path / name)) for name in ("small.png", "photo.png")))
    for source, expected in zip(sources, radius, strict=True):
        brushed = editing.brushed(20, [(PAINT, SEEN)], share, source)
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
    request = editor({"path": path}) | {"source": source_for(path)}
    value, source, history = change.at_length(40, request, [])
    small = Image.open(source["path"])
    assert source["path"] == value["background"] and history == [path] and value["layers"] == []
    assert small.size == (40, 20) and small.info["icc_profile"] == PROFILE
    assert_same([small], [given.resize((40, 20), Image.Resampling.LANCZOS)])
    alpha = given.resize((40, 20), Image.Resampling.LANCZOS).getchannel("A")
    np.testing.assert_array_equal(np.asarray(small.getchannel("A")), np.asarray(alpha))
    with pytest.raises(Error, match="the longer side must be a whole number, from 32 to 4096"):
        change.at_length(31, request, [])
    with pytest.raises(Error, match="there is no image yet"):
        change.at_length(64, None, [])


def test_a_panorama_goes_on_in_the_editor(tmp_path):
    picture(96, 32).save(tmp_path / "wide.png")
    value, source = wide_for_editor({"path": str(tmp_path / "wide.png")})
    assert source["path"] == str(tmp_path / "wide.png")
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


def test_the_page_says_what_it_does(model, mapped):
    plain, by_words = parts.title(model), parts.title(mapped)
    assert all("32×32 pixels" in one and "1 million parameters" in one for one in (plain, by_words))
    assert "pictures, 32" in plain and "pictures from your words, 32" in by_words
    assert not any("click" in one for one in (plain, by_words))  # it stands above all tabs


def test_each_way_to_pictures_says_what_to_click(mapped):
    """Where its status comes later, and with the words of the button."""
    page = app.build(Worker(), mapped)
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
    history = remembered(None, [])
    for path in paths:
        history = remembered(source_for(path), history)
    assert history == paths
    assert undone([*history, str(tmp_path / "gone.png")])[2] == paths[:2]
    for i in (2, 1, 0):
        value, source, history = undone(history)
        assert source["path"] == paths[i]
        assert_same([Image.open(value["background"])], [Image.open(paths[i])])
        assert history == paths[:i]
    with pytest.raises(Error, match="there is nothing to undo"):
        undone(history)
    large = str(tmp_path / "large.png")
    Image.new("1", (5000, 5000)).save(large)
    with pytest.raises(Error, match="at most 16 million pixels"):
        undone([large])
    most = MOST_UNDOS
    many = remembered(source_for(paths[0]), [paths[1]] * most)
    assert len(many) == most and many[-1] == paths[0]


def test_what_undo_remembers_comes_with_a_result(tmp_path):
    files = [str(tmp_path / name) for name in ("edited.png", "result.png")]
    for i, file in enumerate(files):
        picture(20, 20, seed=i).save(file)
    chosen = [{"image": {"path": files[1]}, "caption": None}], 0
    taken = remembering(chosen_for_editor)
    now, source, history = taken(*chosen, source_for(files[0]), [])
    assert source["path"] == files[1]
    assert_same([Image.open(now["background"])], [Image.open(files[1])])
    assert history == files[:1]
    assert taken(*chosen, source, history)[2] == history
    for nothing in (None, [], [{"image": {"path": "gone.png"}, "caption": None}]):
        with pytest.raises(Error, match=r"there is no picture yet|within the last hour"):
            taken(nothing, 0, source, history)


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
def test_the_first_pictures_are_the_best_of_eight(mapped, tmp_path):
    (tmp_path / "old.png").touch()
    draw_ready(mapped, ranker := Probe(), tmp_path)
    paths = sorted(tmp_path.iterdir(), key=lambda path: settings_of(Image.open(path))["seed"])
    for i, (path, prompt) in enumerate(zip(paths, IDEAS.values(), strict=True)):
        drawn = mapped.sample(8, prompt=prompt, seed=8 * i)
        best = int(np.argmax(ranker.likeness(prompt)(drawn)))
        assert_same([Image.open(path)], [drawn[best]])
        own = {"command": "sample", "seed": 8 * i + best, "prompt": prompt}
        assert settings_of(Image.open(path)) == own


def test_what_is_shipped_is_small():
    sizes = [path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * 2**20 and sum(sizes) <= 64 * 2**20
