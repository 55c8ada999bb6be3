"""The editor: a picture, and what is painted over it with a brush of a size that one sees.

image_editor       the editor and its brush, for masks and for maps
picture_editor     … for a visitor's picture: uploads, examples, masks to click
"""

from functools import partial

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image

from demo.parts import Editor, shelf_of
from demo.pictures import copy_in, from_file, read_picture, shown_size, stored, with_source
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
    return Editor(shown, gr.ImageEditor(label=label, format="png", visible=False))


def brushes(share: float, side: int, colours: Colours) -> dict:
    """Brush and eraser of an editor: `share` per cent of a picture's shorter side, in pixels."""
    radius = max(2, round(share / 100 * side))
    brush = gr.Brush(radius, colors=colours, color_mode="fixed")
    return {"brush": brush, "eraser": gr.Eraser(radius)}


def brush_slider(
    editor: Editor, side: int, colours: Colours, source: gr.State | None = None
) -> Dependency:
    """The size of the brush, which follows that of the picture in the file `source`; without one
    `side` is its shorter side. Returns the event that changes the brush."""
    about = "Its radius, in per cent of the picture's shorter side"
    share = gr.Slider(1, LARGEST_BRUSH, BRUSH, step=1, label="Brush size", info=about)
    files = [source] if source else []
    return gr.on(
        [share.change, *(file.change for file in files)],
        partial(brushed, side, colours),
        [share, *files],
        editor.shown,
        preprocess=False,
        queue=False,
        trigger_mode="always_last",
        api_visibility="private",
        show_progress="hidden",
    )


@sentences()
def brushed(side: int, colours: Colours, share, path: str | None = None) -> gr.ImageEditor:
    """The editor with a brush of this share of the picture in the file, by default of `side`."""
    share = read_real(share, "the brush", 1, LARGEST_BRUSH)
    size = read_picture({"path": path}, lambda image: image.size) if path else (side, side)
    return gr.ImageEditor(**brushes(share, min(shown_size(size)), colours))


# ── masks to click ────────────────────────────────────────────────────────────────────────────


def mask_layer(name: str, size: tuple[int, int]) -> Image.Image:
    """One of `MASKS` as a layer for the editor, size = (W, H)."""
    chart = [[int(255 * SEEN * (mark == "#")) for mark in row] for row in MASKS[name].split()]
    alpha = Image.fromarray(np.array(chart, np.uint8)).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGB", size, PAINT)
    layer.putalpha(alpha)
    return layer


@sentences()
def with_mask(name: str, value: dict | None) -> dict:
    """What the editor shows, with one of `MASKS` as its mask."""
    copy = copy_in(value)
    layer = mask_layer(name, read_picture(copy, lambda image: image.size))
    return {"background": copy["path"], "layers": [stored(layer)], "composite": None}


# ── the picture of a visitor ──────────────────────────────────────────────────────────────────


def picture_editor(model: ImageBART, examples: list[Image.Image], source: gr.State) -> Editor:
    """The editor, with uploads, examples and preset masks; `source` is the file of its picture."""
    H, W = model.image_size
    colours = [(PAINT, SEEN)]
    editor = image_editor(W, H, "Mark what to change", colours, "editor")
    brush_slider(editor, min(H, W), colours, source)
    names, masks = list(MASKS), []
    for three in (names[:3], names[3:]):
        with gr.Row():
            masks += [gr.Button(name, size="sm", min_width=90) for name in three]
    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="sm")
    gr.Markdown("Or drop or paste one above, or take one of these:")
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    shelf = shelf_of(examples, elem_id="examples", **plain)

    def pick(event: gr.SelectData) -> tuple[dict, str]:
        return with_source(picked(examples, event))

    @sentences()
    def cleared(path: str) -> dict:
        return from_file({"path": path})[0]

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shown = [editor.shown, source]
    editor.shown.clear(cleared, source, editor.shown, **private)  # of its mask alone
    shelf.select(pick, None, shown, **private)
    upload.upload(sentences()(from_file), upload, shown, preprocess=False, **private)
    for name, button in zip(MASKS, masks, strict=True):
        how = {"inputs": editor.value, "outputs": editor.shown, "preprocess": False, **private}
        editor.when(button.click).then(partial(with_mask, name), **how)
    return editor
