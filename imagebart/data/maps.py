"""Semantic maps: as images, each kind in its colour, and as tokens of a grid.   [section 4.2]

A map is H×W integers, indices of `ImageBART.names["map"]`; -1 where unlabelled.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from imagebart.data.scenery import LABELS, PALETTE

NEAR = 16
"""Maximum distance of a colour from that of its kind, in 8-bit RGB."""

OPEN = (255, 255, 255)
"""The colour of unlabelled places."""


def kind_colours(names: Sequence[str]) -> UInt8[Array, "kinds 3"]:
    """A colour for each kind: scenery's own, or as many hues."""
    if tuple(names) == LABELS:
        return PALETTE
    hues = [colorsys.hsv_to_rgb(i / len(names), 0.65, 0.9) for i in range(len(names))]
    return (np.array(hues) * 255).round().astype(np.uint8)


def paint_kinds(kinds: Array, colours: UInt8[Array, "kinds 3"]) -> Image.Image:
    """A map (H, W) as an image; white where unlabelled."""
    return Image.fromarray(np.concatenate([colours, np.array([OPEN], np.uint8)])[kinds])


def read_kinds(picture: Image.Image, colours: UInt8[Array, "kinds 3"]) -> Array:
    """The map (H, W), int64, painted in these colours; -1 for pixels of other colours."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    kinds = np.full(pixels.shape[:2], -1, np.int64)
    nearest = np.full(pixels.shape[:2], NEAR**2 + 1)
    for kind, colour in enumerate(colours.astype(np.int32)):
        away = ((pixels - colour) ** 2).sum(-1)
        closer = away < nearest
        kinds[closer], nearest[closer] = kind, away[closer]
    return kinds


def commonest_kinds(kinds: Array, grid: tuple[int, int]) -> Array:
    """A semantic map (H, W) as tokens (h, w) of the grid, int64: what covers most of each place.

    Kinds are whole numbers from -1 (left open) on; of two that cover as much, the lower is taken.
    A side coarser than the grid's is stretched to it first.
    """
    (H, W), (h, w) = kinds.shape, grid
    if h > H:
        kinds, H = kinds[np.arange(h) * H // h], h
    if w > W:
        kinds, W = kinds[:, np.arange(w) * W // w], w
    row, column = np.arange(H) * h // H, np.arange(W) * w // W
    votes = np.zeros((h, w, int(kinds.max()) + 2), np.int64)
    np.add.at(votes, (row[:, None], column[None], kinds.astype(np.int64) + 1), 1)
    return votes.argmax(-1) - 1
