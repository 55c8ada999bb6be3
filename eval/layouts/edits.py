"""Tables of edits: prompts, erased objects, other words, masks, panoramas and outpaintings."""

from imagebart.editing.process import MOST_PARTICLES
from layouts.parts import (
    found_in,
    markdown,
    percent,
    plus_minus,
    record,
    record_rows,
    seconds,
    share_in,
    two,
    with_interval,
)


def edits_table() -> str:
    names = "scenery_edits", "scenery_edits_wide"
    square, wide = (record(name) for name in names)
    rows = []
    for pair in zip(square["rows"], wide["rows"], strict=True):
        cells = [cell for row in pair for cell in (row["edits"], found_in(row, 0))]
        rows.append((pair[0]["target"], *cells))
    rows.append(("all", square["n"], found_in(square), wide["n"], found_in(wide)))
    return markdown("prompt | edits | found | edits of 16:9 | found", rows, *names)


def erasing_table() -> str:
    name = "scenery_erasing"
    one = record(name)
    rows = [(row["object"], row["edits"], percent(row["gone"], 0)) for row in one["rows"]]
    rows.append(("all", one["n"], with_interval(one, "gone", percent)))
    return markdown("object | edits | no longer found", rows, name)


def counterfactuals_table() -> str:
    name = "scenery_counterfactuals"
    rows = [
        (
            f"{row['strength']:g}",
            with_interval(row, "found", percent),
            percent(row["chance"]),
            percent(row["kind"]),
            with_interval(row, "ground", percent),
            with_interval(row, "psnr", two),
            f"{two(row['psnr_of_sample'])}, {two(row['psnr_of_picture'])}",
            percent(row["same"]),
        )
        for row in record(name)["rows"]
    ]
    head = (
        "strength | new time found | chance | kind of place found | tokens of the ground kept "
        "| PSNR against the true render, dB | … of a sample, of the picture "
        "| same words, same tokens"
    )
    return markdown(head, rows, name)


COMPLETION = (
    "seam | probe-FID | attributes found | … time of day | beyond the noise of the first row "
    "| passes | seconds"
)


def completed(row: dict) -> tuple:
    found = (share_in(row, "found", key) for key in ("all", "time"))
    distance = with_interval(row, "probe_fid", "{:.1f}".format)
    figures = with_interval(row, "seam", two), distance, *found
    return *figures, differs_in(row), f"{row['passes']:.0f}", two(row["seconds"])


def differs_in(row: dict) -> str:
    """The figures that differ from the first row's, image by image, by more than noise."""
    if "against_first" not in row:
        return ""
    names = {"seam": "seam", "probe_fid": "probe-FID", "time": "time of day"}
    apart = [names[key] for key in names if row["against_first"][key]["distinct"]]
    return ", ".join(apart) or "nothing"


def completion_table() -> str:
    name = "scenery_completion"
    rows = [(way_of(row), *completed(row)) for row in record_rows(name)]
    return markdown(f"method, upper half | {COMPLETION}", rows, name)


def completion_400_table() -> str:
    """With the diversity of the results, without seconds: other work took from the processor."""
    name = "scenery_completion_400"
    rows = [
        (way_of(row), *completed(row)[:-1], two(row["spread_completed"]))
        for row in record_rows(name)
    ]
    columns = COMPLETION.replace("seconds", "times of day")
    return markdown(f"method, upper half | {columns}", rows, name)


def way_of(row: dict) -> str:
    if row["process"] == "annealed":
        return "annealed, as released"
    if "particles" in row:
        default = " (the default)" if row["particles"] == MOST_PARTICLES else ""
        return f"one of {row['particles']} fillings at t = T{default}"
    return "every scale once, as in the paper (`--resampling-passes 0`)"


def completion_particles_table() -> str:
    name = "scenery_completion_particles"
    masks = {"upper": "upper half", "centre": "centre", "blob10": "a tenth"}
    rows = [
        (
            masks[row["mask"]],
            f"{row['particles']} fillings at t = T"
            if "particles" in row
            else f"{row['resampling_passes']} passes at t = T − 1",
            *completed(row),
            two(row["spread_completed"]),
        )
        for row in record_rows(name)
    ]
    return markdown(f"mask | method | {COMPLETION} | times of day", rows, name)


def completion_filling_table() -> str:
    name = "scenery_completion_filling"
    seen = {
        "harmonic": "harmonic filling (the library's)",
        "nearest": "the nearest known pixels",
        "none": "the picture as it is",
    }
    rows = [
        (
            seen[row["filling"]],
            percent(row["hidden"], 0),
            percent(row["agreed"], 0),
            two(row["seam"]),
            percent(row["found"]["all"]),
        )
        for row in record_rows(name)
    ]
    head = "seen under the mask | known tokens that depend on it | … as unmasked | seam"
    return markdown(f"{head} | attributes found", rows, name)


def seams_table() -> str:
    names = "scenery_seams", "scenery_seams_exact"
    rows = []
    for name in names:
        one = record(name)
        for row in one["rows"]:
            n = int(one["options"]["n"])
            low, high = min(row["rhythm"]), max(row["rhythm"])
            rhythm = f"{low:.3f} to {high:.3f}, each ± {max(row['rhythm_error']):.3f} at most"
            change = plus_minus(row["seam"], row["seam_error"])
            time = seconds(row["seconds"])
            rows.append((row["mode"], row["width"], n, change, rhythm if n > 8 else "", time))
    header = "mode | width | panoramas | gradient at window borders | rhythm | seconds"
    return markdown(header, rows, *names)


def joints_table() -> str:
    name = "scenery_joints"
    labels = {"frame": "the frame of the original", "windows": "borders of windows", "all": "all"}
    rows = [
        (
            labels[row["joints"]],
            with_interval(row, "share_invisible", percent),
            with_interval(row, "step", two),
            two(row["median"]),
        )
        for row in record_rows(name)
    ]
    head = f"joints of {record(name)['n']} outpaintings | step at most 1.5 times the median nearby"
    return markdown(f"{head} | mean step | median", rows, name)
