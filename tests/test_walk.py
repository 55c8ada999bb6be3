"""A visitor's ten minutes with the shipped model: in light on a desktop, in dark on a phone.

Pictures of every step are kept in screenshots/, which git ignores.
"""

import re
from mimetypes import guess_type
from pathlib import Path

import numpy as np
import pytest
from browser import DESKTOP, PHONE, browsing, served, settled, shown
from PIL import Image
from server import ROOT, Server

from imagebart.data import scenery
from imagebart.settings import settings_of

SHOTS = ROOT / "screenshots"
PHOTO = (1600, 1200)
IDLE_SECONDS = 20
LOADED = "[...document.querySelectorAll('#samples img')].every(one => one.complete)"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("files")) as server:
        yield server
    assert "Traceback" not in server.log.read_text()


def photograph(path: Path) -> Image.Image:
    """A photograph of a visitor's own, with the orientation of a camera held upright."""
    scene = Image.fromarray(scenery.render(5, 128, 128).image).resize(PHOTO[::-1])
    turned = Image.Exif()
    turned[0x0112] = 6
    scene.rotate(90, expand=True).save(path, quality=95, exif=turned)
    return scene


def drop(page, path: Path, where: str) -> None:
    """Drop a file on an element, as from the desktop."""
    data = page.evaluate_handle(
        """([bytes, name, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type}));
            return data;
        }""",
        [[*path.read_bytes()], path.name, guess_type(path)[0]],
    )
    page.locator(where).first.dispatch_event("drop", {"dataTransfer": data})


def repaint(page) -> None:
    """Until it has drawn: a mask that was clicked comes to the editor a moment later."""
    line = page.locator("#edit-status")
    before, error = line.inner_text(), page.get_by_test_id("toast-body")
    for _ in range(10):
        page.get_by_role("button", name="Repaint", exact=True).click()
        page.wait_for_function(
            """before => {
                const said = document.querySelector("#edit-status").innerText;
                const error = document.querySelector("[data-testid=toast-body]");
                return error || (said.startsWith("Seed ") && said !== before);
            }""",
            arg=before,
        )
        if not error.count():
            return
        page.get_by_test_id("toast-close").click()
        page.get_by_role("tab", name="Picture", exact=True).click()
        page.wait_for_timeout(3000)
    raise AssertionError("nothing was ever masked")


class Shots:
    """Saves what the page shows, numbered."""

    def __init__(self, page, size: tuple[int, int]):
        self.page, self.size, self.count = page, size, 0
        SHOTS.mkdir(exist_ok=True)

    def take(self, name: str) -> None:
        self.count += 1
        path = SHOTS / f"{self.size[0]}_{self.count:02}_{name}.png"
        self.page.screenshot(path=path, full_page=True)
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{name} is wider than the screen by {wide} pixels"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "colours"),
    [(DESKTOP, "light"), (PHONE, "dark")],
    ids=["desktop", "phone"],
)
def test_a_visitor_s_ten_minutes(shipped, size, colours, tmp_path):
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=60_000)
    photo = photograph(tmp_path / "photo.jpg")
    with browsing(shipped.url, size, colours) as page:
        shots = Shots(page, size)
        page.set_default_timeout(300_000)
        page.locator("#samples .thumbnail-item").nth(3).wait_for()  # it is not empty at first
        page.wait_for_function(LOADED)
        shots.take("opened")

        page.get_by_role("button", name="Aurora", exact=True).click()
        prompt = page.get_by_label("Prompt", exact=True).first
        words = prompt.input_value()
        assert "northern lights" in words
        prompt.press("Enter")
        line = page.locator("#sample-status")
        line.get_by_text(re.compile(r"Seeds \d+ to \d+")).wait_for()
        first_seed = int(re.search(r"Seeds (\d+)", line.inner_text()).group(1))
        shots.take("sampled")

        page.locator("#samples .thumbnail-item").nth(2).click()
        page.wait_for_timeout(1000)
        shots.take("picked")
        third = page.locator("#samples .grid-container img, #samples .thumbnails img").nth(2)
        picked = np.asarray(served(page, third))
        page.get_by_role("button", name="Send the selected image to Change").click()
        page.locator("#editor canvas").first.wait_for()
        settled(page, least=2)
        shots.take("sent")

        page.get_by_role("button", name="Lower half").click()
        tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Repaint"))
        tab.get_by_label("Prompt", exact=True).fill("a lake at night")
        repaint(page)
        page.locator("#compare img").first.wait_for()
        np.testing.assert_array_equal(shown(page, "#edits")[:64], picked[:64])
        shots.take("repainted")

        page.get_by_role("tab", name="Picture", exact=True).click()
        drop(page, tmp_path / "photo.jpg", "#editor")
        settled(page, least=0.1, most=1)
        page.get_by_role("button", name="Upper half").click()
        page.wait_for_timeout(3000)
        shots.take("photograph")
        folds = [tab.get_by_role("button", name=name) for name in ("The mask", "Extend beyond")]
        for fold in folds:
            fold.click()
        tab.get_by_role("button", name="Preview", exact=True).click()
        page.locator("#preview img").wait_for()
        page.locator("#frame .size").get_by_text("{}×{} pixels".format(*PHOTO[::-1])).wait_for()
        shots.take("previewed")
        for fold in folds:
            fold.click()
        repaint(page)
        page.wait_for_timeout(3000)
        shots.take("photograph-repainted")
        box = page.locator("#compare").bounding_box()
        assert box["y"] + box["height"] <= size[1] + page.evaluate("scrollY")  # without scrolling
        after = page.locator("#compare img").last
        assert served(page, after).size == PHOTO[::-1]  # its own size, upright

        page.locator("#edits .thumbnail-item").first.click()
        with page.expect_download() as got:
            page.locator("#edits").get_by_role("button", name="Download", exact=True).click()
        got.value.save_as(tmp_path / "edited.png")
        edited = Image.open(tmp_path / "edited.png")
        assert edited.size == PHOTO[::-1] and got.value.suggested_filename.startswith("a-lake-at")
        kept = np.s_[PHOTO[0] // 2 :]
        np.testing.assert_array_equal(
            np.asarray(edited.convert("RGB"))[kept],
            np.asarray(Image.open(tmp_path / "photo.jpg").transpose(Image.Transpose.ROTATE_270))[
                kept
            ],
        )
        about = settings_of(edited)
        assert about["prompt"] == "a lake at night" and about["command"] == "edit"

        views = [page.get_by_role("tab", name=name, exact=True) for name in ("Picture", "Result")]
        for step in ("Use the selected result as input", "Undo"):
            page.get_by_role("button", name=step, exact=True).click()
            expect(views[0]).to_have_attribute("aria-selected", "true")  # it is in the editor
            page.wait_for_timeout(3000)
            shots.take(step.split()[0].lower())
            views[1].click()

        tab.get_by_label("Prompt", exact=True).fill("")
        tab.get_by_label("Seed", exact=True).fill("1")
        drop(page, tmp_path / "edited.png", "#edit-status")
        expect(tab.get_by_label("Prompt", exact=True)).to_have_value("a lake at night")
        expect(tab.get_by_label("Seed", exact=True)).to_have_value(str(about["seed"]))
        expect(tab.get_by_label("New seed each time")).not_to_be_checked()
        shots.take("settings-back")

        page.get_by_role("tab", name="Make", exact=True).click()
        page.get_by_role("button", name="This visit").click()
        page.locator("#visit .thumbnail-item").nth(1).click()
        expect(page.get_by_label("Seed", exact=True).first).to_have_value(str(first_seed + 1))
        expect(prompt).to_have_value(words)
        page.get_by_role("button", name="How it works").first.click()
        page.locator("#chain .thumbnail-item").first.scroll_into_view_if_needed()
        page.wait_for_function(LOADED.replace("samples", "chain"))
        shots.take("visit")
        for name in ("Paint a map", "Panorama", "Understand"):
            page.get_by_role("tab", name=name, exact=True).click()
            page.wait_for_timeout(2000)
            if name == "Understand":
                page.locator("#levels .thumbnail-item").first.wait_for()  # without a click
            shots.take(name.replace(" ", "-").lower())
        assert photo.size == PHOTO[::-1] and page.complaints == []


@pytest.mark.slow
def test_an_idle_page_makes_no_request(shipped):
    """One stream is open from the start, by which gradio's server learns that a visitor leaves."""
    with browsing(shipped.url, DESKTOP) as page:
        page.locator("#samples .thumbnail-item").nth(3).wait_for()
        page.wait_for_load_state("load")
        page.wait_for_timeout(5000)
        made = []
        page.on("request", lambda request: made.append(request.url))
        page.wait_for_timeout(1000 * IDLE_SECONDS)
        assert made == []
        page.get_by_role("tab", name="Change", exact=True).click()
        page.wait_for_timeout(5000)
        assert made  # they would have been seen
