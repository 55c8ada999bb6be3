"""What a request to the demo may be: wrong values, odd pictures, and how much it may take."""

import re
import warnings
from io import BytesIO
from threading import Thread
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_colours import PROFILE
from visitors import LONG, assert_same, editor, picture, pixels, request_of, saved, stroke

import app
from demo import edit, parts, pictures, requests
from demo.chain import chain_tab
from demo.change import change_tab
from demo.edit import inpaint, outpaint
from demo.editor import MASKS, mask_layer
from demo.paint import semantic
from demo.panorama import panorama
from demo.parts import panel
from demo.pictures import growing, read_picture
from demo.requests import Late, read_classes
from demo.sample import SampleRequest, sample, sample_each, settings_of_link
from demo.worker import Worker
from imagebart.conditions import class_id, text_tokens
from imagebart.data.images import as_given
from imagebart.editing.inpainting import MaskedImage
from imagebart.editing.masks import pixel_mask
from imagebart.probe import Probe
from imagebart.ranking import CLIP
from imagebart.settings import chunk_of, settings_of

pytestmark = pytest.mark.usefixtures("own_files")


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


def test_the_sky_of_a_wide_picture_is_shown_window_after_window(mapped, tmp_path):
    """As the library paints it, each picture with the seed that draws it again."""
    image, layer = picture(80, 32), mask_layer("Upper half", (80, 32))
    files = [tmp_path / "image.png", tmp_path / "layer.png"]
    for one, file in zip((image, layer), files, strict=True):
        one.save(file)
    request = editor(*({"path": str(file)} for file in files))
    how = dict(seed=3, passes=1, feather=2)
    *steps, last = inpaint(mapped, request, "a lake", num_images=2, **how)
    expected = mapped.inpaint(image, layer, 2, prompt="a lake", process="refined", **how)
    *_, line, got, before = last
    assert_same([Image.open(path) for path, _ in got], expected)
    assert line.startswith("Seeds 3 to 4, ") and Image.open(before).size == (80, 32)
    assert len(steps) == 2 * len(MaskedImage(mapped, image, layer).boxes())
    assert [len(images) for *_, images, _ in steps] == sorted([1, 2] * (len(steps) // 2))
    about = settings_of(Image.open(got[1][0]))
    assert about["seed"] == 4 and about["prompt"] == "a lake"
    count = len(steps) // 2
    assert [name for _, name in last[1]] == [f"window {k} of {count}" for k in range(1, count + 1)]


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


# ── what a request may take ───────────────────────────────────────────────────────────────────


def test_pictures_of_a_request_are_bounded_together():
    for fits in ((1, 4096, 4096), (4, 2048, 2048), (16, 1024, 1024)):
        requests.check_pixels(*fits)
    sentence = "all pictures together must have at most 16 million pixels, got 16 of 1024×1025"
    with pytest.raises(ValueError, match=sentence):
        requests.check_pixels(16, 1024, 1025)


def test_large_results_are_refused_before_anything_is_drawn(model, mapped, clip, tmp_path):
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
        next(outpaint(mapped, request, "a lake", **many, **sides))


def test_candidates_of_all_images_are_bounded_together(mapped, clip, tmp_path):
    sentence = "^candidates must be at most 64 for all images together, got 5 for each of 13$"
    request = request_of(picture(32, 32), Image.new("L", (32, 32), 255), tmp_path)
    words = dict(prompt="a lake", num_images=13, candidates=5, ranker=CLIP(clip))
    for steps in (
        sample(mapped, **words),
        inpaint(mapped, request, **words),
        outpaint(mapped, request, left=8, **words),
        semantic(mapped, request, **words),
    ):
        with pytest.raises(ValueError, match=sentence):
            next(steps)


def test_layers_are_counted(model, mapped, tmp_path):
    request = request_of(picture(32, 32), Image.new("L", (32, 32), 255), tmp_path)
    request["layers"] *= 8
    next(inpaint(model, request))
    request["layers"] += request["layers"][:1]
    for steps in (inpaint(model, request), semantic(mapped, request)):
        with pytest.raises(ValueError, match=r"^there must be at most 8 layers, got 9$"):
            next(steps)


def test_large_candidates_are_drawn_by_ones_and_twos(mapped, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "MOST_PIXELS", 2 * 32 * 32)
    request = request_of(picture(32, 32), Image.new("L", (32, 32), 255), tmp_path)
    steps = inpaint(mapped, request, "a lake", candidates=4, ranker=CLIP(clip))
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


def test_the_best_edits_are_shown_and_the_best_first(mapped, clip, tmp_path):
    image, layer = picture(40, 32), mask_layer("Lower half", (40, 32))
    request, ranker = request_of(image, layer, tmp_path), CLIP(clip)
    how = dict(seed=5, passes=1)
    *steps, (_, strip, line, got, _) = inpaint(
        mapped, request, "a lake", 2, candidates=3, ranker=ranker, **how
    )
    mask, how = layer, how | {"process": "refined", "prompt": "a lake"}
    images = mapped.inpaint(image, mask, 6, **how)
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
    *_, (line, got) = outpaint(mapped, request, "a lake", 1, **beyond)
    images = mapped.outpaint(image, 2, left=32, **how)
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
    lines = [line for line, _ in steps]
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


def test_what_fails_of_one_request_ends_that_one_alone(mapped, monkeypatch):
    """Requests of a batch are drawn together; one of them cannot be shown."""
    given = [{"prompt": "a lake", "num_images": 1, "seed": seed} for seed in (1, 2)]
    usual = {"candidates": 1, "enlarge": 1, "temperature": 1.0}
    store = SampleRequest.shown

    def shown(request, *how):
        if request.options["seed"] == 2:
            raise OSError("no room")
        return store(request, *how)

    monkeypatch.setattr(SampleRequest, "shown", shown)
    first, *steps = sample_each(mapped, [usual | one for one in given])
    assert first == [None, None] and len(steps) == mapped.T
    assert {str(error) for _, error in steps} == {"no room"}
    (_, line, ((path, _),)), _ = steps[-1]
    assert_same([Image.open(path)], mapped.sample(1, prompt="a lake", seed=1))
    assert line.startswith("Seed 1, ")


@pytest.mark.parametrize("name", ODD_WORDS)
def test_odd_words_are_read_as_far_as_they_can_be(mapped, name):
    prompt, remark = ODD_WORDS[name]
    *_, (_, line, images) = sample(mapped, prompt, seed=1)
    assert len(images) == 1
    assert f" s. {remark}" in line if remark else line.endswith(" s.")
    with pytest.raises(ValueError, match="prompt must be text of at most 1000 characters"):
        next(sample(mapped, "lake " * 10_000))


def test_a_visitor_hears_of_own_words_alone(mapped, monkeypatch):
    """Not what the interpreter warns of, nor what another thread says meanwhile."""
    shown = warnings.showwarning

    def encode(*_, **__):
        warnings.warn("unclosed event loop", ResourceWarning, stacklevel=2)
        other = Thread(target=warnings.warn, args=("another's words",))
        other.start()
        other.join()
        warnings.warn("own words", stacklevel=2)

    monkeypatch.setattr(requests, "encode_condition", encode)
    _, remark = requests.read_words(mapped, 0, 1, "a lake")
    assert remark == " own words."
    assert warnings.showwarning is shown


def test_a_panorama_has_room_for_its_prompts(mapped):
    lines = "\n".join(["a lake"] * 5)
    with pytest.raises(ValueError, match="prompts and classes must be at most 4, got 5"):
        next(panorama(mapped, lines, width=32))
    *_, (_, wide) = panorama(mapped, lines, width=37)  # not a multiple of f
    assert Image.open(wide).size == (37, 32)


def test_a_link_restores_settings(mapped):
    """Checked as those of a request; without settings in it nothing changes."""
    with gr.Blocks():
        inputs = panel(mapped, "Sample", "status", "To begin,").inputs
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


def test_an_unknown_word_is_said_to_its_visitor_alone(mapped_server, tmp_path):
    client = Client(mapped_server.url, verbose=False, download_files=tmp_path)
    _, line, _ = client.predict("a zzyzx", api_name="/sample")
    assert line.endswith(" prompt: this model has never seen zzy, zx.")
    assert "zzy" not in mapped_server.log.read_text()


def test_candidates_need_a_prompt_and_something_that_ranks(make_model, clip):
    model = make_model(T=3)
    with pytest.raises(ValueError, match="candidates must be 1 for this model"):
        next(sample(model, "a lake", candidates=2))
    with pytest.raises(ValueError, match=r'candidates \("Best of"\) must be 1 without a prompt'):
        next(sample(model, " ", candidates=2, ranker=CLIP(clip)))
    with pytest.raises(ValueError, match="candidates must be a whole number, from 1 to 64, got 65"):
        next(sample(model, candidates=65))
