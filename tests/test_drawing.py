"""A mask painted by hand: what strokes cover, and what a notebook is sent."""

import base64
import io

import numpy as np
import pytest
from ipywidgets import interactive
from PIL import Image

from imagebart.drawing import MaskCanvas, covered

LINE = [[10, 16], [50, 16]]


def picture() -> Image.Image:
    return Image.effect_noise((64, 32), 60).convert("RGB")


def test_a_stroke_is_as_wide_as_the_brush_and_has_round_ends():
    mask = covered([LINE], (64, 32), brush=10)
    assert mask.shape == (32, 64) and mask.dtype == bool
    assert 10 <= mask[:, 30].sum() <= 12  # PIL counts both edges
    assert mask[16, 5] and mask[16, 55] and not mask[16, 4 - 1] and not mask[16, 57]
    assert not mask[12, 6] and not mask[20, 54]  # corners


def test_a_click_is_a_dot():
    mask = covered([[[20, 10]]], (64, 32), brush=8)
    assert mask[10, 20] and 45 <= mask.sum() <= 85
    assert np.abs(np.argwhere(mask).mean(0) - [10, 20]).max() < 0.6


def test_strokes_add_up_and_none_covers_nothing():
    both = covered([LINE, [[5, 5], [5, 30]]], (64, 32), brush=4)
    each = [covered([one], (64, 32), brush=4) for one in (LINE, [[5, 5], [5, 30]])]
    assert np.array_equal(both, each[0] | each[1])
    assert not covered([], (64, 32), brush=4).any() and not covered([[]], (64, 32), brush=4).any()


def test_the_mask_follows_the_strokes():
    canvas = MaskCanvas(picture(), brush=6)
    assert not canvas.mask.any()
    canvas.value = [LINE]  # as the browser sends it
    assert np.array_equal(canvas.mask, covered([LINE], (64, 32), 6))


def test_a_function_is_called_after_every_stroke():
    seen = []
    canvas = MaskCanvas(picture(), [LINE])
    interactive(lambda strokes: seen.append(len(strokes)), strokes=canvas)
    canvas.value = [LINE, LINE]
    assert seen == [1, 2]


def test_the_browser_is_sent_the_picture_and_the_script():
    image = picture()
    state = MaskCanvas(image, [[(1, 2), (3, 4)]]).get_state()
    kind, _, data = state["picture"].partition(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/png;base64" and np.array_equal(np.asarray(sent), np.asarray(image))
    assert state["size"] == [64, 32] and state["value"] == [[[1, 2], [3, 4]]]
    assert "export default" in state["_esm"]


def test_a_brush_has_a_width():
    with pytest.raises(ValueError, match="at least 1 pixel wide, got 0"):
        MaskCanvas(picture(), brush=0)
