"""The tab Change: its editor, results, and what is said of masks, borders and the whole picture."""

from functools import partial

import gradio as gr
from PIL import Image

from demo.edit import inpaint, masked, outpaint, reimagine
from demo.editor import picture_editor
from demo.frame import STEP_OF_MARGINS, frame_value, frame_view
from demo.parts import (
    Controls,
    Editor,
    connect,
    panel,
    results_gallery,
    run_buttons,
    sentence,
    settings_button,
    shelf_of,
    slider_of,
)
from demo.pictures import (
    chosen_for_editor,
    from_file,
    has_picture,
    marked_picture,
    picture_of,
    read_editor,
    read_picture,
    source_of,
    stored,
    with_source,
)
from demo.requests import (
    LONGEST_PROMPT,
    MARGINS,
    MOST_MARGIN,
    MOST_OVERLAP,
    OPTIONS,
    STEP,
    Ranker,
    bounds,
    check_pixels,
    read_flag,
    read_int,
    read_number,
    read_overlap,
    sentences,
)
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.options import ReimaginingOptions, rows

MOST_UNDOS = 20
SIDE_RANGE = 32, 4096
"""Pixels of the longer side of a picture that is resized."""
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


# ── the picture, its results, and its past ────────────────────────────────────────────────────


def remembered(editor: dict | None, source: str | None, history: list[str]) -> list[str]:
    """The last edited images, with the current one."""
    if not has_picture(editor):
        return history
    return [*history, source_of(editor, source)][-MOST_UNDOS:]


@sentences()
def taken(
    results: list | None, index: int, editor: dict | None, source: str | None, history: list[str]
) -> tuple[dict, str, list[str]]:
    """(selected result as the editor's value, its source, history with the current image unless
    that is the result already); nothing changes if there is no result."""
    value, path = chosen_for_editor(results, index)
    return value, path, history if path == source else remembered(editor, source, history)


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
def extended(source: str | None, left, right, top, bottom, overlap) -> dict | None:
    """The picture in the frame that outpainting would fill; None without a picture."""
    if source is None:
        return None
    given = zip(MARGINS, (left, right, top, bottom), strict=True)
    margins = {name: read_int(value, name, 0, MOST_MARGIN) for name, value in given}
    image = read_picture({"path": source})
    return frame_value(image, margins, read_overlap(overlap, image.size))


@sentences()
def at_length(
    longer, editor: dict | None, source: str | None, history: list[str]
) -> tuple[dict, str, list[str]]:
    """(the picture with a longer side of so many pixels as the editor's value, its source, history
    with the current image)."""
    longer = read_int(longer, "the longer side", *SIDE_RANGE)
    image = picture_of(editor, source)
    size = [max(1, round(side * longer / max(image.size))) for side in image.size]
    check_pixels(1, *size)
    picture = image.resize(size, Image.Resampling.LANCZOS)
    return *with_source(picture), remembered(editor, source, history)


@sentences()
def undone(history: list[str]) -> tuple[dict, str, list[str]]:
    """(previous image as the editor's value, its source, the history before it)."""
    if not history:
        raise ValueError("there is nothing to undo")
    return *from_file({"path": history[-1]}), history[:-1]


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def change_tab(
    worker: Worker, model: ImageBART, examples: list[Image.Image], ranker: Ranker | None = None
) -> tuple[list, gr.Tabs]:
    """The page; returns the editor and its source, which other tabs fill, and its views."""
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
            said = panel(
                model, "Repaint", "edit-status", "Mark what to repaint, then", ranker, enlarge=False
            )
            edits, mask = controls_of_edits(model, editor, source)
            inputs = {"editor": editor.value, **said.inputs, **edits}
            kept = {"source": source}  # at the end, where callers by name leave it out
            with gr.Accordion("Extend beyond the borders", open=False) as fold:
                margins = margins_in_frame(model, fold, source)
                beyond = run_buttons("Outpaint")
            shows: Controls = {}
            by_words = "text" in model.conditions and model.condition_dropout
            if by_words:
                with gr.Accordion("Change the whole picture", open=False):
                    shows = controls_of_source()
                    anew = run_buttons("Reimagine")
            with gr.Accordion("Resize the picture", open=False):
                longer = gr.Slider(*SIDE_RANGE, 512, step=8, label="Longer side in pixels")
                resize = gr.Button("Resize", size="sm")
            settings_button(model, said.inputs | edits | mask | margins | shows, said.fresh)
    shown, strip = how_it_works()

    before = gr.State(None)
    outputs = [shown, strip, said.line, gallery, before]
    how = said.buttons, inputs | mask | kept, said.fresh, outputs, index
    painted = connect(worker, model, inpaint, *how, editor=editor, ranker=ranker)
    how = beyond, inputs | margins | kept, said.fresh, [shown, said.line, gallery], index
    grown = connect(worker, model, outpaint, *how, enter=False, editor=editor, ranker=ranker)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    unqueued = {"queue": False, **private}
    grown[0].then(lambda: ([], None), None, [strip, before], **unqueued)
    runs = [painted, grown]
    if by_words:
        whole = {name: inputs[name] for name in OF_THE_WHOLE} | shows | kept
        how = anew, whole, said.fresh, [said.line, gallery, before], index
        runs.append(connect(worker, model, reimagine, *how, enter=False, editor=editor))
    back = {"fn": lambda: gr.Tabs(selected="picture"), "inputs": None, "outputs": views, **unqueued}
    for begun, ended in runs:
        begun.then(lambda: gr.Tabs(selected="result"), None, views, js=INTO_VIEW, **unqueued)
        ended.failure(**back)
    for change in (gallery.change, index.change):
        seen = [before, gallery, index]
        change(before_and_after, seen, compare, preprocess=False, **unqueued)
    history = gr.State([])
    before_it, now = [editor.value, source, history], [editor.shown, source, history]
    for button, function, inputs in (
        (again, taken, [gallery, index]),
        (resize, at_length, [longer]),
    ):
        how = {"inputs": [*inputs, *before_it], "preprocess": False, **private}
        editor.when(button.click).then(function, outputs=now, **how).success(**back)
    undo.click(undone, history, now, **private).success(**back)
    return [editor.shown, source], views


def controls_of_edits(
    model: ImageBART, editor: Editor, source: gr.State
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
    private = {"api_visibility": "private", "show_progress": "hidden"}
    seen = [editor.value, source, *sliders.values(), inverted]
    # it takes memory for its picture: gradio's queue has one at a time
    how = {"inputs": seen, "outputs": preview, "preprocess": False, **private}
    editor.when(look.click).then(partial(previewed, model), **how)
    # of another picture it would be wrong
    source.change(lambda: gr.Image(visible=False), None, preview, queue=False, **private)
    mask = {"context": sliders["context"], "invert_mask": inverted}
    return {"passes": passes, "feather": sliders["feather"]}, mask


def controls_of_source() -> Controls:
    """What the picture shows now, and how far it may change."""
    about = "What it shows now, in words; the prompt says what it should show instead"
    words = gr.Textbox("", label="The picture shows", info=about, max_length=LONGEST_PROMPT)
    row = rows(ReimaginingOptions)["strength"].option
    info = sentence(row.meaning)
    strength = gr.Slider(0, row.most, row.default, step=STEP, label="Strength", info=info)
    return {"source_prompt": words, "strength": strength}


def how_it_works() -> tuple[gr.Image, gr.Gallery]:
    """(the tokens that will be drawn, the first result after every step), folded."""
    with gr.Accordion("How it works: the first result, step by step", open=False), gr.Row():
        plain = {"format": "png", "interactive": False, "height": 220, "buttons": []}
        with gr.Column(scale=1, min_width=220):
            shown = gr.Image(label="Tokens to repaint", elem_id="tokens", **plain)
        with gr.Column(scale=4, min_width=320):
            plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
            return shown, shelf_of(label="First result", elem_id="first-result", **plain)


def result_view() -> tuple[gr.ImageSlider, gr.Gallery, gr.State]:
    """(the input beside the selected result, all results, the index of the selected one)."""
    plain = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "max_height": 460}
    compare = gr.ImageSlider(label="Before and after", elem_id="compare", visible=False, **plain)
    return compare, *results_gallery(label="Results", elem_id="edits")


def before_and_after(before: str | None, results: list | None, index: int) -> gr.ImageSlider:
    """The input and the selected result."""
    if not before or not results:
        return gr.ImageSlider(visible=False)
    after = results[min(index, len(results) - 1)]["image"]["path"]
    return gr.ImageSlider((before, after), visible=True)


def margins_in_frame(model: ImageBART, fold: gr.Accordion, source: gr.State) -> Controls:
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
        [source, *sliders, overlap],
        frame,
        preprocess=False,
        queue=False,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )
    return dict(zip(MARGINS, sliders, strict=True)) | {"overlap": overlap}
