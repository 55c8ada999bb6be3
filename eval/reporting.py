"""How a script of this folder runs: options in, one sentence for a bad one, a JSON file out."""

import sys
from collections.abc import Callable

import tyro

from imagebart.checkpoint import write_json


def run(
    main: Callable[..., dict],
    options: type,
    description: str,
    say: Callable[[dict], str] | None = None,
) -> None:
    """`main` with the command line's `options`; its report said and written to their `out`.

    What is wrong with the options or with a figure (ValueError) ends the process as a sentence. An
    empty report is not written.
    """
    config = tyro.cli(options, description=description)
    try:
        report = main(config)
        if say:
            print(say(report))
        if config.out and report:
            write_json(report, config.out)
    except ValueError as error:
        sys.exit(f"error: {error}")
