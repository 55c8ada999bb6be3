"""The demo's page in a browser: what a visitor sees and clicks."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browser import DESKTOP, PHONE, browsing, same_seed, served, settled, shown
from PIL import Image
from test_colours import PROFILE
from visitors import assert_same, picture, pixels

from demo.editor import mask_layer
from demo.pictures import example_pictures
from imagebart.data.maps import kind_colours, read_kinds
from imagebart.ranking import CLIP, best_edits

ROOT = Path(__file__).parents[1]
AXE = ROOT / "node_modules/axe-core/axe.min.js"
INSTALL_AXE = "npm install --no-save axe-core@4.14.1"
pytestmark = pytest.mark.usefixtures("own_files")


@pytest.fixture(params=[DESKTOP])
def page(server, request):
    """The page of `model`; parametrise with the width and height of another screen."""
    with browsing(server.url, request.param) as page:
        yield page


@pytest.fixture(params=[DESKTOP])
def mapped_page(mapped_server, request):
    """The page of `mapped`."""
    with browsing(mapped_server.url, request.param) as page:
        yield page


def dab(page, row: int, column: int, model, where: str = "#editor") -> None:
    """Touch the middle of one token with the brush, which is smaller than a token."""
    (h, w), (H, W) = model.grid, model.image_size
    zoom, box = settled(page, where)
    x = box["x"] + box["width"] / 2 + ((column + 0.5) / w - 0.5) * W * zoom
    y = box["y"] + box["height"] / 2 + ((row + 0.5) / h - 0.5) * H * zoom
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 1, y + 1)
    page.mouse.up()
    page.wait_for_timeout(500)


def apart(page, where: str) -> None:
    """The tools of an editor are seen, and not over its picture."""
    tools, canvas = (
        page.locator(f"{where} {one}").first.bounding_box()
        for one in (".toolbar-wrap:has(> .half-container)", "canvas")
    )
    beside = tools["x"] + tools["width"] <= canvas["x"]
    below = tools["y"] >= canvas["y"] + canvas["height"]
    assert min(tools["width"], tools["height"]) > 20 and (beside or below)


def pull(page, side: str, pixels: int) -> None:
    """Drag an edge of the frame by so many pixels of the screen, right or down."""
    handle = page.locator(f"#frame .handle.{side}")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    along = side in ("left", "right")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels * along, y + pixels * (not along), steps=3)
    page.mouse.up()
    page.wait_for_timeout(1000)


def repaint(page, seed: int, line: str = "") -> np.ndarray:
    """The first result, once the status says that it has this seed, or what `line` says."""
    line = line or f"Seed {seed},"
    same_seed(page, "Change")
    tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Repaint"))
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    edit(page, "Repaint", line)
    return shown(page, "#edits")


def edit(page, button: str, line: str) -> None:
    """Click until the status says so, which it does once picture and mask are in the editor."""
    for _ in range(10):
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_timeout(2000)
        page.locator("#edit-status").get_by_text("Seed").or_(
            page.get_by_text("Error", exact=True)
        ).first.wait_for()
        if page.locator("#edit-status").get_by_text(line).is_visible():
            return
        page.get_by_role("tab", name="Picture", exact=True).click()
    raise AssertionError(f"the status never said {line!r}")


def test_every_run_has_a_new_seed_unless_told_otherwise(page, model):
    """And what is sent to another tab is what is selected, of the last run."""
    prompt, line = page.get_by_label("Prompt", exact=True).first, page.locator("#sample-status")
    seen = [""]
    for _ in range(2):
        prompt.press("Enter")
        page.wait_for_function(
            """seen => {
                const text = document.querySelector("#sample-status").innerText.trim();
                return /^Seeds .* s\\.$/.test(text) && !seen.includes(text);
            }""",
            arg=seen,
        )
        seen.append(line.inner_text().strip())
        page.locator("#samples .thumbnail-item").nth(2).click()  # selected until the next run
        page.wait_for_timeout(500)
    seeds = [re.search(r"Seeds (\d+) to", text).group(1) for text in seen[1:]]
    assert seeds[0] != seeds[1]
    assert page.get_by_label("Seed", exact=True).first.input_value() == seeds[1]
    same_seed(page, "Make")
    page.get_by_label("Seed", exact=True).first.fill("5")
    prompt.press("Enter")
    line.get_by_text("Seeds 5 to 8").wait_for()
    page.get_by_role("button", name="Send the selected image to Change").click()
    page.locator("#editor canvas").first.wait_for()
    settled(page)
    page.get_by_role("button", name="Upper half").click()
    expected = np.asarray(model.sample(1, seed=5)[0])
    np.testing.assert_array_equal(repaint(page, 9)[16:], expected[16:])

    page.get_by_role("tab", name="Make", exact=True).click()
    page.get_by_role("button", name="Link to these settings").click()
    page.wait_for_url("**/?*seed=5*")
    page.reload()
    seed = page.get_by_label("Seed", exact=True).first
    for _ in range(60):  # the page first shows its usual settings
        if seed.input_value() == "5":
            break
        page.wait_for_timeout(500)
    assert seed.input_value() == "5"
    assert not page.get_by_label("New seed each time").first.is_checked()
    page.get_by_label("Prompt", exact=True).first.focus()
    page.keyboard.press("Tab")  # from the prompt to the button, which a key presses too
    page.keyboard.press("Space")
    line.get_by_text("Seeds 5 to 8").wait_for()
    page.get_by_role("button", name="This visit").click()
    page.locator("#visit .thumbnail-item").nth(2).click()  # it comes back with its settings
    page.wait_for_function("document.querySelectorAll('#samples .thumbnail-item').length === 1")
    np.testing.assert_array_equal(shown(page, "#samples"), np.asarray(model.sample(1, seed=7)[0]))
    assert seed.input_value() == "7"
    page.goto(re.sub("seed=5", "seed=-5", page.url))
    page.get_by_text("seed must be a whole number, from 0 to").first.wait_for()
    assert page.complaints == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, way):
    """Twice as large as the first one, so it is seen half as large."""
    file = BytesIO()
    picture(64, 64).save(file, "PNG")
    page.get_by_role("tab", name="Change", exact=True).click()
    settled(page)
    page.evaluate(
        """([way, bytes]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
            const how = {bubbles: true, cancelable: true};
            if (way == "drop") document.getElementById("editor").dispatchEvent(
                new DragEvent("drop", {...how, dataTransfer: files}));
            else document.body.dispatchEvent(
                new ClipboardEvent("paste", {...how, clipboardData: files}));
        }""",
        [way, [*file.getvalue()]],
    )
    settled(page, least=5, most=7)
    assert page.complaints == []


def test_an_editor_uploads_its_picture_when_it_is_used_only(page):
    """Gradio asks an editor for its picture at every step of any event that it is told of."""
    sent = []
    page.get_by_role("tab", name="Change", exact=True).click()
    settled(page)
    same_seed(page, "Make")
    page.on("request", lambda request: "/upload" in request.url and sent.append(request.url))
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample-status").get_by_text("Seeds 0 to 3,").wait_for()
    page.wait_for_timeout(1000)
    assert sent == []
    page.get_by_role("tab", name="Change", exact=True).click()
    page.get_by_role("button", name="Upper half").click()
    page.wait_for_timeout(2000)
    assert sent == []
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.locator("#edit-status").get_by_text("Seed ").wait_for()
    assert sent


def test_clearing_an_editor_takes_its_mask_only(page):
    page.get_by_role("tab", name="Change", exact=True).click()
    settled(page)
    page.get_by_role("button", name="Upper half").click()
    page.wait_for_timeout(3000)
    page.locator("#editor").get_by_role("button", name="Clear canvas").click()
    page.wait_for_timeout(3000)
    settled(page)  # an empty canvas would be seen at its own size
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.locator("#edit-status").get_by_text("the mask is empty").wait_for()
    assert page.complaints == []


def test_what_was_wrong_stays_when_its_message_is_closed(page):
    page.get_by_role("tab", name="Change", exact=True).click()
    page.get_by_role("button", name="Repaint", exact=True).click()
    said = page.locator("#edit-status").get_by_text("the mask is empty: paint over what")
    said.wait_for()
    page.get_by_test_id("toast-close").click()
    page.get_by_test_id("toast-body").wait_for(state="detached")
    assert said.is_visible() and page.complaints == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True)
def test_the_click_after_stop_counts(page, model):
    """Three times, and no error is shown, not even one of before."""
    page.get_by_role("tab", name="Change", exact=True).click()
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.get_by_test_id("toast-text").wait_for()
    page.get_by_test_id("toast-text").wait_for(state="hidden")
    same_seed(page, "Panorama")
    width = page.get_by_role("spinbutton", name="Width in pixels")
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    draw, line = page.get_by_role("button", name="Draw", exact=True), "#panorama-status"
    stop = page.get_by_role("button", name="Stop").locator("visible=true")
    for i in range(3):
        width.fill("4096")
        page.get_by_label("Exact").check()
        draw.click()
        page.locator(line).get_by_text("Drawing").wait_for()
        if i == 0:
            page.locator(line).get_by_text(re.compile(r"Drawing: \d+%, about .* left")).wait_for()
            done = "line => parseInt(line.style.getPropertyValue('--done'))"
            said = re.search(r"(\d+)%", page.locator(line).inner_text()).group(1)
            assert page.locator(line).evaluate(done) >= int(said)  # the bar
        stop.click()
        page.locator(line).get_by_text("Stopped.").wait_for()
        page.wait_for_timeout(500)
        assert page.locator(line).inner_text() == "Stopped."  # still
        width.fill("40")
        page.get_by_label("Exact").uncheck()
        draw.click()
        page.locator(line).get_by_text("Seed 0,").wait_for()
        assert not page.locator(line).evaluate("line => line.style.getPropertyValue('--done')")
        assert_same([served(page, page.locator("#panorama img").first)], model.panorama(40))
    assert not page.get_by_test_id("toast-body").count() and page.complaints == []


def test_a_click_during_a_run_keeps_its_seed(page):
    page.get_by_role("tab", name="Panorama", exact=True).click()
    page.get_by_role("spinbutton", name="Width in pixels").fill("4096")
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    page.get_by_label("Exact").check()
    draw, line = page.get_by_role("button", name="Draw", exact=True), "#panorama-status"
    seed = page.get_by_label("Seed", exact=True).locator("visible=true")
    seen = [seed.input_value()]
    for _ in range(2):
        draw.click()
        page.locator(line).get_by_text("Drawing").wait_for()
        seen.append(seed.input_value())
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    page.locator(line).get_by_text("Stopped.").wait_for()
    page.wait_for_timeout(1000)
    draw.click()
    page.locator(line).get_by_text("Drawing").wait_for()
    seen.append(seed.input_value())
    assert seen[1] == seen[2] and len({*seen}) == 3 and page.complaints == []


def test_a_visitor_samples_paints_and_repaints(page, model, tmp_path):
    same_seed(page, "Make")
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample-status").get_by_text("Seeds 0 to 3,").wait_for()
    sampled = shown(page, "#samples")
    np.testing.assert_array_equal(sampled, np.asarray(model.sample(1, seed=0)[0]))

    page.get_by_role("button", name="Send the selected image to Change").click()
    page.locator("#editor canvas").first.wait_for()
    dab(page, 1, 2, model)
    edited = repaint(page, 9)
    kept = np.ones((4, 4), bool)
    kept[1, 2] = False
    kept = kept.repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(edited[kept], sampled[kept])
    assert (edited[~kept] != sampled[~kept]).any()

    uploaded = picture(64, 64, seed=4)
    uploaded.putalpha(mask_layer("Centre", (64, 64)).getchannel("A").point(lambda a: 255 - a))
    uploaded.save(tmp_path / "photo.png", icc_profile=PROFILE)
    page.get_by_role("tab", name="Picture", exact=True).click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a picture").click()
    chooser.value.set_files(tmp_path / "photo.png")
    settled(page, least=4, most=9)  # larger than the picture before
    page.get_by_role("button", name="Upper half").click()
    edited, before = repaint(page, 10), np.asarray(uploaded.convert("RGB"))
    assert edited.shape == before.shape  # a picture keeps its size
    result = page.locator("#edits .grid-container img").first.get_attribute("src")
    result = Image.open(BytesIO(page.request.get(result).body()))
    assert result.info["icc_profile"] == PROFILE  # and its colours and transparency
    np.testing.assert_array_equal(np.asarray(result)[32:], np.asarray(uploaded)[32:])
    np.testing.assert_array_equal(edited[32:], before[32:])
    assert (edited[:32] != before[:32]).any()
    compared = page.locator("#compare img")
    for _ in range(60):  # it follows the results, by an event of its own
        if np.array_equal(after := np.asarray(served(page, compared.last)), edited):
            break
        page.wait_for_timeout(500)
    np.testing.assert_array_equal(after, edited)
    np.testing.assert_array_equal(np.asarray(served(page, compared.first)), before)

    page.get_by_role("button", name="Use the selected result as input").click()
    page.wait_for_timeout(2000)
    settled(page, least=4)
    page.get_by_role("tab", name="Result", exact=True).click()
    page.locator("#undo").click()
    page.wait_for_timeout(2000)
    settled(page, least=4)
    page.get_by_role("button", name="Upper half").click()
    np.testing.assert_array_equal(repaint(page, 10), edited)
    assert page.complaints == []


@pytest.mark.parametrize("mapped_page", [DESKTOP, PHONE], indirect=True)
def test_a_visitor_repaints_with_a_prompt_and_paints_a_map(mapped_page, mapped, clip):
    page, words, example = mapped_page, "a lake at night", example_pictures(mapped)[1]
    page.get_by_role("tab", name="Change", exact=True).click()
    tab = page.get_by_role("tabpanel").filter(has=page.get_by_role("button", name="Repaint"))
    settled(page)  # the page's first picture is there and will not replace the chosen one
    page.locator("#examples .thumbnail-item").nth(1).click()
    page.wait_for_timeout(2000)
    settled(page)
    page.get_by_role("button", name="Lower half").click()
    tab.get_by_label("Prompt", exact=True).fill(words)
    tab.get_by_role("button", name="Advanced").click()
    tab.get_by_role("button", name="The mask").click()
    for name in ("Refinement passes", "Best of"):
        tab.get_by_role("spinbutton", name=name).fill("2")
    edited = repaint(page, 9, "The best of 2.")
    mask = np.zeros((32, 32), bool)
    mask[16:] = True
    how = dict(seed=9, process="refined", passes=2, prompt=words)
    (best,) = best_edits(mapped, example, mask, 1, 2, CLIP(clip).likeness(words), **how)
    np.testing.assert_array_equal(edited, np.asarray(best.image))
    tab.get_by_role("button", name="How it works").click()
    page.locator("#first-result .grid-container img").nth(mapped.T).wait_for()

    tab.get_by_role("button", name="Extend beyond the borders").click()
    tab.get_by_role("button", name="Left", exact=True).click()
    assert tab.get_by_role("spinbutton", name="Pixels to the left").input_value() == "16"

    same_seed(page, "Paint a map")
    page.get_by_role("group", name="Brush").get_by_role("button", name="water").press("Enter")
    size = page.get_by_role("spinbutton", name="Brush size").locator("visible=true")
    size.fill("10")
    size.press("Enter")
    page.wait_for_timeout(2000)
    apart(page, "#painting")
    dab(page, 1, 2, mapped, "#painting")  # still of water
    page.locator("#painting").get_by_role("button", name="Color").click()
    page.locator("#painting").get_by_role("button", name="grass").click()
    dab(page, 2, 2, mapped, "#painting")  # the palette has closed, the stroke counts
    pressed = page.locator(".legend [aria-pressed=true]")
    assert pressed.all_inner_texts() == ["grass"]
    tab = page.get_by_role("tabpanel").filter(has=page.locator("#painting"))
    tab.get_by_label("Prompt", exact=True).fill(words)
    tab.get_by_role("button", name="Draw the landscape").click()
    page.locator("#semantic-status").get_by_text("Seed 0,").wait_for()
    tab.get_by_role("button", name="How it works").click()
    kinds = read_kinds(served(page, page.locator("#read img")), kind_colours(mapped.names["map"]))
    assert set(np.unique(kinds)) == {-1, 1, 2} and not (kinds[:8] > 0).any()
    assert np.flatnonzero((kinds == 1).any(1)).mean() < np.flatnonzero((kinds == 2).any(1)).mean()
    expected = mapped.sample(1, seed=0, prompt=words, semantic_map=kinds)
    np.testing.assert_array_equal(shown(page, "#painted"), pixels(expected)[0])
    tab.get_by_role("button", name="Send the selected image to Change").click()
    page.locator("#editor canvas").first.wait_for()
    settled(page)
    apart(page, "#editor")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0 and page.complaints == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True)
def test_a_visitor_draws_a_panorama_and_outpaints(page, model, tmp_path):
    same_seed(page, "Panorama")
    page.get_by_role("spinbutton", name="Width in pixels").fill("80")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#panorama-status").get_by_text("Seed 0,").wait_for()
    seen = served(page, page.locator("#panorama img").first)
    assert_same([seen], model.panorama(80, seed=0))
    page.get_by_role("button", name="Send the panorama to Change").click()
    page.locator("#editor canvas").first.wait_for()
    settled(page, least=2, most=8)  # wider than the picture before

    same_seed(page, "Change")
    page.get_by_role("button", name="Extend beyond the borders").click()
    small = page.locator("#frame .size").get_by_text("32×32 pixels")
    for _ in range(10):  # a click may come before the panorama is in the editor
        page.locator("#examples .thumbnail-item").first.click()
        page.locator("#editor canvas").first.wait_for()
        page.wait_for_timeout(2000)
        if small.is_visible():
            break
    small.wait_for()
    pull(page, "left", -60)
    left = page.get_by_role("spinbutton", name="Pixels to the left")
    (wide,) = re.findall(r"(\d+)×32 pixels", page.locator("#frame .size").inner_text())
    assert int(wide) > 32 and int(left.input_value()) == int(wide) - 32
    below = page.get_by_role("spinbutton", name="Pixels below")
    for number, value, size in ((left, "0", "32×32 pixels"), (below, "16", "32×48 pixels")):
        number.fill(value)
        page.keyboard.press("Enter")
        page.locator("#frame .size").get_by_text(size).wait_for()
    pull(page, "top", 60)  # inwards, where nothing can be added
    assert page.get_by_role("spinbutton", name="Pixels above").input_value() == "0"
    edit(page, "Outpaint", "Seed 0,")
    example = example_pictures(model)[0]
    np.testing.assert_array_equal(shown(page, "#edits")[:32], np.asarray(example))
    assert shown(page, "#edits").shape == (48, 32, 3)
    assert page.complaints == []


@pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True)
def test_a_visitor_slides_the_chain(page, model):
    page.get_by_role("tab", name="Understand").click()
    line = page.locator("#chain-status")
    page.locator("#noisy img").wait_for()  # of the first example, without a click
    page.locator("#starts .thumbnail-item").nth(1).click()
    line.get_by_text("At t = 2,").wait_for()
    slider = page.locator("#level input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    line.get_by_text("At t = 3, ").wait_for()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    line.get_by_text("At t = 1, 100%").wait_for()
    seen = np.asarray(served(page, page.locator("#noisy img")))
    start = example_pictures(model)[1]
    np.testing.assert_array_equal(seen, pixels(model.decode(model.encode(start)))[0])
    page.get_by_role("button", name="Draw again from every level").click()
    page.locator("#redrawn .thumbnail-item").nth(model.T - 1).wait_for()
    np.testing.assert_array_equal(shown(page, "#redrawn"), seen)
    page.locator("#starts .thumbnail-item").nth(2).click()
    page.locator("#redrawn .thumbnail-item").first.wait_for(state="detached")
    expected = pixels(model.decode(model.encode(example_pictures(model)[2])))[0]
    for _ in range(40):
        page.wait_for_timeout(500)
        seen = np.asarray(served(page, page.locator("#noisy img")))
        if np.array_equal(seen, expected):
            break
    page.wait_for_timeout(1500)  # and stays
    seen = np.asarray(served(page, page.locator("#noisy img")))
    np.testing.assert_array_equal(seen, expected)
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0 and page.complaints == []


@pytest.mark.skipif(not AXE.is_file(), reason=f"no axe-core in this checkout: {INSTALL_AXE}")
def test_accessibility_has_no_serious_finding(mapped_page):
    """On every tab with all its folds open, in light and dark, on a desktop and a phone, and with
    the mouse on the button that runs."""
    page, found = mapped_page, set()
    page.add_script_tag(path=AXE)
    page.add_style_tag(content="* { transition: none !important; }")  # colours at their ends
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample-status").get_by_text("Seeds").wait_for()
    for size in (DESKTOP, PHONE):
        page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        for tab in ("Make", "Change", "Paint a map", "Panorama", "Understand"):
            page.get_by_role("tab", name=tab, exact=True).click()
            for fold in page.locator(".label-wrap:not(.open)").locator("visible=true").all()[::-1]:
                fold.click()
            run = page.locator("button.primary").locator("visible=true")
            for dark in (False, True):
                page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
                if run.count():
                    run.first.hover()
                page.wait_for_timeout(500)
                found |= {f"{tab} {size} {dark}: {one}" for one in findings(page)}
    assert not found, "\n".join(sorted(found))


def findings(page) -> set[str]:
    """What axe-core finds serious in what the page shows: a rule, and the first element."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return {f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in serious}
