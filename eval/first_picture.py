"""How soon does the page show a first picture, from nothing?

    python eval/first_picture.py --n 5 --out first_picture.json
    python eval/first_picture.py --n 1 --picture docs/page.png     the picture of README.md

`python app.py` starts as a process of its own with the shipped model; once it answers, Chromium
opens it, and Sample is clicked as soon as the button is there. Reported are the seconds since the
process began until the server answers, until the button can be clicked, until a picture of this run
is seen (of the coarsest scale), and until all four are finished: the median of `n` starts, and the
processor's seconds that the server had used by then, which other programs disturb less. `--picture`
then repaints the upper half of a held-out render by `--prompt`, with seed 0, and saves what the
page shows.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from playwright.sync_api import Page, sync_playwright
from records import ROOT, Run
from reporting import run

from imagebart.folders import SHIPPED

MILESTONES = ("server", "page", "first_picture", "finished")
VIEWPORT = {"width": 1280, "height": 800}
PHOTOGRAPH = {"width": 1280, "height": 1040}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MOST_WAITED = 120
"""Seconds that one step of a start may take."""
Clocks = Callable[[], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str | None = None  # a folder or a Hub id; the shipped models if not given
    n: int = 5  # starts
    prompt: str = "northern lights at night"  # of the edit in the picture
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where a picture of the page goes
    chromium: str | None = None  # the browser; the first of the usual names if not given


def main(config: Config) -> dict:
    if config.n < 1:
        raise ValueError(f"n must be at least 1, got {config.n}")
    browser = config.chromium or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ValueError("--chromium must be the path of a browser, got none")
    measured, starts = Run(config, [config.model or SHIPPED]), []
    for i in range(config.n):
        with served_page(config.model) as (address, clocks), opened_page(browser) as page:
            starts.append(milestones(page, address, clocks))
            if config.picture and i == config.n - 1:
                photograph(page, config)
    medians = np.median(starts, axis=0).round(2).tolist()
    record = measured.record(torch.device("cpu"), data=None, n=config.n, seeds=(0, 0))
    rows = zip(MILESTONES, medians, strict=True)
    return {"rows": [{"until": name, "seconds": s, "cpu_s": c} for name, (s, c) in rows]} | record


def summary(report: dict) -> str:
    row = "{until:14} {seconds:6.1f} s, {cpu_s:6.1f} s of the processor"
    return "\n".join(row.format(**one) for one in report["rows"])


@contextmanager
def served_page(model: str | None) -> Iterator[tuple[str, Clocks]]:
    """(address, the seconds that have passed and those of the processor) of the page, served by a
    process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--device", "cpu", *(["--model", model] if model else [])]
    began = time.perf_counter()
    server = psutil.Popen(
        [sys.executable, str(ROOT / "app.py"), *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )

    def clocks() -> tuple[float, float]:
        used = server.cpu_times()
        return time.perf_counter() - began, used.user + used.system

    try:
        yield f"http://127.0.0.1:{port}", clocks
    finally:
        server.terminate()
        server.wait()


@contextmanager
def opened_page(browser: str) -> Iterator[Page]:
    with (
        sync_playwright() as play,
        play.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chromium,
    ):
        page = chromium.new_page(viewport=VIEWPORT, device_scale_factor=1)
        page.set_default_timeout(1000 * MOST_WAITED)
        yield page


def milestones(page: Page, address: str, clocks: Clocks) -> list[tuple[float, float]]:
    """What the clocks show at each of `MILESTONES`, which comes after the one before."""
    while not answers(address):
        if clocks()[0] > MOST_WAITED:
            raise ValueError(f"app.py must answer within {MOST_WAITED} s, got nothing")
        time.sleep(0.02)
    marks = [clocks()]
    page.goto(address)
    button = page.get_by_role("button", name="Sample", exact=True)
    button.wait_for()
    marks.append(clocks())
    button.click()
    page.locator("#samples").get_by_text("seed ").first.wait_for()
    marks.append(clocks())
    page.locator("#sample-status").get_by_text("Seed").wait_for()
    return [*marks, clocks()]


def answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{address}/healthz") as answer:
        return answer.status == 200
    return False


def photograph(page: Page, config: Config) -> None:
    """The whole page, the tab Change after the upper half was repainted."""
    page.set_viewport_size(PHOTOGRAPH)
    page.get_by_role("tab", name="Change", exact=True).click()
    tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Repaint"))
    page.locator("#editor canvas").first.wait_for()
    tab.get_by_role("button", name="Upper half").click()
    tab.get_by_label("Prompt", exact=True).fill(config.prompt)
    tab.get_by_label("New seed each time").uncheck()
    page.wait_for_timeout(3000)
    tab.get_by_role("button", name="Repaint", exact=True).click()
    page.locator("#edit-status").get_by_text("Seed 0").wait_for()
    page.locator("#compare img").first.wait_for()
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    page.screenshot(path=config.picture)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
