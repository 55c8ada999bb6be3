"""All run records of the documents, measured again for the shipped weights, and what moved.

    python eval/all.py --budget 2h
    python eval/all.py --budget 30m --only scenery_likelihood scenery_edits

In order of importance until the budget is spent: a record is not begun if it would take longer than
what is left. A record of these weights and of this code is not measured again, and one that was
stopped goes on, so the same command finishes what an earlier one began. Afterwards:
`python eval/tables.py` writes the documents' tables.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from records import is_current
from reporting import run

from imagebart.checkpoint import read_json

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "eval" / "results"
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Measurement:
    """A record, the command that makes it, and the minutes that it takes on two cores."""

    name: str
    command: str
    minutes: float


MEASUREMENTS = (
    Measurement(
        "scenery_likelihood",
        "eval/likelihood.py --n 300 --n-frequency 1000 --importance 4",
        6,
    ),
    Measurement("scenery_reconstruction", "eval/reconstruction.py --n 500", 3),
    Measurement(
        "scenery_obedience_text", "eval/obedience.py --conditions text --n 400 --batch 16", 12
    ),
    Measurement(
        "scenery_obedience_class", "eval/obedience.py --conditions class --n 300 --batch 16", 9
    ),
    Measurement(
        "scenery_obedience_map", "eval/obedience.py --conditions map --n 300 --batch 16", 5
    ),
    Measurement("scenery_edits", "eval/edits.py --n 200", 6),
    Measurement("scenery_edits_wide", "eval/edits.py --n 100 --width 228", 3),
    Measurement("scenery_erasing", "eval/erasing.py --n 100", 3),
    Measurement("scenery_joints", "eval/joints.py --n 32", 5),
    Measurement("scenery_counterfactuals", "eval/counterfactuals.py --n 100 --strength 1 0.75", 12),
    Measurement(
        "scenery_completion",
        "eval/completion.py --masks upper --process single annealed --n 100 "
        "--resampling-passes 0 --particles 8",
        12,
    ),
    Measurement(
        "scenery_completion_400",
        "eval/completion.py --masks upper --process single --n 400 --resampling-passes 0 "
        "--particles 8 16",
        24,
    ),
    Measurement(
        "scenery_generation",
        "eval/generation.py --features probe --reference scenery --n 2000 --metrics all",
        15,
    ),
    Measurement("scenery_speed", "eval/speed.py --batches 1 8 --repeats 3", 8),
    Measurement("scenery_seams", "eval/seams.py --n 48", 8),
    Measurement(
        "scenery_selection", "eval/selection.py --per-class 40 --captions 40 --candidates 8", 8
    ),
    Measurement("scenery_levels", "eval/reconstruction.py --levels --n 200", 5),
    Measurement("passes", "eval/passes.py --n 8 --guess draft x_t", 3),
    Measurement(
        "scenery_completion_particles",
        "eval/completion.py --masks upper centre blob10 --process single --n 60 "
        "--resampling-passes 2 8 --particles 8",
        10,
    ),
    Measurement(
        "scenery_completion_filling",
        "eval/completion.py --masks centre --process single --n 8 --filling harmonic nearest none",
        2,
    ),
    Measurement(
        "scenery_speed_window32",
        "eval/speed.py --window 32 --no-rivals --batches 1 8 --repeats 3",
        3,
    ),
    Measurement("scenery_seams_exact", "eval/seams.py --width 512 --n 2 --modes fast exact", 3),
    Measurement(
        "ffhq-4_speed",
        "eval/speed.py --shape ffhq-4 --passes-of imagebart/pretrained/scenery --batches 1 "
        "--repeats 2",
        40,
    ),
    Measurement("split", "eval/split.py", 5),
)


@dataclass(frozen=True)
class Config:
    budget: str = "2h"  # a number and s, m or h
    only: tuple[str, ...] = ()  # these records alone


def main(config: Config) -> None:
    left, names = budget_seconds(config.budget), [one.name for one in MEASUREMENTS]
    unknown = {*config.only} - {*names}
    if unknown:
        raise ValueError(f"records must be of {', '.join(names)}, got {sorted(unknown)}")
    end, waiting, failed = time.monotonic() + left, [], []
    for one in MEASUREMENTS:
        path = RECORDS / f"{one.name}.json"
        if config.only and one.name not in config.only:
            continue
        before = read_json(path) if path.exists() else {}
        if is_current(before):
            print(f"{one.name}: of these weights and this code", flush=True)
            continue
        if time.monotonic() + 60 * one.minutes > end:
            waiting.append(one.name)
            continue
        if not remade(one, path):
            failed.append(one.name)
            continue
        for line in moved(before, read_json(path)):
            print(f"{one.name}: {line}", flush=True)
    if waiting:
        print(f"no time left for {', '.join(waiting)}: run the same command again")
    if failed:
        raise ValueError(f"all must be measured, failed have {', '.join(failed)}: see above")


def budget_seconds(budget: str) -> float:
    number, unit = budget[:-1], budget[-1:]
    if unit not in UNITS or not number.replace(".", "", 1).isdecimal():
        raise ValueError(f"budget must be a number and s, m or h, as 2h, got {budget!r}")
    return float(number) * UNITS[unit]


def remade(one: Measurement, path: Path) -> bool:
    """Run the command of a record; whether it wrote it."""
    command = [sys.executable, *one.command.split(), "--out", str(path)]
    print(f"{one.name}: python {one.command}", flush=True)
    return not subprocess.run(command, cwd=ROOT, check=False).returncode


def moved(before: dict, after: dict) -> Iterator[str]:
    """A line for every figure that is another than before: outside of its interval, or by 1 %."""
    old = dict(figures_in(before))
    for place, value in figures_in(after):
        was, interval = old.get(place), after_interval(after, place)
        if was is None or was == value:
            continue
        outside = not interval[0] <= was <= interval[1] if interval else None
        if outside or (outside is None and abs(value - was) > 0.01 * abs(was)):
            note = " (beyond its interval)" if outside else ""
            yield f"{'.'.join(map(str, place))} {was:.4g} → {value:.4g}{note}"


SKIPPED = {"options", "versions", "models", "commit", "seconds", "seeds", "map", "interval"}


def figures_in(value, place: tuple = ()) -> Iterator[tuple[tuple, float]]:
    """(place, figure) of every number of a record that is measured."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in SKIPPED and not str(key).endswith("_interval"):
                yield from figures_in(one, (*place, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


def after_interval(record: dict, place: tuple) -> list[float] | None:
    """The interval of a figure: beside it as NAME_interval, or as `interval`."""
    *above, name = place
    holder = record
    for key in above:
        holder = holder[key]
    if not isinstance(holder, dict):
        return None
    return holder.get(f"{name}_interval") or (holder.get("interval") if name == "value" else None)


if __name__ == "__main__":
    run(main, Config, __doc__)
