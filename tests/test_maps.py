"""Semantic maps as pictures: what is painted is what is read."""

import numpy as np
import pytest
from PIL import Image

from imagebart.data.maps import NEAR, kind_colours, paint_kinds, read_kinds
from imagebart.data.scenery import LABELS, PALETTE


@pytest.mark.parametrize("names", [LABELS, ("sea", "land"), tuple(map(str, range(40)))])
def test_a_painted_map_is_read_back(names):
    colours = kind_colours(names)
    kinds = np.random.default_rng(0).integers(-1, len(names), (30, 20))
    assert np.array_equal(read_kinds(paint_kinds(kinds, colours), colours), kinds)


def test_scenery_has_its_own_colours():
    assert np.array_equal(kind_colours(list(LABELS)), PALETTE)
    assert len(np.unique(kind_colours("abc"), axis=0)) == 3


def test_a_colour_means_the_nearest_kind_or_none():
    colours = np.uint8([[0, 0, 0], [NEAR, 0, 0]])
    row = np.uint8([[[NEAR // 2 - 1, 0, 0], [NEAR // 2 + 1, 0, 0], [2 * NEAR, 0, 0], [60, 0, 0]]])
    assert read_kinds(Image.fromarray(row), colours).tolist() == [[0, 1, 1, -1]]
