"""scenery: procedural landscapes with class, caption and semantic map.

The data set that needs no download. `render(seed)` paints one place, back to front, and says what
it shows. Three ideas carry the file:

    the world is infinite    lengths are in units of the image height, x = 0 is the middle of the
                             image, and every detail is hashed from its position: a larger image is
                             sharper, a wider one shows more of the same world
    light comes first        a palette per time of day gives sky, haze, ambient and direct light;
                             whatever is painted is lit from there and fades into that haze
    a row costs one pass     trees, houses and towers stand in cells along x; every column knows
                             its cell, so a forest is drawn by the same few array operations
                             as a tree

Reading order: attributes, hashing, Canvas, sky, land, water, things that stand in rows, objects,
the twelve places, captions, render.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Array = np.ndarray
Crest = Callable[[Array], Array]  # x -> y of the upper edge of some land

# --- What a scene can be ---------------------------------------------------------------------

TIMES = ("dawn", "noon", "sunset", "dusk", "night")
WEATHERS = ("clear", "cloudy", "overcast", "fog", "rainbow", "aurora")
SEASONS = ("spring", "summer", "autumn", "winter")
OBJECTS = ("balloon", "birds", "boat", "cabin", "lighthouse", "tent", "none")
SPLITS = ("train", "validation", "test")

LABELS = (
    "sky", "cloud", "light", "star", "aurora", "rainbow", "mountain", "rock", "water",
    "snow", "sand", "grass", "tree", "building", "road", "boat", "balloon", "bird",
)  # fmt: skip
PALETTE = np.array(
    [
        (142, 196, 240), (236, 240, 245), (255, 221, 87), (255, 255, 200), (72, 224, 160),
        (240, 130, 200), (128, 120, 140), (178, 96, 66), (38, 104, 190), (214, 232, 250),
        (236, 204, 140), (122, 184, 76), (30, 100, 52), (226, 88, 62), (90, 90, 96),
        (150, 60, 160), (255, 64, 110), (40, 36, 44),
    ],
    dtype=np.uint8,
)  # fmt: skip
SKY, CLOUD, LIGHT, STAR, AURORA, RAINBOW, MOUNTAIN, ROCK, WATER = range(9)
SNOW, SAND, GRASS, TREE, BUILDING, ROAD, BOAT, BALLOON, BIRD = range(9, 18)


@dataclass(frozen=True)
class Scene:
    """One landscape: pixels (H W 3 uint8), labels (H W uint8) and what is true of it."""

    image: Array
    semantic_map: Array
    kind: str
    caption: str
    attributes: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """The parameters of a scene, drawn before any pixel and in this order."""

    kind: str
    time: str
    weather: str
    season: str
    view: str  # what fills the foreground
    thing: str  # one of OBJECTS
    moon: str  # full or crescent
    mood: float  # between the two palettes of the time of day
    salt: int  # seeds every hash: positions, shapes, phrases


# --- Hashing: randomness that belongs to a place ---------------------------------------------

_M64 = (1 << 64) - 1
_A, _B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


@lru_cache(maxsize=4096)
def name_hash(name: str) -> int:
    """A name as 64 bits, the same in every process."""
    return (zlib.crc32(name.encode()) * _A) & _M64


def mix64(h: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64, shortened)."""
    h = ((h ^ (h >> 30)) * _B) & _M64
    h = ((h ^ (h >> 27)) * _A) & _M64
    return h ^ (h >> 31)


def hash_cells(key: int, i: Array) -> Array:
    """Uniform float32 in [0, 1) for integer cells i, of any shape."""
    h = (i.astype(np.int64).astype(np.uint64) + np.uint64(key)) * np.uint64(_A)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(_B)
    h ^= h >> np.uint64(27)
    return ((h * np.uint64(_A)) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def smooth(t: Array) -> Array:
    """3t² - 2t³ on [0, 1], flat outside: the soft step of every edge and noise."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array, b: Array, t: Array | float) -> Array:
    """a → b as t goes 0 → 1."""
    return a + (b - a) * t


def rgb(code: str) -> Array:
    """ "ffb45e" → float32 colour in [0, 1]."""
    return np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)], np.float32)


def rgbs(codes: str) -> Array:
    """ "ffb45e 5a2f5f" → one colour per row."""
    return np.stack([rgb(code) for code in codes.split()])


# --- Light -----------------------------------------------------------------------------------

#         zenith   middle   horizon  disc     ambient  direct   cloud    its shade
MOODS = {  # two palettes per time of day: a scene is a mixture of them
    "dawn": ("5f8fc8 a9b9dc ffd3b8 fff3d2 8c8fb4 70503c fff0e4 b7a3c4",
             "6a7fc0 d8aecb ffe0b0 fff3d2 9088ac 70543c ffe2d8 b494bc"),
    "noon": ("2c7bd6 6fb4f0 cfe9f8 fffbe0 96a6c0 6c644c ffffff b4c8e2",
             "1d93c8 6cc6e2 def3ea fffbe0 98aab8 6c6448 ffffff b8d0dc"),
    "sunset": ("3d3c80 d4607e ffb560 fff2bc 70587c 925430 ffb888 8c507e",
               "6a2f62 e85a4a ffc552 fff2bc 7a5670 924c28 ffa878 96465e"),
    "dusk": ("20285e 5c4c94 ee9490 fff0d8 50508c 44302e d292ac 514886",
             "163654 40718f f2b88e fff0d8 4a5a84 44342c cfa0a0 41587c"),
    "night": ("0a1744 1a3478 40659f f6f3de 3a4f8a 364258 6a80b0 2a3c70",
              "121240 2b2c70 51599c f6f3de 404888 363e58 7a78b4 302f6c"),
}  # fmt: skip


@dataclass(frozen=True)
class Light:
    """Colours of the hour, and where the sun or moon stands (x, y)."""

    zenith: Array
    middle: Array
    horizon: Array
    disc: Array
    ambient: Array
    direct: Array
    cloud: Array
    shade: Array
    x: float
    y: float
    density: float  # of the haze


def light_of(plan: Plan, horizon: float, x: float) -> Light:
    """The light of a plan: the palette of its hour, greyed by its weather."""
    a, b = (rgbs(row) for row in MOODS[plan.time])
    colours = mix(a, b, plan.mood).astype(np.float32)
    if plan.weather in ("overcast", "fog"):
        grey = colours.mean(axis=1, keepdims=True)
        colours = mix(
            colours, grey * rgb("e8f1ff") * 1.1, 0.4 if plan.weather == "overcast" else 0.3
        )
        colours[0] = mix(colours[0], colours[7], 0.5)
        colours[4] += 0.35 * colours[5]  # direct light becomes ambient
        colours[5] *= 0.45
    heights = {"noon": 0.14, "night": 0.16, "dusk": 0.22}
    y = heights.get(plan.time, horizon - 0.2) + 0.06 * (2 * (mix64(plan.salt) / 2**64) - 1)
    return Light(*colours, x=x, y=y, density=2.6 if plan.weather == "fog" else 1.0)


# --- Canvas ----------------------------------------------------------------------------------


class Canvas:
    """Pixels and labels being painted, the light on them, and the dice of the place."""

    def __init__(self, plan: Plan, height: int, width: int, horizon: float):
        self.plan, self.horizon = plan, horizon
        self.height, self.width, self.px = height, width, 1 / height
        self.x = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
        self.y = ((np.arange(height) + 0.5) / height).astype(np.float32)[:, None]
        self.reach = min(1.0, width / height)  # keeps what matters inside narrow images
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.count = 0  # of the scene's object, inside the image
        self.light = light_of(plan, horizon, self.roll("light x", -0.34, 0.34) * self.reach)

    # dice: the same name gives the same number in this scene, whatever the size

    def key(self, name: str) -> int:
        return mix64(self.plan.salt ^ name_hash(name))

    def roll(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self.key(name) / 2**64

    def cells(self, name: str, i: Array) -> Array:
        return hash_cells(self.key(name), i)

    def noise(self, name: str, x: Array, octaves: int = 1) -> Array:
        """Value noise in [0, 1] along a line; each octave has twice the pitch, half the weight."""
        total = np.zeros(np.shape(x), np.float32)
        for octave in range(octaves):
            at = np.asarray(x, np.float64) * 2**octave
            i = np.floor(at)
            ends = self.cells(f"{name}{octave}", np.stack([i, i + 1]))
            total += mix(ends[0], ends[1], smooth(at - i)) * 0.5 ** (octave + 1)
        return total / (1 - 0.5**octaves)

    def noise2(self, name: str, x: Array, y: Array, octaves: int = 1) -> Array:
        """Value noise in [0, 1] on the grid y × x: rows are interpolated first, then columns."""
        total = np.zeros((y.size, x.size), np.float32)
        if not total.size:
            return total
        for octave in range(octaves):
            u, v = x.ravel() * 2**octave, y.ravel() * 2**octave
            i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
            across = np.arange(i.min(), i.max() + 2)
            down = np.arange(j.min(), j.max() + 2)
            grid = self.cells(f"{name}{octave}", across + 100003 * down[:, None])
            a, b = smooth(u - i), smooth(v - j)[:, None]
            j, i = j - down[0], i - across[0]
            rows = mix(grid[j], grid[j + 1], b.astype(np.float32))
            total += mix(rows[:, i], rows[:, i + 1], a) * np.float32(0.5 ** (octave + 1))
        return total / (1 - 0.5**octaves)

    # painting

    def box(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        """The pixels of a rectangle, clipped to the image, as (rows, columns)."""
        top, bottom = math.floor(y0 / self.px) - 1, math.ceil(y1 / self.px) + 1
        left = math.floor(x0 / self.px + self.width / 2) - 1
        right = math.ceil(x1 / self.px + self.width / 2) + 1
        return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))

    def at(self, box: tuple[slice, slice]) -> tuple[Array, Array]:
        """Coordinates (x, y) of a box, ready to broadcast."""
        return self.x[box[1]], self.y[box[0]]

    def edge(self, distance: Array) -> Array:
        """Coverage of a pixel whose centre lies `distance` inside a shape."""
        return np.clip(distance * np.float32(self.height) + np.float32(0.5), 0, 1)

    def paint(self, box: tuple[slice, slice], colour: Array, cover: Array, label: int | None):
        """Lay a colour over a box where `cover` says; the label follows from half coverage."""
        below = self.rgb[box]
        if not below.size:
            return
        cover = cover.astype(np.float32, copy=False)
        below += (colour - below) * cover[..., None]
        if label is not None:
            self.label[box][np.broadcast_to(cover > 0.5, below.shape[:2])] = label

    # light

    def side(self, x: Array | float) -> Array:
        """From -1 (lit from the left) to 1 (lit from the right)."""
        return np.tanh((self.light.x - x) * 5)

    def lit(self, albedo: Array, sun: Array | float) -> Array:
        """albedo · (ambient + sun · direct), sun in [0, 1]."""
        sun = np.asarray(sun, np.float32)[..., None]
        return albedo * (self.light.ambient * 1.02 + sun * (self.light.direct * 1.25))

    def far(self, colour: Array, depth: Array | float) -> Array:
        """Atmospheric perspective: distance fades into the colour of the horizon."""
        amount = 1 - np.exp(-np.asarray(depth, np.float32) * self.light.density)
        haze = mix(self.light.horizon, self.light.middle, 0.35)
        return mix(colour, haze, np.asarray(amount)[..., None])


# --- Sky -------------------------------------------------------------------------------------


def paint_sky(c: Canvas):
    """Gradient, glow, stars, aurora, sun or moon, clouds, rainbow: farthest first."""
    weather, night = c.plan.weather, c.plan.time == "night"
    t = c.y / c.horizon
    gradient = mix(c.light.zenith, c.light.middle, smooth(t / 0.62))
    gradient = mix(gradient, c.light.horizon, smooth((t - 0.35) / 0.65))
    c.rgb[:] = gradient[:, None]
    paint_glow(c)
    if night and weather in ("clear", "aurora", "cloudy"):
        dots(c, "stars", 0.115, c.light.disc, STAR, 0.0, c.horizon - 0.03, 0.008, 0.55)
    if weather == "aurora":
        paint_aurora(c)
    if weather in ("clear", "cloudy", "aurora", "rainbow"):
        paint_disc(c)
    if weather == "rainbow":
        paint_rainbow(c)
    if weather in ("cloudy", "overcast", "rainbow"):
        paint_clouds(c)


def paint_glow(c: Canvas):
    """The bright region around the light, wide and low when the sun is near the horizon."""
    strength = {"noon": 0.35, "night": 0.22, "dusk": 0.5}.get(c.plan.time, 0.75)
    strength *= 0.35 if c.plan.weather in ("overcast", "fog") else 1.0
    y = c.horizon if c.plan.time == "dusk" else c.light.y
    size = 0.45 if c.plan.time in ("dawn", "sunset", "dusk") else 0.3
    falloff = np.exp(-(((c.x - c.light.x) / size) ** 2)) * np.exp(-(((c.y - y) / 0.28) ** 2))
    colour = mix(c.light.disc, c.light.horizon, 0.6 if c.plan.time != "night" else 0.3)
    c.rgb += (colour - c.rgb) * (falloff * strength)[..., None]


def paint_disc(c: Canvas):
    """The sun, or the moon with a soft shadow when it is a crescent."""
    moon = c.plan.time in ("dusk", "night")
    radius = c.roll("disc", 0.042, 0.056) if moon else c.roll("disc", 0.05, 0.07)
    box = c.box(c.light.x - radius, c.light.x + radius, c.light.y - radius, c.light.y + radius)
    x, y = c.at(box)
    distance = radius - np.hypot(x - c.light.x, y - c.light.y)
    cover = c.edge(distance)
    if moon and c.plan.moon == "crescent":
        shift = radius * 0.55
        cover *= c.edge(np.hypot(x - c.light.x - shift, y - c.light.y + shift * 0.5) - radius * 0.9)
    c.paint(box, mix(c.light.disc, 1.0, 0.35), cover, LIGHT)


def dots(c: Canvas, name, pitch, colour, label, top, bottom, radius, share):
    """Scattered soft discs, one per square cell at most: stars, flowers."""
    box = c.box(c.x[0], c.x[-1], top, bottom)
    x, y = c.at(box)
    if not y.size:
        return
    i, j = np.floor(x / pitch).astype(np.int64), np.floor(y / pitch).astype(np.int64)
    cells = i + 100003 * j
    dx, dy, size = (c.cells(f"{name}{k}", cells) for k in range(3))
    margin = radius / pitch + 0.05
    cx = (i + margin + (1 - 2 * margin) * dx) * pitch
    cy = (j + margin + (1 - 2 * margin) * dy) * pitch
    distance = radius * (0.75 + 0.5 * size) - np.hypot(x - cx, y - cy)
    present = c.cells(name, cells) < share
    cover = smooth(c.edge(distance)) * present * (0.55 + 0.45 * size)
    fade = smooth((bottom - y) / 0.12) if label == STAR else 1.0
    c.paint(box, colour, cover * fade, label)


def paint_aurora(c: Canvas):
    """Curtains of light: a crisp lower hem, rays that fade upwards from green to violet."""
    box = c.box(c.x[0], c.x[-1], 0, c.horizon)
    x, y = c.at(box)
    for k, strength in enumerate((0.5, 0.9)):
        hem = c.horizon * (0.5 + 0.24 * k) + 0.3 * (c.noise(f"hem{k}", x * 1.3 + 7, 2) - 0.5)
        above = hem - y
        tall = 0.16 + 0.2 * c.noise(f"tall{k}", x * 3)
        rays = 0.45 + 0.55 * c.noise(f"rays{k}", x * 9, 2)
        glow = smooth(above / 0.035 + 0.3) * np.exp(-np.maximum(above, 0) / tall) * rays * strength
        t = smooth(above / 0.34)[..., None]
        colour = mix(rgb("5dfcb4"), mix(rgb("38b6d8"), rgb("a862f0"), c.roll("violet")), t)
        below = c.rgb[box]
        below += (colour - below) * glow[..., None] * 0.95
        c.label[box][glow > 0.3] = AURORA


RAINBOW_COLOURS = rgbs("f25c5c f7a14a f9e25e 66d07a 4fa3f0 8a6be0")


def paint_rainbow(c: Canvas):
    """An arc opposite the sun, red outside."""
    cx, radius, width = -0.6 * c.light.x, c.roll("arc", 0.4, 0.5), 0.075
    box = c.box(cx - radius, cx + radius, c.horizon + 0.03 - radius, c.horizon + 0.03)
    x, y = c.at(box)
    t = (radius - np.hypot(x - cx, y - c.horizon - 0.03)) / width
    at = np.clip(t * 6 - 0.5, 0, 5)
    i = np.minimum(at.astype(np.int64), 4)
    colour = mix(RAINBOW_COLOURS[i], RAINBOW_COLOURS[i + 1], (at - i)[..., None])
    inside = smooth(t / 0.2) * smooth((1 - t) / 0.2)
    c.paint(box, colour, inside * 0.62, None)
    c.label[box][inside > 0.5] = RAINBOW


def paint_clouds(c: Canvas):
    """Thresholded noise, flattened towards the horizon, bright on the side of the light."""
    weather = c.plan.weather
    box = c.box(c.x[0], c.x[-1], 0, c.horizon)
    x, y = c.at(box)
    x, y = x + c.roll("drift", 0, 50), y.ravel()
    v = 2.2 * np.log1p(2.2 * (y + 0.05))
    field = c.noise2("cloud", x * 1.9, v * 2.4, 4)
    towards = 0.05 * c.side(c.x)
    ahead = c.noise2("cloud", (x + towards) * 1.9, (v - 0.07) * 2.4, 3)
    if weather == "overcast":
        cover = 0.55 + 0.45 * smooth((field - 0.3) / 0.3)
        cover *= 0.35 + 0.65 * smooth((c.horizon - y) / 0.16)[:, None]
    else:
        threshold = c.roll("cloudiness", 0.5, 0.56)
        cover = smooth((field - threshold) / 0.09) * smooth((c.horizon - 0.04 - y) / 0.1)[:, None]
    bright = smooth(0.55 + (field - ahead) * 4.5)
    colour = mix(c.light.shade, c.light.cloud, bright[..., None])
    if weather == "overcast":
        colour = mix(c.light.shade, c.light.cloud, (0.15 + 0.5 * bright)[..., None])
    c.paint(box, colour, cover * 0.96, CLOUD)


# --- Land ------------------------------------------------------------------------------------

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
    white = c.edge((line - y) * 0.8)[..., None] if snow > 0 else 0.0
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


# --- Water -----------------------------------------------------------------------------------


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


# --- Things that stand in rows ---------------------------------------------------------------


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


# --- Objects ---------------------------------------------------------------------------------


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


# --- The twelve places -----------------------------------------------------------------------


def leaves_of(c: Canvas) -> Array:
    return LEAVES[c.plan.season]


def paint_mountains(c: Canvas):
    albedo, label = ground_of(c)
    snow = 0.75 if c.plan.season == "winter" else c.roll("snow", 0.28, 0.5)
    base = c.horizon + (0.01 if c.plan.view == "lake" else 0.08)
    peaks(c, "back", base, 0.36, 0.3, STONE, 0.55, snow)
    peaks(c, "front", base, 0.48, 0.52, STONE * 0.9, 0.12, snow)
    if c.plan.view == "lake":
        hills(c, "shore", c.horizon, 0.035, 4, albedo, label, 0.12, floor=c.horizon + 0.005)
        paint_water(c, c.horizon)
        sail(c, c.horizon + 0.1, c.horizon + 0.2)
        bank = hills(c, "bank", 0.97, 0.12, 1.6, albedo, label, 0)
        trees(c, "firs", bank, 0.26, 0.17, pine, 0, 0.55)
    elif c.plan.view == "pines":
        slope = hills(c, "slope", c.horizon + 0.1, 0.1, 2, albedo * 0.9, label, 0.2)
        trees(c, "far firs", slope, 0.12, 0.07, pine, 0.2, 0.9)
        bank = hills(c, "bank", 0.88, 0.1, 1.6, albedo, label, 0)
        trees(c, "firs", bank, 0.24, 0.15, pine, 0, 0.75)
    else:
        hills(c, "slope", c.horizon + 0.08, 0.1, 2, albedo * 0.9, label, 0.18)
        bank = hills(c, "bank", 0.8, 0.1, 1.4, albedo, label, 0)
        if c.plan.view == "road":
            winding(c, "road", bank, rgb("8a8078"), ROAD)
        trees(c, "firs", bank, 0.14, 0.2, pine, 0, 0.4)
    place_on(c, bank, 0.04)


def paint_desert(c: Canvas):
    if c.plan.view == "rocks":
        mesas(c, "mesa", c.horizon + 0.05, 0.24, 2.2, 0.4)
    dunes(c, "far dunes", c.horizon + 0.05, 0.1, 0.45, 0.42)
    dunes(c, "dunes", c.horizon + 0.2, 0.2, 0.75, 0.14)
    near = dunes(c, "near dunes", 1.04, 0.27, 1.1, 0)
    if c.plan.view == "cacti":
        trees(c, "cacti", near, 0.3, 0.34, cactus, 0, 0.75, rgbs("4f8a52 4f8a52 4f8a52"))
    elif c.plan.view == "palms":
        trees(c, "palms", near, 0.36, 0.3, palm, 0, 0.6, rgbs("3f8f4f 3f8f4f 3f8f4f"))
    place_on(c, near)


def paint_forest(c: Canvas):
    albedo, label = ground_of(c)
    hills(c, "ridge", c.horizon, 0.16, 1.8, mix(PINES[0], STONE, 0.3), TREE, 0.9, 3)
    slopes = [("wood3", 0.02, 0.09, 0.05, 0.55), ("wood2", 0.1, 0.14, 0.085, 0.3)]
    shape, leaves = (pine, PINES) if c.plan.view == "pines" else (round_tree, leaves_of(c))
    for name, down, tall, spacing, depth in slopes:
        land = hills(c, name, c.horizon + down, 0.06, 2.4, PINES[0] * 0.9, TREE, depth)
        trees(c, name + "a", land, tall, spacing, shape, depth, 1.0, leaves)
    clearing = hills(c, "clearing", 0.8, 0.06, 1.5, albedo, label, 0.04)
    trees(c, "row", clearing, 0.27, 0.17, shape, 0.08, 0.95, leaves)
    near = hills(c, "near", 0.98, 0.05, 1.5, albedo * 0.95, label, 0)
    if c.plan.view == "stream":
        winding(c, "stream", clearing, None, WATER)
    trees(c, "big", near, 0.46, 0.42, shape, 0, 0.5, leaves)
    place_on(c, clearing, 0.1)


def paint_coast(c: Canvas):
    sea = rgb("2a8fb8")
    hills(c, "cape", c.horizon, 0.08, 1.1, mix(STONE, GROUND[c.plan.season], 0.4), MOUNTAIN, 0.6,
          floor=c.horizon)  # fmt: skip
    if c.roll("headland") < 0.5:
        green = mix(STONE, GROUND[c.plan.season], 0.5)
        peaks(c, "headland", c.horizon + 0.004, 0.17, 0.62, green, 0.4, 0)
    if c.plan.view == "cliffs":
        cliffs(c, "head", c.horizon + 0.004, 0.2, 0.3)
    paint_water(c, c.horizon, sea, c.roll("calm", 0.1, 0.6))
    sail(c, c.horizon + 0.08, c.horizon + 0.16)
    if c.plan.view == "beach":
        hills(c, "foam", 0.86, 0.1, 1.1, rgb("f4fafc"), WATER, 0)
        land = hills(c, "sand", 0.885, 0.1, 1.1, SAND_COLOUR, SAND, 0)
        hills(c, "sand2", 0.99, 0.06, 1.7, SAND_COLOUR * 1.04, SAND, 0)
        trees(c, "palms", land, 0.4, 0.4, palm, 0, 0.6, rgbs("3f9a55 3f9a55 3f9a55"))
        place_on(c, land, 0.06)
    else:
        albedo, label = ground_of(c)
        cliffs(c, "cliff", 1.02, 0.36, 0)
        land = hills(c, "top", 0.96, 0.1, 1.2, albedo, label, 0)
        place_on(c, land, 0.05)


def cliffs(c: Canvas, name, base, height, depth) -> Crest:
    """Headlands that fall steeply into the sea: lawn or snow above, layered stone below."""
    albedo, label = ground_of(c)

    def crest(x: Array) -> Array:
        n = c.noise(name, x * 1.5, 1)
        rise = smooth((n - 0.5) / 0.1) * (0.75 + 0.6 * (n - 0.5))
        return (base + 0.01 - height * rise).astype(np.float32)

    top = crest(c.x)
    slope = (crest(c.x + 0.01) - crest(c.x - 0.01)) / 0.02
    box = c.box(c.x[0], c.x[-1], float(top.min()), base)
    x, y = c.at(box)
    below = (y - top) / np.sqrt(1 + slope**2)
    ribs = smooth((c.noise(name + "rib", x * 11 + y * 1.5, 1) - 0.38) / 0.24)
    layers = smooth(np.sin(y * 75 + 3 * c.noise(name + "layer", x * 2)) * 2 + 0.5)
    sun = np.clip(0.42 - 0.4 * np.tanh(slope) * c.side(x) + 0.4 * (ribs - 0.5), 0, 1)
    stone = mix(rgb("c4ac98"), rgb("e6d8c6"), layers[..., None])
    c.paint(box, c.far(c.lit(stone, sun), depth), c.edge(below) * c.edge(base - y), ROCK)
    turf = c.edge(0.028 + 0.022 * c.noise(name + "turf", x * 16) - (y - top)) * c.edge(below)
    turf = turf * c.edge(base - y) * smooth(1.6 - np.abs(slope))
    c.paint(box, c.far(c.lit(albedo, 0.75), depth), turf, label)
    return crest


def paint_lake(c: Canvas):
    albedo, label = ground_of(c)
    hills(c, "range", c.horizon, 0.32, 1.4, mix(STONE, albedo, 0.35), MOUNTAIN, 0.75, 3)
    shore = hills(
        c, "shore", c.horizon, 0.1, 2, albedo * 0.92, label, 0.22, floor=c.horizon + 0.006
    )
    at_water = lambda x: np.minimum(shore(x) + 0.03, c.horizon).astype(np.float32)  # noqa: E731
    if c.plan.view == "pines":
        trees(c, "shore firs", at_water, 0.17, 0.1, pine, 0.12, 0.85)
    elif c.plan.view == "trees":
        trees(c, "shore trees", at_water, 0.15, 0.13, round_tree, 0.1, 0.85, leaves_of(c))
    paint_water(c, c.horizon, calm=c.roll("still", 0.45, 1.0))
    sail(c, c.horizon + 0.1, c.horizon + 0.2)
    bank = hills(c, "bank", 0.99, 0.15, 1.3, albedo, label, 0)
    if c.plan.view == "pines":
        trees(c, "bank firs", bank, 0.4, 0.4, pine, 0, 0.35)
    place_on(c, bank, 0.04)


def paint_meadow(c: Canvas):
    albedo, label = ground_of(c)
    hills(c, "blue", c.horizon, 0.16, 1.5, mix(STONE, albedo, 0.5), MOUNTAIN, 0.8, 3)
    hills(c, "far", c.horizon + 0.06, 0.1, 1.8, albedo * 0.92, label, 0.35)
    middle = hills(c, "middle", c.horizon + 0.17, 0.12, 1.4, albedo, label, 0.14)
    trees(c, "copse", middle, 0.1, 0.1, round_tree, 0.14, 0.5, leaves_of(c))
    near = hills(c, "near", 0.86, 0.13, 1.1, mix(albedo, GROUND["spring"], 0.12), label, 0)
    if c.plan.view == "flowers":
        for k, h in enumerate(("f2f0e6", "f0655e", "f7c844")):
            dots(c, f"flowers{k}", 0.09, c.lit(rgb(h), 0.9), None, 0.86, 1.1, 0.016, 0.4)
    elif c.plan.view == "road":
        winding(c, "road", near, rgb("c9a878"), ROAD, 0.11)
    elif c.plan.view == "river":
        winding(c, "river", near, None, WATER, 0.2)
    trees(c, "trees", near, 0.26, 0.36, round_tree, 0, 0.5, leaves_of(c))
    place_on(c, near, 0.05)


def paint_city(c: Canvas):
    hills(c, "hills", c.horizon, 0.12, 1.3, STONE, MOUNTAIN, 0.95, floor=c.horizon)
    base = c.horizon + (0 if c.plan.view == "river" else 0.09)
    skyline(c, "far", base, 0.4, 0.1, 0.75, windows=False)
    skyline(c, "mid", base, 0.52, 0.15, 0.3)
    skyline(c, "near", base, 0.36, 0.2, 0.02)
    if c.plan.view == "river":
        paint_water(c, c.horizon, rgb("2f6690"), c.roll("still", 0.3, 0.95))
        sail(c, c.horizon + 0.1, c.horizon + 0.22)
    else:
        albedo, label = ground_of(c)
        park = hills(c, "park", c.horizon + 0.09, 0.09, 1.2, albedo, label, 0.04)
        if c.plan.view == "road":
            winding(c, "road", park, rgb("70707a"), ROAD, 0.16)
        trees(c, "row", park, 0.13, 0.13, round_tree, 0.04, 0.8, leaves_of(c))
        if c.plan.view == "park":
            lawn = hills(c, "lawn", 0.92, 0.08, 1.3, albedo * 1.02, label, 0)
            trees(c, "big", lawn, 0.27, 0.34, round_tree, 0, 0.6, leaves_of(c))


ICE = rgb("cfe6f6")


def paint_arctic(c: Canvas):
    far = c.horizon + (0.01 if c.plan.view == "icebergs" else 0.07)
    peaks(c, "range", far, 0.26, 0.34, rgb("a9b6cc"), 0.55, 0.85)
    if c.plan.view == "icebergs":
        peaks(c, "floe", c.horizon + 0.012, 0.1, 0.3, ICE, 0.2, 0.3, SNOW)
        paint_water(c, c.horizon + 0.012, rgb("2c86a8"), c.roll("still", 0.4, 0.9))
        for x in spots(c, "berg", 0.25):
            name = f"berg {x:.3f}"
            y, tall = c.horizon + 0.14, c.roll(name, 0.16, 0.26)
            iceberg(c, name, x, y, tall)
        sail(c, c.horizon + 0.08, c.horizon + 0.1)
        land = hills(c, "bank", 1.0, 0.12, 1.2, SNOW_COLOUR, SNOW, 0)
    else:
        hills(c, "drift far", c.horizon + 0.07, 0.08, 1.5, SNOW_COLOUR, SNOW, 0.25)
        hills(c, "drift mid", c.horizon + 0.2, 0.12, 1.1, SNOW_COLOUR, SNOW, 0.08)
        land = hills(c, "drift", 0.94, 0.15, 0.9, SNOW_COLOUR, SNOW, 0)
        if c.plan.view == "pines":
            trees(c, "firs", land, 0.22, 0.2, pine, 0, 0.5)
    place_on(c, land, 0.04)


def iceberg(c: Canvas, name, x, y, tall):
    """Ice above the water and its pale, broken reflection below."""
    peak(c, name, x, y - tall, y, ICE, 0, 0.35, SNOW, slopes=(0.8, 1.5))
    peak(c, name + "b", x + 0.13, y - 0.6 * tall, y + 0.005, ICE, 0, 0.3, SNOW, slopes=(1.6, 0.7))
    box = c.box(x - 0.22, x + 0.34, y, y + 0.12)
    px, py = c.at(box)
    cover = smooth(1 - np.abs(px - x - 0.05) / 0.24) * smooth(1 - (py - y) / 0.11)
    c.paint(box, c.lit(rgb("9fd8e8"), 0.6), cover * 0.5, None)


def paint_canyon(c: Canvas):
    hills(c, "plain", c.horizon + 0.04, 0.03, 1.5, rgb("d99a64"), SAND, 0.8)
    mesas(c, "far", c.horizon + 0.05, 0.24, 2.4, 0.75, 0.28)
    mesas(c, "mid", c.horizon + 0.16, 0.36, 1.9, 0.25, 0.46)
    floor = hills(c, "floor", c.horizon + 0.17, 0.05, 1.6, rgb("d99a64"), SAND, 0.08)
    if c.plan.view == "river":
        winding(c, "river", floor, None, WATER, 0.24)
    elif c.plan.view == "road":
        winding(c, "road", floor, rgb("6f6468"), ROAD, 0.12)
    mesas(c, "near", 1.02, 0.68, 1.25, 0.02, 0.6)
    if c.plan.view == "cacti":
        land = hills(c, "ledge", 0.96, 0.06, 1.5, rgb("cf8a55"), SAND, 0)
        trees(c, "cacti", land, 0.28, 0.3, cactus, 0, 0.75, rgbs("5f8f58 5f8f58 5f8f58"))
    place_on(c, floor, 0.12)


def paint_islands(c: Canvas):
    sea = rgb("1fa0b4")
    green, stone = rgb("5f9f50"), rgb("8f8378")
    hills(c, "far", c.horizon + 0.06, 0.14, 2.0, mix(stone, green, 0.5), MOUNTAIN, 0.75,
          floor=c.horizon)  # fmt: skip
    if c.plan.view == "cliffs":
        peaks(c, "stack", c.horizon + 0.004, 0.34, 0.5, mix(stone, green, 0.55), 0.2, 0, ROCK)
    isle = hills(c, "isle", c.horizon + 0.09, 0.2, 1.7, green, GRASS, 0.1, floor=c.horizon + 0.006)
    if c.plan.view == "palms":
        trees(
            c,
            "isle palms",
            isle,
            0.22,
            0.14,
            palm,
            0.05,
            0.85,
            rgbs("2f8a4f 2f8a4f 2f8a4f"),
            c.horizon - 0.01,
        )
    paint_water(c, c.horizon, sea, c.roll("calm", 0.3, 0.9))
    sail(c, c.horizon + 0.1, c.horizon + 0.22)
    land = hills(c, "sand", 1.05, 0.2, 1.2, SAND_COLOUR, SAND, 0)
    if c.plan.view == "palms":
        trees(c, "palms", land, 0.46, 0.5, palm, 0, 0.6, rgbs("3f9a55 3f9a55 3f9a55"))
    if c.plan.thing == "lighthouse":
        x = next(objects(c))
        y = c.horizon + 0.1
        peak(c, "skerry", x, y - 0.05, y, stone, 0, 0, ROCK, slopes=(0.35, 0.4))
        lighthouse(c, x, y - 0.03, 0.26)


def paint_village(c: Canvas):
    albedo, label = ground_of(c)
    hills(c, "range", c.horizon, 0.26, 1.3, mix(STONE, albedo, 0.35), MOUNTAIN, 0.8, 3)
    far = hills(c, "far", c.horizon + 0.06, 0.08, 1.6, albedo * 0.95, label, 0.25)
    trees(c, "wood", far, 0.1, 0.08, pine, 0.25, 0.6)
    middle = hills(c, "middle", c.horizon + 0.14, 0.07, 1.5, albedo, label, 0.12)
    houses(c, "back", middle, 0.12, 0.15, 0.1, 0.85)
    church(c, middle)
    near = hills(c, "near", c.horizon + 0.27, 0.07, 1.3, albedo * 1.02, label, 0.03)
    trees(c, "garden", near, 0.13, 0.16, round_tree, 0.05, 0.4, leaves_of(c))
    if c.plan.view == "road":
        winding(c, "road", near, rgb("c9a878"), ROAD, 0.14)
    elif c.plan.view == "river":
        winding(c, "river", near, None, WATER, 0.24)
    houses(c, "front", lambda x: near(x) + 0.06, 0.16, 0.24, 0.02, 0.5)
    if c.plan.view == "trees":
        front = hills(c, "front", 0.98, 0.06, 1.4, albedo, label, 0)
        trees(c, "trees", front, 0.26, 0.3, round_tree, 0, 0.6, leaves_of(c))


def church(c: Canvas, ground: Crest):
    """The tower that makes houses a village."""
    for x0 in spots(c, "church", 0.3):
        foot, s = float(ground(np.array([x0]))[0]) + 0.01, 0.24
        box = c.box(x0 - 0.1, x0 + 0.1, foot - s * 1.1, foot)
        x, y = c.at(box)
        u, up = (x - x0) / s, (foot - y) / s
        sun = smooth(0.5 + 4 * u * c.side(x0)) + 0 * y
        tower = c.edge((0.13 - np.abs(u)) * s) * c.edge((0.62 - up) * s) * c.edge(up * s)
        c.paint(box, c.lit(rgb("f3ead6"), sun), tower, BUILDING)
        spire = c.edge((0.4 * (1.02 - up) - np.abs(u)) * s * 0.9) * c.edge((up - 0.6) * s)
        top = rgb("7a4a4a") if c.plan.season != "winter" else SNOW_COLOUR
        c.paint(box, c.lit(top, sun), spire, BUILDING)
        pane = c.edge((0.045 - np.abs(u)) * s) * c.edge((0.06 - np.abs(up - 0.45)) * s)
        glass = rgb("ffd36b") if window_light(c) > 0.3 else c.lit(rgb("5a6a80"), 0.3)
        c.paint(box, glass, pane, None)


def paint_volcano(c: Canvas):
    basalt, (albedo, label) = rgb("6b5a60"), ground_of(c)
    base = c.horizon + (0.02 if c.plan.view == "sea" else 0.1)
    peaks(c, "range", base, 0.24, 0.34, STONE, 0.75, 0)
    for x in spots(c, "cone", 0.2):
        cone(c, f"cone {x:.3f}", x, c.horizon - c.roll("tall", 0.3, 0.38), base, basalt)
    if c.plan.view == "sea":
        hills(
            c, "coast", c.horizon + 0.02, 0.05, 3, albedo * 0.8, label, 0.2, floor=c.horizon + 0.005
        )
        paint_water(c, c.horizon, rgb("2a86a8"))
        sail(c, c.horizon + 0.1, c.horizon + 0.2)
        bank = hills(c, "bank", 1.04, 0.14, 1.4, rgb("574c52"), ROCK, 0)
        trees_share = 0.4 if c.plan.season != "winter" else 0.0
        trees(c, "palms", bank, 0.4, 0.5, palm, 0, trees_share, rgbs("3f8f4f 3f8f4f 3f8f4f"))
    else:
        hills(c, "foot", c.horizon + 0.1, 0.1, 1.7, albedo * 0.85, label, 0.18)
        bank = hills(c, "bank", 0.86, 0.1, 1.4, albedo, label, 0)
        shape, leaves = (pine, PINES) if c.plan.view == "pines" else (round_tree, leaves_of(c))
        trees(c, "trees", bank, 0.22, 0.2, shape, 0, 0.65, leaves)
    place_on(c, bank, 0.04)


def cone(c: Canvas, name, x0, top, base, basalt):
    """A volcano: a plume behind, concave flanks, a glowing crater and streams of lava."""
    rim = 0.06
    box = c.box(x0 - 0.25, x0 + 0.6, 0, top + 0.03)
    x, y = c.at(box)
    rise = np.maximum(top - y, 0)
    drift = x0 + 0.9 * rise**1.3
    billow = c.noise2(name + "smoke", x * 7, y.ravel() * 7, 3) - 0.5
    inside = 0.035 + 0.34 * rise**0.9 + 0.2 * billow * (rise / 0.2) ** 0.7 - np.abs(x - drift)
    sun = smooth(0.5 + 1.6 * (x - drift) * c.side(x0) / (0.05 + 0.4 * rise) + 1.3 * billow)
    smoke = mix(c.light.shade * 0.85, mix(c.light.cloud, c.light.shade, 0.3), sun[..., None])
    fire = np.exp(-rise / 0.07)[..., None] * 0.85
    c.paint(box, mix(smoke, rgb("ff8a3c"), fire), smooth(inside / 0.03) * 0.94, CLOUD)

    box = c.box(x0 - 0.7, x0 + 0.7, top - 0.02, base)
    x, y = c.at(box)
    d = np.maximum(y - top, 0)
    half = (
        rim
        + 0.62 * d
        + 0.75 * d**2
        + 0.03 * (c.noise(name + "flank", y.ravel() * 14) - 0.5)[:, None]
    )
    notch = 0.012 * np.sin((x - x0) / rim * 2.5)
    cover = c.edge((half - np.abs(x - x0)) * 0.8) * c.edge(y - top - notch) * c.edge(base - y)
    angle = (x - x0) / half
    ridges = c.noise(name + "fan", angle * 6, 2)
    side = float(c.side(x0))
    sun = smooth(0.5 + angle * side * 1.6) * 0.8 + 0.5 * (smooth((ridges - 0.42) / 0.2) - 0.5)
    mist = 0.06 + 0.45 * smooth(d / (base - top)) ** 2
    c.paint(box, c.far(c.lit(basalt, np.clip(sun + 0.1, 0, 1)), mist), cover, MOUNTAIN)
    for k in range(3):
        bend = 0.16 * np.sin(d * 14 + c.roll(f"{name}{k}", 0, 6.3)) * smooth(d / 0.1)
        path = c.roll(f"{name}path{k}", -0.5, 0.5) + bend
        wide = (0.018 * np.exp(-d / 0.16) + 0.004) * smooth(
            (c.roll(f"run{k}", 0.16, 0.3) - d) / 0.04
        )
        glow = smooth(1 - np.abs(angle - path) * half / (wide * 3 + 1e-4)) * cover
        c.paint(box, rgb("d8402c"), glow * 0.6 * smooth((wide - 0.002) / 0.006), None)
        stream = c.edge(wide - np.abs(angle - path) * half) * smooth((wide - 0.003) / 0.004)
        c.paint(box, rgb("ffb347"), stream * cover, LIGHT)


PLACES = {  # kind: (painter, horizon, foregrounds, objects)
    "mountains": (paint_mountains, (0.58, 0.66), "lake pines meadow road",
                  "balloon birds boat cabin tent"),
    "desert": (paint_desert, (0.54, 0.62), "dunes cacti palms rocks", "balloon birds tent"),
    "forest": (paint_forest, (0.44, 0.52), "pines trees stream", "balloon birds cabin"),
    "coast": (paint_coast, (0.48, 0.56), "beach cliffs", "balloon birds boat lighthouse"),
    "lake": (paint_lake, (0.48, 0.58), "pines trees hills", "balloon birds boat cabin tent"),
    "meadow": (paint_meadow, (0.46, 0.55), "flowers road river trees", "balloon birds cabin tent"),
    "city": (paint_city, (0.6, 0.66), "river park road", "balloon birds boat"),
    "arctic": (paint_arctic, (0.5, 0.58), "icebergs snowfield pines",
               "balloon birds boat tent cabin"),
    "canyon": (paint_canyon, (0.5, 0.58), "river road cacti", "balloon birds tent"),
    "islands": (paint_islands, (0.5, 0.56), "palms cliffs", "balloon birds boat lighthouse"),
    "village": (paint_village, (0.46, 0.54), "road river trees", "balloon birds"),
    "volcano": (paint_volcano, (0.58, 0.64), "sea pines trees", "birds boat tent"),
}  # fmt: skip
KINDS = tuple(PLACES)
SEASONLESS = ("desert", "canyon", "islands")


# --- Words -----------------------------------------------------------------------------------

PHRASES = {
    "mountains": ("mountains", {"lake": "behind a lake", "pines": "above a pine forest",
                                "meadow": "above a meadow", "road": "and a winding road"}),
    "desert": ("a desert", {"dunes": "of dunes", "cacti": "with cacti", "palms": "with palm trees",
                            "rocks": "with table mountains"}),
    "forest": ("a forest", {"pines": "of pines", "trees": "of round trees",
                            "stream": "with a stream"}),
    "coast": ("a coast", {"beach": "with a sandy beach", "cliffs": "with cliffs"}),
    "lake": ("a lake", {"pines": "among pines", "trees": "among trees", "hills": "among hills"}),
    "meadow": ("a meadow", {"flowers": "full of flowers", "road": "with a winding road",
                            "river": "with a winding river", "trees": "with trees"}),
    "city": ("a city", {"river": "by the water", "park": "behind a park", "road": "and a road"}),
    "arctic": ("an arctic landscape", {"icebergs": "with icebergs", "snowfield": "of snow",
                                       "pines": "with pines"}),
    "canyon": ("a canyon", {"river": "with a river", "road": "with a road", "cacti": "with cacti"}),
    "islands": ("islands", {"palms": "with palm trees", "cliffs": "with steep cliffs"}),
    "village": ("a village", {"road": "with a winding road", "river": "by a river",
                              "trees": "among trees"}),
    "volcano": ("a volcano", {"sea": "by the sea", "pines": "behind pines",
                              "trees": "behind trees"}),
}  # fmt: skip
VIEW_LABEL = {"lake": WATER, "pines": TREE, "meadow": None, "road": ROAD, "dunes": SAND,
              "cacti": TREE, "palms": TREE, "rocks": ROCK, "trees": TREE, "stream": WATER,
              "beach": SAND, "cliffs": ROCK, "hills": None, "flowers": None, "river": WATER,
              "park": TREE, "icebergs": SNOW, "snowfield": SNOW, "sea": WATER}  # fmt: skip
SKY_PHRASES = {
    "clear": ("under a clear sky", "under a cloudless sky"),
    "cloudy": ("under scattered clouds", "under a cloudy sky"),
    "overcast": ("under an overcast sky", "on a grey day"),
    "fog": ("in the fog", "on a foggy day"),
    "rainbow": ("under a rainbow", "beneath a rainbow"),
    "aurora": ("under northern lights", "under a green aurora"),
}
NIGHT_SKY = {"clear": ("under the stars", "under a starry sky"),
             "overcast": ("under an overcast sky", "under heavy clouds"),
             "fog": ("in the fog", "on a foggy night")}  # fmt: skip
THING_LABEL = {"balloon": BALLOON, "birds": BIRD, "boat": BOAT, "cabin": BUILDING,
               "lighthouse": BUILDING, "tent": BUILDING}  # fmt: skip


def attributes_of(c: Canvas) -> dict[str, str]:
    """What is true of the painted picture: what cannot be seen in the map is left out."""
    plan = c.plan
    seen = np.bincount(c.label.ravel(), minlength=len(LABELS)) / (c.height * min(c.height, c.width))
    weather = plan.weather
    if weather == "rainbow" and seen[RAINBOW] < 0.004:
        weather = "cloudy"
    if (weather == "aurora" and seen[AURORA] < 0.01) or (
        weather == "cloudy" and seen[CLOUD] < 0.01
    ):
        weather = "clear"
    found = {"kind": plan.kind, "time": plan.time, "weather": weather}
    green = seen[GRASS] + seen[TREE] > 0.04
    if not always_summer(plan.kind, plan.view) and (
        seen[SNOW] > 0.04 if plan.season == "winter" else green
    ):
        found["season"] = plan.season
    label = VIEW_LABEL[plan.view]
    if label is None or seen[label] > 0.004:
        found["view"] = plan.view
    if plan.thing != "none" and seen[THING_LABEL[plan.thing]] > 0.0016:
        found["object"] = plan.thing
        if plan.thing in ("balloon", "boat"):
            found["colour"] = colour_of(c)
        if plan.thing != "birds":
            found["count"] = "one" if c.count < 2 else "several"
    moonlit = plan.time == "night" and weather in ("clear", "cloudy", "aurora")
    if moonlit and seen[LIGHT] > 0.001:
        found["moon"] = plan.moon
    if plan.kind == "city" and plan.time in ("dusk", "night"):
        found["windows"] = "lit"
    return found


def caption_of(c: Canvas, found: dict[str, str]) -> str:
    """One sentence from the attributes; which of them it mentions, and how, is rolled."""
    noun, views = PHRASES[found["kind"]]
    view = views.get(found.get("view", ""), "")
    where = place_words(c, found, noun)
    season = found.get("season")
    when = {"noon": "at noon"}.get(found["time"], f"at {found['time']}")
    skies = SKY_PHRASES[found["weather"]]
    if found["time"] == "night":
        skies = NIGHT_SKY.get(found["weather"], skies)
    elif found["weather"] == "fog":
        skies = ("in the fog", "in thick fog")
    sky = skies[c.roll("sky words") < 0.4]
    if found.get("moon") and c.roll("moon words") < 0.35 and found["weather"] == "clear":
        sky = f"under a {found['moon']} moon"
    thing = thing_words(found)
    view = view if c.roll("say view") < 0.85 else ""
    if view.startswith("with ") or "with " in where:
        thing = thing.replace("with ", "and ")
    parts = [where, view, thing if c.roll("say thing") < 0.9 else ""]
    if season and season != "winter" and c.roll("say season") < 0.45:
        parts.append(f"in {season}")
    late = [when if c.roll("say time") < 0.92 else "", sky if c.roll("say sky") < 0.8 else ""]
    parts += late if c.roll("order") < 0.7 else late[::-1]
    return " ".join(part for part in parts if part)


def place_words(c: Canvas, found: dict[str, str], noun: str) -> str:
    """The place itself, snowy when it is winter."""
    if found.get("season") == "winter" and found["kind"] not in ("arctic", "volcano"):
        article, _, bare = noun.rpartition(" ")
        word = "snowy " if c.roll("snow words") < 0.7 else "wintry "
        return f"{article[:1] and 'a '}{word}{bare}"
    if found.get("windows") and c.roll("window words") < 0.5:
        return "a city with lit windows"
    if found["kind"] == "city" and c.roll("city words") < 0.5:
        return "a city skyline"
    return noun


def thing_words(found: dict[str, str]) -> str:
    """The small object, with its colour if it has one."""
    thing = found.get("object")
    if thing is None:
        return ""
    if thing == "birds":
        return "with a flock of birds"
    name = {"boat": "sailing boat"}.get(thing, thing)
    name = f"{found['colour']} {name}" if "colour" in found else name
    return f"with a {name}" if found["count"] == "one" else f"with {name}s"


def said(scene: Scene) -> dict[str, str]:
    """Those of a scene's kind, time, weather, season and object that its caption says."""
    text, found = scene.caption, scene.attributes
    weather = (*SKY_PHRASES[found["weather"]], *NIGHT_SKY.get(found["weather"], ()), "in thick fog")
    wintry = found.get("season") == "winter" and found["kind"] not in ("arctic", "volcano")
    thing = {"birds": "flock of birds"}.get(found.get("object"), found.get("object"))
    phrases = {
        "kind": ("",),
        "time": (f"at {found['time']}",),
        "weather": weather,
        "season": ("snowy ", "wintry ") if wintry else (f"in {found.get('season')}",),
        "object": (str(thing),),
    }
    return {
        name: found[name]
        for name, ways in phrases.items()
        if name in found and any(way in text for way in ways)
    }


# --- The door --------------------------------------------------------------------------------


def plan_of(rng: np.random.Generator) -> Plan:
    """Draw the parameters, always the same number of them and in the same order."""
    u = rng.random(10)
    kind = KINDS[int(u[0] * len(KINDS))]
    _, _, views, things = PLACES[kind]
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
    things = [t for t in things.split() if t != "boat" or has_sea(kind, view)]
    thing = things[int(u[5] / 0.7 * len(things))] if u[5] < 0.7 else "none"
    moon = "full" if u[6] < 0.5 else "crescent"
    return Plan(kind, time, weather, season, view, thing, moon, float(u[7]), int(u[8] * 2**53))


def always_summer(kind: str, view: str) -> bool:
    """Whether nothing in the picture would tell the season."""
    return kind in SEASONLESS or (kind, view) == ("coast", "beach")


def has_sea(kind: str, view: str) -> bool:
    """Whether a boat has water to sail on."""
    return kind in ("coast", "lake", "islands") or (kind, view) in (
        ("mountains", "lake"), ("city", "river"), ("arctic", "icebergs"), ("volcano", "sea"),
    )  # fmt: skip


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
