"""The table that the README shows."""

from layouts.held_out import decibels
from layouts.parts import (
    found_in,
    markdown,
    percent,
    record,
    record_row,
    record_rows,
    seconds,
    share_in,
    shares,
)
from layouts.samples import probe_fid_row


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
