"""The shell door: python -m imagebart COMMAND …

    import    a released model → a folder that `ImageBART.from_pretrained` reads

`python -m imagebart COMMAND --help` says more.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from imagebart.importing import PUBLISHED, import_released


@dataclass(frozen=True)
class Import:
    """Fetch a released model, verify it, and convert it: nothing in it is executed.

    Needs room on the disk for the archive and for the model, and memory for one scale twice over.
    """

    name: tyro.conf.Positional[Literal[tuple(PUBLISHED)]]
    out: Path  # the folder to write; new or empty
    # instead of the download: a zip archive, a folder of scale1.ckpt …, or a VQGAN's .ckpt
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    url: str | None = None  # another address of the archive
    raw: tyro.conf.FlagCreatePairsOff[bool] = False  # the last weights, not the averaged ones

    def run(self) -> None:
        with Bars() as bars:
            import_released(
                self.name,
                self.out,
                source=self.source,
                url=self.url,
                ema=not self.raw,
                progress=bars.show,
            )
        print(f"{self.out}: {PUBLISHED[self.name].about}")


COMMANDS = {"import": Import}


class Bars:
    """One progress bar after another, a new one for every label."""

    def __init__(self):
        self.bar, self.label = None, None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def show(self, label: str, done: int, total: int) -> None:
        """`done` of `total` (0: not known) bytes, or steps if the total is 1."""
        if label != self.label:
            self._close()
            unit = dict(unit="") if total == 1 else dict(unit="B", unit_scale=True)
            self.bar, self.label = tqdm(desc=label, total=total or None, **unit), label
        self.bar.update(done - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def main(arguments: list[str]) -> None:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    prog = f"python -m imagebart {arguments[0]}"
    try:
        tyro.cli(command, args=arguments[1:], prog=prog).run()
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: nothing is half-written")


if __name__ == "__main__":
    main(sys.argv[1:])
