"""Tables of samples: what of a condition is found, samples that are chosen, a viewer's answers."""

from layouts.parts import (
    OF,
    difference_of,
    markdown,
    percent,
    points,
    record,
    record_row,
    record_rows,
    share_in,
    three,
    two,
    with_interval,
    within,
)


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
            difference_of(row.get("against_first"), points),
        )
        for row in record("scenery_selection")["re-ranking"]
    ]
    header = "best of | similarity to the caption | attributes found | … less those of one"
    return markdown(header, rows, "scenery_selection")


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
