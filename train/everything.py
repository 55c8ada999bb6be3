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

Where there is a GPU, steps have more images, and all cores but one make them. It waits for them
nevertheless, so scenery is painted once: the chain learns from the very scenes that the VQGAN has
learned from, kept in OUT/scenes (4 · height · width bytes each) until their tokens are there.

OUT holds model/ (loadable once the chain has begun), vqgan/, tokens/, figures/, what each stage
printed (STAGE.txt), and everything.json: what is planned, what is done, how long it took.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from card import write_card
from progress import Progress
from stages import Metrics, Stage, begin_anew, run_stage
from training import located, read_options, run_alone

from imagebart.checkpoint import StopSignal, read_json, write_json
from imagebart.data.sources import open_data
from imagebart.presets import Preset, find_preset

ENCODE_BATCH = 32
"""Images at once that are encoded on a CPU."""
LOOKED_AT = 2000
"""Training images at most that say which codes are in use; they are encoded twice."""
VQGAN_SHARE, ENCODE_SHARE, CHAIN_SHARE = 0.35, 0.1, 0.45
"""Parts of the time that is left after the rehearsal; the rest is start-up and figures."""


@dataclass(frozen=True)
class Computer:
    """What training is given of the computer that it runs on."""

    gpus: int
    workers: int  # processes that make images, a GPU
    larger: dict[str, int]  # times the preset's batch, at the same learning rates
    steps: int  # of each stage of the rehearsal
    encoded_while_one_is_learned: int
    """Images that are encoded in the time that the VQGAN's training takes for one: on a GPU both
    wait for the images."""

    @classmethod
    def here(cls) -> "Computer":
        gpus = torch.cuda.device_count()
        if not gpus:
            return cls(0, 2, {"vqgan": 1, "tokens": 1, "chain": 1}, 20, 3)
        larger = {"vqgan": 4, "tokens": 4, "chain": 16}  # what keeps it busy between two launches
        workers = max(1, (usable_cores() - 1) // gpus)
        # steps of a GPU are counted once the images that were made ahead are used up
        return cls(gpus, workers, larger, 2 * workers + 100, 1)

    def rehearsal(self, preset: Preset, data: str) -> dict[str, int]:
        """The plan of the rehearsal: a few steps, and few images, but none is kept yet."""
        steps = {"vqgan": self.steps, "chain": self.steps}
        images = self.steps * self.batches(preset)["vqgan"] if self.keeps(data) else 64
        return steps | {"images": images, "held_out": 64}

    def keeps(self, data: str) -> bool:
        """Whether images are made once, and kept for all stages."""
        return bool(self.gpus) and data == "scenery"

    def batches(self, preset: Preset) -> dict[str, int]:
        """Images a step of each stage; of the VQGAN every GPU gets as many."""
        each, vqgan = max(1, self.gpus), self.larger["vqgan"] * preset.compression.batch
        return {"vqgan": vqgan // each * each, "chain": self.larger["chain"] * preset.scale.batch}


def usable_cores() -> int:
    """Cores that this process may use: on a cluster they are a part of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # of Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Config:
    out: Path  # folder of everything
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    data: str = "scenery"  # "scenery", or a folder of images
    minutes: float | None = None  # time for everything; unless given, the preset's steps
    compile: bool = False  # compile the blocks of the chain: slow to start, faster then
    figures: int = 100  # images that each figure of the card is measured on
    seed: int = 0


def main(config: Config) -> None:
    preset, computer = find_preset(config.preset), Computer.here()
    if config.figures < 2:
        raise ValueError(f"figures must be at least 2, got {config.figures}")
    path = config.out / "everything.json"
    record = read_record(path, config)

    def save() -> None:
        write_json(record, path)

    with StopSignal() as stop, Progress() as progress:
        rehearsal = config.out / "rehearsal"
        if "plan" not in record:
            begin_anew(rehearsal)  # one that was stopped says nothing about a step's time
            record["rehearsal"] = {}
            few = computer.rehearsal(preset, config.data)
            for stage in training(config, preset, computer, rehearsal, few):
                run_stage(stage, rehearsal, record["rehearsal"], save, progress, stop)
            record["plan"] = plan(config, preset, computer, rehearsal, record["rehearsal"])
            save()
            progress.say(f"planned: {record['plan']}")
        for stage in training(config, preset, computer, config.out, record["plan"]):
            run_stage(stage, config.out, record["stages"], save, progress, stop)
            if stage.name != "tokens":
                continue
            for folder in (rehearsal, config.out):
                shutil.rmtree(folder / "scenes", ignore_errors=True)
            if config.minutes and "chain" not in record["stages"]:
                record["plan"]["chain"] = chain_steps(config, preset, rehearsal, record)
        for stage in measuring(config):
            run_stage(stage, config.out, record["stages"], save, progress, stop)
    write_card(vars(config), preset, computer.batches(preset), record)
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


def training(
    config: Config, preset: Preset, computer: Computer, out: Path, plan: dict
) -> Iterator[Stage]:
    """VQGAN → tokens → chain. The plan of a stage, its steps or images, is read when it begins."""
    what = {"--preset": config.preset}
    made = {"--data": config.data, "--workers": computer.workers}
    made |= {"--keep": out / "scenes"} if computer.keeps(config.data) else {}
    batch = computer.batches(preset)
    yield Stage(
        "vqgan",
        ("train/compression.py",),
        what
        | made
        | {"--steps": plan["vqgan"], "--batch": batch["vqgan"], "--seed": config.seed}
        | ({"--count": plan["images"]} if computer.keeps(config.data) else {})
        | {"--out": out / "vqgan"},
        metrics="vqgan/metrics.jsonl",
        steps=plan["vqgan"],
        batch=batch["vqgan"],
        gpus=computer.gpus,
    )
    yield Stage(
        "tokens",
        ("train/encode.py",),
        made
        | {"--vqgan": out / "vqgan", "--validation": plan["held_out"], "--count": plan["images"]}
        | {"--looked-at": LOOKED_AT}
        | {"--batch": ENCODE_BATCH * computer.larger["tokens"], "--out": out / "tokens"},
        gpus=computer.gpus,
    )
    yield Stage(
        "chain",
        ("train/chain.py",),
        what
        | {"--tokens": out / "tokens", "--steps": plan["chain"], "--batch": batch["chain"]}
        | {"--seed": config.seed, "--out": out / "model"}
        | ({"--compile": True} if config.compile else {}),
        metrics="model/checkpoints/scale_*/metrics.jsonl",
        steps=plan["chain"] * runs_of(preset),
        batch=batch["chain"],
    )


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


def plan(
    config: Config, preset: Preset, computer: Computer, rehearsal: Path, spent: dict[str, dict]
) -> dict:
    """Steps and images of every stage, and the seconds that they are expected to take."""
    vqgan_rate, chain_rate = rates(rehearsal)
    encode_rate = vqgan_rate * computer.batches(preset)["vqgan"]
    encode_rate *= computer.encoded_while_one_is_learned
    steps = {"vqgan": preset.compression.steps, "chain": preset.scale.steps}
    images = preset.token_images or images_in(config.data)
    if config.minutes is not None:
        left = 60 * config.minutes - seconds_of(spent)
        if left < 30:
            raise ValueError(f"minutes must leave time after the rehearsal, got {left:.0f} s")
        steps["vqgan"] = max(1, int(VQGAN_SHARE * left * vqgan_rate))
        steps["chain"] = max(1, int(CHAIN_SHARE * left * chain_rate / runs_of(preset)))
        encoded = ENCODE_SHARE * left * encode_rate
        images = min(images, max(64, int(max(encoded / 2, encoded - LOOKED_AT))))
    if computer.keeps(config.data):
        images = steps["vqgan"] * computer.batches(preset)["vqgan"]
    held_out = max(64, min(2000, images // 10))
    seconds = steps["vqgan"] / vqgan_rate + steps["chain"] * runs_of(preset) / chain_rate
    seconds += (images + min(images, LOOKED_AT) + 2 * held_out) / encode_rate
    return {**steps, "images": images, "held_out": held_out, "expected_seconds": round(seconds)}


def images_in(data: str) -> int:
    """Images that a chain can learn from, in a folder or tar files."""
    return len(open_data(data, None, "train"))


def chain_steps(config: Config, preset: Preset, rehearsal: Path, record: dict) -> int:
    """Steps of each scale in the minutes that VQGAN and tokens, as they came, have left; a tenth
    of those that were planned at least, whatever is left."""
    left = 60 * config.minutes - seconds_of(record["rehearsal"]) - seconds_of(record["stages"])
    _, rate = rates(rehearsal)
    share = CHAIN_SHARE / (1 - VQGAN_SHARE - ENCODE_SHARE)
    least = max(1, record["plan"]["chain"] // 10)
    return max(least, int(share * left * rate / runs_of(preset)))


def rates(rehearsal: Path) -> tuple[float, float]:
    """Steps a second of the VQGAN, and of a run of the chain."""
    patterns = "vqgan/metrics.jsonl", "model/checkpoints/scale_*/metrics.jsonl"
    vqgan, chain = (Metrics(rehearsal, pattern).steps_a_second() for pattern in patterns)
    return vqgan, chain


def seconds_of(stages: dict[str, dict]) -> float:
    return sum(stage["seconds"] for stage in stages.values())


if __name__ == "__main__":
    run_alone(main, read_options(Config, __doc__))
