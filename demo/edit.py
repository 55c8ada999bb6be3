"""The tab Change: inpaint a mask, outpaint beyond the borders, or reimagine the whole picture."""

import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import gradio as gr
import numpy as np
from PIL import Image

from demo.frame import MOST_MARGIN, STEP_OF_MARGINS, frame_value, frame_view
from demo.parts import (
    Controls,
    connect,
    image_editor,
    panel,
    results_gallery,
    run_buttons,
    sentence,
    settings_button,
    shelf_of,
    slider_of,
)
from demo.pictures import (
    Throttle,
    chosen_for_editor,
    for_editor,
    growing,
    labelled,
    marked_picture,
    read_editor,
    read_picture,
    source_of,
    stored,
    token_map,
    with_source,
)
from demo.requests import (
    LONGEST_PROMPT,
    MARGINS,
    OPTIONS,
    STEP,
    Ranker,
    at_once,
    bounds,
    caption,
    check_pixels,
    finished,
    options_of_best,
    picked,
    progress,
    ranked,
    read_candidates,
    read_flag,
    read_int,
    read_number,
    read_request,
    read_words,
    real,
    sentences,
    settings_of_each,
    status,
)
from demo.style import PAINT, SEEN
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.data.images import as_given, fit, to_rgb
from imagebart.editing.inpainting import (
    MASK_OPTIONS,
    MaskedImage,
    each_image,
    grown_size,
    outpaint_steps,
)
from imagebart.editing.process import refined_steps
from imagebart.editing.reimagining import reimagine_steps
from imagebart.options import ReimaginingOptions, rows

MOST_UNDOS = 20
MOST_OVERLAP = 128
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
OF_THE_WHOLE = ("editor", "prompt", "num_images", "seed", "classes", "guidance", "temperature")
"""Inputs of an edit that a reimagining has too."""
INTO_VIEW = """() => {
  document.querySelector("#views").scrollIntoView({block: "nearest", behavior: "smooth"});
  return [];
}"""
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
    invert_mask=False,
    candidates=1,
    source=None,
    *,
    ranker: Ranker | None = None,
    **options,
) -> Iterator[tuple]:
    """Inpaint a mask: (its tokens, the first result after each step, status, images, the input),
    after every scale and pass; large images every few seconds.

    editor: {"background": image, "layers": [mask], "composite": null}; a mask has the image's size,
    is opaque where to repaint, or white if nothing in it is transparent; layers count together, at
    most 8, and 16 million pixels in all results together. invert_mask: repaint all else. passes:
    how often the finest scale is noised and denoised again, until no token changes. Results have
    the image's colour profile and, outside the mask, its transparency. Other arguments as in
    `sample`.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    given = {"passes": passes, "context": context, "feather": feather}
    how = {name: read_number(model, name, value) for name, value in given.items()}
    how["invert_mask"] = read_flag(invert_mask, "invert_mask")
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    image, mask = read_editor(editor, source)
    check_pixels(count, *image.size)
    edit = masked(model, image, mask, **{name: how[name] for name in MASK_OPTIONS})

    began, shown, strip = time.perf_counter(), stored(token_map(edit)), []
    before = stored(image)
    if score is not None:
        draw = partial(model.inpaint, image, mask, process="refined", **how)
        few = at_once(*image.size)
        for best, line in ranked(draw, count, candidates, score, options, few):
            chosen = options_of_best(options, best)
            about = settings_of_each("edit", chosen | how, len(best))
            yield shown, [], line, labelled([one.image for one in best], about), before
        options = chosen
        remark += f" The best of {count * candidates}."
    about = settings_of_each("edit", options | how, count)
    throttle, small = Throttle(), count * image.width * image.height <= EVERY_STEP
    steps = refined_steps(model, edit.x_1(), edit.masked, count, passes=how["passes"], **options)
    for i, step in enumerate(steps, 1 - model.T):
        if throttle.due(step.done) or small:
            drawn = [edit.pictures(one)[0] for one in edit.results(step.tokens)]
            images = labelled(drawn, about)
            name = f"pass {i}" if i > 0 else caption(model, step.t)
            strip = [*strip, (images[0][0], name)]
        if step.done == 1 and i < how["passes"]:
            remark += f" Converged after {i} passes."
        yield shown, strip, status(step, options["seed"], count, began, remark), images, before


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
    overlap=0,
    source=None,
    *,
    ranker: Ranker | None = None,
    **options,
) -> Iterator[tuple]:
    """Outpaint beyond the borders: (input, status, images), after every window.

    left, right, top, bottom: pixels to add, 0 to 1024 each; overlap: pixels of the image that are
    drawn anew at the sides that grow, at most a quarter of its shorter side; at most 16 million
    pixels in all images drawn together, candidates included. Other arguments as in `inpaint`, whose
    mask is ignored.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    given = dict(zip(MARGINS, (left, right, top, bottom), strict=True))
    margins = {name: read_int(value, name, 0, MOST_MARGIN) for name, value in given.items()}
    given = {"passes": passes, "context": context, "feather": feather}
    how = {name: read_number(model, name, value) for name, value in given.items()}
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    image, _ = read_editor(editor, source)
    overlap = read_int(overlap, "overlap", 0, min(image.size) // 4)
    if not any(margins.values()):
        raise ValueError("there is nothing to add yet: left, right, top and bottom are 0")
    check_pixels(count * candidates, *grown_size(model, image, margins)[::-1])

    how |= {"process": "refined", "overlap": overlap, **margins}
    settings = {name: value for name, value in how.items() if name != "process"}
    began, shown, images = time.perf_counter(), stored(image), []
    if score is not None:
        draw = partial(model.outpaint, image, **how)
        for best, line in ranked(draw, count, candidates, score, options, chunk=1):
            chosen = options_of_best(options, best)
            about = settings_of_each("edit", chosen | settings, len(best))
            images = labelled([one.image for one in best], about)
            yield shown, line, images
        seeds, remark = [one.seed for one in best], f"{remark} The best of {count * candidates}."
        yield shown, finished(seeds, count, began, remark), images
        return
    about = settings_of_each("edit", options | settings, count)
    first = options.pop("seed")
    for i, own in enumerate(each_image(options, count)):
        steps = outpaint_steps(model, image, seed=first + i, **how, **own)
        for grown, part in growing(steps, about[i]):
            yield shown, progress((i + part) / count, began), [*images, grown]
        images.append(grown)
    yield shown, finished(first, count, began, remark), images


def reimagine(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    source_prompt="",
    strength=1.0,
    source=None,
    **options,
) -> Iterator[tuple]:
    """The whole image under other words: (status, images, the input at the model's size), after
    every scale.

    prompt: what it is to show; source_prompt: what it shows. Masks are ignored. Other arguments as
    in `inpaint`.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    picture, _ = read_words(model, options["seed"], count, source_prompt)
    options |= {"source_prompt": picture["prompt"], "strength": real(strength, "strength", 0, 1)}
    del options["negative_prompt"]  # it is guided away from the words of the image
    image = fit(to_rgb(read_editor(editor, source)[0]), model.image_size)

    began, about = time.perf_counter(), settings_of_each("reimagine", options, count)
    before = stored(image)
    for step in reimagine_steps(model, model.encode(image), count, **options):
        images = labelled(model.decode(step.tokens), about)
        yield status(step, options["seed"], count, began, remark), images, before


# ── editor and results ────────────────────────────────────────────────────────────────────────


def mask_layer(name: str, size: tuple[int, int]) -> Image.Image:
    """One of `MASKS` as a layer for the editor, size = (W, H)."""
    chart = [[int(255 * SEEN * (mark == "#")) for mark in row] for row in MASKS[name].split()]
    alpha = Image.fromarray(np.array(chart, np.uint8)).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGB", size, PAINT)
    layer.putalpha(alpha)
    return layer


@sentences()
def with_mask(name: str, value: dict | None, source: str | None) -> tuple[dict, str]:
    """The image in the editor with one of `MASKS` as its mask, and its source."""
    image, _ = read_editor(value, source)
    return with_source(for_editor(image, mask_layer(name, image.size)))


def remembered(editor: dict | None, source: str | None, history: list[str]) -> list[str]:
    """The last edited images, with the current one."""
    if not editor or not editor.get("background"):
        return history
    return [*history, source_of(editor, source)][-MOST_UNDOS:]


@sentences()
def taken(
    results: list | None, index: int, editor: dict | None, source: str | None, history: list[str]
) -> tuple[dict, str, list[str]]:
    """(selected result as the editor's value, its source, history with the current image); nothing
    changes if there is no result."""
    return *chosen_for_editor(results, index), remembered(editor, source, history)


def masked(model: ImageBART, image: Image.Image, mask: np.ndarray, **how) -> MaskedImage:
    """The image with its mask; ValueError for an empty one."""
    edit = MaskedImage(model, image, mask, **how)
    if not edit.marked.any():
        raise ValueError("the mask is empty: paint over what should be repainted")
    return edit


@sentences()
def previewed(
    model: ImageBART, editor: dict | None, source: str | None, context, feather, invert_mask
) -> gr.Image:
    """What inpainting would draw, before it does."""
    how = {"context": read_number(model, "context", context)}
    how["feather"] = read_number(model, "feather", feather)
    how["invert_mask"] = read_flag(invert_mask, "invert_mask")
    edit = masked(model, *read_editor(editor, source), **how)
    return gr.Image(stored(marked_picture(edit)), visible=True)


@sentences()
def extended(
    editor: dict | None, source: str | None, left, right, top, bottom, overlap
) -> dict | None:
    """The picture in the frame that outpainting would fill; None without a picture."""
    if not editor or not editor.get("background"):
        return None
    given = zip(MARGINS, (left, right, top, bottom), strict=True)
    margins = {name: read_int(value, name, 0, MOST_MARGIN) for name, value in given}
    image = to_rgb(read_editor(editor, source)[0])
    return frame_value(image, margins, read_int(overlap, "overlap", 0, min(image.size) // 4))


@sentences()
def undone(history: list[str]) -> tuple[dict, str, list[str]]:
    """(previous image as the editor's value, its source, the history before it)."""
    if not history:
        raise ValueError("there is nothing to undo")
    image = read_picture({"path": history[-1]}, as_given)
    return *with_source(for_editor(image)), history[:-1]


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def edit_tab(
    worker: Worker, model: ImageBART, examples: list[Image.Image], ranker: Ranker | None = None
) -> SimpleNamespace:
    """The page; returns what the other tabs connect to."""
    with gr.Row():
        with (
            gr.Column(scale=3, min_width=320, elem_classes="takes-files"),
            gr.Tabs(elem_id="views") as views,
        ):
            with gr.Tab("Picture", id="picture"):
                source = gr.State(None)
                editor = picture_editor(model, examples, source)
            with gr.Tab("Result", id="result"):
                compare, gallery, index = result_view()
                with gr.Row():
                    again = gr.Button("Use the selected result as input", scale=3)
                    undo = gr.Button("Undo", scale=1, elem_id="undo")
        with gr.Column(scale=2, min_width=300, elem_classes="takes-files"):
            said = panel(model, "Repaint", "edit-status", ranker, enlarge=False)
            edits, mask = controls_of_edits(model, editor, source)
            inputs = {"editor": editor, **said.inputs, **edits}
            kept = {"source": source}  # at the end, where callers by name leave it out
            with gr.Accordion("Extend beyond the borders", open=False) as fold:
                margins = margins_in_frame(model, fold, editor, source)
                beyond = run_buttons("Outpaint")
            by_words = "text" in model.conditions and model.condition_dropout
            if by_words:
                with gr.Accordion("Change the whole picture", open=False):
                    shows = controls_of_source()
                    anew = run_buttons("Reimagine")
            settings_button(said.inputs | edits, said.fresh)
    with gr.Accordion("How it works: the first result, step by step", open=False), gr.Row():
        plain = {"format": "png", "interactive": False, "height": 220, "buttons": []}
        with gr.Column(scale=1, min_width=220):
            shown = gr.Image(label="Tokens to repaint", elem_id="tokens", **plain)
        with gr.Column(scale=4, min_width=320):
            plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
            strip = shelf_of(label="First result", elem_id="first-result", **plain)

    before = gr.State(None)
    outputs = [shown, strip, said.line, gallery, before]
    how = said.buttons, inputs | mask | kept, said.fresh, outputs, index
    painted = connect(worker, model, inpaint, *how, ranker=ranker)
    how = beyond, inputs | margins | kept, said.fresh, [shown, said.line, gallery], index
    grown = connect(worker, model, outpaint, *how, enter=False, ranker=ranker)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    grown[0].then(lambda: ([], None), None, [strip, before], queue=False, **private)
    runs = [painted, grown]
    if by_words:
        whole = {name: inputs[name] for name in OF_THE_WHOLE} | shows | kept
        how = anew, whole, said.fresh, [said.line, gallery, before], index
        runs.append(connect(worker, model, reimagine, *how, enter=False))
    for begun, ended in runs:
        begun.then(
            lambda: gr.Tabs(selected="result"), None, views, js=INTO_VIEW, queue=False, **private
        )
        ended.failure(lambda: gr.Tabs(selected="picture"), None, views, queue=False, **private)
    for change in (gallery.change, index.change):
        seen = [before, gallery, index]
        change(before_and_after, seen, compare, preprocess=False, queue=False, **private)
    history = gr.State([])
    chosen, back_to = [gallery, index, editor, source, history], [editor, source, history]
    back = {"fn": lambda: gr.Tabs(selected="picture"), "inputs": None, "outputs": views, **private}
    again.click(taken, chosen, back_to, preprocess=False, **private).success(**back)
    undo.click(undone, history, back_to, **private).success(**back)
    return SimpleNamespace(editor=[editor, source])


def controls_of_edits(
    model: ImageBART, editor: gr.ImageEditor, source: gr.State
) -> tuple[Controls, Controls]:
    """(how masked tokens are drawn, what the mask is), with a look at the mask."""
    about = "How often the finest scale is drawn again, at most; ends once no token changes"
    _, most = bounds(model, "passes")
    with gr.Accordion("The mask", open=False):
        passes = gr.Slider(0, most, 0, step=1, label="Refinement passes", info=about)
        sliders = {name: slider_of(model, name) for name in ("context", "feather")}
        about = sentence(OPTIONS["invert_mask"].option.meaning)
        inverted = gr.Checkbox(label="Invert the mask", info=about)
        look = gr.Button("Preview", size="sm")
        plain = {"format": "png", "interactive": False, "height": 260, "buttons": []}
        label = "Coloured: will be drawn. Dark: is not looked at"
        preview = gr.Image(label=label, elem_id="preview", visible=False, **plain)
    look.click(
        partial(previewed, model),
        [editor, source, *sliders.values(), inverted],
        preview,
        preprocess=False,
        queue=False,
        api_visibility="private",
        show_progress="hidden",
    )
    return {"passes": passes} | sliders, {"invert_mask": inverted}


def controls_of_source() -> Controls:
    """What the picture shows now, and how far it may change."""
    about = "What it shows now, in words; the prompt says what it should show instead"
    words = gr.Textbox("", label="The picture shows", info=about, max_length=LONGEST_PROMPT)
    row = rows(ReimaginingOptions)["strength"].option
    info = sentence(row.meaning)
    strength = gr.Slider(0, row.most, row.default, step=STEP, label="Strength", info=info)
    return {"source_prompt": words, "strength": strength}


def result_view() -> tuple[gr.ImageSlider, gr.Gallery, gr.State]:
    """(the input beside the selected result, all results, the index of the selected one)."""
    plain = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "max_height": 460}
    compare = gr.ImageSlider(label="Before and after", elem_id="compare", visible=False, **plain)
    return compare, *results_gallery(label="Results", elem_id="edits")


def before_and_after(before: str | None, results: list | None, index: int) -> gr.ImageSlider:
    """The input and the selected result, if both have one size."""
    if not before or not results:
        return gr.ImageSlider(visible=False)
    after = results[min(index, len(results) - 1)]["image"]["path"]
    return gr.ImageSlider((before, after), visible=True)


def picture_editor(
    model: ImageBART, examples: list[Image.Image], source: gr.State
) -> gr.ImageEditor:
    """The editor, with uploads, examples and preset masks; `source` is the file of its picture."""
    H, W = model.image_size
    editor = image_editor(W, H, "Mark what to change", [(PAINT, SEEN)], "editor")
    names, masks = list(MASKS), []
    for three in (names[:3], names[3:]):
        with gr.Row():
            masks += [gr.Button(name, size="sm", min_width=90) for name in three]
    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="sm")
    gr.Markdown("Or drop or paste one above, or take one of these:")
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    shelf = shelf_of(examples, elem_id="examples", **plain)

    def pick(event: gr.SelectData) -> tuple[dict, str]:
        return with_source(for_editor(picked(examples, event)))

    @sentences()
    def uploaded(file: dict) -> tuple[dict, str]:
        return with_source(for_editor(read_picture(file, as_given)))

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shown = [editor, source]
    shelf.select(pick, None, shown, **private)
    upload.upload(uploaded, upload, shown, preprocess=False, **private)
    for name, button in zip(MASKS, masks, strict=True):
        button.click(partial(with_mask, name), shown, shown, preprocess=False, **private)
    return editor


def margins_in_frame(
    model: ImageBART, fold: gr.Accordion, editor: gr.ImageEditor, source: gr.State
) -> Controls:
    """The pixels to add on each side and to draw again, seen and dragged in a frame around the
    picture, which is there once the `fold` is open."""
    H, W = model.image_size
    frame = frame_view()
    gr.Markdown("Drag its edges, or say how much:")
    with gr.Row():
        buttons = [gr.Button(name, size="sm", min_width=60) for name in SIDES]
    sliders = [
        gr.Slider(0, MOST_MARGIN, 0, step=STEP_OF_MARGINS, label=f"Pixels {where}")
        for where in ("to the left", "to the right", "above", "below")
    ]
    about = "Pixels of the picture that are drawn again where it grows, for what its border cuts"
    overlap = gr.Slider(0, MOST_OVERLAP, 0, step=4, label="Overlap", info=about)
    for button, halves in zip(buttons, SIDES.values(), strict=True):
        pixels = [n * side // 2 for n, side in zip(halves, (W, W, H, H), strict=True)]
        button.click(None, None, sliders, js=f"() => {pixels}", api_visibility="private")
    dragged = f"frame => {list(MARGINS)}.map(side => frame[side])"
    frame.input(None, frame, sliders, js=dragged, api_visibility="private")
    gr.on(
        [fold.expand, source.change, overlap.change, *(slider.change for slider in sliders)],
        extended,
        [editor, source, *sliders, overlap],
        frame,
        preprocess=False,
        queue=False,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )
    return dict(zip(MARGINS, sliders, strict=True)) | {"overlap": overlap}
