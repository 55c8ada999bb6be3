"""Every notebook runs, is small, and shows what the library says today."""

import ast
import json
import os
import re
import resource
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST, MOST_CELLS = 500_000, 40  # bytes, cells
CPU_SECONDS = 120  # of a kernel with one thread; less than 60 where nobody shares the processor

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def shown_code(notebook) -> list[str]:
    """What `show.source` printed, in order."""
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    return [
        out["data"]["text/markdown"] for out in outputs if "text/markdown" in out.get("data", {})
    ]


def equations_cited(text: str) -> set[int]:
    """The numbers of "eq. 5", "eq. 3, 4" and "eq. 5 to 8"."""
    numbers = set()
    for cited in re.findall(r"eq\. (\d+(?:(?:, | to | and )\d+)*)", text):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", cited):
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def test_the_notebooks_are_there():
    named = re.findall(r"^\| `(\w+)\.ipynb`", (ROOT / "notebooks/README.md").read_text(), re.M)
    assert named == [path.stem for path in NOTEBOOKS]
    assert len({name[:2] for name in named}) == len(named)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Each notebook run once in a fresh kernel, with the CPU seconds that it took."""
    runs = {}

    def execute(path: Path):
        if path not in runs:
            scratch = str(tmp_path_factory.mktemp("jupyter"))
            env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            env |= {"JUPYTER_RUNTIME_DIR": scratch, "IPYTHONDIR": scratch}
            notebook = read(path)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            client = NotebookClient(notebook, timeout=300, kernel_name="python3")
            client.execute(cwd=str(path.parent), env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            runs[path] = notebook, seconds
        return runs[path]

    return execute


@each_notebook
def test_it_runs_from_top_to_bottom_and_soon(path, executed):
    notebook, seconds = executed(path)  # raises at the first cell that fails
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert seconds < CPU_SECONDS


@each_notebook
def test_the_code_it_shows_is_the_code_that_runs(path, executed):
    assert shown_code(read(path)) == shown_code(executed(path)[0]) != []


@each_notebook
def test_every_equation_stands_beside_its_function(path):
    notebook = read(path)
    tagged = {int(n) for n in re.findall(r"\\tag\{(\d+)\}", prose(notebook))}
    assert tagged <= equations_cited("\n".join(shown_code(notebook)))


def test_citations_are_read_as_written():
    assert equations_cited("[eq. 2], eq. 3, 4 and [eq. 5 to 8]; see eq. 10") == {*range(2, 9), 10}


@each_notebook
def test_it_is_small(path):
    assert path.stat().st_size <= LARGEST
    assert len(read(path).cells) <= MOST_CELLS


@each_notebook
def test_it_defines_nothing(path):
    for cell in code_cells(read(path)):
        found = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, DEFINITIONS)]
        assert not found, f"line {found[0].lineno} of\n{cell.source}"


DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


@each_notebook
def test_its_outputs_are_committed(path):
    for cell in code_cells(read(path)):
        last = ast.parse(cell.source).body[-1]
        shows = isinstance(last, ast.Expr) and not cell.source.rstrip().endswith("()")
        assert cell.outputs or not shows, f"no output under\n{cell.source}"
        assert all(output.output_type != "error" for output in cell.outputs)


@each_notebook
def test_its_outputs_say_nothing_of_the_machine(path):
    outputs = json.dumps([cell.outputs for cell in code_cells(read(path))])
    for trace in ("/home/", "/root/", "/usr/", "/opt/", "/tmp/", "Users\\", "site-packages"):
        assert trace not in outputs
    assert "TCP without encryption" not in outputs and '"stderr"' not in outputs


@each_notebook
def test_it_opens_on_a_page_without_a_kernel(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert all("execution" not in cell.metadata for cell in notebook.cells)


@each_notebook
def test_every_picture_is_stored_once(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            assert len(kinds) <= 1


@each_notebook
def test_it_ends_with_where_things_live_and_three_exercises(path):
    last = read(path).cells[-1].source
    assert "## Where this lives" in last
    assert re.findall(r"^(\d)\. ", last.partition("**Exercises**")[2], re.M) == ["1", "2", "3"]


@each_notebook
def test_files_it_names_exist(path):
    named = set(re.findall(r"`((?:imagebart|tests|train|eval)/[\w/]+\.py)`", prose(read(path))))
    assert named and not [name for name in named if not (ROOT / name).exists()]
