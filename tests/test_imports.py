"""Imports point down, inference stays light, and the library neither prints nor parses."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "imagebart"

# From the ground up: a module imports from its own layer or from those below it.
LAYERS = [
    {"notation", "whole"},
    {"linear", "efficientnet"},
    {"vqgan", "perceptual", "diffusion", "transformer", "scenery", "data", "sources", "distributed"}
    | {"checkpoint", "training", "serving"},
    {"conditioning", "maps", "tokens"},
    {"denoiser"},
    {"folders"},
    {"model", "guidance"},
    {"sampling"},
    {"presets", "ranking", "streaming"},
    {"pasting", "masked"},
    {"holes"},
    {"editing", "panorama", "probe", "official", "untrusted", "receipts", "importing"},
    {"show"},
    {"__init__", "__main__"},
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path.stem for path in LIBRARY.glob("*.py"))
TABS = {"sample", "edit", "paint", "panorama", "chain"}
DEMO = [{"look"}, {"requests"}, {"pictures"}, {"parts"}, TABS]  # of the page, in the same way
SCRIPTS = sorted([*ROOT.glob("train/*.py"), *ROOT.glob("eval/*.py"), *ROOT.glob("app.py")])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def imported(node: ast.AST) -> list[str]:
    """Full names of the modules that one import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def ours(node: ast.AST) -> set[str]:
    """Modules of the library that one import statement names."""
    names = set()
    for name in imported(node):
        if name.split(".")[0] == "imagebart":
            parts = [part for part in name.split(".")[1:2] if part in MODULES]
            names |= set(parts or ["__init__"])
    return names


def local_imports(tree: ast.Module) -> set[str]:
    """Modules of the library imported inside functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = [n for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)]
    return set().union(*map(ours, inside)) if inside else set()


def global_imports(tree: ast.Module) -> set[str]:
    """Modules of the library imported when the file is."""
    waiting, names = list(tree.body), set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names |= ours(node)
            waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    tree = tree_of(LIBRARY / f"{module}.py")
    assert module in LAYER, f"give {module} a layer"
    above = {name for name in global_imports(tree) if LAYER[name] > LAYER[module]}
    assert not above
    inside = {name for name in local_imports(tree) if LAYER[name] > LAYER[module]}
    assert not inside or module == "model", "only the methods of ImageBART delegate upwards"


def test_no_module_waits_for_itself():
    """Within a layer too: following imports never leads back."""
    trees = {name: tree_of(LIBRARY / f"{name}.py") for name in MODULES}
    below = {name: global_imports(tree) - {"__init__"} for name, tree in trees.items()}
    while below:
        free = [name for name, needs in below.items() if not needs & below.keys()]
        assert free, f"imports in a circle: {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


def test_rooms_of_the_demo_import_downwards_and_the_library_knows_nothing_of_them():
    floor = {name: level for level, names in enumerate(DEMO) for name in names}
    rooms = {path.stem: path for path in ROOT.glob("demo/*.py") if path.stem != "__init__"}
    assert rooms.keys() == floor.keys(), "give every room of the demo a level"
    for room, path in rooms.items():
        names = [name.split(".") for node in ast.walk(tree_of(path)) for name in imported(node)]
        assert all(floor[name[1]] < floor[room] for name in names if name[0] == "demo")
        assert not [name for name in names if name[0] == "app"]
    for path in LIBRARY.glob("*.py"):
        names = {name.split(".")[0] for node in ast.walk(tree_of(path)) for name in imported(node)}
        assert not names & {"demo", "app", "gradio"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_training_scripts_never_import_each_other(path):
    siblings = {other.stem for other in ROOT.glob("train/*.py")} | {"train", "app"}
    names = {name.split(".")[0] for node in ast.walk(tree_of(path)) for name in imported(node)}
    assert not names & siblings


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_the_library_neither_prints_nor_parses(module):
    tree = tree_of(LIBRARY / f"{module}.py")
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {ast.unparse(function) for function in calls}
    assert not called & {"print", "input", "sys.exit", "exit", "logging.basicConfig"}
    names = {name.split(".")[0] for node in ast.walk(tree) for name in imported(node)}
    assert not names & {"argparse", "tyro", "click", "tqdm"}


INFERENCE = """
import sys
from imagebart import ImageBART
model = ImageBART.from_pretrained(sys.argv[1])
image, = model.sample(seed=1)
model.inpaint(image, image.convert("L"), seed=2)
heavy = {"lpips", "imagebart.perceptual", "imagebart.training", "torchvision", "torchmetrics"}
heavy |= {"gradio", "tyro", "matplotlib", "scipy", "transformers", "open_clip", "pytest"}
print(sorted(heavy & sys.modules.keys()))
"""


def test_inference_loads_nothing_that_only_training_needs(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", INFERENCE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
