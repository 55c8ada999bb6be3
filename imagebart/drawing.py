"""drawing: a mask painted by hand on a picture, in a notebook.

The browser keeps what is painted as strokes; their pixels are computed here, so that a mask is the
same with and without a browser.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from ipywidgets import ValueWidget
from PIL import Image, ImageDraw

from imagebart.notation import Bool
from imagebart.show import MASK_COLOUR, encoded

Stroke = Sequence[Sequence[int]]
"""Points (x, y), in pixels of the picture."""


class MaskCanvas(anywidget.AnyWidget, ValueWidget):
    """A picture to paint on: `value` are the strokes, `mask` the pixels that they cover.

    Shown in a notebook it is painted on with a pointer, and `interact(function, strokes=canvas)`
    calls the function after every stroke. `brush` is the width of a stroke in pixels. ValueError
    for a brush below 1.
    """

    _esm = Path(__file__).with_name("drawing.js")
    picture = traitlets.Unicode().tag(sync=True)
    size = traitlets.List(traitlets.Int()).tag(sync=True)
    colour = traitlets.Unicode("rgb({} {} {} / 60%)".format(*MASK_COLOUR)).tag(sync=True)
    brush = traitlets.Int().tag(sync=True)
    value = traitlets.List(traitlets.List()).tag(sync=True)
    description = traitlets.Unicode("mask")  # `interact` looks for it

    def __init__(self, image: Image.Image, strokes: Sequence[Stroke] = (), brush: int = 20):
        if brush < 1:
            raise ValueError(f"brush must be at least 1 pixel wide, got {brush}")
        png = base64.b64encode(encoded(image.convert("RGB"), "PNG")).decode()
        value = [[list(point) for point in stroke] for stroke in strokes]
        super().__init__(
            picture=f"data:image/png;base64,{png}", size=list(image.size), brush=brush, value=value
        )

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """True where the strokes are."""
        return covered(self.value, (self.size[0], self.size[1]), self.brush)


def covered(
    strokes: Sequence[Stroke], size: tuple[int, int], brush: int
) -> Bool[np.ndarray, "H W"]:
    """The pixels of a picture of `size` (width, height) that strokes with round ends cover.

    A stroke without points covers none.
    """
    sheet = Image.new("1", size)
    pen, r = ImageDraw.Draw(sheet), brush / 2
    for stroke in filter(len, strokes):
        points = [(float(x), float(y)) for x, y in stroke]
        pen.line(points, fill=1, width=brush, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=1)
    return np.asarray(sheet)
