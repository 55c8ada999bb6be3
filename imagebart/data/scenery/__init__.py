"""scenery: procedural landscapes with class, caption and semantic map.

The data set that needs no download. `render(seed)` paints one place, back to front, and says what
it shows.

world     what a scene can be; randomness that belongs to a place; light; the canvas
sky       gradient, stars, aurora, sun or moon, clouds
land      hills, mountains, dunes, rocks, roads, water
things    rows of trees, towers and houses; balloons, boats, cabins
places    the twelve classes, each painted of these
words     what is true of a painted scene, and the caption that says it
scenes    a seed becomes a scene; the seeds of the splits
"""

from imagebart.data.scenery.places import KINDS
from imagebart.data.scenery.scenes import render, scene_seed
from imagebart.data.scenery.words import said
from imagebart.data.scenery.world import (
    LABELS,
    OBJECTS,
    PALETTE,
    SEASONS,
    SPLITS,
    TIMES,
    WEATHERS,
    Scene,
)

__all__ = [
    "KINDS",
    "LABELS",
    "OBJECTS",
    "PALETTE",
    "SEASONS",
    "SPLITS",
    "TIMES",
    "WEATHERS",
    "Scene",
    "render",
    "said",
    "scene_seed",
]
