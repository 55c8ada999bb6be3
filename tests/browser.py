"""The page in Chromium, for tests that use it as visitors do."""

import shutil
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

DESKTOP, PHONE = (1280, 900), (390, 844)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browsing(url: str, size: tuple[int, int], colours: str = "light"):
    """The page in a browser of this width and height, in "light" or "dark"; `complaints` is what
    its console said."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        viewport = dict(zip(("width", "height"), size, strict=True))
        page = browser.new_page(viewport=viewport, color_scheme=colours)
        page.set_default_timeout(60_000)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
        page.goto(url)
        yield page
        browser.close()


def shown(page, gallery: str) -> np.ndarray:
    """The first picture of a gallery, as the browser got it, once it stays: the status may tell of
    a picture a moment before it is there."""
    picture, source = page.locator(f"{gallery} .grid-container img").first, None
    for _ in range(20):
        before, source = source, picture.get_attribute("src")
        if source == before:
            return np.asarray(served(page, picture))
        page.wait_for_timeout(500)
    raise AssertionError(f"the first picture of {gallery} never stayed")


def served(page, picture) -> Image.Image:
    """The file behind a picture on the page."""
    source = picture.get_attribute("src")
    return Image.open(BytesIO(page.request.get(source, max_retries=3).body())).convert("RGB")


def settled(page, where: str = "#editor", least: float = 8, most: float = 10) -> tuple[float, dict]:
    """(zoom, box) of an editor once it lies still: at 10, the most, for pictures of the model's
    size."""
    found = None
    page.locator(where).scroll_into_view_if_needed()
    for _ in range(120):
        zoom = int(page.locator(where).get_by_text("%").inner_text().rstrip("%")) / 100
        before, found = found, (zoom, page.locator(f"{where} canvas").first.bounding_box())
        if least < zoom <= most and found == before:
            return found
        page.wait_for_timeout(500)
    raise AssertionError(f"the editor never came to rest, last at {found}")


def same_seed(page, tab: str) -> None:
    """On a tab, say that the next run keeps the seed."""
    page.get_by_role("tab", name=tab, exact=True).click()
    panel = page.get_by_role("tabpanel").filter(has=page.get_by_label("New seed each time"))
    panel.get_by_label("New seed each time").uncheck()
