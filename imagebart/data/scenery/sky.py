"""The sky: gradient, glow, stars, aurora, sun or moon, rainbow, clouds."""

import numpy as np

from imagebart.data.scenery.world import (
    AURORA,
    CLOUD,
    LIGHT,
    RAINBOW,
    STAR,
    Canvas,
    mix,
    rgb,
    rgbs,
    smooth,
)


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
    c.paint(box, mix(c.light.disc, np.ones(3, np.float32), 0.35), cover, LIGHT)


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
