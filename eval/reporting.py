"""How a script of this folder runs: command-line options, errors as a sentence, a JSON file."""

import sys
from collections.abc import Callable

import tyro

from imagebart.checkpoint import write_json


def run(
    main: Callable[..., dict],
    options: type,
    description: str,
    summary: Callable[[dict], str] | None = None,
) -> None:
    """Run `main` with the command line's `options`; print its report and write it to their `out`.

    A ValueError ends the process with its message. An empty report is not written.
    """
    config = tyro.cli(options, description=description)
    try:
        report = main(config)
        if summary:
            print(summary(report))
        if config.out and report:
            write_json(report, config.out)
    except ValueError as error:
        sys.exit(f"error: {error}")
