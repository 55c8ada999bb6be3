"""What pays when a scale is trained: one change at a time, at an equal number of steps.

    python eval/ablation.py --runs runs/trend --out eval/results/scenery_ablation.json
    python eval/ablation.py --runs runs/trend --of layers --out eval/results/scenery_layers.json

The scale t = 3 of preset `mini-5` (64×64 scenery, 8×8 tokens, 0.8 million parameters) and the same
with one field of its configuration changed, each trained by several seeds on the tokens of
trend.py. Reported are L_3 of held-out images and its difference from `mini-5` seed by seed
(`distinct` if the interval does not hold 0). `--of layers` is the quality that figure 8 left of the
paper weighs: layers for the encoder or for the decoder, at equal parameters, compared with a single
decoder layer. Every step resumes: run the same command again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trend
from records import TRAINING_CODE, Run
from reporting import run
from trend import difference_over_seeds, over_seeds

from imagebart.data.tokens import TokenFile
from imagebart.distributed import pick_device

ABLATED_T = 3
ROWS = {
    "fields": (
        "mini-5",
        "mini-5-place-vectors",
        "mini-5-rotary",
        "mini-5-qk-norm",
        "mini-5-rotary-qk-norm",
        "mini-5-muon",
        "mini-5-residual-output",
        "mini-5-plain-output",
    ),
    "layers": tuple(f"mini-5-decoder-{layers}" for layers in (1, 2, 4, 5, 7)),
}
"""Presets: the first is what the others are compared with."""


@dataclass(frozen=True)
class Config:
    runs: Path = Path("runs/trend")  # where tokens and chains lie, or go
    out: Path | None = None  # where the JSON goes
    of: Literal["fields", "layers"] = "fields"  # what is changed
    steps: int = 800  # of every run
    seeds: tuple[int, ...] = (0, 1, 2)  # of training
    device: str = "auto"


def main(config: Config) -> dict:
    if len(config.seeds) < 2:
        raise ValueError(f"seeds must be two at least, got {config.seeds}")
    tokens = trend.tokens_of_all(trend.Config(runs=config.runs))
    names, rows = ROWS[config.of], []
    each = {name: [one_run(name, seed, tokens, config) for seed in config.seeds] for name in names}
    for name, held_out in each.items():
        row = {"preset": name, "seeds": held_out, "nats": over_seeds(held_out)}
        if name != names[0]:
            row["against"] = difference_over_seeds(held_out, each[names[0]])
        rows.append(row)
    validation = TokenFile(tokens / "validation")
    models = [run_folder_of(name, seed, config) for name in names for seed in config.seeds]
    record = Run(config, models, code=TRAINING_CODE).record(
        pick_device(config.device),
        data=validation.digest(),
        n=min(512, len(validation)),
        seeds=(min(config.seeds), max(config.seeds)),
    )
    return {"rows": rows, **record}


def run_folder_of(name: str, seed: int, config: Config) -> Path:
    return config.runs / "ablation" / f"{name}-seed{seed}"


def one_run(name: str, seed: int, tokens: Path, config: Config) -> float:
    """L_3 of held-out images in nats a token after a run, which is trained if it is not."""
    out = run_folder_of(name, seed, config)
    log = trend.train_scale(name, ABLATED_T, seed, config.steps, tokens, out) / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if "held_out" in row and row["step"] == config.steps:
            return row["held_out"]
    raise ValueError(
        f"{log} must hold the held-out loss of step {config.steps}, got none: delete {out}"
    )


def summary(report: dict) -> str:
    lines, first = [], report["rows"][0]["preset"]
    for row in report["rows"]:
        low, high = row["nats"]["interval"]
        line = f"{row['preset']}: {row['nats']['value']:.3f} nats ({low:.3f} to {high:.3f})"
        if "against" in row:
            line += f", {row['against']['value']:+.3f} from {first}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
