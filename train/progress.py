"""Live tables of what runs: a row a stage, or a scale. Not on a terminal: lines now and then."""

import time
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table

QUIET_SECONDS = 30
"""Seconds between lines where there is no terminal."""


STAGE_COLUMNS = ("steps", "loss", "images/s", "for", "left")
CHAIN_COLUMNS = ("steps", "nats", "held out", "images/s", "MFU", "left", "restarts")
"""Columns of the tables, behind the name of the row."""


class Progress:
    """Shows how far each row is; use it as a context."""

    def __init__(self, columns: tuple[str, ...] = STAGE_COLUMNS):
        self.columns = columns
        self.console = Console()
        self.rows: dict[str, tuple[str, ...]] = {}
        self.live = Live(console=self.console, auto_refresh=False)
        self.last_line: dict[str, float] = {}

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
            f"{done:,} / {of:,}" if of else "",
            "" if loss is None else f"{loss:.3f}",
            f"{rate * batch:,.1f}" if rate else "",
            duration(seconds),
            left,
        )
        self.put(name, row, ended)

    def put(self, name: str, row: tuple[str, ...], ended: bool) -> None:
        """A row as it stands: in the table, or as a line every QUIET_SECONDS and at its end."""
        self.rows[name] = row
        if self.console.is_terminal:
            self.live.update(self.table(), refresh=True)
        elif ended or time.monotonic() - self.last_line.get(name, -QUIET_SECONDS) >= QUIET_SECONDS:
            self.last_line[name] = time.monotonic()
            said = [f"{a} {b}" for a, b in zip(self.columns, row, strict=True) if b]
            self.say(", ".join([name, *said]))

    def table(self) -> Table:
        table = Table("", *self.columns, box=None)
        for name, row in self.rows.items():
            table.add_row(name, *row)
        return table


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
