"""The twelve places: what each is painted of, back to front."""

import numpy as np

from imagebart.data.scenery.land import (
    GROUND,
    LEAVES,
    PINES,
    SAND_COLOUR,
    SNOW_COLOUR,
    STONE,
    dunes,
    ground_of,
    hills,
    mesas,
    paint_water,
    peak,
    peaks,
    winding,
)
from imagebart.data.scenery.sky import dots
from imagebart.data.scenery.things import (
    cactus,
    houses,
    lighthouse,
    objects,
    palm,
    pine,
    place_on,
    round_tree,
    sail,
    skyline,
    spots,
    trees,
    window_light,
)
from imagebart.data.scenery.world import (
    BUILDING,
    CLOUD,
    GRASS,
    LIGHT,
    MOUNTAIN,
    ROAD,
    ROCK,
    SAND,
    SNOW,
    TREE,
    WATER,
    Array,
    Canvas,
    Crest,
    mix,
    rgb,
    rgbs,
    smooth,
)


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


def always_summer(kind: str, view: str) -> bool:
    """Whether nothing in the picture would tell the season."""
    return kind in SEASONLESS or (kind, view) == ("coast", "beach")


def has_sea(kind: str, view: str) -> bool:
    """Whether a boat has water to sail on."""
    return kind in ("coast", "lake", "islands") or (kind, view) in (
        ("mountains", "lake"), ("city", "river"), ("arctic", "icebergs"), ("volcano", "sea"),
    )  # fmt: skip
