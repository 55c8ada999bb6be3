"""The tab Change: its editor, results, and what is said of masks, borders and the whole picture."""

from functools import partial

import gradio as gr
from PIL import Image

from demo.edit import inpaint, masked, outpaint, reimagine
from demo.editor import picture_editor, remembered, remembering, undone
from demo.files import renewed
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
    EditorSource,
    chosen_for_editor,
    marked_picture,
    picture_of,
    read_editor,
    read_picture,
    read_source,
    size_of,
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
    most_overlap,
    read_flag,
    read_int,
    read_number,
    sentences,
)
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.options import ReimaginingOptions, rows

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


# ── looks and sizes ───────────────────────────────────────────────────────────────────────────


@sentences()
def previewed(model: ImageBART, editor: dict | None, context, feather, invert_mask) -> gr.Image:
    """What inpainting would draw, before it does."""
    how = {"context": read_number(model, "context", context)}
    how["feather"] = read_number(model, "feather", feather)
    how["invert_mask"] = read_flag(invert_mask, "invert_mask")
    edit = masked(model, *read_editor(editor), **how)
    return gr.Image(stored(marked_picture(edit)), visible=True)


@sentences()
def extended(source: EditorSource | None, left, right, top, bottom, overlap) -> dict | None:
    """The picture in the frame that outpainting would fill, with as much overlap as it can have;
    None without a picture."""
    source = read_source(source)
    if not source:
        return None
    given = zip(MARGINS, (left, right, top, bottom), strict=True)
    margins = {name: read_int(value, name, 0, MOST_MARGIN) for name, value in given}
    overlap = min(read_int(overlap, "overlap", 0, MOST_OVERLAP), most_overlap(source["size"]))
    return frame_value(read_picture({"path": source["shown"]}), source["size"], margins, overlap)


@sentences()
def at_length(
    longer, editor: dict | None, history: list[str]
) -> tuple[dict, EditorSource, list[str]]:
    """(the picture with a longer side of so many pixels as the editor's value, its source, history
    with the current picture)."""
    longer = read_int(longer, "the longer side", *SIDE_RANGE)
    image = picture_of(editor)
    size = [max(1, round(side * longer / max(image.size))) for side in image.size]
    check_pixels(1, *size)
    picture = image.resize(size, Image.Resampling.LANCZOS)
    return *with_source(picture), remembered(editor.get("source"), history)


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def change_tab(
    worker: Worker, model: ImageBART, examples: list[Image.Image], ranker: Ranker | None = None
) -> tuple[list, gr.Tabs]:
    """The page; returns the editor, its source and history, which other tabs fill, and its
    views."""
    history = gr.State([])
    with gr.Row():
        with (
            gr.Column(scale=3, min_width=320, elem_classes="takes-files"),
            gr.Tabs(elem_id="views") as views,
        ):
            with gr.Tab("Picture", id="picture"):
                editor = picture_editor(model, examples, history)
            with gr.Tab("Result", id="result"):
                compare, gallery, index = result_view()
                with gr.Row():
                    again = gr.Button("Use the selected result as input", scale=3)
                    undo = gr.Button("Undo", scale=1, elem_id="undo")
        with gr.Column(scale=2, min_width=300, elem_classes="takes-files"):
            said = panel(
                model, "Repaint", "edit-status", "Mark what to repaint, then", ranker, enlarge=False
            )
            edits, mask = controls_of_edits(model, editor)
            inputs = {"editor": editor.value, **said.inputs, **edits}
            with gr.Accordion("Extend beyond the borders", open=False) as fold:
                margins = margins_in_frame(model, fold, editor)
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
    how = said.buttons, inputs | mask, said.fresh, outputs, index
    painted = connect(worker, model, inpaint, *how, editor=editor, ranker=ranker)
    how = beyond, inputs | margins, said.fresh, [said.line, gallery], index
    grown = connect(worker, model, outpaint, *how, enter=False, editor=editor, ranker=ranker)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    unqueued = {"queue": False, **private}
    runs, others = [painted, grown], [grown]
    if by_words:
        whole = {name: inputs[name] for name in OF_THE_WHOLE} | shows
        how = anew, whole, said.fresh, [said.line, gallery, before], index
        others.append(connect(worker, model, reimagine, *how, enter=False, editor=editor))
        runs.append(others[-1])
    back = {"fn": lambda: gr.Tabs(selected="picture"), "inputs": None, "outputs": views, **unqueued}
    for begun, ended in runs:
        begun.then(lambda: gr.Tabs(selected="result"), None, views, js=INTO_VIEW, **unqueued)
        ended.failure(**back)
    for change in (gallery.change, index.change):
        seen = [before, gallery, index]
        change(before_and_after, seen, compare, preprocess=False, **unqueued)
    for _, ended in others:  # what is told of masks was of another run
        ended.success(lambda: (None, []), None, [shown, strip], **unqueued)
    now = [editor.shown, editor.source, history]
    given = {"outputs": now, "preprocess": False, **private}
    taken, at_first = remembering(chosen_for_editor), [gallery, index, editor.source, history]
    again.click(taken, at_first, **given).success(**back)
    resized = editor.when(resize.click).then(at_length, [longer, editor.value, history], **given)
    resized.success(**back)
    undo.click(undone, history, **given).success(**back)
    return now, views


def controls_of_edits(model: ImageBART, editor: Editor) -> tuple[Controls, Controls]:
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
    asked_for = [*sliders.values(), inverted]
    how = {"inputs": [editor.value, *asked_for], "outputs": preview, "preprocess": False, **private}
    # it takes memory for its picture: gradio's queue has one at a time
    looked = editor.when(look.click).then(
        partial(previewed, model), trigger_mode="always_last", **how
    )
    # of another picture, or other settings, it would be wrong
    gr.on(
        [one.change for one in (editor.source, *asked_for)],
        lambda: gr.Image(visible=False),
        None,
        preview,
        cancels=[looked],
        queue=False,
        **private,
    )
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
    """The input and the selected result, unless that is of another run, which extended it."""
    if not before or not results or not renewed(before):
        return gr.ImageSlider(visible=False)
    after = results[min(index, len(results) - 1)]["image"]
    if size_of({"path": before}) != size_of(after):
        return gr.ImageSlider(visible=False)
    return gr.ImageSlider((before, after["path"]), visible=True)


def margins_in_frame(model: ImageBART, fold: gr.Accordion, editor: Editor) -> Controls:
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
        [fold.expand, editor.source.change, overlap.change, *(slider.change for slider in sliders)],
        extended,
        [editor.source, *sliders, overlap],
        frame,
        preprocess=False,
        queue=False,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )
    return dict(zip(MARGINS, sliders, strict=True)) | {"overlap": overlap}
