"""A seed becomes a scene: plan, paint, describe."""

import hashlib

import numpy as np

from imagebart.data.scenery.places import KINDS, PLACES, always_summer, has_sea
from imagebart.data.scenery.sky import paint_sky
from imagebart.data.scenery.things import balloon, birds, objects
from imagebart.data.scenery.words import attributes_of, caption_of
from imagebart.data.scenery.world import (
    SEASONS,
    SPLITS,
    TIMES,
    WEATHERS,
    Canvas,
    Plan,
    Scene,
    mix64,
)


def plan_of(rng: np.random.Generator) -> Plan:
    """Draw the parameters, always the same number of them and in the same order."""
    u = rng.random(10)
    kind = KINDS[int(u[0] * len(KINDS))]
    _, _, views, known = PLACES[kind]
    time = TIMES[int(np.searchsorted([0.17, 0.42, 0.63, 0.78], u[1]))]
    shares = [0.38, 0.68, 0.8, 0.92] if time != "night" else [0.34, 0.52, 0.6, 0.68]
    weather = WEATHERS[int(np.searchsorted(shares, u[2]))]
    if weather == "rainbow" and time in ("dusk", "night"):
        weather = "aurora" if time == "night" else "clear"
    season = SEASONS[int(u[3] * 4)]
    if kind == "arctic":
        season = "winter"
    view = views.split()[int(u[4] * len(views.split()))]
    if always_summer(kind, view):
        season = "summer"
    if view == "flowers" and season == "winter":
        view = "trees"
    things = [t for t in known.split() if t != "boat" or has_sea(kind, view)]
    thing = things[int(u[5] / 0.7 * len(things))] if u[5] < 0.7 else "none"
    moon = "full" if u[6] < 0.5 else "crescent"
    return Plan(kind, time, weather, season, view, thing, moon, float(u[7]), int(u[8] * 2**53))


def paint(plan: Plan, height: int, width: int) -> Canvas:
    """Sky, then the place, then what flies in front of both, at any size."""
    low, high = PLACES[plan.kind][1]
    canvas = Canvas(plan, height, width, low + (high - low) * mix64(plan.salt + 1) / 2**64)
    paint_sky(canvas)
    PLACES[plan.kind][0](canvas)
    for name, fly in (("balloon", balloon), ("birds", birds)):
        if plan.thing == name:
            for x in objects(canvas):
                fly(canvas, x)
    return canvas


def render(seed: int, height: int = 128, width: int = 128) -> Scene:
    """The landscape of a seed, 0 ≤ seed < 2^63, at any size from 16 to 16384 pixels a side.

    The same seed shows the same place at every size; a wider image shows more of it.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
    for name, size in (("height", height), ("width", width)):
        if not 16 <= size <= 16384:
            raise ValueError(f"{name} must lie in [16, 16384], got {size}")
    plan = plan_of(np.random.Generator(np.random.PCG64(seed)))
    canvas = paint(plan, height, width)
    image = (np.clip(canvas.rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
    found = attributes_of(canvas)
    return Scene(image, canvas.label, plan.kind, caption_of(canvas, found), found)


def scene_seed(split: str, index: int) -> int:
    """The seed of image `index` of a split. Splits share no seed: its lowest digits name the split.

    seed = 4 · hash60(split, index) + split
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if index < 0:
        raise ValueError(f"index must be at least 0, got {index}")
    digest = hashlib.blake2b(f"{split}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 4) * 4 + SPLITS.index(split)
