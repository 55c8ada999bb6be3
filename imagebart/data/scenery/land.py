"""Land and water: hills, mountains, dunes, table mountains, roads, rivers, mirrors."""

import math

import numpy as np

from imagebart.data.scenery.world import (
    GRASS,
    MOUNTAIN,
    ROCK,
    SAND,
    SNOW,
    WATER,
    Array,
    Canvas,
    Crest,
    mix,
    rgb,
    rgbs,
    smooth,
)

GROUND = {
    "spring": rgb("86c25a"),
    "summer": rgb("62a548"),
    "autumn": rgb("c29a4c"),
    "winter": rgb("eef4fc"),
}
LEAVES = {  # three per season: each tree takes one
    "spring": rgbs("f7b4cc fbd3de 8cc861"),
    "summer": rgbs("3f8f3f 5aa545 2f7a48"),
    "autumn": rgbs("e2792b c9452c ecb03c"),
    "winter": rgbs("dfe9f6 c8d8ec eef4fb"),
}
PINES = rgbs("2f6a4a 25583f 3b7a50")
STONE, SAND_COLOUR, SNOW_COLOUR = rgb("8b8694"), rgb("ecc98c"), rgb("f3f7fd")


def ground_of(c: Canvas) -> tuple[Array, int]:
    """What open land is made of in this season: (albedo, label)."""
    return GROUND[c.plan.season], SNOW if c.plan.season == "winter" else GRASS


def hills(c: Canvas, name, base, rise, pitch, albedo, label, depth, octaves=2, floor=1.0) -> Crest:
    """Rolling land whose crest waves between base - rise and base, down to `floor`; its crest."""

    def crest(x: Array) -> Array:
        return (base - rise * c.noise(name, x * pitch + 31, octaves)).astype(np.float32)

    top = crest(c.x)
    slope = (crest(c.x + 0.02) - crest(c.x - 0.02)) / 0.04
    box = c.box(c.x[0], c.x[-1], float(top.min()), floor)
    x, y = c.at(box)
    below = y - top
    faces = 0.5 - 0.9 * slope * c.side(x)  # land that falls away from the light is darker
    fade = np.exp(-below / 0.12)
    sun = np.clip(0.42 + 0.38 * fade * (0.6 + faces), 0, 1)
    patches = c.noise2(f"{name}patch", x * 3, y.ravel() * 9, 2)
    sun += 0.22 * smooth((patches - 0.42) / 0.16) - 0.11
    cover = c.edge(below / np.sqrt(1 + slope**2))
    if floor < 1:
        cover = cover * c.edge(floor - y)
    mist = depth * (1 + 0.5 * smooth(below / 0.2)) if depth > 0.25 else depth
    c.paint(box, c.far(c.lit(albedo, sun), mist), cover, label)
    return crest


def peaks(c: Canvas, name, base, height, spacing, albedo, depth, snow=0.4, label=MOUNTAIN):
    """A range: one peak per cell, painted in a hashed order so that some overlap others."""
    first = math.floor(c.x[0] / spacing) - 2
    cells = np.arange(first, math.ceil(c.x[-1] / spacing) + 3)
    jitter, size, order = (c.cells(f"{name}{k}", cells) for k in range(3))
    for k in np.argsort(size + 0.2 * order)[::-1]:
        x = (cells[k] + 0.5 + 0.7 * (jitter[k] - 0.5)) * spacing
        tall = height * (0.45 + 0.55 * size[k])
        peak(c, f"{name}/{cells[k]}", x, base - tall, base, albedo, depth, snow, label)


def peak(c: Canvas, name, x0, top, base, albedo, depth, snow, label=MOUNTAIN, slopes=None):
    """One mountain: two rough flanks, facets that fan out from the summit, a cap of snow."""
    tall = base - top
    left, right = slopes or (c.roll(name + "l", 0.75, 1.35), c.roll(name + "r", 0.75, 1.35))
    box = c.box(x0 - 1.25 * tall / left, x0 + 1.25 * tall / right, top - 0.03, base)
    x, y = c.at(box)
    if not x.size or not y.size:
        return
    away = x - x0
    slope = np.where(away < 0, left, right)
    rough = (c.noise(name, x * 9, 3) - 0.5) * np.minimum(0.14 * tall + 0.03, np.abs(away) * 0.9)
    below = y - (top + np.abs(away) * slope + rough).astype(np.float32)
    cover = c.edge(below / 1.3) * c.edge(base - y)

    depth_down = np.maximum(y - top, 0.004)
    zigzag = c.noise(name + "z", y.ravel() * 16, 2)[:, None] - 0.5
    angle = away / depth_down  # constant along lines from the summit
    side = float(c.side(x0))
    spine = c.roll(name + "lean", -0.25, 0.25) + 0.5 * zigzag
    main = c.edge((angle - spine) * depth_down * (1 if side > 0 else -1) * 0.8)
    spur = c.edge(np.sin(angle * 5.5 + c.roll(name + "fan", 0, 6) + 3 * zigzag) * depth_down * 0.3)
    sun = mix(0.5, 0.12 + 0.74 * main, 0.35 + 0.65 * abs(side)) + 0.16 * (spur - 0.5)

    line = top + snow * tall * (0.75 + 0.5 * c.noise(name + "s", x * 22, 1)) - 0.12 * zigzag * snow
    white = c.edge((line - y) * 0.8)[..., None] if snow > 0 else np.zeros(1, np.float32)
    colour = c.lit(mix(albedo, SNOW_COLOUR, white), sun + 0.12)
    mist = depth + (0.25 + 0.5 * depth) * smooth((y - top) / max(tall, 0.05)) ** 2
    c.paint(box, c.far(colour, mist), cover, label)
    if snow > 0 and label != SNOW:
        c.label[box][(white[..., 0] * cover) > 0.5] = SNOW


def dunes(c: Canvas, name, base, height, spacing, depth) -> Crest:
    """Wind-blown sand: broad humps, each with an S-shaped edge between its lit and shaded side."""
    cells = np.arange(math.floor(c.x[0] / spacing) - 2, math.ceil(c.x[-1] / spacing) + 3)
    jitter, size = c.cells(name + "x", cells), c.cells(name + "h", cells)
    centres = (cells + 0.5 + 0.5 * (jitter - 0.5)) * spacing
    talls = height * (0.5 + 0.5 * size)

    def hump(x: Array, k: int) -> Array:
        t = np.clip(np.abs(x - centres[k]) / (spacing * 1.15), 0, 1)
        return talls[k] * (1 - t) ** 1.6 * (1 + 0.6 * t)

    def crest(x: Array) -> Array:
        return (base - np.max([hump(x, k) for k in range(len(cells))], axis=0)).astype(np.float32)

    flat = c.far(c.lit(SAND_COLOUR, 0.5), depth)
    box = c.box(c.x[0], c.x[-1], base, 1)
    c.paint(box, flat, c.edge(c.at(box)[1] - base) + 0 * c.x, SAND)
    for k in np.argsort(talls)[::-1]:
        reach = spacing * 1.15
        box = c.box(centres[k] - reach, centres[k] + reach, base - talls[k], 1)
        x, y = c.at(box)
        if not (x.size and y.size):
            continue
        away, down = x - centres[k], y - (base - talls[k])
        side = float(c.side(centres[k]))
        bend = 0.05 * np.sin(down * 13 + 6 * jitter[k]) * smooth(down / 0.1)
        spine = bend - math.copysign(0.22, side) * down
        main = c.edge((away - spine) * math.copysign(0.4, side))
        fade = smooth((reach - np.abs(away)) / (0.8 * reach)) * np.exp(
            -((down / (talls[k] + 0.1)) ** 2)
        )
        sun = mix(0.5, mix(0.5, 1.5 * main - 0.3, 0.5 + 0.5 * abs(side)), fade)
        cover = c.edge(y - base + hump(x, k)) * smooth((reach - np.abs(away)) / (0.5 * reach))
        c.paint(box, c.far(c.lit(SAND_COLOUR, sun), depth), cover, SAND)
    return crest


STRATA = rgbs("c8693f e2925a b4532f d9824c edae74 a84a2e")


def mesas(c: Canvas, name, base, height, pitch, depth, gap=0.45):
    """Table mountains: noise pressed into plateaus, coloured by layers of rock."""

    def crest(x: Array) -> Array:
        n = c.noise(name, x * pitch, 1)
        plateau = 0.72 * smooth((n - gap) / 0.09) + 0.28 * smooth((n - gap - 0.16) / 0.06)
        level = 0.75 + 0.25 * c.noise(name + "level", x * pitch * 0.5)
        return (base + 0.01 - height * plateau * level).astype(np.float32)

    top = crest(c.x)
    slope = (crest(c.x + 0.012) - crest(c.x - 0.012)) / 0.024
    box = c.box(c.x[0], c.x[-1], float(top.min()), base)
    x, y = c.at(box)
    layer = (y + 0.015 * c.noise(name + "warp", x * 2)) * 17 + c.roll("strata", 0, 9)
    i = np.floor(layer)
    soft = smooth((layer - i) / 0.3)[..., None]
    palette = STRATA[np.arange(-60, 90) % 6]
    i = i.astype(np.int64) + 60
    albedo = mix(palette[i - 1], palette[i], soft)
    faces = -np.tanh(slope * 0.7) * c.side(x)
    buttress = smooth((c.noise(name + "face", x * 5 + 0.8 * y) - 0.25) / 0.5) - 0.5
    sun = np.clip(0.45 + 0.5 * faces + 0.2 * buttress + 0 * y, 0, 1)
    cover = c.edge((y - top) / np.sqrt(1 + slope**2)) * c.edge(base - y)
    c.paint(box, c.far(c.lit(albedo, sun), depth), cover, ROCK)


def winding(c: Canvas, name, crest: Crest, albedo, label, width=0.13, x0=None):
    """A road or river that winds from the bottom edge up to the crest, narrowing on its way."""
    x0 = c.roll(name, -0.2, 0.2) * c.reach if x0 is None else x0
    top = float(crest(np.array([x0]))[0])
    box = c.box(c.x[0], c.x[-1], top, 1)
    x, y = c.at(box)
    t = np.maximum(y - top, 0) / (1 - top)
    phase = c.roll(name + "phase", 0, 6.28)
    middle = x0 + 0.26 * t**0.8 * np.sin(phase + 5.5 * np.sqrt(t)) - 0.26 * t * np.sin(phase) * 0.4
    half = 0.006 + width * t**1.5
    cover = c.edge(half - np.abs(x - middle)) * c.edge(y - crest(x))
    if label == WATER:
        sky = mix(c.light.horizon, c.light.middle, t[..., None])
        bank = c.edge(half + 0.012 - np.abs(x - middle)) * c.edge(y - crest(x))
        c.paint(box, c.lit(rgb("a8906c"), 0.4), bank, None)
        c.paint(box, mix(sky, c.lit(rgb("2f7fae"), 0.6)[None], 0.35), cover, WATER)
        return
    c.paint(box, c.lit(albedo, 0.5), cover, label)
    dashes = smooth((np.sin(46 * np.sqrt(t)) + 0.2) * 3) * c.edge(half * 0.1 - np.abs(x - middle))
    c.paint(box, c.lit(rgb("f6e9b8"), 0.6), dashes * cover * (t > 0.1), None)


# ── water ─────────────────────────────────────────────────────────────────────────────────────


def paint_water(c: Canvas, top: float, tone: Array | None = None, calm: float | None = None):
    """A water plane from `top` down: what stands above it, mirrored, broken by ripples."""
    calm = c.roll("calm", 0.1, 1.0) if calm is None else calm
    box = c.box(c.x[0], c.x[-1], top + 1.5 * c.px, 1)
    x, y = c.at(box)
    d = y - top
    swell = np.log(1 + d / 0.035).ravel()
    ripple = c.noise2("ripple", x * 5, swell * 7, 2) - 0.5
    mirrored = top - d * 0.92 + ripple * (0.05 + 0.22 * (1 - calm)) * smooth(d / 0.2)
    rows = np.clip(mirrored * c.height, 0, max(top * c.height - 1, 0)).astype(np.int64)
    below = c.rgb[rows, np.arange(c.width)]
    tone = c.lit(rgb("2b78a8") if tone is None else tone, 0.7)
    depth = 0.14 + 0.3 * smooth(d / 0.5) + 0.16 * (1 - calm) + 0.28 * ripple
    colour = mix(below, tone, np.clip(depth, 0, 1)[..., None])
    sky = mix(c.light.horizon, c.light.middle, smooth(d / 0.35)[..., None])
    streaks = smooth((ripple - 0.12) / 0.08) * smooth(d / 0.06) * (0.3 + 0.35 * (1 - calm))
    colour = mix(colour, sky, streaks[..., None] * 0.7)
    c.paint(box, colour, c.edge(d), WATER)
    if c.plan.weather not in ("overcast", "fog"):
        paint_glitter(c, box, d, ripple)


def paint_glitter(c: Canvas, box, d, ripple):
    """The light's path on the water: a column under sun or moon, cut by the ripples."""
    x, _ = c.at(box)
    low = {"noon": 0.5, "night": 0.8, "dusk": 0.35}.get(c.plan.time, 1.0)
    column = np.exp(-(((x - c.light.x) / (0.05 + 0.16 * d)) ** 2))
    sparkle = smooth((ripple + 0.10 * column) / 0.09)
    cover = column * sparkle * low * np.exp(-d / 0.5) * 0.9
    c.paint(box, mix(c.light.disc, c.light.horizon, 0.15), cover, None)
