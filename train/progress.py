"""The live table of train/everything.py: a row a stage. Not on a terminal: a line now and then."""

import time
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table

QUIET_SECONDS = 30
"""Seconds between lines where there is no terminal."""


class Progress:
    """Shows how far each stage is; use it as a context."""

    def __init__(self):
        self.console = Console()
        self.rows: dict[str, tuple[str, ...]] = {}
        self.live = Live(console=self.console, auto_refresh=False)
        self.last_line = -float(QUIET_SECONDS)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def show(
        self,
        name: str,
        steps: tuple[int, int],
        loss: float | None,
        batch: int,
        learned: tuple[int, float],
        ended: bool,
    ) -> None:
        """One stage: `steps` of how many, its loss, and the steps `learned` in so many seconds."""
        (done, of), (fresh, seconds) = steps, learned
        rate = fresh / seconds if fresh and seconds else 0.0
        left = "done" if ended else "…" if not rate else duration((of - done) / rate)
        row = (
            name,
            f"{done:,} / {of:,}" if of else "",
            "" if loss is None else f"{loss:.3f}",
            f"{rate * batch:,.1f}" if rate else "",
            duration(seconds),
            left,
        )
        if self.console.is_terminal:
            self.rows[name] = row
            self.live.update(self.table(), refresh=True)
        elif ended or time.monotonic() - self.last_line >= QUIET_SECONDS:
            self.last_line = time.monotonic()
            names = ("", "steps", "loss", "images/s", "for", "left")
            self.say(", ".join(f"{a} {b}".strip() for a, b in zip(names, row, strict=True) if b))

    def table(self) -> Table:
        table = Table("stage", "steps", "loss", "images/s", "took", "left", box=None)
        for row in self.rows.values():
            table.add_row(*row)
        return table


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
