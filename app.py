"""The browser demo: draw pictures, and repaint parts of a picture.

    python app.py                                          the shipped model, http://127.0.0.1:7860
    python app.py --model runs/mine                        a folder, or a Hugging Face Hub id
    python app.py --host 0.0.0.0 --auth anna:secret        for others; never without a password

A tab is one function. The endpoints `/sample`, `/inpaint`, `/outpaint`, `/semantic`, `/panorama`
and `/chain` are open to programs as well (the link "API" at the foot of the page shows how), so
they check everything again that the page checks.
"""

import html
import inspect
import math
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np
import torch
import tyro
from PIL import Image
from starlette.middleware import Middleware

from imagebart import ImageBART, scenery
from imagebart.data import FORMATS, fit, to_pil, to_rgb
from imagebart.editing import Edit, hole_pixels, pixel_hole, refined_steps
from imagebart.guidance import ask
from imagebart.maps import OPEN, kind_colours, paint_kinds, read_kinds
from imagebart.model import SHIPPED_SEMANTIC
from imagebart.panorama import decode_wide, panorama_steps
from imagebart.probe import Probe
from imagebart.ranking import CLIP, best_of
from imagebart.serving import Guard, is_this_machine, read_auth

MOST_IMAGES = 16
MOST_CANDIDATES = 64
MOST_PASSES = 16
MOST_UNDOS = 20
MOST_MARGIN = 1024
MOST_WIDTH = 4096
SECONDS_BETWEEN_LOOKS = 2  # at a panorama that grows
MOST_PIXELS = 16_000_000
LONGEST_PROMPT = 1000
EXAMPLES = 8
NO_TEXT = "This model takes no text"
PAINT = "#ff9a3c"
HOLES = {  # in quarters of the image, # = repaint
    "Upper half": "#### #### .... ....",
    "Centre": ".... .##. .##. ....",
    "Outer frame": "#### #..# #..# ####",
}


@dataclass
class Config:
    """Where the model is and who may see the page."""

    model: str | None = None  # a folder or a Hugging Face Hub id; the shipped models if not given
    clip: Path | None = None  # the folder of a CLIP model that ranks; for scenery one is shipped
    host: str = "127.0.0.1"  # the address to listen on; others than this machine need --auth
    port: int | None = None  # the first free one from 7860 if not given
    device: str | None = None  # "cpu", "cuda" …; the best there is if not given
    auth: str | None = None  # USER:PASSWORD that visitors must give


# ── what a visitor asked for ──────────────────────────────────────────────────────────────────


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in [low, high]; text is read too, as JSON numbers are exact to 2^53 only."""
    number = None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = int(value)
    if number is None or (isinstance(value, float) and number != value):
        raise ValueError(f"{name} must be a whole number, got {short(value)}")
    if not low <= number <= high:
        raise ValueError(f"{name} must lie in {low} to {high}, got {short(value)}")
    return number


def real(value: Any, name: str, low: float, high: float) -> float:
    """A number in [low, high]."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        raise ValueError(f"{name} must be a number from {low} to {high}, got {short(value)}")
    return float(value)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def read_request(model: ImageBART, prompt, num_images, seed, temperature, top_k, *words) -> tuple:
    """(number of images, options of the chain, a remark); ValueError if one cannot be met."""
    count = whole(num_images, "num_images", 1, MOST_IMAGES)
    options = {
        "seed": whole(seed, "seed", 0, 2**63 - count),  # image i has the seed seed + i
        "temperature": real(temperature, "temperature", 0, 5),
        "top_k": whole(top_k, "top_k", 0, model.K),
    }
    what, remark = read_words(model, prompt, *words, options["seed"], count)
    return count, options | what, remark


def read_words(
    model: ImageBART, prompt, classes, negative_prompt, guidance, seed: int, count: int
) -> tuple[dict, str]:
    """(what to paint, as options of the chain; a remark on what the model could not read)."""
    texts = {"prompt": prompt, "negative_prompt": negative_prompt}
    for name, text in texts.items():
        if not isinstance(text, str | None) or len(text or "") > LONGEST_PROMPT:
            raise ValueError(f"{name} must be text of at most {LONGEST_PROMPT} characters")
    options, remarks = {}, []
    if model.takes_text:
        options |= texts
    elif any((text or "").strip() for text in texts.values()):
        remarks.append("This model takes no text: the prompt was not used.")
    if model.classes or classes not in ("", None):
        options["classes"] = read_classes(model, classes, seed, count)
    if guidance is not None:
        options["guidance"] = real(guidance, "guidance", 0, 20)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ask(model, count, **options)
    remarks += [f"{str(one.message)[:200]}." for one in said]
    return options, "".join(f" {remark}" for remark in dict.fromkeys(remarks))


def read_classes(model: ImageBART, name: Any, seed: int, count: int) -> list | None:
    """One class for all images; none said is no matter, or another for each by its seed where a
    model must have one."""
    if name in ("", None):
        droppable = model.denoisers[model.T].config.droppable
        return None if droppable else [(seed + i) % model.classes for i in range(count)]
    number = isinstance(name, int) or (isinstance(name, str) and name.isdecimal())
    return [whole(name, "classes", 0, model.classes - 1) if number else name] * count


@contextmanager
def sentences() -> Iterator[None]:
    """Errors reach the visitor as one sentence, never as a traceback."""
    try:
        yield
    except gr.Error:
        raise
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:  # gradio writes the traceback to the log
        raise gr.Error("something went wrong here; the server's log says what") from error


# ── pictures ──────────────────────────────────────────────────────────────────────────────────


def read_picture(file: dict, convert: Callable = to_rgb) -> Image.Image:
    """A picture that was uploaded, converted; ValueError if it is none.

    Gradio's own reader would clip 16-bit grey and pass over EXIF turns.
    """
    try:
        with Image.open(file["path"], formats=FORMATS) as image:
            pixels = convert(image)
            pixels.info.clear()  # where and when it was taken; and EXIF would turn it once more
            return pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = MOST_PIXELS // 10**6
        raise ValueError(f"an image must have at most {most} million pixels, got more") from None
    except Exception:  # decoders raise whatever a broken file drives them into
        names = ", ".join(FORMATS)
        raise ValueError(f"an image must be a whole file, one of {names}, got another") from None


def layer_mask(layer: Image.Image) -> Image.Image:
    """White where a layer is painted: not transparent or, without transparency, itself white."""
    if not layer.has_transparency_data:
        return layer.convert("L").point(lambda grey: 255 * (grey >= 128))
    return layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 0))


def read_editor(editor: dict | None) -> tuple[Image.Image, np.ndarray]:
    """(the image, where it is marked) of what the editor sent."""
    if not editor or not editor.get("background"):
        raise ValueError("there is no image yet: upload one, paste one, or take an example")
    image = read_picture(editor["background"])
    marked = np.zeros((image.height, image.width), bool)
    for file in editor.get("layers") or []:
        marked |= hole_pixels(read_picture(file, layer_mask), image.size)
    return image, marked


def token_map(edit: Edit) -> Image.Image:
    """What the model sees, with its grid of tokens: those to be repainted tinted, others dimmed."""
    model, image = edit.model, to_pil(edit.x_0)[0]
    mask = Image.fromarray(pixel_hole(model, edit.hole)[0, 0].cpu().numpy())
    scale = max(1, 512 // image.width)
    dimmed = Image.blend(image, Image.new("RGB", image.size, "#101820"), 0.6)
    tinted = Image.blend(image, Image.new("RGB", image.size, PAINT), 0.6)
    picture = Image.composite(tinted, dimmed, mask)
    picture = picture.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell, pixels = model.vqgan.f * scale, np.array(picture)
    pixels[cell::cell], pixels[:, cell::cell] = 90, 90
    return Image.fromarray(pixels)


def hole_of(name: str, size: tuple[int, int]) -> Image.Image:
    """One of `HOLES` as a layer for the editor, size = (W, H)."""
    chart = [[255 * (mark == "#") for mark in row] for row in HOLES[name].split()]
    alpha = Image.fromarray(np.array(chart, np.uint8)).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGB", size, PAINT)
    layer.putalpha(alpha)
    return layer


def for_editor(image: Image.Image, *layers: Image.Image) -> dict:
    """A value that shows in the editor; None would not clear what is there."""
    return {
        "background": stored(image),
        "layers": [stored(layer) for layer in layers],
        "composite": None,
    }


def stored(image: Image.Image) -> str:
    """A PNG file of its own for gradio, which deletes it when it is old.

    Given the image itself, gradio writes it anew at every yield, even while a browser reads it.
    """
    path = Path(os.environ["GRADIO_TEMP_DIR"], uuid4().hex, "image.png")
    path.parent.mkdir()
    image.save(path)
    return str(path)


@sentences()
def chosen_for_editor(results: list | None, index: int) -> dict:
    """The result that is selected in a gallery, the first if none is, for the editor."""
    if not results:
        raise ValueError("there is no picture yet")
    path, _ = results[min(index, len(results) - 1)]
    if not Path(path).is_file():
        raise ValueError("this picture is too old and gone, draw it again")
    return for_editor(Image.open(path))


def remembered(editor: dict | None, history: list[str]) -> list[str]:
    """The pictures that were edited, the one that is now among them; the last few."""
    background = (editor or {}).get("background")
    return [*history, background["path"]][-MOST_UNDOS:] if background else history


@sentences()
def undone(history: list[str]) -> tuple[dict, list[str]]:
    """The picture before, for the editor, and those before it."""
    if not history or not Path(history[-1]).is_file():
        raise ValueError("there is nothing to undo")
    return for_editor(Image.open(history[-1])), history[:-1]


# ── the endpoints ─────────────────────────────────────────────────────────────────────────────


def sample(
    model: ImageBART,
    prompt="",
    num_images=1,
    seed=0,
    temperature=1.0,
    top_k=0,
    classes="",
    negative_prompt="",
    guidance=None,
    candidates=1,
    *,
    ranker: CLIP | None = None,
) -> Iterator[tuple]:
    """Draw images: (the first one's chain, status, images), after every scale.

    num_images 1 to 16, image i has the seed `seed` + i; seed 0 to 2^63 - 1, as text where numbers
    are not exact; temperature 0 to 5, 0 is greedy; top_k 0 (off) to the size of the codebook.
    classes: a name or a number, empty for any; guidance 0 to 20, 1 is plain conditional sampling,
    null is the model's own. candidates 1 to 64: so many are drawn for each image, and those shown
    that look most like the prompt.
    """
    words = classes, negative_prompt, guidance
    request = read_request(model, prompt, num_images, seed, temperature, top_k, *words)
    count, options, remark = request
    candidates = whole(candidates, "candidates", 1, MOST_CANDIDATES)
    began, chain = time.perf_counter(), []
    if candidates > 1:
        score = score_of(ranker, prompt)
        yield [], f"Drawing {count * candidates} to choose from …", []
        one = options | {"classes": options["classes"][0]} if options.get("classes") else options
        best = best_of(model, count, count * candidates, score, **one)
        options["seed"] = [ranked.seed for ranked in best]
        remark += f" The best of {count * candidates}."
    for step in model.sample_steps(count, **options):
        images = [stored(image) for image in model.decode(step.tokens)]
        chain.append((images[0], caption(model, step.t)))
        yield chain, status(step, options["seed"], count, began, remark), images


def score_of(ranker: CLIP | None, prompt: str):
    """What ranks candidates; ValueError if nothing can."""
    if ranker is None:
        raise ValueError("candidates must be 1 for this model: start the app with --clip to rank")
    if not (prompt or "").strip():
        raise ValueError("candidates must be 1 without a prompt: there is nothing to compare with")
    return ranker.likeness(prompt)


def inpaint(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    temperature=1.0,
    top_k=0,
    classes="",
    negative_prompt="",
    guidance=None,
    passes=0,
) -> Iterator[tuple]:
    """Repaint what is marked: (the tokens that are, status, images), after every scale and pass.

    editor: {"background": image, "layers": [mask], "composite": null}; the mask is as large as the
    image, repaint = not transparent, or white where nothing is. passes 0 to 16: how often the
    finest scale is forgotten and remembered again, until nothing changes. The rest as in `sample`.
    """
    words = classes, negative_prompt, guidance
    request = read_request(model, prompt, num_images, seed, temperature, top_k, *words)
    count, options, remark = request
    passes = whole(passes, "passes", 0, MOST_PASSES)
    edit = Edit(model, *read_editor(editor))
    if not edit.hole.any():
        raise ValueError("nothing is marked yet: paint over what should be repainted")

    began, shown = time.perf_counter(), stored(token_map(edit))
    for step in refined_steps(model, edit.x_1(), edit.hole, count, passes=passes, **options):
        images = [stored(image) for image in to_pil(edit.result(step.tokens))]
        yield shown, status(step, options["seed"], count, began, remark), images


def outpaint(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    temperature=1.0,
    top_k=0,
    classes="",
    negative_prompt="",
    guidance=None,
    passes=0,
    left=0,
    right=0,
    top=0,
    bottom=0,
) -> Iterator[tuple]:
    """Go on beyond the borders: (what was there, status, images).

    left, right, top, bottom: pixels to add, 0 to 1024 each; the rest as in `inpaint`, what is
    marked does not matter.
    """
    words = classes, negative_prompt, guidance
    request = read_request(model, prompt, num_images, seed, temperature, top_k, *words)
    count, options, remark = request
    given = {"left": left, "right": right, "top": top, "bottom": bottom}
    margins = {name: whole(value, name, 0, MOST_MARGIN) for name, value in given.items()}
    image, _ = read_editor(editor)
    if not any(margins.values()):
        raise ValueError("there is nothing to add yet: left, right, top and bottom are 0")

    began = time.perf_counter()
    options |= {"process": "refined", "passes": whole(passes, "passes", 0, MOST_PASSES)}
    images = [stored(one) for one in model.outpaint(image, count, **margins, **options)]
    yield stored(image), finished(options["seed"], count, began, remark), images


def semantic(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    temperature=1.0,
    top_k=0,
    classes="",
    negative_prompt="",
    guidance=None,
) -> Iterator[tuple]:
    """Draw what a map shows: (the map as it was read, status, images), after every scale.

    editor: {"background": image, "layers": [image], "composite": null}, painted in the colours of
    the kinds; what is white, or has no kind's colour, is left open. The rest as in `sample`.
    """
    words = classes, negative_prompt, guidance
    request = read_request(model, prompt, num_images, seed, temperature, top_k, *words)
    count, options, remark = request
    colours = kind_colours(model.map_names)
    kinds = read_kinds(read_painting(editor, model.image_size), colours)
    if (kinds < 0).all():
        raise ValueError("nothing is painted yet: paint the map in the colours of the kinds")
    options["semantic_map"] = [kinds] * count
    began, shown = time.perf_counter(), stored(paint_kinds(kinds, colours))
    for step in model.sample_steps(count, **options):
        images = [stored(image) for image in model.decode(step.tokens)]
        yield shown, status(step, options["seed"], count, began, remark), images


def read_painting(editor: dict | None, size: tuple[int, int]) -> Image.Image:
    """What was painted, layers over background, at the model's size (H, W)."""
    if not editor or not editor.get("background"):
        raise ValueError("there is no map yet: paint one, or take an example")
    H, W = size
    flat = partial(Image.Image.resize, size=(W, H), resample=Image.Resampling.NEAREST)
    painting = flat(read_picture(editor["background"]))
    for file in editor.get("layers") or []:
        layer = flat(read_picture(file, lambda image: image.convert("RGBA")))
        painting.paste(layer, mask=layer.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    return painting


def panorama(
    model: ImageBART,
    prompts="",
    width=0,
    seed=0,
    temperature=1.0,
    top_k=0,
    negative_prompt="",
    guidance=None,
    wrap=False,
    exact=False,
) -> Iterator[tuple]:
    """Draw a wide picture, window by window: (status, picture so far).

    prompts: one a line, from left to right; width in pixels, at least the model's, 0 is six times
    that; wrap: the right end goes on at the left one; exact: a window for every token, slow.
    """
    width = whole(width, "width", 0, MOST_WIDTH) or 6 * model.image_size[1]
    for name, value in (("wrap", wrap), ("exact", exact)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {short(value)}")
    if not isinstance(prompts, str | None) or len(prompts or "") > LONGEST_PROMPT:
        raise ValueError(f"prompts must be text of at most {LONGEST_PROMPT} characters")
    lines = [line for line in (prompts or "").splitlines() if line.strip()] or [""]
    words = "", negative_prompt, guidance
    requests = [read_request(model, line, 1, seed, temperature, top_k, *words) for line in lines]
    options, remark = requests[0][1], "".join(dict.fromkeys(remark for *_, remark in requests))
    if options.pop("prompt", None):
        options["prompts"] = lines

    began, looked, shown = time.perf_counter(), -math.inf, None
    how = {"mode": "exact" if exact else "fast", "wrap": wrap, **options}
    for step in panorama_steps(model, width, **how):
        if step.done == 1 or time.perf_counter() - looked > SECONDS_BETWEEN_LOOKS:
            picture = decode_wide(model, step.tokens, wrap)[:, :, :, :width]
            looked, shown = time.perf_counter(), stored(to_pil(picture)[0])
        yield status(step, options["seed"], 1, began, remark), shown


def chain(model: ImageBART, image, t=2, seed=0) -> tuple:
    """Forget a picture: (x_t decoded, status, every level of the chain).

    image: a picture; t 1 (nothing is forgotten) to T (everything is); seed 0 to 2^63 - 1, of the
    noise, which is drawn once, so that a larger t forgets more of the same picture.
    """
    t, seed = whole(t, "t", 1, model.T), whole(seed, "seed", 0, 2**63 - 1)
    if not image:
        raise ValueError("there is no image yet: upload one, paste one, or take an example")
    x_1 = model.encode(fit(read_picture(image), model.image_size))
    levels = [noisy(model, x_1, level, seed) for level in range(1, model.T + 1)]
    shown = [stored(picture) for picture in model.decode(torch.cat(levels))]
    kept = [(x_t == x_1).float().mean().item() for x_t in levels]
    names = [f"t = {level}: {part:.0%} kept" for level, part in enumerate(kept, 1)]
    line = f"At t = {t}, {kept[t - 1]:.0%} of the {x_1[0].numel()} tokens are the picture's."
    return (
        shown[t - 1],
        f"{line} {bits_line(model, x_1, seed)}",
        list(zip(shown, names, strict=True)),
    )


def noisy(model: ImageBART, x_1: torch.Tensor, t: int, seed: int) -> torch.Tensor:
    """x_t ~ q(x_t | x_1); one seed is one noise for every t.   [eq. 6]"""
    generator = torch.Generator().manual_seed(seed)
    return model.diffusion.q_sample_marginal(x_1.cpu(), t, generator).to(x_1.device)


def bits_line(model: ImageBART, x_1: torch.Tensor, seed: int) -> str:
    """What each scale has to say again, in bits per token: the terms of the bound.   [eq. 2]"""
    config = model.denoisers[model.T].config
    if config.condition_parts and not config.droppable:
        return ""
    bits = model.bits_per_token_of(x_1, seed=seed)
    terms = ", ".join(f"{value.item():.2f} at t = {t}" for t, value in bits.items())
    return f"To remember it takes {sum(bits.values()).item():.2f} bits a token: {terms}."


def caption(model: ImageBART, t: int) -> str:
    return f"t = {t}, noise" if t == model.T else f"t = {t}, image" if t == 1 else f"t = {t}"


def status(step, seed: int | list[int], count: int, began: float, remark: str) -> str:
    if step.done < 1:
        return f"At scale t = {step.t}, {step.done:.0%} of the way …"
    return finished(seed, count, began, remark)


def finished(seed: int | list[int], count: int, began: float, remark: str) -> str:
    if isinstance(seed, list):
        seeds = f"Seed{'s' * (count > 1)} {', '.join(map(str, seed))}"
    else:
        seeds = f"Seed {seed}" if count == 1 else f"Seeds {seed} to {seed + count - 1}"
    return f"{seeds}, {time.perf_counter() - began:.1f} s.{remark}"


# ── the page ──────────────────────────────────────────────────────────────────────────────────

FONT = ("ui-sans-serif", "system-ui", "Helvetica", "Arial", "sans-serif")
THEME = gr.themes.Default(primary_hue="teal", neutral_hue="slate", radius_size="lg", font=FONT).set(
    button_secondary_background_fill="*neutral_100",
    button_secondary_background_fill_hover="*neutral_200",
    button_large_text_weight="500",
    button_large_text_size="*text_md",
)
CSS = """
.gradio-container, .gradio-container main { width: 100%; max-width: 1120px !important; }
.gradio-container { margin: 0 auto !important; }
#title h1 { margin-bottom: 0.2rem; }
#title p { color: var(--body-text-color-subdued); font-size: var(--text-lg); }
.shelf .grid-wrap, .tiles .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
.shelf .grid-container { grid-template-columns: repeat(auto-fill, var(--thumb)) !important; }
.shelf .grid-container { grid-template-rows: none !important; grid-auto-rows: auto !important; }
.tiles .grid-container { grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)) !important; }
#chain { --thumb: 150px; }
#levels { --thumb: 180px; }
#examples, #starts, #maps { --thumb: 64px; }
#forget img, #noisy img { width: 100%; height: 100%; object-fit: contain; }
#panorama img { width: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: var(--text-sm); }
.legend i { display: inline-block; width: 14px; height: 14px; margin-right: 5px; border-radius: 4px;
  vertical-align: -2px; border: 1px solid var(--border-color-primary); }
#examples .thumbnail-item, #maps .thumbnail-item { aspect-ratio: 1; height: auto; }
#starts .thumbnail-item { aspect-ratio: 1; height: auto; }
"""
TITLE = """
# ImageBART
Draws what you ask for from noise, one scale of a diffusion after the other; repaints the part of a
picture that you mark; paints what a map says; goes on beyond a picture's borders.
"""


def controls(model: ImageBART) -> list:
    """What both endpoints ask for, in the order in which they take it."""
    hint = "a snowy mountain at night" if model.takes_text else NO_TEXT
    prompt = gr.Textbox(
        "", label="Prompt", placeholder=hint, max_lines=3, max_length=LONGEST_PROMPT
    )
    names = [*zip(model.class_names, model.class_names, strict=True)]
    names = names or [(str(i), str(i)) for i in range(model.classes)]
    kind = gr.Dropdown([("any", ""), *names], label="Class", visible=bool(model.classes))
    count = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Number of images")
    dice = gr.Button("Random", size="sm", render=False)
    seed = gr.Number(0, label="Seed", precision=0, buttons=[dice])
    with gr.Accordion("Advanced", open=False):
        negative, guidance = controls_of_words(model)
        temperature, top_k = controls_of_chance(model)
    dice.click(None, None, seed, js="() => Math.floor(Math.random() * 2 ** 31)")
    return [prompt, count, seed, temperature, top_k, kind, negative, guidance]


def controls_of_words(model: ImageBART) -> list:
    """What else there is to say: negative prompt, guidance."""
    about, led = "What the picture should not show", model.takes_text or bool(model.classes)
    negative = gr.Textbox(
        "", label="Negative prompt", info=about, max_length=LONGEST_PROMPT, visible=model.takes_text
    )
    about = "1 follows the prompt as it learned to, more follows it harder"
    guidance = gr.Slider(0, 8, model.guidance, step=0.1, label="Guidance", info=about, visible=led)
    return [negative, guidance]


def controls_of_chance(model: ImageBART) -> list:
    """How the tokens are drawn: temperature, top-k."""
    about = "0 takes the likeliest token always"
    temperature = gr.Slider(0, 5, 1, step=0.05, label="Temperature", info=about)
    about = "Only the k likeliest tokens; 0 is all"
    return [temperature, gr.Slider(0, model.K, 0, step=1, label="Top-k", info=about)]


def results_gallery(**options) -> tuple[gr.Gallery, gr.State]:
    """A gallery of results, and which of them is selected."""
    gallery = shelf_of(buttons=["download", "download_all", "fullscreen"], **options)
    index = gr.State(0)

    def select(event: gr.SelectData) -> int:
        return event.index

    gallery.select(select, None, index, api_visibility="private", queue=False)
    return gallery, index


def shelf_of(value: list | None = None, **options) -> gr.Gallery:
    """Pictures to look at, without loss."""
    plain = {"format": "png", "interactive": False, "object_fit": "contain", "show_label": False}
    return gr.Gallery(value, **plain, **options)


def run_buttons(label: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        run = gr.Button(label, variant="primary", scale=3, min_width=140)
        stop = gr.Button("Stop", scale=1, min_width=80)
    return run, stop


def endpoint(steps: Callable, model: ImageBART, **given) -> Callable:
    """`steps` with its model and what else is given, its errors in sentences, and the names of its
    other parameters."""

    def run(*args):
        with sentences():
            yield from steps(model, *args, **given)

    _, *parameters = inspect.signature(steps).parameters.values()
    parameters = [one for one in parameters if one.name not in given]
    run.__name__, run.__signature__ = steps.__name__, inspect.Signature(parameters)
    return run


def connect(
    model: ImageBART, steps: Callable, buttons: tuple, inputs, outputs, index=None, **given
) -> None:
    """Run calls the endpoint, one visitor after another; Stop ends it after the scale it is at.

    The status is the output that is text; `index` is what is selected in the gallery.
    """
    (line,) = (output for output in outputs if isinstance(output, gr.Markdown))
    run, stop = buttons
    event = run.click(
        endpoint(steps, model, **given),
        inputs,
        outputs,
        preprocess=False,  # the endpoint checks what came, and says what is wrong
        api_name=steps.__name__,
        api_description=inspect.cleandoc(steps.__doc__),
        concurrency_limit=1,
        concurrency_id="model",
        show_progress="minimal",
        show_progress_on=line,
    )
    if index is not None:
        run.click(lambda: 0, None, index, api_visibility="private", queue=False)
    stop.click(
        lambda: "Stopped.", None, line, cancels=[event], api_visibility="private", queue=False
    )


def sample_tab(model: ImageBART, ranker: CLIP | None) -> SimpleNamespace:
    """Draw pictures and watch the chain; what the other tabs connect to."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            inputs = controls(model)
            about = "So many are drawn for each image; those most like the prompt are shown"
            candidates = gr.Slider(
                1, 16, 1, step=1, label="Best of", info=about, visible=ranker is not None
            )
            buttons = run_buttons("Sample")
            line = gr.Markdown(elem_id="sample-status", min_height=28)
        with gr.Column(scale=3, min_width=320):
            gallery, index = results_gallery(
                label="Images", height="min(640px, 96vw)", columns=2, elem_id="samples"
            )
            send = gr.Button("Send the selected image to Edit")
    gr.Markdown("#### How the first image formed")
    chain = shelf_of(
        label="Chain", allow_preview=False, buttons=[], elem_id="chain", elem_classes="shelf"
    )
    outputs = [chain, line, gallery]
    connect(model, sample, buttons, [*inputs, candidates], outputs, index, ranker=ranker)
    return SimpleNamespace(send=send, gallery=gallery, index=index)


def example_pictures(model: ImageBART) -> list[Image.Image]:
    """Scenery that the model has not seen."""
    H, W = model.image_size
    scenes = [scenery.render(scenery.scene_seed("test", i), H, W) for i in range(EXAMPLES)]
    return [Image.fromarray(scene.image) for scene in scenes]


def edit_tab(model: ImageBART, examples: list[Image.Image]) -> SimpleNamespace:
    """Mark a part of a picture and repaint it; what the other tabs connect to."""
    H, W = model.image_size
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            editor = image_editor(W, H, "Paint over what should change", [PAINT], "editor")
            with gr.Row():
                holes = [gr.Button(name, size="sm", min_width=90) for name in HOLES]
            upload = gr.UploadButton("Upload a picture", file_types=["image"], size="sm")
            gr.Markdown("Or paste one above, or take one of these:")
            shelf = shelf_of(
                examples, allow_preview=False, buttons=[], elem_id="examples", elem_classes="shelf"
            )
        with gr.Column(scale=2, min_width=300):
            about = "Forget and remember the finest scale again, until nothing changes"
            inputs = controls(model)
            passes = gr.Slider(0, MOST_PASSES, 0, step=1, label="Refinement passes", info=about)
            buttons = run_buttons("Repaint")
            with gr.Accordion("Go on beyond the borders", open=False):
                margins = [
                    gr.Slider(0, MOST_MARGIN, 0, step=8, label=f"Pixels {where}")
                    for where in ("to the left", "to the right", "above", "below")
                ]
                beyond = run_buttons("Outpaint")
            line = gr.Markdown(elem_id="edit-status", min_height=28)
            shown = gr.Image(
                label="Tokens to repaint",
                format="png",
                interactive=False,
                height=250,
                buttons=[],
                elem_id="tokens",
            )
    gr.Markdown("#### Results")
    gallery, index = results_gallery(label="Results", elem_id="edits", elem_classes="tiles")
    with gr.Row():
        again = gr.Button("Use the selected result as input", scale=3)
        undo = gr.Button("Undo", scale=1, elem_id="undo")
    history = gr.State([])

    def pick(event: gr.SelectData) -> dict:
        return for_editor(examples[event.index])

    @sentences()
    def uploaded(file: dict) -> dict:
        return for_editor(fit(read_picture(file), (H, W)))

    @sentences()
    def pasted(value: dict | None) -> dict:
        file = (value or {}).get("background")
        image = file and read_picture(file)
        if not image or image.size == (W, H):
            return gr.skip()  # a value that we set comes here, too
        return for_editor(fit(image, (H, W)))

    @sentences()
    def mark(name: str, value: dict | None) -> dict:
        image, _ = read_editor(value)
        return for_editor(image, hole_of(name, image.size))

    inputs = [editor, *inputs, passes]
    outputs = [shown, line, gallery]
    connect(model, inpaint, buttons, inputs, outputs, index)
    connect(model, outpaint, beyond, [*inputs, *margins], outputs, index)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    shelf.select(pick, None, editor, **private)
    upload.upload(uploaded, upload, editor, preprocess=False, **private)
    editor.upload(pasted, editor, editor, preprocess=False, **private)
    for name, button in zip(HOLES, holes, strict=True):
        button.click(partial(mark, name), editor, editor, preprocess=False, **private)
    again.click(remembered, [editor, history], history, preprocess=False, **private).then(
        chosen_for_editor, [gallery, index], editor, **private
    )
    undo.click(undone, history, [editor, history], **private)
    return SimpleNamespace(editor=editor)


def semantic_tab(model: ImageBART) -> None:
    """Paint a map of kinds and get the landscape."""
    H, W = model.image_size
    colours = kind_colours(model.map_names)
    maps = example_maps(model) if tuple(model.map_names) == scenery.LABELS else []
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            codes = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours.tolist()]
            blank = Image.new("RGB", (W, H), OPEN)
            editor = image_editor(W, H, "Paint what is where", codes, "painting", blank)
            gr.HTML(legend(model.map_names, codes))
            clear = gr.Button("Start from a blank map", size="sm")
            gr.Markdown("Or from one of these:", visible=bool(maps))
            plain = {"allow_preview": False, "buttons": [], "visible": bool(maps)}
            shelf = shelf_of(maps, elem_id="maps", elem_classes="shelf", **plain)
        with gr.Column(scale=2, min_width=300):
            inputs = controls(model)
            buttons = run_buttons("Draw the landscape")
            line = gr.Markdown(elem_id="semantic-status", min_height=28)
            shown = gr.Image(
                label="The map as it was read",
                format="png",
                interactive=False,
                height=250,
                buttons=[],
                elem_id="read",
            )
    gr.Markdown("#### Results")
    gallery, index = results_gallery(label="Results", elem_id="painted", elem_classes="tiles")

    def pick(event: gr.SelectData) -> dict:
        return for_editor(maps[event.index])

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shelf.select(pick, None, editor, **private)
    clear.click(lambda: for_editor(blank), None, editor, **private)
    connect(model, semantic, buttons, [editor, *inputs], [shown, line, gallery], index)


def example_maps(model: ImageBART) -> list[Image.Image]:
    """Maps of scenery that the model has not seen."""
    scenes = [
        scenery.render(scenery.scene_seed("test", i), *model.image_size) for i in range(EXAMPLES)
    ]
    return [paint_kinds(scene.semantic_map, scenery.PALETTE) for scene in scenes]


def legend(names: Sequence[str], codes: list[str]) -> str:
    """Which colour is which kind."""
    swatch = '<span><i style="background: {}"></i>{}</span>'
    each = (swatch.format(code, html.escape(name)) for name, code in zip(names, codes, strict=True))
    return f'<div class="legend">{"".join(each)}</div>'


def panorama_tab(model: ImageBART) -> None:
    """Draw a wide picture from one prompt or several."""
    _, W = model.image_size
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            hint = "a desert at noon\na city at night" if model.takes_text else NO_TEXT
            about = "One a line, from left to right"
            prompts = gr.Textbox(
                "",
                label="Prompts",
                placeholder=hint,
                info=about,
                lines=3,
                max_length=LONGEST_PROMPT,
            )
        with gr.Column(scale=2, min_width=300):
            width = gr.Slider(W, MOST_WIDTH, 6 * W, step=model.vqgan.f, label="Width in pixels")
            seed = gr.Number(0, label="Seed", precision=0)
        with gr.Column(scale=2, min_width=300), gr.Accordion("Advanced", open=False):
            words = controls_of_words(model)
            temperature, top_k = controls_of_chance(model)
            wrap = gr.Checkbox(label="Wrap around", info="The right end goes on at the left one")
            about = "A window for every token, as the paper does: many times slower"
            exact = gr.Checkbox(label="Exact", info=about)
    buttons = run_buttons("Draw")
    line = gr.Markdown(elem_id="panorama-status", min_height=28)
    picture = gr.Image(
        label="Panorama",
        format="png",
        interactive=False,
        height="auto",
        buttons=["download", "fullscreen"],
        elem_id="panorama",
    )
    inputs = [prompts, width, seed, temperature, top_k, *words, wrap, exact]
    connect(model, panorama, buttons, inputs, [line, picture])


def chain_tab(model: ImageBART, examples: list[Image.Image]) -> None:
    """Slide t and see a picture forgotten."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = gr.Image(
                label="Picture",
                format="png",
                type="filepath",
                sources=["upload", "clipboard"],
                height=300,
                elem_id="forget",
            )
            shelf = shelf_of(
                examples, allow_preview=False, buttons=[], elem_id="starts", elem_classes="shelf"
            )
            about = "1 is the picture, T is noise"
            t = gr.Slider(1, model.T, 2, step=1, label="t", info=about, elem_id="level")
            seed = gr.Number(0, label="Seed of the noise", precision=0)
        with gr.Column(scale=3, min_width=320):
            shown = gr.Image(
                label="x_t, decoded",
                format="png",
                interactive=False,
                height=460,
                buttons=[],
                elem_id="noisy",
            )
            line = gr.Markdown(elem_id="chain-status", min_height=28)
    gr.Markdown("#### Every level")
    levels = shelf_of(
        label="Levels", allow_preview=False, buttons=[], elem_id="levels", elem_classes="shelf"
    )

    def pick(event: gr.SelectData) -> str:
        return stored(examples[event.index])

    def forget(image=None, t=2, seed=0):
        with sentences():
            return chain(model, image, t, seed)

    shelf.select(pick, None, image, api_visibility="private", show_progress="hidden")
    gr.on(
        [image.change, t.change, seed.submit],
        forget,
        [image, t, seed],
        [shown, line, levels],
        preprocess=False,
        api_name="chain",
        api_description=inspect.cleandoc(chain.__doc__),
        concurrency_limit=1,
        concurrency_id="model",
        show_progress="hidden",
        trigger_mode="always_last",
    )


def image_editor(
    W: int, H: int, label: str, colours: list[str], elem_id: str, start: Image.Image | None = None
) -> gr.ImageEditor:
    """An editor in which one paints in given colours, sized for W×H pictures."""
    radius = max(2, W // 16)
    return gr.ImageEditor(
        start,
        label=label,
        format="png",  # the default is lossy
        sources=["clipboard"],  # its own upload takes minutes to prepare a photograph
        transforms=(),
        layers=False,
        height=460,
        brush=gr.Brush(radius, colors=colours, color_mode="fixed"),
        eraser=gr.Eraser(radius),
        canvas_size=(W, H),
        fixed_canvas=False,
        buttons=[],
        elem_id=elem_id,
    )


def build(
    model: ImageBART, painter: ImageBART | None = None, ranker: CLIP | None = None
) -> gr.Blocks:
    """The page; `painter` draws maps, `ranker` tells the best of several samples."""
    examples = example_pictures(model)
    with gr.Blocks(title="ImageBART", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Sample", id="sample"):
                samples = sample_tab(model, ranker)
            with gr.Tab("Edit", id="edit"):
                edits = edit_tab(model, examples)
            if painter is not None:
                with gr.Tab("Paint a map", id="semantic"):
                    semantic_tab(painter)
            with gr.Tab("Panorama", id="panorama"):
                panorama_tab(model)
            with gr.Tab("Chain", id="chain"):
                chain_tab(model, examples)
        samples.send.click(
            lambda results, i: (chosen_for_editor(results, i), gr.Tabs(selected="edit")),
            [samples.gallery, samples.index],
            [edits.editor, tabs],
            api_visibility="private",
            show_progress="hidden",
        )
    return page.queue(max_size=64)


def launch(page: gr.Blocks, config: Config, **options) -> Any:
    """Serve the page, safely; `options` as `gr.Blocks.launch`."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    hosts = ("127.0.0.1", "localhost", "::1", config.host) if is_this_machine(config.host) else ()
    return page.launch(
        server_name=config.host,
        server_port=config.port,
        auth=read_auth(config.host, config.auth),
        share=False,
        ssr_mode=False,
        mcp_server=False,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        max_file_size="10mb",
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)]},
        footer_links=["api"],
        theme=THEME,
        css=CSS,
        **options,
    )


@contextmanager
def private_files() -> Iterator[None]:
    """Pictures of visitors lie in a folder that only this user can read, and go when we go."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which leaves the block below
    with tempfile.TemporaryDirectory(prefix="imagebart-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield


def main(config: Config) -> None:
    read_auth(config.host, config.auth)
    model = ImageBART.from_pretrained(config.model, device=config.device)
    shipped = config.model is None
    painter = model if model.takes_map else None
    if shipped:
        painter = ImageBART.from_pretrained(SHIPPED_SEMANTIC, device=config.device)
    ranker = CLIP(config.clip) if config.clip else Probe() if shipped else None
    with private_files():
        launch(build(model, painter, ranker), config)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
