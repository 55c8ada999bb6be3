"""The paper's tables and figures beside ours: three columns.

    the paper's number, with the table that has it
    ours on released weights: empty until somebody has them, with the command that measures it
    ours on scenery, from the run records in eval/results/

Inception's distances and the probe's are not comparable with each other, nor scenery with photos:
a column is compared with itself, and the paper's claim is whether its order is the same.
"""

from collections.abc import Callable

from layouts import parts
from layouts.held_out import layers_of
from layouts.parts import markdown, percent, record, seconds, three, valued

GENERATION = "eval/generation.py --model models/{0} --reference {1} --num-images 50000"
THREE_COLUMNS = "| the paper | ours, released weights | ours, scenery"
AWAITED = "not measured: "


def released(name: str, command: str, key: str = "fid") -> str:
    """The figure of a record of released weights, or the command that makes the record."""
    if (parts.RESULTS / f"released_{name}.json").exists():
        return figure(record(f"released_{name}")["metrics"][key])
    return f"`python {command} --out eval/results/released_{name}.json`"


def on_scenery(name: str, show: Callable[[dict], str]) -> str:
    """A cell of a scenery record, or that it is not there yet."""
    return (
        show(record(name)) if (parts.RESULTS / f"{name}.json").exists() else f"{AWAITED}{name}.json"
    )


def figure(one: dict, digits: int = 2) -> str:
    """A value with its interval."""
    return valued(one, f"{{:.{digits}f}}".format)


def metric(key: str) -> Callable[[dict], str]:
    """The figure of one metric of a record of generation.py, with its name."""
    return lambda one: f"{one['metrics'][key]['name']} {figure(one['metrics'][key])}"


# ── tables 1 to 3 ─────────────────────────────────────────────────────────────────────────────


def table_1() -> str:
    """FID of unconditional samples.   [section 4.1]"""
    paper = {"cats": (15.09, 17.31), "bedrooms": (5.51, 6.35), "churches": (7.32, 7.81)}
    paper |= {"ffhq-2": (9.57, 11.4)}
    rows = []
    for name, (ours, plain) in paper.items():
        command = GENERATION.format(name, f"data/{name}")
        cell = released(name, command)
        rows.append((f"FID, {name}", f"{ours} (T = 2: {plain}), table 1", cell, ""))
    of_classes = "scenery, its classes in turn, guided"
    rows.append((of_classes, "", "", on_scenery("scenery_generation", metric("probe-fid"))))
    return markdown(f"unconditional {THREE_COLUMNS}", rows)


def table_2() -> str:
    """Rejection by class, and text.   [sections 4.1, 4.2]"""
    paper = {1.0: (21.19, 61.6), 0.5: (13.12, 109.5), 0.25: (9.77, 146.2), 0.05: (7.44, 273.5)}
    rows = []
    for rate, (fid, score) in paper.items():
        cell = "needs a classifier of ImageNet"
        if rate == 1:
            cell = released("imagenet-5", GENERATION.format("imagenet-5", "data/imagenet"))
        rows.append(
            (
                f"rejection rate {rate}",
                f"FID {fid}, IS {score}, table 2",
                cell,
                on_scenery("scenery_selection", lambda one, rate=rate: rejected_at(one, rate)),
            )
        )
    rows.append(("text", "FID 22.61, IS 15.27, CLIP-score 0.23, table 2", "never released", ""))
    rows.append(("text, T = 2", "FID 28.86, IS 13.11, CLIP-score 0.20, table 2", "", ""))
    for row in ranked_rows():
        rows.append((f"text, best of {row['best_of']}", "", "", similarity_of(row)))
    return markdown(f"conditional {THREE_COLUMNS}", rows)


def rejected_at(one: dict, rate: float) -> str:
    (row,) = (row for row in one["rejection"] if row["rate"] == rate)
    parts = [f"probe-FID {row['probe_fid']:.1f}"] if "probe_fid" in row else []
    parts += [f"probe-IS {row['inception_score']:.2f}", f"class {percent(row['class_accuracy'])}"]
    return ", ".join(parts)


def ranked_rows() -> list[dict]:
    return record("scenery_selection")["re-ranking"]


def similarity_of(row: dict) -> str:
    return f"similarity by the probe {row['similarity']:.3f}, found {percent(row['accuracy'])}"


def table_3() -> str:
    """T at equal parameters and compute, unconditional and upper halves.   [section 4.4]"""
    paper = {2: (12.44, 4.42), 3: (12.55, 3.98), 5: (10.69, 4.27), 9: (10.81, 4.49)}
    halves = {2: (11.80, 4.48), 3: (9.25, 4.49), 5: (6.87, 4.81), 9: (6.64, 4.86)}
    absent = "not released at equal parameters"
    rows = []
    for name, numbers, key in (
        ("unconditional", paper, "probe_fid"),
        ("upper half, single pass", halves, "completion_fid"),
    ):
        for T, (fid, score) in numbers.items():
            row = f"{name}, T = {T}"
            rows.append((row, f"FID {fid}, IS {score}, table 3", absent, trend(f"mini-{T}", key)))
        said = "independent training is more robust, 4.4"
        rows.append((f"{name}, T = 5, jointly trained", said, "", trend("mini-5-joint", key)))
    return markdown(f"chain {THREE_COLUMNS}", rows)


def trend(preset: str, key: str) -> str:
    return on_scenery("scenery_trend", lambda one: trend_of(one, preset, key))


def trend_of(one: dict, preset: str, key: str) -> str:
    row = next((row for row in one["rows"] if row["preset"] == preset), None)
    if row is None:
        return f"{AWAITED}scenery_trend.json of {preset}"
    text = f"probe-FID {figure(row[key], 1)}"
    if against := row.get("against"):
        other = f"T = {against['preset'].removeprefix('mini-')}"
        distinct = against[key]["distinct"]
        text += f", differs from {other}" if distinct else f", {other} within the noise"
    return text


# ── figures ───────────────────────────────────────────────────────────────────────────────────


def figure_8_left() -> str:
    """Layers for the encoder or for the decoder at equal parameters.   [section 4.4]"""
    rows = []
    for row in record("split")["rows"]:
        time = seconds(row["sequential"]["median_s"])
        layers = f"{row['encoder_depth']} + {row['decoder_depth']}"
        rows.append((layers, "", "", f"{time} an image, random weights"))
    said = "4 to 6 decoder layers are the best compromise, figure 8"
    rows.append(("quality", said, "", on_scenery("scenery_layers", quality_of_layers)))
    return markdown(f"layers, encoder + decoder {THREE_COLUMNS}", rows)


def quality_of_layers(one: dict) -> str:
    """L_3 of every row, of the layers in small."""
    rows = one["rows"]
    each = (f"{layers_of(row['preset'])}: {valued(row['nats'], three)}" for row in rows)
    return f"L_3 of held-out images in nats per token, {'; '.join(each)}"


def figure_8_right() -> str:
    """Seconds of an image by all methods.   [section 4.4]"""
    rows = []
    for way, one in record("ffhq-4_speed")["one_image"].items():
        rows.append((way, "", "", f"{one['seconds']:.2f} s, FFHQ's size, random weights"))
    return markdown(f"one image {THREE_COLUMNS}", rows)


def figure_9() -> str:
    """Levels of the chain as compressed pictures.   [section 5]"""
    command = "eval/reconstruction.py --levels --model models/ffhq-4 --data data/ffhq"
    rows = [("levels", "pictures, figure 9", f"`python {command}`", "")]
    path = parts.RESULTS / "scenery_levels.json"
    levels = record("scenery_levels")["levels"] if path.exists() else []
    for row in levels:
        text = f"{row['bits']:.4f} bits a pixel dimension, {row['psnr']:.2f} dB"
        rows.append((f"t = {row['t']}", "", "", text))
    if not levels:
        rows.append(("every t", "", "", f"{AWAITED}scenery_levels.json"))
    return markdown(f"level {THREE_COLUMNS}", rows)


PAPER_TABLES: dict[str, Callable[[], str]] = {"1": table_1, "2": table_2, "3": table_3}
PAPER_FIGURES: dict[str, Callable[[], str]] = {
    "8-left": figure_8_left,
    "8-right": figure_8_right,
    "9": figure_9,
}
