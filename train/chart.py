"""Draw what runs have logged, beside each other: metrics.jsonl → one picture.

    python train/chart.py --runs runs/photos/vqgan runs/photos/model/checkpoints/scale_2 --out a.png

A column for each run, a row for each number that one of them has.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro
from matplotlib import pyplot as plt
from stages import rows_of
from training import errors_said

OF_VQGAN = ("rec", "psnr", "perceptual", "codes", "logit_real", "logit_fake")
NUMBERS = (*OF_VQGAN, "loss", "held_out", "norm")
"""What train/README.md says to watch."""


@dataclass(frozen=True)
class Config:
    runs: tuple[Path, ...]  # folders that have a metrics.jsonl
    out: Path  # a PNG
    numbers: tuple[str, ...] = NUMBERS  # of those in the logs


def main(config: Config) -> None:
    logs = [log_of(run) for run in config.runs]
    there = [x for x in config.numbers if any(points_of(log, x) for log in logs)]
    if not there:
        raise ValueError(f"logs must have one of {', '.join(config.numbers)}, got none")
    matplotlib.use("Agg")
    size = (3.2 * len(logs), 1.3 * len(there) + 0.5)
    shared = dict(sharex="col", sharey="row", squeeze=False, layout="constrained")
    figure, rows = plt.subplots(len(there), len(logs), figsize=size, **shared)
    for row, name in zip(rows, there, strict=True):
        row[0].set_ylabel(name)
        for axes, log in zip(row, logs, strict=True):
            axes.plot(*zip(*(points_of(log, name) or [(0, float("nan"))]), strict=True), ".-")
    for axes, run in zip(rows[0], config.runs, strict=True):
        axes.set_title(run.name)
    for axes in rows[-1]:
        axes.set_xlabel("step")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=80)


def log_of(run: Path) -> list[dict]:
    """The lines of a run's log; ValueError for a folder that has none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run}: must be a run's folder with a metrics.jsonl, got none")
    return rows_of(path)


def points_of(log: list[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) of every line that has the number."""
    return [(line["step"], line[name]) for line in log if line.get(name) is not None]


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    with errors_said():
        main(config)
