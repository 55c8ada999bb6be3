"""Make a model from nothing: pictures → VQGAN → tokens → chain → figures → card.   [section 3]

    python train/everything.py --preset scenery --out runs/scenery
    python train/everything.py --preset scenery --out runs/scenery --minutes 60
    python train/everything.py --preset photos --data photos/ --out runs/photos
    python app.py --model runs/photos/model

A stage is a run of another script: train/compression.py, train/encode.py, train/chain.py, then
those of eval/ that measure. The same command again goes on where it was stopped or killed. Before
all else a rehearsal runs the training stages for a few steps: it finds what is wrong with the data
or the machine at once, and it tells how long a step takes, hence how long everything takes. With
`--minutes` the steps are planned to fit.

OUT holds model/ (loadable once the chain has begun), vqgan/, tokens/, figures/, what each stage
printed (STAGE.txt), and everything.json: what is planned, what is done, how long it took.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from card import write_card
from progress import Progress
from stages import Metrics, Stage, begin_anew, run_stage
from training import located, read_options, run_alone

from imagebart.checkpoint import StopSignal, read_json, write_json
from imagebart.presets import Preset, find_preset

REHEARSAL = {"vqgan": 20, "chain": 20, "images": 64, "held_out": 64}
"""Steps of the VQGAN, steps of each scale, training and held-out images to encode."""
VQGAN_SHARE, ENCODE_SHARE, CHAIN_SHARE = 0.35, 0.1, 0.45
"""Parts of the time that is left after the rehearsal; the rest is start-up and figures."""
ENCODED_WHILE_ONE_IS_LEARNED = 3
"""Images that are encoded in the time that the VQGAN's training takes for one."""


@dataclass(frozen=True)
class Config:
    out: Path  # folder of everything
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    data: str = "scenery"  # "scenery", or a folder of images
    minutes: float | None = None  # time for everything; unless given, the preset's steps
    figures: int = 100  # images that each figure of the card is measured on
    seed: int = 0


def main(config: Config) -> None:
    preset = find_preset(config.preset)
    path = config.out / "everything.json"
    record = read_record(path, config)

    def save() -> None:
        write_json(record, path)

    with StopSignal() as stop, Progress() as progress:
        if "plan" not in record:
            rehearsal = config.out / "rehearsal"
            begin_anew(rehearsal)  # one that was stopped says nothing about a step's time
            record["rehearsal"] = {}
            for stage in training(config, preset, rehearsal, REHEARSAL):
                run_stage(stage, rehearsal, record["rehearsal"], save, progress, stop)
            record["plan"] = plan(config, preset, rehearsal, record["rehearsal"])
            save()
            progress.say(f"planned: {record['plan']}")
        stages = training(config, preset, config.out, record["plan"]) + measuring(config)
        for stage in stages:
            run_stage(stage, config.out, record["stages"], save, progress, stop)
    write_card(config.out, preset, record)
    model = config.out / "model"
    print(f"done: python app.py --model {model}")


def read_record(path: Path, config: Config) -> dict:
    """What OUT knows of this run; ValueError if it is a run with other options."""
    options = {name: getattr(config, name) for name in ("preset", "minutes", "seed")}
    options["data"] = located(config.data)
    if not path.exists():
        return {"options": options, "rehearsal": {}, "stages": {}}
    record = read_json(path)
    before = record["options"] | {"data": located(record["options"]["data"])}
    if before != options:
        raise ValueError(f"{config.out}: a run that is resumed must keep {before}, got {options}")
    return record


# ── what is run ───────────────────────────────────────────────────────────────────────────────


def training(config: Config, preset: Preset, out: Path, plan: dict) -> list[Stage]:
    """VQGAN → tokens → chain, with the steps and images of a plan."""
    what = {"--preset": config.preset}
    images = {"--data": config.data}
    vqgan = Stage(
        "vqgan",
        ("train/compression.py",),
        what | images | {"--steps": plan["vqgan"], "--seed": config.seed, "--out": out / "vqgan"},
        metrics="vqgan/metrics.jsonl",
        steps=plan["vqgan"],
        batch=preset.compression.batch,
        gpus=torch.cuda.device_count(),
    )
    count = {"--count": plan["images"]} if plan["images"] else {}  # 0: all that there are
    tokens = Stage(
        "tokens",
        ("train/encode.py",),
        images
        | {"--vqgan": out / "vqgan", "--validation": plan["held_out"], **count}
        | {"--out": out / "tokens"},
    )
    chain = Stage(
        "chain",
        ("train/chain.py",),
        what
        | {"--tokens": out / "tokens", "--steps": plan["chain"], "--seed": config.seed}
        | {"--out": out / "model"},
        metrics="model/checkpoints/scale_*/metrics.jsonl",
        steps=plan["chain"] * runs_of(preset),
        batch=preset.scale.batch,
    )
    return [vqgan, tokens, chain]


def measuring(config: Config) -> list[Stage]:
    """The figures of the card. What a reconstruction keeps is known of scenery only."""
    model, figures = config.out / "model", config.out / "figures"
    measured = {"likelihood": {"--data": config.data, "--n-frequency": 10 * config.figures}}
    if config.data == "scenery":
        measured["reconstruction"] = {}
    shared = {"--model": model, "--n": config.figures}
    stages = [
        Stage(name, (f"eval/{name}.py",), shared | more | {"--out": figures / f"{name}.json"})
        for name, more in measured.items()
    ]
    sampled = {"--model": model, "--num-images": 16, "--out": figures / "samples"}
    return [*stages, Stage("samples", ("-m", "imagebart", "sample"), sampled)]


def runs_of(preset: Preset) -> int:
    """Runs of train/scale.py that a chain takes: one a scale, or one for all."""
    return 1 if preset.joint else preset.T - 1


# ── how long it takes ─────────────────────────────────────────────────────────────────────────


def plan(config: Config, preset: Preset, rehearsal: Path, spent: dict) -> dict:
    """Steps and images of every stage, and the seconds that they are expected to take."""
    vqgan_rate = Metrics(rehearsal, "vqgan/metrics.jsonl").steps_a_second()
    chain_rate = Metrics(rehearsal, "model/checkpoints/scale_*/metrics.jsonl").steps_a_second()
    encode_rate = ENCODED_WHILE_ONE_IS_LEARNED * vqgan_rate * preset.compression.batch
    steps = {"vqgan": preset.compression.steps, "chain": preset.scale.steps}
    images = preset.token_images
    if config.minutes is not None:
        left = 60 * config.minutes - sum(stage["seconds"] for stage in spent.values())
        if left < 30:
            raise ValueError(f"minutes must leave time after the rehearsal, got {left:.0f} s")
        steps["vqgan"] = max(1, int(VQGAN_SHARE * left * vqgan_rate))
        steps["chain"] = max(1, int(CHAIN_SHARE * left * chain_rate / runs_of(preset)))
        images = min(images, max(REHEARSAL["images"], int(ENCODE_SHARE * left * encode_rate)))
    held_out = max(REHEARSAL["held_out"], min(2000, images // 10 or 2000))
    seconds = steps["vqgan"] / vqgan_rate + steps["chain"] * runs_of(preset) / chain_rate
    seconds += (images + held_out) / encode_rate
    return {**steps, "images": images, "held_out": held_out, "expected_seconds": round(seconds)}


if __name__ == "__main__":
    run_alone(main, read_options(Config, __doc__))
