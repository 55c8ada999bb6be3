"""The tab Edit: inpaint a mask, or outpaint beyond the borders."""

import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import gradio as gr
import numpy as np
from PIL import Image

from demo.parts import (
    candidates_slider,
    connect,
    controls,
    image_editor,
    results_gallery,
    run_buttons,
    shelf_of,
    slider_of,
)
from demo.pictures import (
    PAINT,
    Throttle,
    chosen_for_editor,
    for_editor,
    growing,
    read_editor,
    read_picture,
    stored,
    token_map,
)
from demo.requests import (
    at_once,
    bounds,
    caption,
    check_pixels,
    finished,
    of_one_class,
    picked,
    ranked,
    read_candidates,
    read_int,
    read_number,
    read_request,
    sentences,
    status,
)
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.data.images import fit, to_pil
from imagebart.editing.inpainting import MaskedImage, each_image, grown_size, outpaint_steps
from imagebart.editing.process import refined_steps
from imagebart.ranking import CLIP

MOST_UNDOS = 20
MOST_MARGIN = 1024
EVERY_STEP = 2**21
"""Results of at most so many pixels are stored after every step, others every few seconds."""
MASKS = {  # in quarters of the image, # = repaint
    "Upper half": "#### #### .... ....",
    "Lower half": ".... .... #### ####",
    "Left half": "##.. ##.. ##.. ##..",
    "Right half": "..## ..## ..## ..##",
    "Centre": ".... .##. .##. ....",
    "Outer frame": "#### #..# #..# ####",
}
SIDES = {  # what a button adds: left, right, above, below, in halves of the model's image size
    "Left": (1, 0, 0, 0),
    "Right": (0, 1, 0, 0),
    "Above": (0, 0, 1, 0),
    "Below": (0, 0, 0, 1),
    "All": (1, 1, 1, 1),
}


# ── the endpoints ─────────────────────────────────────────────────────────────────────────────


def inpaint(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    passes=0,
    context=0,
    feather=0,
    candidates=1,
    *,
    ranker: CLIP | None = None,
    **options,
) -> Iterator[tuple]:
    """Inpaint a mask: (its tokens, the first result after each step, status, images), after every
    scale and pass; large images every few seconds.

    editor: {"background": image, "layers": [mask], "composite": null}; a mask has the image's size,
    is opaque where to repaint, or white if nothing in it is transparent; layers count together, at
    most 8, and 16 million pixels in all results together. passes: how often the finest scale is
    noised and denoised again, until no token changes. Other arguments as in `sample`.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    given = {"passes": passes, "context": context, "feather": feather}
    how = {name: read_number(model, name, value) for name, value in given.items()}
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    image, mask = read_editor(editor)
    check_pixels(count, *image.size)
    edit = MaskedImage(model, image, mask, context=how["context"], feather=how["feather"])
    if not edit.masked.any():
        raise ValueError("the mask is empty: paint over what should be repainted")

    began, shown, strip = time.perf_counter(), stored(token_map(edit)), []
    if score is not None:
        draw = partial(model.inpaint, image, mask, process="refined", **how)
        few = at_once(*image.size)
        for best, line in ranked(draw, count, candidates, score, options, few):
            yield shown, [], line, [stored(one.image) for one in best]
        options = of_one_class(options, count) | {"seed": [one.seed for one in best]}
        remark += f" The best of {count * candidates}."
    throttle, small = Throttle(), count * image.width * image.height <= EVERY_STEP
    steps = refined_steps(model, edit.x_1(), edit.masked, count, passes=how["passes"], **options)
    for i, step in enumerate(steps, 1 - model.T):
        if throttle.due(step.done) or small:
            images = [stored(to_pil(one)[0]) for one in edit.results(step.tokens)]
            name = f"pass {i}" if i > 0 else caption(model, step.t)
            strip = [*strip, (images[0], name)]
        if step.done == 1 and i < how["passes"]:
            remark += f" Converged after {i} passes."
        yield shown, strip, status(step, options["seed"], count, began, remark), images


def outpaint(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    passes=0,
    context=0,
    feather=0,
    candidates=1,
    left=0,
    right=0,
    top=0,
    bottom=0,
    *,
    ranker: CLIP | None = None,
    **options,
) -> Iterator[tuple]:
    """Outpaint beyond the borders: (input, status, images), after every window.

    left, right, top, bottom: pixels to add, 0 to 1024 each; at most 16 million pixels in all
    images drawn together, candidates included. Other arguments as in `inpaint`, whose mask is
    ignored.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    given = {"left": left, "right": right, "top": top, "bottom": bottom}
    margins = {name: read_int(value, name, 0, MOST_MARGIN) for name, value in given.items()}
    given = {"passes": passes, "context": context, "feather": feather}
    how = {name: read_number(model, name, value) for name, value in given.items()}
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    image, _ = read_editor(editor)
    if not any(margins.values()):
        raise ValueError("there is nothing to add yet: left, right, top and bottom are 0")
    check_pixels(count * candidates, *grown_size(model, image, margins)[::-1])

    how |= {"process": "refined", **margins}
    began, shown, images = time.perf_counter(), stored(image), []
    if score is not None:
        draw = partial(model.outpaint, image, **how)
        for best, line in ranked(draw, count, candidates, score, options, chunk=1):
            images = [stored(one.image) for one in best]
            yield shown, line, images
        seeds, remark = [one.seed for one in best], f"{remark} The best of {count * candidates}."
        yield shown, finished(seeds, count, began, remark), images
        return
    first = options.pop("seed")
    for i, own in enumerate(each_image(options, count)):
        steps = outpaint_steps(model, image, seed=first + i, **how, **own)
        for grown, part in growing(steps):
            line = f"Image {i + 1} of {count}, {part:.0%} of the way …"
            yield shown, line, [*images, grown]
        images.append(grown)
    yield shown, finished(first, count, began, remark), images


# ── editor and results ────────────────────────────────────────────────────────────────────────


def mask_layer(name: str, size: tuple[int, int]) -> Image.Image:
    """One of `MASKS` as a layer for the editor, size = (W, H)."""
    chart = [[255 * (mark == "#") for mark in row] for row in MASKS[name].split()]
    alpha = Image.fromarray(np.array(chart, np.uint8)).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGB", size, PAINT)
    layer.putalpha(alpha)
    return layer


@sentences()
def with_mask(name: str, value: dict | None) -> dict:
    """The image in the editor with one of `MASKS` as its mask."""
    image, _ = read_editor(value)
    return for_editor(image, mask_layer(name, image.size))


def remembered(editor: dict | None, history: list[str]) -> list[str]:
    """The last edited images, with the current one."""
    background = (editor or {}).get("background")
    return [*history, background["path"]][-MOST_UNDOS:] if background else history


@sentences()
def taken(
    results: list | None, index: int, editor: dict | None, history: list[str]
) -> tuple[dict, list[str]]:
    """(selected result as the editor's value, history with the current image); nothing changes if
    there is no result."""
    return chosen_for_editor(results, index), remembered(editor, history)


@sentences()
def undone(history: list[str]) -> tuple[dict, list[str]]:
    """(previous image as the editor's value, the history before it)."""
    if not history:
        raise ValueError("there is nothing to undo")
    return for_editor(read_picture({"path": history[-1]})), history[:-1]


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def edit_tab(
    worker: Worker, model: ImageBART, examples: list[Image.Image], ranker: CLIP | None = None
) -> SimpleNamespace:
    """The page; returns what the other tabs connect to."""
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            editor = picture_editor(model, examples)
        with gr.Column(scale=2, min_width=300):
            about = "Noise and denoise at the finest scale, until no token changes"
            inputs, (_, most) = {"editor": editor, **controls(model)}, bounds(model, "passes")
            inputs["passes"] = gr.Slider(0, most, 0, step=1, label="Refinement passes", info=about)
            inputs |= {name: slider_of(model, name) for name in ("context", "feather")}
            inputs["candidates"] = candidates_slider(ranker)
            buttons = run_buttons("Repaint")
            line = gr.Markdown(elem_id="edit-status", min_height=28)
            with gr.Accordion("Extend beyond the borders", open=False):
                margins = margin_sliders(model)
                beyond = run_buttons("Outpaint")
    gr.Markdown("#### Results")
    gallery, index = results_gallery(label="Results", elem_id="edits", elem_classes="tiles")
    with gr.Row():
        again = gr.Button("Use the selected result as input", scale=3)
        undo = gr.Button("Undo", scale=1, elem_id="undo")
    gr.Markdown("#### The first result after each step")
    with gr.Row():
        plain = {"format": "png", "interactive": False, "height": 220, "buttons": []}
        with gr.Column(scale=1, min_width=220):
            shown = gr.Image(label="The input", elem_id="tokens", **plain)
        with gr.Column(scale=4, min_width=320):
            plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
            strip = shelf_of(label="First result", elem_id="first-result", **plain)

    connect(
        worker,
        model,
        inpaint,
        buttons,
        inputs,
        [shown, strip, line, gallery],
        index,
        ranker=ranker,
    )
    outputs = [shown, line, gallery]
    connect(worker, model, outpaint, beyond, inputs | margins, outputs, index, ranker=ranker)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    beyond[0].click(lambda: [], None, strip, queue=False, **private)
    history = gr.State([])
    chosen = [gallery, index, editor, history]
    again.click(taken, chosen, [editor, history], preprocess=False, **private)
    undo.click(undone, history, [editor, history], **private)
    return SimpleNamespace(editor=editor)


def picture_editor(model: ImageBART, examples: list[Image.Image]) -> gr.ImageEditor:
    """The editor, with uploads, examples and preset masks."""
    H, W = model.image_size
    editor = image_editor(W, H, "Paint over what should change", [PAINT], "editor")
    names, masks = list(MASKS), []
    for three in (names[:3], names[3:]):
        with gr.Row():
            masks += [gr.Button(name, size="sm", min_width=90) for name in three]
    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="sm")
    gr.Markdown("Or paste one above, or take one of these:")
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    shelf = shelf_of(examples, elem_id="examples", **plain)

    def pick(event: gr.SelectData) -> dict:
        return for_editor(picked(examples, event))

    @sentences()
    def uploaded(file: dict) -> dict:
        return for_editor(fit(read_picture(file), (H, W)))

    @sentences()
    def pasted(value: dict | None) -> dict:
        file = (value or {}).get("background")
        image = file and read_picture(file)
        if not image or image.size == (W, H):
            return gr.skip()  # also called for values set by this page
        return for_editor(fit(image, (H, W)))

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shelf.select(pick, None, editor, **private)
    upload.upload(uploaded, upload, editor, preprocess=False, **private)
    editor.upload(pasted, editor, editor, preprocess=False, **private)
    for name, button in zip(MASKS, masks, strict=True):
        button.click(partial(with_mask, name), editor, editor, preprocess=False, **private)
    return editor


def margin_sliders(model: ImageBART) -> dict[str, gr.Slider]:
    """Sliders of the pixels to add on each side, and buttons that set them."""
    H, W = model.image_size
    with gr.Row():
        buttons = [gr.Button(name, size="sm", min_width=60) for name in SIDES]
    sliders = [
        gr.Slider(0, MOST_MARGIN, 0, step=8, label=f"Pixels {where}")
        for where in ("to the left", "to the right", "above", "below")
    ]
    for button, halves in zip(buttons, SIDES.values(), strict=True):
        pixels = [n * side // 2 for n, side in zip(halves, (W, W, H, H), strict=True)]
        button.click(None, None, sliders, js=f"() => {pixels}", api_visibility="private")
    return dict(zip(("left", "right", "top", "bottom"), sliders, strict=True))
