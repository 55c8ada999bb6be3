"""The world of scenery: what a scene can be, its randomness, its light, and the canvas.

the world is infinite    lengths are in units of the image height, x = 0 is the middle of the
                         image, and every detail is hashed from its position: a larger image is
                         sharper, a wider one shows more of the same world
light comes first        a palette per time of day gives sky, haze, ambient and direct light;
                         whatever is painted is lit from there and fades into that haze
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np

Array = np.ndarray
Crest = Callable[[Array], Array]  # x -> y of the upper edge of some land

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


# ── hashing: randomness that belongs to a place ───────────────────────────────────────────────

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


def mix(a: Array | float, b: Array, t: Array | float) -> Array:
    """a → b as t goes 0 → 1."""
    return a + (b - a) * t


def rgb(code: str) -> Array:
    """ "ffb45e" → float32 colour in [0, 1]."""
    return np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)], np.float32)


def rgbs(codes: str) -> Array:
    """ "ffb45e 5a2f5f" → one colour per row."""
    return np.stack([rgb(code) for code in codes.split()])


# ── light ─────────────────────────────────────────────────────────────────────────────────────

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
    _: KW_ONLY
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


# ── canvas ────────────────────────────────────────────────────────────────────────────────────


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
