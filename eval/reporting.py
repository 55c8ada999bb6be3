"""How a script of this folder runs: command-line options, errors as a sentence, a JSON file."""

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from records import folder_of_rows

from imagebart.checkpoint import write_json


def run(
    main: Callable[..., dict | None],
    options: type,
    description: str,
    summary: Callable[[dict], str] | None = None,
) -> None:
    """Run `main` with the command line's `options`; print its report and write it to their `out`.

    A ValueError ends the process with its message. No report, or an empty one, is not written.
    """
    config = tyro.cli(options, description=description)
    try:
        report = main(config)
        if summary:
            print(summary(report))
        if report and config.out:
            write_report(report, config.out)
    except ValueError as error:
        sys.exit(f"error: {error}")


def write_report(report: dict, out: Path) -> None:
    """Write a report, then remove its run's rows. A figure that is not finite is null."""
    write_json(null_for_nan(report), out)
    shutil.rmtree(folder_of_rows(out), ignore_errors=True)


def null_for_nan(value):
    """The same value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: null_for_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
