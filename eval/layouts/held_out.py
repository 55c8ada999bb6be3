"""Tables of held-out scenery: the bound, reconstructions, and chains of other lengths."""

from imagebart.presets import find_preset
from layouts.parts import (
    difference_of,
    markdown,
    percent,
    record,
    record_rows,
    signed,
    three,
    two,
    valued,
    with_interval,
    within,
)


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


def layers_table() -> str:
    """Figure 8 left with quality."""
    name, rows = "scenery_layers", []
    for row in record_rows(name):
        difference = difference_of(row.get("against"), signed)
        rows.append((layers_of(row["preset"]), valued(row["nats"], three), difference))
    return markdown("layers, encoder + decoder | L_3, nats per token | difference", rows, name)


def layers_of(preset: str) -> str:
    shape = find_preset(preset).between
    return f"{shape.encoder_depth} + {shape.decoder_depth}"


TREND = {
    "probe_fid": "samples: probe-FID",
    "probe_is": "probe-IS",
    "completion_fid": "upper halves, each scale once: probe-FID",
    "completion_time": "time of day, once",
    "resampled_fid": "with 8 resampling passes: probe-FID",
    "resampled_time": "time of day, with 8",
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
