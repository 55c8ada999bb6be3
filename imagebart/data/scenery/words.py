"""Words: what is true of a painted scene, and the caption that says it."""

import numpy as np

from imagebart.data.scenery.places import always_summer
from imagebart.data.scenery.things import colour_of
from imagebart.data.scenery.world import (
    AURORA,
    BALLOON,
    BIRD,
    BOAT,
    BUILDING,
    CLOUD,
    GRASS,
    LABELS,
    LIGHT,
    RAINBOW,
    ROAD,
    ROCK,
    SAND,
    SNOW,
    TREE,
    WATER,
    Canvas,
    Scene,
)

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
    thing = found.get("object", "")
    thing = {"birds": "flock of birds"}.get(thing, thing)
    phrases = {
        "kind": ("",),
        "time": (f"at {found['time']}",),
        "weather": weather,
        "season": ("snowy ", "wintry ") if wintry else (f"in {found.get('season')}",),
        "object": (thing,),
    }
    return {
        name: found[name]
        for name, ways in phrases.items()
        if name in found and any(way in text for way in ways)
    }
