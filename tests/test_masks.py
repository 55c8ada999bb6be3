"""Masks: one rule for what is repainted, and every token that a masked pixel touches."""

import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from test_inpainting import ORIENTATION, blank, corner, picture

from imagebart.data import images
from imagebart.editing.masks import masked_pixels, opacity, pixel_mask, read_mask, upright


def test_masked_pixels_are_those_of_whole_tokens(tiny):
    masked = torch.zeros(1, 4, 4, dtype=torch.bool)
    masked[0, 1, 2] = True
    pixels = masked_pixels(tiny, masked)[0, 0]
    assert pixels.sum() == 64 and pixels[8:16, 16:24].all()


def white_on_black() -> Image.Image:
    return Image.fromarray(corner().astype(np.uint8) * 255)


def white_on_clear() -> Image.Image:
    """White where it is painted, and white that does not show everywhere else."""
    image = Image.new("LA", (32, 32), (255, 0))
    image.putalpha(white_on_black())
    return image


def coloured(colour: tuple[int, int, int], alpha: int = 255) -> Image.Image:
    """A colour where it is painted, clear elsewhere."""
    image = Image.new("RGB", (32, 32), colour)
    image.putalpha(Image.fromarray(corner().astype(np.uint8) * np.uint8(alpha)))
    return image


def deep(grey: int) -> Image.Image:
    """Grey of 16 bits in the corner."""
    return Image.fromarray(corner().astype(np.uint16) * grey)


def keyed(mode: str) -> Image.Image:
    """One colour of it stands for transparent: that of the corner's surroundings, which is white
    but for the corner."""
    image = Image.fromarray(np.where(corner(), 254, 255).astype(np.uint8)).convert(mode)
    image.info["transparency"] = (255, 255, 255) if mode == "RGB" else image.getpixel((31, 31))
    return image


MASKS = {
    "booleans": corner(),
    "booleans H×W×3": np.dstack([corner()] * 3),
    "uint8": np.asarray(white_on_black()),
    "uint8 H×W×3": np.asarray(white_on_black().convert("RGB")),
    "half": corner().astype(np.uint8) * 128,
    **{mode: white_on_black().convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "P")},
    "I;16": deep(32768),
    "clear": white_on_clear(),
    "black on clear": coloured((0, 0, 0)),
    "red on clear": coloured((255, 0, 0)),
    "half-clear grey": coloured((90, 90, 90), 128),
    "blue on black": Image.composite(
        Image.new("RGB", (32, 32), "blue"), Image.new("RGB", (32, 32)), white_on_black()
    ),
    "two layers": [coloured((0, 0, 0), 80), coloured((255, 255, 255), 80)],
    "a layer and nothing": [white_on_black(), np.zeros((32, 32), bool)],
    "clear RGBA": white_on_clear().convert("RGBA"),
    "keyed L": keyed("L"),
    "keyed RGB": keyed("RGB"),
    "keyed P": keyed("P"),
}


@pytest.mark.parametrize("name", MASKS)
def test_all_kinds_of_masks_say_the_same(name):
    assert np.array_equal(pixel_mask(MASKS[name], (32, 32)) > 0, corner())


def test_grey_fades_from_half_to_white_and_transparency_does_not():
    grey = np.repeat(np.array([[0, 127, 128, 191, 255]], np.uint8), 5, 0)
    levels = pixel_mask(grey, (5, 5))
    assert levels[0].tolist() == [0, 0, 128, 191, 255]
    assert opacity(levels)[0].tolist() == [0, 0, 1 / 128, 0.5, 1]
    assert np.array_equal(pixel_mask(levels, (5, 5)), levels)
    clear = Image.new("RGB", (5, 5))
    clear.putalpha(Image.fromarray(grey))
    assert pixel_mask(clear, (5, 5))[0].tolist() == [0, 0, 255, 255, 255]


BLACK = {
    "grey of 10": np.full((32, 32), 10, np.uint8),
    "a picture of it": Image.new("L", (32, 32), 10),
    "just below half": np.full((32, 32, 3), 127, np.uint8),
    "opaque black": Image.new("RGBA", (32, 32), "black"),
    "clear white": Image.new("RGBA", (32, 32), (255, 255, 255, 0)),
    "faint white": Image.new("RGBA", (32, 32), (255, 255, 255, 127)),
    "two faint layers": [Image.new("LA", (32, 32), (255, 70))] * 2,
    "no layer": [],
    "deep, just below half": deep(32767),
    "deep, dark": deep(1000),
}


@pytest.mark.parametrize("name", BLACK)
def test_what_is_darker_than_half_stays(name):
    assert not pixel_mask(BLACK[name], (32, 32)).any()


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (None, "None"),
        ("mask.png", "'mask.png'"),
        ([[True]], "[True]"),
        (np.full((32, 32), np.nan), "float64 (32, 32)"),
        (corner().astype(int), "int64 (32, 32)"),
        (np.zeros((32, 32, 4), np.uint8), "uint8 (32, 32, 4)"),
        (np.ones(32, bool), "bool (32,)"),
        *[(Image.new(mode, (32, 32)), f"mode {mode}") for mode in ("F", "I", "CMYK", "HSV")],
    ],
)
def test_what_is_no_mask_is_one_sentence(tiny, mask, got):
    with pytest.raises(ValueError, match=f"^the mask must be a picture .*, got {re.escape(got)}$"):
        tiny.inpaint(picture(), mask)


def test_bytes_of_0_and_1_are_not_taken_for_black(tiny):
    with pytest.raises(ValueError, match="the mask must be booleans, or uint8 up to 255, got"):
        tiny.inpaint(picture(), corner().astype(np.uint8))
    with pytest.raises(ValueError, match="booleans, or uint8 up to 255, got a picture of mode L"):
        tiny.inpaint(picture(), Image.fromarray(corner().astype(np.uint8)))


ENTRIES = struct.pack("<HHIHxx", ORIENTATION, 3, 1, 6), struct.pack("<HHIf", 0x0131, 11, 1, 1.5)
ODD = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(ENTRIES) + bytes(4)
"""EXIF that says how to turn, and that a program is called 1.5: it can be read, but not written."""


def test_a_mask_is_turned_as_its_image(tmp_path):
    """A tag that cannot be parsed turns nothing."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    mask = blank(48, 32)
    mask[:4, :40] = True
    lying = Image.fromarray(mask).convert("L").transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "mask.png", exif=turned)
    lying.info["exif"] = ODD
    for opened in (Image.open(tmp_path / "mask.png"), read_mask(tmp_path / "mask.png"), lying):
        assert np.array_equal(pixel_mask(opened, (48, 32)) > 0, mask)
        assert np.array_equal(pixel_mask(upright(opened), (48, 32)) > 0, mask)
    broken = white_on_black()
    broken.info["exif"] = b"Exif\0\0garbage"
    assert np.array_equal(pixel_mask(broken, (32, 32)) > 0, corner())


@pytest.mark.parametrize("name", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "clear"])
def test_a_mask_means_the_same_from_its_file(tmp_path, name):
    MASKS[name].save(tmp_path / "mask.png")
    assert np.array_equal(pixel_mask(read_mask(tmp_path / "mask.png"), (32, 32)) > 0, corner())


def test_a_file_that_is_no_mask_is_one_sentence(tmp_path, monkeypatch):
    whole, path = tmp_path / "whole.png", tmp_path / "mask.png"
    picture(64, 64).save(whole)
    for content in (whole.read_bytes()[:5000], b"no picture", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mask\.png: must be a readable image, got "):
            read_mask(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 63)
    with pytest.raises(ValueError, match=r"whole\.png: must be .*, got 64×64 pixels, at most 4032"):
        read_mask(whole)


@pytest.mark.parametrize("shape", [(32, 31), (64, 64), (0, 0)])
def test_the_mask_is_as_large_as_the_image(tiny, shape):
    with pytest.raises(ValueError, match="the mask must be as large as the image, 32×32, got"):
        tiny.inpaint(picture(), np.ones(shape, dtype=bool))
