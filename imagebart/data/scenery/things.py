"""Things on the land: rows of trees, towers and houses; single objects.

A row costs one pass: trees, houses and towers stand in cells along x, and every column knows its
cell, so a forest is drawn by the same few array operations as a tree.
"""

import math
from collections.abc import Iterator

import numpy as np

from imagebart.data.scenery.land import PINES, SNOW_COLOUR
from imagebart.data.scenery.world import (
    BALLOON,
    BIRD,
    BOAT,
    BUILDING,
    TREE,
    Canvas,
    Crest,
    mix,
    rgb,
    rgbs,
    smooth,
)

# ── things that stand in rows ─────────────────────────────────────────────────────────────────


def pine(u, v, edge):
    """Tiers of branches. u across, v from 0 (top) to 1 (ground), in tree heights."""
    tier = v * 4.2
    saw = tier - np.floor(tier)
    half = 0.27 * np.maximum(v, 0) ** 0.85 * (0.6 + 0.4 * saw)
    crown = np.where(v < 0.94, edge(half - np.abs(u)), edge(0.035 - np.abs(u))) * edge(v)
    return crown, u * 4, 1 - smooth((saw - 0.5) / 0.4)


def round_tree(u, v, edge):
    """Three overlapping lobes on a trunk."""
    lobes = [(0.0, 0.27, 0.26), (-0.17, 0.45, 0.21), (0.17, 0.46, 0.21)]
    inside = np.max([r - np.hypot(u - a, v - b) for a, b, r in lobes], axis=0)
    crown = np.maximum(edge(inside), edge(0.04 - np.abs(u)) * (v > 0.5))
    return crown, u * 2.6 - (v - 0.42) * 1.2, v < 0.3


def palm(u, v, edge):
    """A curved trunk and six drooping fronds."""
    trunk = edge(0.03 - np.abs(u - 0.12 * (v - 0.25) ** 2)) * (v > 0.2)
    crown = trunk
    for lift, droop in ((-0.10, 2.6), (-0.2, 1.1), (0.02, 3.4)):
        leaf = 0.25 + lift * np.abs(u) / 0.33 + droop * u * u
        crown = np.maximum(
            crown,
            edge(
                0.05 * (1.2 - np.abs(u) / 0.36)
                - np.abs(v - leaf) / np.sqrt(1 + (2 * droop * u) ** 2)
            ),
        )
    return crown * (np.abs(u) < 0.38), u * 2.4 - (v - 0.3), v < 0


def cactus(u, v, edge):
    """A saguaro: a column and two raised arms."""

    def bar(x, y0, y1, r):
        return r - np.hypot(u - x, v - np.clip(v, y0, y1))

    arms = [bar(0, 0.09, 1.1, 0.085), bar(-0.21, 0.32, 0.5, 0.055), bar(0.2, 0.22, 0.42, 0.055)]
    elbows = [0.055 - np.hypot(u - np.clip(u, -0.21, 0), v - 0.52),
              0.055 - np.hypot(u - np.clip(u, 0, 0.2), v - 0.44)]  # fmt: skip
    return edge(np.max(arms + elbows, axis=0)), u * 6, v < 0


def trees(
    c: Canvas, name, ground: Crest, height, spacing, shape, depth, share=1.0, leaves=None, shore=2.0
):
    """A row of trees where `ground` is above `shore`: one per cell at most, hashed per cell."""
    leaves = leaves if leaves is not None else PINES
    i = np.floor(c.x / spacing)
    jitter, size, tint, present = (c.cells(f"{name}{k}", i) for k in range(4))
    tall = (height * (0.62 + 0.38 * size)).astype(np.float32)
    wide = 0.28 if shape is pine else 0.4
    room = np.maximum(0.5 - wide * tall / spacing, 0)
    centre = ((i + 0.5 + 2 * room * (jitter - 0.5)) * spacing).astype(np.float32)
    foot = ground(centre) + 0.008
    here = (present < share) & (foot < shore)
    if not here.any():
        return
    box = c.box(c.x[0], c.x[-1], float((foot - tall)[here].min()), float(foot[here].max()))
    x, y = c.at(box)
    u, v = (x - centre) / tall, (y - foot) / tall + 1
    cover, facing, upper = shape(u, v, lambda distance: c.edge(distance * tall))
    cover = cover * here * c.edge(foot - y)
    sun = smooth(0.5 + facing * c.side(centre))
    albedo = np.broadcast_to(leaves[(tint * 2.999).astype(np.int64)], (*cover.shape, 3))
    if c.plan.season == "winter" and shape is pine:
        albedo = mix(albedo, SNOW_COLOUR, 0.25 + 0.65 * upper[..., None])
    elif shape in (round_tree, palm):
        bark = smooth((v - (0.62 if shape is round_tree else 0.42)) / 0.06)[..., None]
        albedo = mix(albedo, rgb("7a5a44"), bark)
    c.paint(box, c.far(c.lit(albedo, sun), depth), cover, TREE)


def window_light(c: Canvas) -> float:
    """The share of windows that are lit at this hour."""
    return {"night": 0.62, "dusk": 0.5, "sunset": 0.25, "dawn": 0.15}.get(c.plan.time, 0.0)


def skyline(c: Canvas, name, base, height, spacing, depth, windows=True):
    """Towers of a city: flat, stepped, slanted or with a spire, and their windows."""
    i = np.floor(c.x / spacing)
    wide, tall, style, tint, shift = (c.cells(f"{name}{k}", i) for k in range(5))
    half = spacing * (0.3 + 0.19 * wide)
    centre = ((i + 0.5) * spacing + (shift - 0.5) * 2 * (spacing * 0.5 - half)).astype(np.float32)
    u = (c.x - centre) / half
    crowd = 0.45 + 0.75 * c.noise(name + "crowd", i * spacing * 1.6, 1)
    rise = height * (0.35 + 0.65 * tall**1.4) * crowd
    stepped = 1 - 0.14 * (np.abs(u) > 0.55)
    slanted = 1 - 0.07 * (1 + u)
    shape = np.select([style < 0.3, style < 0.4], [stepped, slanted], 1.0)
    top = (base - rise * shape).astype(np.float32)
    box = c.box(c.x[0], c.x[-1], float(top.min()) - 0.08, base)
    x, y = c.at(box)
    body = c.edge(half * (1 - np.abs(u))) * c.edge(y - top)
    spire = (style > 0.86) * c.edge(0.008 - np.abs(x - centre)) * c.edge(y - top + 0.07)
    cover = np.maximum(body, spire) * c.edge(base - y)
    walls = rgbs("8d98ad a59a98 76879f b3a79b")
    albedo = walls[(tint * 3.999).astype(np.int64)]
    sun = smooth(0.5 + (u * 0.9) * c.side(centre)) * 0.9
    sun = sun + 0 * y + 0.15 * smooth((y - top) / 0.5)
    c.paint(box, c.far(c.lit(albedo, sun), depth), cover, BUILDING)
    if windows:
        paint_windows(c, box, name, u * half, y - top, i, body * (np.abs(u) < 0.86), depth)


def paint_windows(c: Canvas, box, name, across, down, cell, body, depth):
    """A grid of windows, each 2 to 3 pixels at 128, some lit: warm light that owns no label."""
    wide, tall = 0.036, 0.042
    col, row = np.floor(across / wide), np.floor(down / tall)
    a = c.edge(0.0105 - np.abs(across - (col + 0.5) * wide))
    b = c.edge(0.0125 - np.abs(down - (row + 0.5) * tall))
    lattice = cell * 64 + col
    rows = np.arange(0, max(int(row.max()) + 1, 1))
    on = c.cells(name + "lit", lattice + 100003 * rows[:, None]) < window_light(c)
    on = np.take_along_axis(on, np.clip(row, 0, rows[-1]).astype(np.int64), axis=0)
    glass = c.lit(mix(rgb("5f7896"), c.light.horizon, 0.35), 0.35)
    warm = mix(rgb("ffd873"), rgb("ffb85c"), c.cells(name + "warm", lattice)[:, None])
    colour = np.where(on[..., None], warm, c.far(glass, depth))
    cover = a * b * body * (down > 0.02) * np.where(on, 1.0, 0.55)
    c.paint(box, colour, cover, None)


ROOFS = rgbs("b5523b c2683f 8e4a4a 5f6f86")
WALLS = rgbs("f2e2c4 fbf1de e9c9a4 dfd3c8")


def houses(c: Canvas, name, ground: Crest, height, spacing, depth, share=0.8):
    """A row of gabled houses with windows; snow on the roofs in winter."""
    i = np.floor(c.x / spacing)
    wide, tall, roof, wall, present = (c.cells(f"{name}{k}", i) for k in range(5))
    half = (spacing * (0.3 + 0.12 * wide)).astype(np.float32)
    centre = ((i + 0.5) * spacing).astype(np.float32)
    foot, h = ground(centre) + 0.012, (height * (0.8 + 0.2 * tall)).astype(np.float32)
    here = present < share
    if here.any():
        place = (centre, foot, half, h, here)
        tints = ROOFS[(roof * 3.999).astype(np.int64)], WALLS[(wall * 3.999).astype(np.int64)]
        paint_houses(c, c.box(c.x[0], c.x[-1], float((foot - h).min()), float(foot.max())),
                     place, tints, depth)  # fmt: skip


def paint_houses(c: Canvas, box, place, tints, depth):
    """Walls, then the roof above the eaves, then a window and a door."""
    centre, foot, half, h, here = place
    roof, wall = tints
    x, y = c.at(box)
    u, up = (x - centre), foot - y
    eaves = 0.55 * h
    body = c.edge(half * 0.86 - np.abs(u)) * c.edge(eaves - up) * c.edge(up)
    gable = c.edge((h - up) - np.abs(u) / half * (h - eaves)) * c.edge(up - eaves)
    sun = smooth(0.5 + u / half * 0.7 * c.side(centre))
    c.paint(box, c.far(c.lit(wall, sun + 0 * y), depth), body * here, BUILDING)
    if c.plan.season == "winter":
        roof = SNOW_COLOUR
    c.paint(box, c.far(c.lit(roof, sun + 0 * y), depth), gable * here, BUILDING)
    lit = window_light(c) > 0.3
    glass = rgb("ffd36b") if lit else c.lit(rgb("5a6a80"), 0.3)
    pane = c.edge(0.17 * half - np.abs(np.abs(u) - 0.42 * half))
    pane = pane * c.edge(0.13 * h - np.abs(up - 0.28 * h))
    c.paint(box, glass, pane * here, None)


# ── objects ───────────────────────────────────────────────────────────────────────────────────


def spots(c: Canvas, name: str, spread: float = 0.36) -> Iterator[float]:
    """Where an object stands: once near the middle, and here and there beyond a square view."""
    yield c.roll(name + "/0", -spread, spread) * c.reach
    cells = np.arange(math.floor(c.x[0]), math.ceil(c.x[-1]) + 1)
    for i in cells[(np.abs(cells) >= 1) & (c.cells(name, cells) < 0.4)]:
        yield float(i) + c.roll(f"{name}/{i}", -spread, spread)


def objects(c: Canvas) -> Iterator[float]:
    """Where this scene's object stands, counting those inside the image."""
    for x in spots(c, c.plan.thing):
        c.count += abs(x) < c.width * c.px / 2
        yield x


CLOTH = {
    "red": rgb("e0433e"),
    "blue": rgb("3a78d8"),
    "yellow": rgb("f6c544"),
    "white": rgb("fbfbf6"),
}
COLOURS = tuple(CLOTH)


def colour_of(c: Canvas) -> str:
    """The colour of this scene's balloon or sail."""
    return COLOURS[int(c.roll("cloth", 0, 3.999))]


def balloon(c: Canvas, x0: float):
    """A striped hot-air balloon with its basket."""
    r = c.roll("balloon r", 0.062, 0.085)
    y0 = c.roll(f"balloon y {x0:.3f}", 0.18, max(0.2, c.horizon - 0.2))
    if abs(x0 - c.light.x) < r + 0.07:  # never in front of the sun
        above = c.light.y - 2 * r - 0.1
        y0 = above if above > r + 0.02 else max(y0, c.light.y + r + 0.08)
    box = c.box(x0 - r, x0 + r, y0 - r, y0 + 2.1 * r)
    x, y = c.at(box)
    u, v = (x - x0) / r, (y - y0) / r
    half = np.where(v < 0.2, np.sqrt(np.clip(1 - v * v, 0, 1)), np.clip(1.08 - 0.62 * v, 0.2, 1))
    cover = c.edge((half - np.abs(u)) * r * 0.8) * c.edge((1.35 - v) * r)
    stripe = smooth((np.sin(u / np.maximum(half, 0.2) * 6.5) + 0.15) * 4)[..., None]
    cloth = mix(CLOTH[colour_of(c)], rgb("fdf6e3") if colour_of(c) != "white" else rgb("e8705a"),
                stripe * 0.9)  # fmt: skip
    sun = smooth(0.62 + 0.55 * u * c.side(x0) - 0.2 * v)
    c.paint(box, c.lit(np.maximum(cloth, 0.12), 0.25 + 0.75 * sun), cover, BALLOON)
    basket = c.edge(0.22 * r - np.abs(x - x0)) * c.edge(0.18 * r - np.abs(y - y0 - 1.72 * r))
    ropes = c.edge(0.006 - np.abs(np.abs(x - x0) - 0.16 * r)) * (v > 1.3) * (v < 1.6) * 0.7
    c.paint(box, c.lit(rgb("8a5a34"), 0.5), np.maximum(basket, ropes), BALLOON)


def birds(c: Canvas, x0: float):
    """A small flock, each bird two bent wings."""
    name = f"birds {x0:.3f}"
    y0 = c.roll(name, 0.14, max(0.16, c.horizon - 0.2))
    for k in range(3 + int(c.roll(name + "flock", 0, 2.99))):
        x = x0 + 0.1 * (k - 1.5) + c.roll(f"{name}x{k}", -0.02, 0.02)
        y = y0 + c.roll(f"{name}y{k}", -0.06, 0.06)
        s = c.roll(f"{name}s{k}", 0.03, 0.04)
        box = c.box(x - s, x + s, y - s, y + s)
        px, py = c.at(box)
        u = np.abs(px - x) / s
        wing = 0.62 * np.sin(np.clip(u, 0, 1) * 2.6) ** 0.8 * s
        cover = c.edge(0.0078 * (1.25 - 0.6 * u) - np.abs(py - y + wing - 0.01)) * c.edge(
            s * (1 - u)
        )
        c.paint(box, c.lit(rgb("3a3640"), 0.2) * 0.75, cover, BIRD)


def boat(c: Canvas, x0: float, y0: float, s: float):
    """A sailing boat: hull, main sail, jib, and the light patch it throws on the water."""
    box = c.box(x0 - 0.5 * s, x0 + 0.6 * s, y0 - 1.05 * s, y0 + 0.6 * s)
    x, y = c.at(box)
    u, up = (x - x0) / s, (y0 - y) / s
    glow = c.edge((0.26 - np.abs(u - 0.02) - 0.12 * np.abs(up)) * s) * c.edge(-up * s)
    cloth = CLOTH[colour_of(c)]
    c.paint(box, c.lit(cloth, 0.6), glow * smooth(1 + up / 0.55) * 0.5, None)
    main = c.edge(np.minimum(0.46 * (1 - up) - (u - 0.03), u - 0.03) * s) * c.edge((up - 0.2) * s)
    jib = c.edge(np.minimum(u + 0.36 * (0.92 - up), -0.03 - u) * s) * c.edge((up - 0.24) * s)
    c.paint(box, c.lit(cloth, 0.9), main, BOAT)
    c.paint(box, c.lit(mix(cloth, rgb("fdf6e3"), 0.55), 0.75), jib, BOAT)
    hull = c.edge((0.4 + 0.35 * (up - 0.15) - np.abs(u)) * s) * c.edge((0.15 - np.abs(up)) * s)
    c.paint(box, c.lit(rgb("6b3f33"), 0.5), hull, BOAT)


def cabin(c: Canvas, x0: float, foot: float, s: float):
    """A log cabin with a steep roof and one warm window."""
    box = c.box(x0 - s, x0 + s, foot - 1.3 * s, foot)
    x, y = c.at(box)
    u, up = (x - x0) / s, (foot - y) / s
    body = c.edge((0.52 - np.abs(u)) * s) * c.edge(up * s) * c.edge((0.6 - up) * s)
    chimney = c.edge((0.09 - np.abs(u - 0.3)) * s) * c.edge((1.12 - up) * s) * (up > 0.6)
    roof = c.edge(((1.14 - up) * 1.1 - np.abs(u)) * s * 0.7) * c.edge((up - 0.52) * s)
    sun = smooth(0.5 + u * c.side(x0))
    c.paint(box, c.lit(rgb("a3583a"), 0.4), chimney, BUILDING)
    c.paint(box, c.lit(rgb("b98355"), sun + 0 * y), body, BUILDING)
    top = SNOW_COLOUR if c.plan.season == "winter" else rgb("a8433a")
    c.paint(box, c.lit(top, sun + 0 * y), roof, BUILDING)
    pane = c.edge((0.13 - np.abs(u + 0.2)) * s) * c.edge((0.13 - np.abs(up - 0.3)) * s)
    door = c.edge((0.1 - np.abs(u - 0.22)) * s) * c.edge((0.4 - up) * s) * c.edge(up * s)
    c.paint(box, rgb("ffd873") if c.plan.time != "noon" else c.lit(rgb("dbeaf2"), 0.5), pane, None)
    c.paint(box, c.lit(rgb("5a3a2c"), 0.3), door, None)


def tent(c: Canvas, x0: float, foot: float, s: float):
    """A ridge tent, lit from inside when it is dark."""
    box = c.box(x0 - s, x0 + s, foot - s, foot)
    x, y = c.at(box)
    u, up = (x - x0) / s, (foot - y) / s
    body = c.edge((0.75 * (0.9 - up) - np.abs(u)) * s * 0.8) * c.edge(up * s)
    inner = c.edge((0.28 * (0.7 - up) - np.abs(u)) * s) * c.edge(up * s)
    sun = smooth(0.5 + 1.2 * u * c.side(x0)) + 0 * y
    dark = c.plan.time in ("dusk", "night")
    glow = rgb("f79a4a")[None, None] * (0.75 + 0.25 * (1 - up[..., None]))
    c.paint(box, glow if dark else c.lit(rgb("ee7f3c"), sun), body, BUILDING)
    c.paint(box, rgb("ffe29a") if dark else c.lit(rgb("6b3f33"), 0.3), inner, BUILDING)


def lighthouse(c: Canvas, x0: float, foot: float, s: float):
    """A white tower with red bands; after sunset its lamp throws a beam."""
    top = foot - s
    dark = c.plan.time in ("dusk", "night")
    if dark:
        box = c.box(x0 - 0.6, x0 + 0.6, top - 0.25, top + 0.25)
        x, y = c.at(box)
        away = (x - x0) * (1 if c.roll("beam") < 0.5 else -1)
        beam = np.clip(1 - np.abs(y - top - 0.05 * s) / (0.02 + 0.16 * np.abs(away)), 0, 1)
        cover = smooth(beam) * smooth(away / 0.05) * np.exp(-np.abs(away) / 0.3) * 0.55
        c.paint(box, rgb("fff2b0"), cover, None)
    box = c.box(x0 - 0.3 * s, x0 + 0.3 * s, top - 0.12 * s, foot)
    x, y = c.at(box)
    u, up = (x - x0) / s, (foot - y) / s
    tower = c.edge((0.13 - 0.045 * up - np.abs(u)) * s) * c.edge((0.84 - up) * s) * c.edge(up * s)
    bands = smooth(np.sin(up * 15.5) * 5 + 0.5)[..., None]
    sun = smooth(0.5 + 4 * u * c.side(x0)) + 0 * y
    c.paint(box, c.lit(mix(rgb("faf6ee"), rgb("d8423c"), bands), sun), tower, BUILDING)
    rail = c.edge((0.12 - np.abs(u)) * s) * c.edge((0.025 - np.abs(up - 0.84)) * s)
    lamp = c.edge((0.075 - np.abs(u)) * s) * c.edge((0.07 - np.abs(up - 0.92)) * s)
    roof = c.edge((0.8 * (1.1 - up) - np.abs(u)) * s) * c.edge((up - 0.98) * s)
    c.paint(box, rgb("fff0a8") if dark else c.lit(rgb("ffe9a0"), 0.9), lamp, BUILDING)
    c.paint(box, c.lit(rgb("7a2f33"), 0.5), np.maximum(rail, roof), BUILDING)


def place_on(c: Canvas, crest: Crest, down: float = 0.03):
    """Put this scene's cabin, tent or lighthouse on a piece of land."""
    build = {"cabin": (cabin, 0.12), "tent": (tent, 0.13), "lighthouse": (lighthouse, 0.3)}
    if c.plan.thing in build:
        paint_it, size = build[c.plan.thing]
        for x in objects(c):
            foot = float(crest(np.array([x]))[0]) + down
            paint_it(c, x, min(foot, 0.97), size * c.roll("size", 0.9, 1.15))


def sail(c: Canvas, near: float, far: float):
    """Put this scene's boats on the water between two heights."""
    if c.plan.thing == "boat":
        for k, x in enumerate(objects(c)):
            y = c.roll(f"boat y {x:.3f}", near, far)
            boat(c, x, y, 0.1 + 0.35 * (y - c.horizon))
            if k == 0 and c.roll("second boat") < 0.4:
                x2 = x + (0.32 if x < 0 else -0.32) * c.reach
                c.count += 1
                boat(c, x2, near, 0.1 + 0.35 * (near - c.horizon))
