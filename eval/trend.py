"""Does a longer chain help, and does one network for all scales? Table 3 and section 4.4 in small.

    python eval/trend.py --runs runs/trend --out eval/results/scenery_trend.json

One VQGAN and its tokens for all; then, for T = 2, 3, 5, 9 and every training seed, the chain of
preset `mini-T` (3 million parameters in all; every scale as many steps: equal parameters and equal
compute), measured by the probe: unconditional samples (probe-FID, probe-IS), and upper halves
completed by a single pass, as in the paper, by resampling passes, and by a conditional draw at
t = T. `mini-5-joint` is one network of the size of each of `mini-5`'s four, trained for as many
steps as all of them. A chain takes about 20 minutes of one core, the whole table about 5 hours;
`--workers 2` trains and measures two chains at a time.

Reported are the mean over training seeds with its 95 % interval (Student's t), and the differences
from T = 2, of the joint network from `mini-5`, seed by seed: `distinct` if their interval does not
hold 0. Every step resumes: run the same command again.
"""

import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from records import TRAINING_CODE, Run, is_current
from reporting import run
from scipy.stats import t as students_t

from imagebart.checkpoint import Checkpoints, read_json
from imagebart.distributed import pick_device
from imagebart.folders import JOINT
from imagebart.presets import PRESETS, find_preset

ROOT = Path(__file__).parents[1]
TREND_COLUMNS = {
    "probe_fid": "probe-FID",
    "probe_is": "probe-IS",
    "completion_fid": "upper halves, single pass: probe-FID",
    "completion_time": "… right time of day",
    "resampled_fid": "upper halves, 8 resampling passes: probe-FID",
    "resampled_time": "… right time of day",
    "drawn_fid": "upper halves, 16 particles at t = T: probe-FID",
    "drawn_time": "… right time of day",
}


@dataclass(frozen=True)
class Config:
    runs: Path = Path("runs/trend")  # where the models and their figures go
    out: Path | None = None  # where the JSON goes
    T: tuple[int, ...] = (2, 3, 5, 9)
    seeds: tuple[int, ...] = (0, 1, 2)  # of training
    n: int = 1000  # samples, and half as many completions
    steps: int | None = None  # of the VQGAN and of every scale, instead of the presets'
    images: int | None = None  # that the chains learn from, instead of the presets'
    workers: int = 1  # chains at a time; each computes by OMP_NUM_THREADS threads
    device: str = "auto"


def main(config: Config) -> dict:
    if len(config.seeds) < 2 or 2 not in config.T:
        raise ValueError(f"seeds must be two at least, T have 2, got {config.seeds}, {config.T}")
    tokens = tokens_of_all(config)
    names = [f"mini-{T}" for T in config.T]
    names += [name for T in config.T if (name := f"mini-{T}-joint") in PRESETS]
    each = figures_of_all(names, tokens, config)
    rows = []
    for name, seeds in each.items():
        other = name.removesuffix("-joint") if name.endswith("-joint") else "mini-2"
        row = {"preset": name, "seeds": seeds, **summary_over_seeds(seeds)}
        if other != name:
            row["against"] = {"preset": other, **paired_over_seeds(seeds, each[other])}
        rows.append(row)
    models = [chain_folder(name, seed, config) for name in names for seed in config.seeds]
    data = each[names[0]][0]["data"]
    record = Run(config, models, code=TRAINING_CODE).record(
        pick_device(config.device), data=data, n=config.n, seeds=(0, config.n - 1)
    )
    return {"rows": rows, **record}


def tokens_of_all(config: Config) -> Path:
    """The tokens that every chain learns from, and the one VQGAN: made if they are not there."""
    first = f"mini-{config.T[0]}"
    images = config.images or find_preset(first).token_images
    steps = ["--steps", config.steps] if config.steps else []
    vqgan, tokens = config.runs / "vqgan", config.runs / "tokens"
    script("train/compression.py", "--preset", first, *steps, "--out", vqgan)
    validation = ["--validation", max(20, images // 20)]
    script("train/encode.py", "--vqgan", vqgan, "--count", images, *validation, "--out", tokens)
    return tokens


def figures_of_all(names: list[str], tokens: Path, config: Config) -> dict[str, list[dict]]:
    """{preset: the figures of its chains, one trained by each seed}, so many chains at a time."""
    chains = [*product(names, config.seeds)]
    with ThreadPoolExecutor(config.workers) as pool:  # all work is done in other processes
        figures = [*pool.map(lambda chain: trained_and_measured(*chain, tokens, config), chains)]
    found = dict(zip(chains, figures, strict=True))
    return {name: [found[name, seed] for seed in config.seeds] for name in names}


def trained_and_measured(name: str, seed: int, tokens: Path, config: Config) -> dict:
    """The figures of a preset's chain, trained by this seed."""
    preset, model = find_preset(name), chain_folder(name, seed, config)
    scales = range(2, preset.T + 1)
    steps = preset.scale.steps
    if config.steps:
        steps = config.steps * (len(scales) if preset.joint else 1)
    for t in [None] if preset.joint else scales:
        train_scale(name, t, seed, steps, tokens, model)
    return figures_of_chain(model, config.n)


def train_scale(name: str, t: int | None, seed: int, steps: int, tokens: Path, model: Path) -> Path:
    """Train scale t of a preset, None all of a joint one; the run's folder.

    ValueError if it was stopped before its last step.
    """
    which = [] if t is None else ["--t", t]
    what = ["--preset", name, "--seed", seed, "--tokens", tokens, "--out", model]
    script("train/scale.py", *what, "--steps", steps, *which)
    run = model / "checkpoints" / f"scale_{JOINT if t is None else t}"
    if (made := Checkpoints(run).newest()) != steps:
        raise ValueError(
            f"{run} must have made {steps} steps, got {made}: the same command goes on"
        )
    return run


def chain_folder(name: str, seed: int, config: Config) -> Path:
    return config.runs / f"{name}-seed{seed}"


def script(name: str, *options) -> None:
    """Run a script of this repository; ValueError if it fails."""
    done = subprocess.run([sys.executable, ROOT / name, *map(str, options)], check=False)
    if done.returncode:
        raise ValueError(f"{name} {' '.join(map(str, options))} must succeed, see above")


def figures_of_chain(model: Path, n: int) -> dict:
    """What is measured of one chain."""
    samples, completions = (model / f"{name}.json" for name in ("generation", "completion"))
    if not fits(samples, n):
        metrics = ["--metrics", "fid", "is", "--reference", "scenery"]
        what = ["--model", model, "--features", "probe", "--num-images", n]
        script("eval/generation.py", *what, *metrics, "--out", samples)
    if not fits(completions, n // 2):
        how = ["--masks", "upper", "--process", "single", "--resampling-passes", 0, 8]
        how += ["--particles", 16]
        script("eval/completion.py", "--model", model, "--n", n // 2, *how, "--out", completions)
    made, back = read_json(samples), read_json(completions)["rows"]
    single, resampled, drawn = back  # T = 2 has no scale to resample at: two are its single pass
    return {
        "probe_fid": made["metrics"]["probe-fid"]["value"],
        "probe_is": made["metrics"]["probe-is"]["value"],
        "completion_fid": single["probe_fid"],
        "completion_time": single["found"]["time"],
        "resampled_fid": resampled["probe_fid"],
        "resampled_time": resampled["found"]["time"],
        "drawn_fid": drawn["probe_fid"],
        "drawn_time": drawn["found"]["time"],
        "data": made["data"],
    }


def fits(path: Path, n: int) -> bool:
    """Whether a record of so many images is there, of this model and this code."""
    made = read_json(path) if path.exists() else {}
    return made.get("n") == n and is_current(made)


def summary_over_seeds(each: list[dict]) -> dict:
    """{figure: its mean, and the interval of the mean over training seeds}."""
    return {name: over_seeds([one[name] for one in each]) for name in TREND_COLUMNS}


def paired_over_seeds(ours: list[dict], theirs: list[dict]) -> dict:
    """{figure: the difference of two chains, seed by seed, and whether it is distinct from 0}."""
    return {
        name: difference_over_seeds([one[name] for one in ours], [one[name] for one in theirs])
        for name in TREND_COLUMNS
    }


def difference_over_seeds(ours: list[float], theirs: list[float]) -> dict:
    """`over_seeds` of the differences, seed by seed, and whether they are distinct from 0."""
    found = over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])
    low, high = found["interval"]
    return found | {"distinct": not low <= 0 <= high}


def over_seeds(values: Iterable[float]) -> dict:
    """Mean and its 95 % interval by Student's t."""
    x = np.array([*values], float)
    reach = students_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    mean = float(x.mean())
    return {"value": mean, "interval": [mean - float(reach), mean + float(reach)]}


def summary(report: dict) -> str:
    lines = []
    for row in report["rows"]:
        parts = [
            f"{label} {row[name]['value']:.3g} ({row[name]['interval'][0]:.3g} to "
            f"{row[name]['interval'][1]:.3g})"
            for name, label in TREND_COLUMNS.items()
        ]
        lines.append(f"{row['preset']}: " + "; ".join(parts))
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
