"""What every table is made of: rows of a run record, numbers as they are written, and the line
that says what was measured."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

from records import other_guidance

from imagebart.checkpoint import read_json
from imagebart.folders import model_sha256

ROOT = Path(__file__).parents[2]

RESULTS = ROOT / "eval" / "results"

UNNAMED = (
    "ffhq-4_speed",
    "ffhq-4_speed_bf16",
    "passes_equal_training",
    "scenery_seams",
    "scenery_seams_exact",
    "split",
    "split_752",
)
"""Records that were measured before records named their model, its hash and the commit."""

OTHER = ("ffhq-4_speed", "ffhq-4_speed_bf16", "passes_equal_training", "split", "split_752")
"""Of these, the ones whose transformers are not those of a model that was shipped."""

FORMER = "the former model (T = 4, commit e6f7da6)"


def record(name: str) -> dict:
    """A run record; ValueError if its weights are not those that lie where it says."""
    found = read_json(RESULTS / f"{name}.json")
    if ("models" in found) == (name in UNNAMED):
        states = "names its model" if name in UNNAMED else "names none"
        raise ValueError(f"UNNAMED must list the records without a model, but {name}.json {states}")
    for path, digest in found.get("models", {}).items():
        if (ROOT / path / "config.json").exists() and model_sha256(ROOT / path) != digest:
            raise ValueError(
                f"{name}.json must be of the weights in {path}, got those of {digest[:12]}: "
                "measure it again"
            )
    return found


def record_rows(name: str) -> list[dict]:
    return record(name)["rows"]


def record_row(name: str, **fields) -> dict:
    """The row of a record with these fields; ValueError unless there is one."""
    fitting = [
        row for row in record_rows(name) if all(row.get(key) == fields[key] for key in fields)
    ]
    if len(fitting) != 1:
        raise ValueError(f"{name}.json must have one row with {fields}, got {len(fitting)}")
    return fitting[0]


def markdown(header: str, rows: Iterable[Iterable], *names: str) -> str:
    """A Markdown table of a header ("a | b | c") and rows, with the provenance of its figures."""
    columns = header.count("|") + 1
    lines = [header, " | ".join(["---"] * columns), *(" | ".join(map(str, row)) for row in rows)]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"{body}\n\n{provenance(*names)}" if names else body


def provenance(*names: str) -> str:
    """Hardware, day, commit, models and file of each record, grouped by what they share, and its
    guidance if that is another than the model's; of more than four models only their number, the
    record has the hashes."""
    made: dict[str, list[str]] = {}
    for name in names:
        one = record(name)
        hardware = re.sub(r"\b1 threads", "1 thread", one["hardware"])  # older records
        where = f"{hardware}, {day(one['date'])}"
        if name in UNNAMED and name not in OTHER:
            where += f", {FORMER}"
        if (one.get("commit") or {}).get("id"):
            where += f", commit {one['commit']['id'][:7]}"
        models = [f"{Path(at).name} {sha[:7]}" for at, sha in one.get("models", {}).items()]
        where = ", ".join([where, *(models if len(models) <= 4 else [f"{len(models)} models"])])
        if (guidance := other_guidance(one, ROOT)) is not None:
            numbers = guidance if isinstance(guidance, list) else [guidance]
            where += ", guidance " + ", ".join(map(str, numbers))
        made.setdefault(where, []).append(f"`{name}.json`")
    return "; ".join(f"{where}: {', '.join(files)}" for where, files in made.items()) + "."


def day(date: str) -> str:
    at = datetime.fromisoformat(date)
    return f"{at.day} {at:%B %Y}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """A difference of two shares, in points of a percentage."""
    return f"{100 * share:+.1f}"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


three = "{:.3f}".format
signed = "{:+.3f}".format
two = "{:.2f}".format


def plus_minus(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def within(text: str, interval: list[float] | None, show: Callable[[float], str]) -> str:
    """A figure and its interval, where the record has one."""
    if interval is None:
        return text
    low, high = map(show, interval)
    return f"{text} ({low.removesuffix(' %')} to {high})"


def valued(one: dict, show: Callable[[float], str]) -> str:
    """A value with its interval."""
    return within(show(one["value"]), one.get("interval"), show)


def difference_of(one: dict | None, show: Callable[[float], str]) -> str:
    """A difference with its interval, and whether it may be noise; nothing for None."""
    if one is None:
        return ""
    return valued(one, show) + ("" if one["distinct"] else ", within the noise")


def with_interval(row: dict, key: str, show: Callable[[float], str]) -> str:
    """A figure of a row, with its interval where there is one."""
    return within(show(row[key]), row.get(f"{key}_interval"), show)


OF = ("samples", "renders", "chance")


def share_in(row: dict, of: str, key: str) -> str:
    """A share of right answers, with its interval where there is one; empty if there is none."""
    if of not in row:
        return ""
    return within(percent(row[of][key]), row.get(f"{of}_interval", {}).get(key), percent)


def shares(row: dict, key: str) -> tuple[str, str]:
    """(share in the samples, shares in the renders and by chance)."""
    beside = [(of, share_in(row, of, key)) for of in ("renders", "chance")]
    return share_in(row, "samples", key), ", ".join(f"{of} {text}" for of, text in beside if text)


def found_in(row: dict, digits: int = 1) -> str:
    return with_interval(row, "found", partial(percent, digits=digits))


def unnamed_table() -> str:
    """Which records do not name their model."""
    names = ", ".join(f"`{name}`" for name in UNNAMED if name not in OTHER)
    others = ", ".join(f"`{name}`" for name in OTHER)
    return (
        f"These records are of {FORMER}, and do not hold its hash: {names}. These are of shapes "
        f"with random weights, or of chains that are not in the repository: {others}. All other "
        "records name their models."
    )
