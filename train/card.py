"""The card of a model: README.md of its folder, from the records of train/everything.py."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from torch import nn

from imagebart import ImageBART
from imagebart.checkpoint import atomic_write, read_json
from imagebart.presets import Preset
from imagebart.show import Picture, grid

CARD = """# {name}

{W}×{H} pixels: a VQGAN (f = {f}, {h}×{w} tokens of {K} codes) and a chain of T = {T}.
{conditions}

![Samples](samples.png)

*The first {samples} samples, seeds 0 to {last}, none left out.*

## How it was made

```bash
{command}
```

| stage | steps × batch | seconds |
| --- | --- | --- |
{stages}

{images:,} images were encoded for the chain. The VQGAN has {vqgan_parameters:.1f} M parameters, the
chain {chain_parameters:.1f} M. Seed {seed}, {date}.

## What it measures

| figure | value | measured on |
| --- | --- | --- |
{figures}
"""


def write_card(options: dict, preset: Preset, batch: dict[str, int], record: dict) -> None:
    """OUT/model/README.md and the picture in it; everything in them stands in OUT's records, but
    for the `options` of the command.

    `batch` is the images a step of the VQGAN and of the chain.
    """
    out = options["out"]
    model, plan = ImageBART.from_pretrained(out / "model"), record["plan"]
    samples = sorted((out / "figures" / "samples").glob("*.png"))
    contact_sheet(samples).save(out / "model" / "samples.png")
    (h, w), (H, W) = model.grid, model.image_size
    text = CARD.format(
        name=out.resolve().name,
        H=H,
        W=W,
        f=model.vqgan.f,
        h=h,
        w=w,
        K=model.K,
        T=model.T,
        conditions=conditions_of(model),
        samples=len(samples),
        last=len(samples) - 1,
        command=command(options),
        stages="\n".join(stage_rows(preset, batch, record)),
        images=plan["images"],
        vqgan_parameters=millions(model.vqgan),
        chain_parameters=millions(*model.denoisers.values()),
        seed=record["options"]["seed"],
        date=datetime.now(UTC).date().isoformat(),
        figures="\n".join(figure_rows(out / "figures", model)),
    )
    with atomic_write(out / "model" / "README.md") as draft:
        draft.write_text(text, encoding="utf-8")


def command(options: dict) -> str:
    """What makes the same again, for a shell."""
    words = ["python", "train/everything.py"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def contact_sheet(paths: list[Path]) -> Picture:
    """Pictures of one size beside and below each other, as square as can be."""
    images = [Image.open(path) for path in paths]
    return grid(images, round(len(images) ** 0.5), height=images[0].height)


def stage_rows(preset: Preset, batch: dict[str, int], record: dict) -> list[str]:
    """A row for every stage that trains or encodes."""
    plan = record["plan"]
    learned = {name: f"{plan[name]:,} × {images}" for name, images in batch.items()}
    steps = learned["vqgan"], "", f"{learned['chain']}, {steps_shared(preset)}"
    return [
        f"| {name} | {of} | {record['stages'][name]['seconds']:,.0f} |"
        for name, of in zip(("vqgan", "tokens", "chain"), steps, strict=True)
    ]


def steps_shared(preset: Preset) -> str:
    """How the steps of the chain are shared between its scales."""
    if preset.joint:
        return f"one network, t = 2 to {preset.T} in turn"
    return f"t = 2 to {preset.T} each"


FIGURES = [  # file, path in it, what it is, the bound by what it is given
    ("reconstruction", ("psnr",), "PSNR of reconstructions, dB"),
    ("reconstruction", ("sharpness",), "sharpness of reconstructions, the pictures' is 1"),
    ("likelihood", ("sum",), "the bound, nats a token, {given}"),
    ("likelihood", ("bits_per_token",), "… in bits a token"),
]


def figure_rows(folder: Path, model: ImageBART) -> list[str]:
    """A row for every figure of the model that was measured."""
    rows, given = [], given_in_bound(model)
    for name, keys, label in FIGURES:
        path = folder / f"{name}.json"
        if path.exists():
            value = report = read_json(path)
            for key in keys:
                value = value[key]
            rows.append(
                f"| {label.format(given=given)} | {value:.3f} | "
                f"{report['n']} held-out pictures, {report['hardware']} |"
            )
    return rows


def given_in_bound(model: ImageBART) -> str:
    """What the bound is given: nothing, or all conditions where the model needs them."""
    needs = model.conditions and not model.condition_dropout
    return f"conditional on {' and '.join(model.conditions)}" if needs else "unconditional"


def conditions_of(model: ImageBART) -> str:
    """What it can be asked for, as a sentence."""
    parts = model.conditions
    return f"Takes {' and '.join(parts)}." if parts else "Unconditional."


def millions(*modules: nn.Module) -> float:
    """Parameters of modules, each counted once."""
    each = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(each.values()) / 1e6
