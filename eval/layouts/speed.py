"""Tables of seconds and passes."""

from layouts.parts import markdown, percent, record, record_rows, seconds, three, two


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
