"""What each table of the documents shows, from the run records in eval/results/.

A function returns one table in Markdown and TABLES names it; `tables.py` writes it into the
documents. All but "highlights" end with the hardware, the date and the record's file name. A record
of other weights than those that lie where it says is refused.
"""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

from records import other_guidance

from imagebart.checkpoint import read_json
from imagebart.editing.process import MOST_PARTICLES
from imagebart.folders import model_sha256

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "eval" / "results"
UNNAMED = (
    "ffhq-4_speed",
    "ffhq-4_speed_bf16",
    "passes_equal_training",
    "scenery_seams",
    "scenery_seams_exact",
    "split",
    "split_752",
)
"""Records that were measured before records named their model, its hash and the commit."""
OTHER = ("ffhq-4_speed", "ffhq-4_speed_bf16", "passes_equal_training", "split", "split_752")
"""Of these, the ones whose transformers are not those of a model that was shipped."""
FORMER = "the former model (T = 4, commit e6f7da6)"

# ── the parts of a table ──────────────────────────────────────────────────────────────────────


def record(name: str) -> dict:
    """A run record; ValueError if its weights are not those that lie where it says."""
    found = read_json(RESULTS / f"{name}.json")
    if ("models" in found) == (name in UNNAMED):
        states = "names its model" if name in UNNAMED else "names none"
        raise ValueError(f"UNNAMED must list the records without a model, but {name}.json {states}")
    for path, digest in found.get("models", {}).items():
        if (ROOT / path / "config.json").exists() and model_sha256(ROOT / path) != digest:
            raise ValueError(
                f"{name}.json must be of the weights in {path}, got those of {digest[:12]}: "
                "measure it again"
            )
    return found


def record_rows(name: str) -> list[dict]:
    return record(name)["rows"]


def record_row(name: str, **fields) -> dict:
    """The row of a record with these fields; ValueError unless there is one."""
    fitting = [
        row for row in record_rows(name) if all(row.get(key) == fields[key] for key in fields)
    ]
    if len(fitting) != 1:
        raise ValueError(f"{name}.json must have one row with {fields}, got {len(fitting)}")
    return fitting[0]


def markdown(header: str, rows: Iterable[Iterable], *names: str) -> str:
    """A Markdown table of a header ("a | b | c") and rows, with the provenance of its figures."""
    columns = header.count("|") + 1
    lines = [header, " | ".join(["---"] * columns), *(" | ".join(map(str, row)) for row in rows)]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"{body}\n\n{provenance(*names)}" if names else body


def provenance(*names: str) -> str:
    """Hardware, day, commit, models and file of each record, grouped by what they share, and its
    guidance if that is another than the model's; of more than four models only their number, the
    record has the hashes."""
    made: dict[str, list[str]] = {}
    for name in names:
        one = record(name)
        hardware = re.sub(r"\b1 threads", "1 thread", one["hardware"])  # older records
        where = f"{hardware}, {day(one['date'])}"
        if name in UNNAMED and name not in OTHER:
            where += f", {FORMER}"
        if one.get("commit"):
            where += f", commit {one['commit']['id'][:7]}"
        models = [f"{Path(at).name} {sha[:7]}" for at, sha in one.get("models", {}).items()]
        where = ", ".join([where, *(models if len(models) <= 4 else [f"{len(models)} models"])])
        if (guidance := other_guidance(one, ROOT)) is not None:
            numbers = guidance if isinstance(guidance, list) else [guidance]
            where += ", guidance " + ", ".join(map(str, numbers))
        made.setdefault(where, []).append(f"`{name}.json`")
    return "; ".join(f"{where}: {', '.join(files)}" for where, files in made.items()) + "."


def day(date: str) -> str:
    at = datetime.fromisoformat(date)
    return f"{at.day} {at:%B %Y}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


three = "{:.3f}".format
signed = "{:+.3f}".format
two = "{:.2f}".format


def plus_minus(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def within(text: str, interval: list[float] | None, show: Callable[[float], str]) -> str:
    """A figure and its interval, where the record has one."""
    if interval is None:
        return text
    low, high = map(show, interval)
    return f"{text} ({low.removesuffix(' %')} to {high})"


def valued(one: dict, show: Callable[[float], str]) -> str:
    """A value with its interval."""
    return within(show(one["value"]), one.get("interval"), show)


def difference_of(one: dict | None, show: Callable[[float], str]) -> str:
    """A difference with its interval, and whether it may be noise; nothing for None."""
    if one is None:
        return ""
    return valued(one, show) + ("" if one["distinct"] else ", within the noise")


def with_interval(row: dict, key: str, show: Callable[[float], str]) -> str:
    """A figure of a row, with its interval where there is one."""
    return within(show(row[key]), row.get(f"{key}_interval"), show)


def unnamed_table() -> str:
    """Which records do not name their model."""
    names = ", ".join(f"`{name}`" for name in UNNAMED if name not in OTHER)
    others = ", ".join(f"`{name}`" for name in OTHER)
    return (
        f"These records are of {FORMER}, and do not hold its hash: {names}. These are of shapes "
        f"with random weights, or of chains that are not in the repository: {others}. All other "
        "records name their models."
    )


# ── likelihood and reconstruction ─────────────────────────────────────────────────────────────


def held_out_table() -> str:
    bound, back = record("scenery_likelihood"), record("scenery_reconstruction")
    rows = []
    for t, scale in bound["scales"].items():
        predictor = f"closed-form predictor {scale['closed_form']:.3f}"
        for given, of, beside in (
            (f"nats per token ({bound['n']} images), unconditional", "", predictor),
            ("conditional on class and text", "_without_map", ""),
            ("conditional on class, text and map", "_conditional", ""),
        ):
            figure = within(three(scale[f"nats{of}"]), scale[f"interval{of}"], three)
            rows.append((f"L_{t}, {given}", figure, beside))
    rows += [
        (
            "sum, unconditional",
            with_interval(bound, "sum", three) + f"; {bound['bits_per_token']:.3f} bits",
            f"closed-form predictor {sum(s['closed_form'] for s in bound['scales'].values()):.3f}",
        ),
        (
            f"… less by {bound['importance']['chains']} weighted chains an image",
            with_interval(bound["importance"], "gained", three),
            "the bound is loose by this at least",
        ),
        (f"reconstruction PSNR ({back['n']} images)", decibels(back), ""),
        ("sharpness of reconstructions", three(back["sharpness"]), "1 is the renders'"),
        ("stars kept", three(back["stars_kept"]), "1 is all"),
        (
            "fine structure of buildings at night kept",
            three(back["night_buildings_kept"]),
            "1 is all",
        ),
        ("codes in use", three(back["codes_in_use"]), f"of {bound['K']}"),
    ]
    names = "scenery_likelihood", "scenery_reconstruction"
    return markdown("held-out scenery | shipped model | beside it", rows, *names)


def decibels(back: dict) -> str:
    return within(f"{two(back['psnr'])} dB", back.get("psnr_interval"), two)


def ablation_table() -> str:
    name, rows = "scenery_ablation", []
    labels = {
        "mini-5": "none (`mini-5`)",
        "mini-5-place-vectors": "a vector for every place, not for rows and columns",
        "mini-5-rotary": "rotary positions",
        "mini-5-qk-norm": "normalised queries and keys",
        "mini-5-rotary-qk-norm": "rotary positions, normalised queries and keys",
        "mini-5-muon": "Muon for the layers' matrices, not AdamW",
        "mini-5-residual-output": "output: the likelihood of x_t added (as released)",
        "mini-5-plain-output": "output: the network's alone",
    }
    for row in record_rows(name):
        difference = difference_of(row.get("against"), signed)
        rows.append((labels[row["preset"]], valued(row["nats"], three), difference))
    return markdown("change | L_3, nats per token | difference", rows, name)


TREND = {
    "probe_fid": "samples: probe-FID",
    "probe_is": "probe-IS",
    "completion_fid": "upper halves, each scale once: probe-FID",
    "completion_time": "time of day, once",
    "drawn_fid": "one of 16 fillings: probe-FID",
    "drawn_time": "time of day, of 16",
}


def trend_table() -> str:
    name, rows = "scenery_trend", []
    for row in record_rows(name):
        cells = [f"`{row['preset']}`"]
        for key in TREND:
            show = percent if key.endswith("_time") else two
            cells.append(valued(row[key], show))
        rows.append((*cells, trend_apart(row.get("against"))))
    header = f"chain | {' | '.join(TREND.values())} | beyond the noise"
    return markdown(header, rows, name)


def trend_apart(against: dict | None) -> str:
    """In which figures a chain differs beyond the noise, and from which chain."""
    if against is None:
        return ""
    apart = [TREND[key] for key in TREND if against[key]["distinct"]]
    return f"of `{against['preset']}`: {'; '.join(apart) or 'nothing'}"


# ── conditions ────────────────────────────────────────────────────────────────────────────────


def obedience_table() -> str:
    text = record_row("scenery_obedience_text", condition="text")
    classes = record_row("scenery_obedience_class", condition="class")
    said = {"all": "held-out captions, all attributes", "kind": "… kind of place"}
    said |= {"time": "… time of day"} | {x: f"… {x}" for x in ("weather", "season", "object")}
    rows = [(label, *(share_in(text, of, key) for of in OF)) for key, label in said.items()]
    rows.append(("classes", *(share_in(classes, of, "all") for of in OF)))
    names = [f"scenery_obedience_{of}" for of in ("text", "class", "map")]
    rows += [probe_fid_row(name) for name in names]
    return markdown("found by the probe | samples | renders | chance", rows, *names)


def probe_fid_row(name: str) -> tuple[str, ...]:
    """The probe-FID of samples for a condition, and that of as many renders."""
    renders, samples = record_rows(name)
    label = {"text": "captions", "class": "classes", "map": "maps"}[samples["condition"]]
    shown = [with_interval(row, "probe_fid", "{:.1f}".format) for row in (samples, renders)]
    return (f"probe-FID, {record(name)['n']} {label}", *shown, "")


OF = ("samples", "renders", "chance")


def share_in(row: dict, of: str, key: str) -> str:
    """A share of right answers, with its interval where there is one; empty if there is none."""
    if of not in row:
        return ""
    return within(percent(row[of][key]), row.get(f"{of}_interval", {}).get(key), percent)


def objects_table() -> str:
    name = "scenery_obedience_text"
    row = record_row(name, condition="text")
    rows = [
        (thing, counted(*found), counted(*row["objects_of_renders"][thing]))
        for thing, found in row["objects"].items()
    ]
    return markdown("object found by the probe | samples | renders", rows, name)


def counted(found: int, of: int) -> str:
    return f"{percent(found / of, 0)} of {of}"


def maps_table() -> str:
    row = record_row("scenery_obedience_map", condition="map")
    labels = "samples", "renders", "chance (another map)"
    rows = [(label, share_in(row, of, "places")) for label, of in zip(labels, OF, strict=True)]
    return markdown("places of the map found | ", rows, "scenery_obedience_map")


def rejection_table() -> str:
    rows = [
        (
            row["rate"],
            with_interval(row, "class_accuracy", percent),
            two(row["inception_score"]),
            with_interval(row, "probe_fid", "{:.0f}".format),
            difference_of(row.get("against_first"), "{:+.0f}".format),
            row["kept"],
        )
        for row in record("scenery_selection")["rejection"]
    ]
    header = "rejection at rate | class accuracy | inception score, at most 12 | probe-FID of 24"
    return markdown(f"{header} | … less that of rate 1 | kept", rows, "scenery_selection")


def re_ranking_table() -> str:
    rows = [
        (
            row["best_of"],
            with_interval(row, "similarity", three),
            with_interval(row, "accuracy", percent),
        )
        for row in record("scenery_selection")["re-ranking"]
    ]
    header = "best of | similarity to the caption | attributes found"
    return markdown(header, rows, "scenery_selection")


def edits_table() -> str:
    one = record("scenery_edits")
    rows = [(row["target"], row["edits"], found_in(row, 0)) for row in one["rows"]]
    rows.append(("all", sum(row["edits"] for row in one["rows"]), found_in(one)))
    return markdown("prompt | edits | found", rows, "scenery_edits")


def found_in(row: dict, digits: int = 1) -> str:
    return with_interval(row, "found", partial(percent, digits=digits))


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


def blind_table() -> str:
    records = {
        "samples for captions": "scenery_blind",
        "reconstructions": "scenery_blind_reconstructions",
        "edits, unprompted": "scenery_blind_edits",
    }
    rows = [
        (
            label,
            one["n"] // 2,
            within(percent(one["right_share"]), one["right_interval"], percent),
            one["sure"],
        )
        for label, one in ((label, record(name)) for label, name in records.items())
    ]
    head = "mixed with as many renders | of each | labelled rightly (50 % by chance)"
    return markdown(f"{head} | labelled surely", rows, *records.values())


# ── masks and windows ─────────────────────────────────────────────────────────────────────────

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


# ── speed ─────────────────────────────────────────────────────────────────────────────────────


def first_picture_table() -> str:
    name = "first_picture"
    labels = {
        "server": "the server answers",
        "page": "Sample can be clicked",
        "first_picture": "a first picture is seen, of t = T",
        "finished": "all four pictures are finished",
    }
    rows = [
        (labels[row["until"]], f"{row['seconds']:.1f} s", f"{row['cpu_s']:.1f} s")
        for row in record_rows(name)
    ]
    return markdown(f"until | median of {record(name)['n']} starts | of the processor", rows, name)


def speed_table(name: str) -> str:
    """Seconds and passes of the whole chain, one row per batch size."""
    rows = []
    for images, chain in record(name)["chain"].items():
        ours, plain = chain["parallel"], chain["sequential"]
        edit = chain["edit of a tenth, parallel"]["median_s"]
        rows.append(
            (
                images,
                f"{seconds(ours['median_s'])}, {ours['passes']} passes",
                f"{seconds(plain['median_s'])}, {plain['passes']}",
                f"{plain['median_s'] / ours['median_s']:.1f}",
                seconds(edit),
                f"{plain['median_s'] / edit:.1f}",
                f"{chain['VQGAN decoder']['median_s']:.3f} s",
            )
        )
    header = "images | parallel | sequential | sequential / parallel"
    header += " | an edit of a tenth | sequential / edit | VQGAN decoder"
    return markdown(header, rows, name)


def speed_scales_table() -> str:
    rows = []
    for t, scale in record("scenery_speed")["scales"].items():
        ours, roof = scale["parallel"], scale["roofline"]
        times = (scale[key]["median_s"] for key in ("naive", "bart", "sequential"))
        parallel = f"{seconds(ours['median_s'])}, {ours['passes']} passes"
        parts = f"{percent(roof['bandwidth'], 0)}, {percent(roof['peak'])}"
        rows.append((t, *map(seconds, times), parallel, parts))
    header = "scale t | naive | BART | ours, sequential | ours, parallel"
    header += " | sequential pass: share of bandwidth, of peak"
    return markdown(header, rows, "scenery_speed")


def speed_ways_table() -> str:
    rows = [
        (way, three(one["seconds"]), two(one["over_parallel"]))
        for way, one in record("scenery_speed")["one_image"].items()
    ]
    header = "one image with VQGAN | s | relative to parallel"
    return markdown(header, rows, "scenery_speed")


def speed_ffhq_table() -> str:
    names = "ffhq-4_speed", "ffhq-4_speed_bf16"
    full, half = (record(name)["one_image"] for name in names)
    rows = [
        (way, *(f"{one[way][key]:.2f}" for one in (full, half) for key in one[way])) for way in full
    ]
    header = "one image with VQGAN | float32, s | relative | bfloat16, s | relative"
    return markdown(header, rows, *names)


def split_table() -> str:
    wide = {row["decoder_depth"]: row for row in record_rows("split_752")}
    rows = []
    for row in record_rows("split"):
        depth = row["decoder_depth"]
        times = (
            f"{seconds(one[way]['median_s'])}, {one[way]['passes']}"
            for one in (row, wide[depth])
            for way in ("sequential", "parallel")
        )
        rows.append((f"{row['encoder_depth']} + {depth}", *times))
    header = "layers, encoder + decoder | width 256, sequential | parallel"
    return markdown(f"{header} | width 752, sequential | parallel", rows, "split", "split_752")


# ── passes ────────────────────────────────────────────────────────────────────────────────────


def passes_table(name: str, column: str, key: str, labels: dict[str, str]) -> str:
    """Passes for every window; `labels` maps the values of `key` to names of chains."""
    measured, rows = record_rows(name), []
    windows = sorted({row["window"] for row in measured})
    for value, label in labels.items():
        rows += passes_rows([row for row in measured if row[key] == value], label)
    return markdown(f"{column} | scale | β | window {' | '.join(map(str, windows))}", rows, name)


def passes_rows(rows: list[dict], label: str) -> list[tuple]:
    """One row per scale, then all scales: passes, tokens per pass, seconds."""
    scales: dict[int, list[dict]] = {}  # {t: rows, a window each}
    for row in sorted(rows, key=lambda row: (-row["t"], row["window"])):
        scales.setdefault(row["t"], []).append(row)
    lines = [
        (label, f"t = {t}", f"{at[0]['beta']:.2f}", *(f"{row['passes']:.1f}" for row in at))
        for t, at in scales.items()
    ]
    tokens = sum(at[0]["tokens"] for at in scales.values())
    columns = list(zip(*scales.values(), strict=True))  # a window's rows, a scale each
    together = [sum(row["passes"] for row in column) for column in columns]
    times = [sum(row["seconds"] for row in column) for column in columns]
    lines.append(("", f"all {tokens} tokens", "", *(f"{n:.0f}" for n in together)))
    lines.append(("", "tokens per pass", "", *(f"{tokens / n:.1f}" for n in together)))
    lines.append(("", "seconds", "", *(f"{one:.2f}" for one in times)))
    return lines


# ── all in one table ──────────────────────────────────────────────────────────────────────────


def highlights_table() -> str:
    fast, back = record("scenery_speed"), record("scenery_reconstruction")
    one = fast["chain"]["1"]
    text, sky = record_row("scenery_obedience_text", condition="text"), record("scenery_edits")
    paper, ours, _ = record_rows("scenery_completion_400")
    apart = "beyond" if ours["against_first"]["time"]["distinct"] else "within"
    _, distance, of_renders, _ = probe_fid_row("scenery_obedience_text")
    rows = [
        (
            "one image, no condition, no guidance",
            f"{seconds(one['parallel']['median_s'])}, {one['parallel']['passes']} passes",
            f"{other_ways(fast)}; {one['sequential']['passes']} tokens in all",
        ),
        ("captions: attributes found", *shares(text, "all")),
        ("captions: probe-FID of the samples", distance, f"as many renders {of_renders}"),
        (
            "skies repainted by prompt: weather found",
            found_in(sky),
            f"{sky['options']['n']} edits, chance {percent(sky['chance'])}",
        ),
        (
            "upper half repainted, no prompt: time of day as below",
            share_in(ours, "found", "time"),
            f"the paper's chain (`resampling_passes=0`) {share_in(paper, 'found', 'time')}, a "
            f"difference {apart} the noise; chance {percent(ours['found_by_chance']['time'])}",
        ),
        (
            "reconstructions: PSNR",
            decibels(back),
            f"sharpness {back['sharpness']:.2f}, the renders' is 1",
        ),
    ]
    return markdown("what | shipped model | beside it", rows)


def other_ways(speed: dict) -> str:
    """Seconds of one image by other methods."""
    names = {
        "ours, sequential": "one pass per token",
        "naive decoder": "no cache (as the released code)",
        "BART with its cache": "BART with its cache",
    }
    return "; ".join(
        f"{label} {seconds(speed['one_image'][way]['seconds'])}" for way, label in names.items()
    )


def shares(row: dict, key: str) -> tuple[str, str]:
    """(share in the samples, shares in the renders and by chance)."""
    beside = [(of, share_in(row, of, key)) for of in ("renders", "chance")]
    return share_in(row, "samples", key), ", ".join(f"{of} {text}" for of, text in beside if text)


TABLES: dict[str, Callable[[], str]] = {
    "highlights": highlights_table,
    "held-out": held_out_table,
    "ablation": ablation_table,
    "trend": trend_table,
    "obedience": obedience_table,
    "objects": objects_table,
    "maps": maps_table,
    "rejection": rejection_table,
    "re-ranking": re_ranking_table,
    "edits": edits_table,
    "erasing": erasing_table,
    "counterfactuals": counterfactuals_table,
    "blind": blind_table,
    "completion": completion_table,
    "completion-400": completion_400_table,
    "completion-particles": completion_particles_table,
    "completion-filling": completion_filling_table,
    "seams": seams_table,
    "joints": joints_table,
    "first-picture": first_picture_table,
    "speed": partial(speed_table, "scenery_speed"),
    "speed-window": partial(speed_table, "scenery_speed_window32"),
    "speed-scales": speed_scales_table,
    "speed-ways": speed_ways_table,
    "speed-ffhq": speed_ffhq_table,
    "split": split_table,
    "unnamed": unnamed_table,
    "passes": partial(
        passes_table, "passes", "first guess", "guess", {"draft": "draft of x_1", "x_t": "x_t"}
    ),
    "passes-equal-training": partial(
        passes_table,
        "passes_equal_training",
        "chain",
        "model",
        {
            "runs/scenery-plain/model": "T = 3",
            "runs/scenery-2/model": "T = 2, equal parameters and steps",
        },
    ),
}
