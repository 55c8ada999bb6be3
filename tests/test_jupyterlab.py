"""In a real JupyterLab, in a browser: sliders and the canvas of a mask change the picture.

The pictures before and after are kept in screenshots/, which git ignores.
"""

import os
import subprocess
import symtable
import sys
import time
from contextlib import contextmanager

import httpx
import nbformat
import pytest
from browser import DESKTOP, browsing
from IPython.core.inputtransformer2 import TransformerManager
from server import ROOT, free_port
from test_notebooks import code_cells, read

pytestmark = pytest.mark.slow

SHOTS = ROOT / "screenshots"
START_SECONDS, CHANGE_SECONDS = 120, 300  # by the clock, on a busy machine
SLIDERS = {  # notebook: what stands in its interactive cell only
    "04_forget": "q_posterior(torch.tensor([[x_t]])",
    "07_sample": "show.heat(wrong[k], 0, 1)],",
    "08_say_what": "show.strip(guided[s], height=200)",
}
CANVAS = {"09_edit": "strokes=canvas"}
READY = "window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady"  # until then none runs


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves these notebooks, cut down to that cell."""
    pytest.importorskip("jupyterlab")
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for name, code in (SLIDERS | CANVAS).items():
        nbformat.write(only_for(name, code), home / f"notebooks/{name}.ipynb")
    own = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("RUNTIME", "CONFIG")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(home / kind) for kind in ("SETTINGS", "WORKSPACES")}
    own |= {"IPYTHONDIR": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--LabApp.news_url=None"]
    command += ["--LabApp.expose_app_in_browser=True"]  # as `jupyterapp`
    with (
        open(home / "log", "w") as log,
        subprocess.Popen(
            [*command, f"--ServerApp.root_dir={home}/notebooks"],
            env=os.environ | own,
            stdout=log,
            stderr=log,
        ) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def names(code: str) -> tuple[set[str], set[str]]:
    """The names to which code gives a value, and those that it reads from outside its functions."""
    tables = [symtable.symtable(TransformerManager().transform_cell(code), "cell", "exec")]
    for table in tables:
        tables += table.get_children()
    given = {one.get_name() for one in tables[0].get_symbols() if one.is_local()}
    read = {
        one.get_name()
        for table in tables
        for one in table.get_symbols()
        if one.is_referenced() and (table is tables[0] or one.is_global())
    }
    return given, read


def only_for(name: str, code: str) -> nbformat.NotebookNode:
    """Of a notebook the cell that has this code, after those that give what it reads."""
    notebook = read(ROOT / f"notebooks/{name}.ipynb")
    cells = code_cells(notebook)
    (last,) = [i for i, cell in enumerate(cells) if code in cell.source]
    kept, wanted = [cells[last]], names(cells[last].source)[1]
    for cell in reversed(cells[:last]):
        given, needed = names(cell.source)
        if wanted & given:
            kept.insert(0, cell)
            wanted = wanted - given | needed
    for cell in kept:
        cell.outputs = []
    notebook.cells = kept
    return notebook


def wait_for(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab must answer within {START_SECONDS} s, got nothing at {url}")


@contextmanager
def interactive(lab: str, name: str):
    """(page, output) of a notebook whose cells have run: what its interactive cell shows."""
    SHOTS.mkdir(exist_ok=True)
    with browsing(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb", DESKTOP) as page:
        page.set_default_timeout(1000 * START_SECONDS)
        page.wait_for_function(READY)
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        output = page.locator(".widget-interact")
        output.locator("img").wait_for(timeout=1000 * CHANGE_SECONDS)
        yield page, output


def instead_of(before: str, page, output) -> str:
    """The address, which holds the bytes, of the picture that comes instead of another."""
    end = time.monotonic() + CHANGE_SECONDS
    while time.monotonic() < end:
        pictures = output.locator("img")
        if pictures.count() and (now := pictures.first.get_attribute("src")) != before:
            return now
        page.wait_for_timeout(200)
    output.screenshot(path=SHOTS / "unchanged.png")
    raise AssertionError(f"the picture must change within {CHANGE_SECONDS} s, it is the same")


@pytest.mark.parametrize("name", SLIDERS)
def test_a_slider_changes_the_picture(lab, name):
    """And moved back, it brings back the same picture."""
    with interactive(lab, name) as (page, output):
        first = instead_of("", page, output)
        output.screenshot(path=SHOTS / f"{name}_first.png")
        output.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        second = instead_of(first, page, output)
        output.screenshot(path=SHOTS / f"{name}_second.png")
        page.keyboard.press("ArrowLeft")
        assert instead_of(second, page, output) == first
        assert page.complaints == []


def test_a_painted_mask_changes_the_picture(lab):
    with interactive(lab, "09_edit") as (page, output):
        first = instead_of("", page, output)
        output.screenshot(path=SHOTS / "09_edit_first.png")
        output.get_by_role("button", name="clear").click()
        empty = instead_of(first, page, output)
        output.screenshot(path=SHOTS / "09_edit_cleared.png")
        box = output.locator("canvas").bounding_box()
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.4 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
        page.mouse.up()
        assert instead_of(empty, page, output) != first
        output.screenshot(path=SHOTS / "09_edit_painted.png")
        assert page.complaints == []
