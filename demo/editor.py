"""The editor: a picture, and what is painted over it with a brush of a size that one sees.

image_editor       the editor and its brush, for masks and for maps
picture_editor     … for a visitor's picture: uploads, examples, masks to click
"""

from collections.abc import Callable
from functools import partial

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image

from demo.files import REFUSED, renewed
from demo.parts import Editor, shelf_of
from demo.pictures import (
    NO_IMAGE,
    EditorSource,
    for_editor,
    from_file,
    read_source,
    shown_size,
    size_of,
    with_source,
)
from demo.requests import picked, read_real, sentences
from demo.style import PAINT, SEEN
from imagebart import ImageBART

Colours = list[str | tuple[str, float]]

MASKS = {  # in quarters of the image, # = repaint
    "Upper half": "#### #### .... ....",
    "Lower half": ".... .... #### ####",
    "Left half": "##.. ##.. ##.. ##..",
    "Right half": "..## ..## ..## ..##",
    "Centre": ".... .##. .##. ....",
    "Outer frame": "#### #..# #..# ####",
}
MOST_UNDOS = 20
BRUSH, LARGEST_BRUSH = 6, 30
"""Its radius, in per cent of the picture's shorter side."""


# ── the brush ─────────────────────────────────────────────────────────────────────────────────


def image_editor(
    W: int,
    H: int,
    label: str,
    colours: Colours,
    elem_id: str,
    start: Image.Image | None = None,
    source: gr.JSON | None = None,
) -> Editor:
    """An editor for painting in given colours, sized for W×H images."""
    shown = gr.ImageEditor(
        start,
        label=label,
        format="png",  # the default is lossy
        sources=(),  # its own upload takes minutes to prepare a photograph
        transforms=(),
        layers=False,
        height=460,
        canvas_size=(W, H),
        fixed_canvas=False,
        buttons=[],
        elem_id=elem_id,
        **brushes(BRUSH, min(W, H), colours),
    )
    return Editor(shown, gr.ImageEditor(label=label, format="png", visible=False), source)


def brushes(share: float, side: int, colours: Colours) -> dict:
    """Brush and eraser of an editor: `share` per cent of a picture's shorter side, in pixels."""
    radius = max(2, round(share / 100 * side))
    brush = gr.Brush(radius, colors=colours, color_mode="fixed")
    return {"brush": brush, "eraser": gr.Eraser(radius)}


def brush_slider(editor: Editor, side: int, colours: Colours) -> Dependency:
    """The size of the brush, which follows that of the editor's source; without one `side` is the
    picture's shorter side. Returns the event that changes the brush."""
    about = "Its radius, in per cent of the picture's shorter side"
    share = gr.Slider(1, LARGEST_BRUSH, BRUSH, step=1, label="Brush size", info=about)
    sources = [editor.source] if editor.source else []
    return gr.on(
        [share.change, *(one.change for one in sources)],
        partial(brushed, side, colours),
        [share, *sources],
        editor.shown,
        preprocess=False,
        queue=False,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )


@sentences()
def brushed(
    side: int, colours: Colours, share, source: EditorSource | None = None
) -> gr.ImageEditor:
    """The editor with a brush of this share of the picture, by default of `side`."""
    share = read_real(share, "the brush", 1, LARGEST_BRUSH)
    source = read_source(source)
    size = shown_size(source["size"]) if source else (side, side)
    return gr.ImageEditor(**brushes(share, min(size), colours))


# ── masks to click ────────────────────────────────────────────────────────────────────────────


def mask_layer(name: str, size: tuple[int, int]) -> Image.Image:
    """One of `MASKS` as a layer for the editor, size = (W, H)."""
    chart = [[int(255 * SEEN * (mark == "#")) for mark in row] for row in MASKS[name].split()]
    alpha = Image.fromarray(np.array(chart, np.uint8)).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGB", size, PAINT)
    layer.putalpha(alpha)
    return layer


@sentences()
def with_mask(name: str, source: EditorSource | None) -> dict:
    """The picture with one of `MASKS` as its mask."""
    shown = shown_of(source)
    return for_editor(shown, mask_layer(name, size_of({"path": shown})))


@sentences()
def shown_of(source: EditorSource | None) -> str:
    """The file that an editor shows; ValueError if there is none, or if it is too old."""
    source = read_source(source)
    if not source:
        raise ValueError(NO_IMAGE)
    if not renewed(source["shown"]):
        raise ValueError(REFUSED)
    return source["shown"]


# ── the picture of a visitor ──────────────────────────────────────────────────────────────────


def remembering(put: Callable[..., tuple[dict, EditorSource]]) -> Callable[..., tuple]:
    """What puts a picture into the editor, for the page: it takes the source and the history before
    as well, and returns the history too."""

    @sentences()
    def both(*inputs) -> tuple[dict, EditorSource, list[str]]:
        *given, source, history = inputs
        value, after = put(*given)
        return value, after, remembered(source, history, after)

    return both


def remembered(
    source: EditorSource | None, history: list[str], after: EditorSource | None = None
) -> list[str]:
    """The last edited pictures, with the one that another takes the place of."""
    source = read_source(source)
    if not source or (after and source["path"] == after["path"]):
        return history
    return [*history, source["path"]][-MOST_UNDOS:]


@sentences()
def undone(history: list[str]) -> tuple[dict, EditorSource, list[str]]:
    """(the previous picture as the editor's value, its source, the history before it); those whose
    files are too old are left out."""
    there = [path for path in history if renewed(path)]
    if not there:
        raise ValueError("there is nothing to undo")
    return *from_file({"path": there[-1]}), there[:-1]


def picture_editor(model: ImageBART, examples: list[Image.Image], history: gr.State) -> Editor:
    """The editor, with uploads, examples and preset masks; the pictures before it are in the
    `history`."""
    H, W = model.image_size
    colours = [(PAINT, SEEN)]
    source = gr.JSON(visible=False)
    editor = image_editor(W, H, "Mark what to change", colours, "editor", source=source)
    brush_slider(editor, min(H, W), colours)
    names, masks = list(MASKS), []
    for three in (names[:3], names[3:]):
        with gr.Row():
            masks += [gr.Button(name, size="sm", min_width=90) for name in three]
    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="sm")
    gr.Markdown("Or drop or paste one above, or take one of these:")
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    shelf = shelf_of(examples, elem_id="examples", **plain)

    def pick(source: EditorSource | None, history: list[str], event: gr.SelectData) -> tuple:
        return remembering(lambda: with_source(picked(examples, event)))(source, history)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    before, now = [source, history], [editor.shown, source, history]
    shelf.select(pick, before, now, preprocess=False, **private)
    upload.upload(remembering(from_file), [upload, *before], now, preprocess=False, **private)
    shown = {"inputs": source, "outputs": editor.shown, "preprocess": False, **private}
    for name, button in zip(MASKS, masks, strict=True):
        button.click(partial(with_mask, name), **shown)
    # the bin of the editor clears the mask alone
    editor.shown.clear(lambda source: for_editor(shown_of(source)), **shown)
    return editor
