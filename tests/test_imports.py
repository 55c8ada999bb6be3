"""Imports point down, inference stays light, and the library neither prints nor parses."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "imagebart"

# From the ground up: a module imports from its own layer or from those below it.
LAYERS = [
    {"notation", "arguments", "cache", "settings", "data", "editing", "released"},
    {"linear", "rotary", "efficientnet", "decodable", "options", "quantiser", "isolation"}
    | {"known_pixels", "int8", "released.pickled"},
    {"vqgan", "perceptual", "diffusion", "transformer", "distributed", "checkpoint", "choice"}
    | {"data.scenery.world", "released.untrusted"},
    {"data.scenery.sky", "data.scenery.land"},
    {"data.scenery.things"},
    {"data.scenery.places"},
    {"data.scenery.words"},
    {"data.scenery.scenes"},
    {"data.scenery"},
    {"data.colours"},
    {"data.images", "data.text", "data.maps", "data.batches", "data.painted"},
    {"data.listing"},
    {"data.image_folder"},
    {"conditions", "listed"},
    {"data.shards", "data.lsun", "data.tokens", "data.scan"},
    {"data.remote"},
    {"data.sources"},
    {"denoiser", "fitting"},
    {"folders", "hub"},
    {"model", "guidance"},
    {"sampling"},
    {"presets", "ranking", "streaming"},
    {"editing.particles", "editing.harmonic"},
    {"editing.process", "editing.reimagining"},
    {"editing.masks", "editing.pasting"},
    {"editing.inpainting", "editing.panorama"}
    | {"probe", "released.official", "released.importing"},
    {"show"},
    {"diagrams", "drawing"},
    {"__init__", "__main__"},
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}


def name_of(path: Path) -> str:
    """The dotted name of a module within the library; "__init__" is the library itself."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(LIBRARY.rglob("*.py"))}
MODULES = list(FILES)
PACKAGES = [name for name, path in FILES.items() if path.stem == "__init__" and name != "__init__"]
DEMO = [
    {"style", "files", "calls", "worker"},
    {"requests", "serving"},
    {"pictures", "frame"},
    {"parts", "edit"},
    {"ready", "editor"},
    {"sample", "change", "paint", "panorama", "chain"},
]  # of the page, in the same way
RUN = sorted([*ROOT.glob("train/*.py"), *ROOT.glob("eval/*.py"), *ROOT.glob("app.py")])
STARTS = 'if __name__ == "__main__":'
STARTED = [path for path in RUN if STARTS in path.read_text(encoding="utf-8")]
SCRIPTS = {path.stem for path in STARTED if path.parent.name != "eval"}
SHARED = {path.stem for path in ROOT.glob("train/*.py")} - SCRIPTS  # what only train/ uses


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


def packages_of(tree: ast.Module) -> set[str]:
    """The packages that a file imports anywhere."""
    return {name.split(".")[0] for node in ast.walk(tree) for name in imported(node)}


def ours(node: ast.AST) -> set[str]:
    """Modules of the library that one import statement names."""
    names = [name.split(".")[1:] for name in imported(node) if name.split(".")[0] == "imagebart"]
    return {module_of(parts) for parts in names}


def module_of(parts: list[str]) -> str:
    """The module that has a name of the library, e.g. "data.images" has data.images.fit."""
    begun = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in begun if name in FILES), "__init__")


def local_imports(tree: ast.Module) -> set[str]:
    """Modules of the library imported inside functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = [n for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)]
    return set().union(*map(ours, inside)) if inside else set()


def global_imports(tree: ast.Module) -> set[str]:
    """Modules of the library imported when the file is; not those of type checkers only."""
    waiting, names = list(tree.body), set()
    while waiting:
        node = waiting.pop()
        checkers = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not checkers and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names |= ours(node)
            waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    tree = tree_of(FILES[module])
    assert module in LAYER, f"give {module} a layer"
    above = {name for name in global_imports(tree) if LAYER[name] > LAYER[module]}
    assert not above
    inside = {name for name in local_imports(tree) if LAYER[name] > LAYER[module]}
    assert not inside or module == "model", "only the methods of ImageBART delegate upwards"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_docstring_of_a_package_lists_its_modules(package):
    """Its __init__.py: a line for each of its modules, and what others may import from it."""
    docstring, *statements = tree_of(FILES[package]).body
    modules = {name.removeprefix(f"{package}.") for name in FILES if name.startswith(f"{package}.")}
    said = re.findall(r"^(\w+)/?   ", docstring.value.value, re.M)
    assert sorted(said) == sorted(name for name in modules if "." not in name)
    assert all(isinstance(each, ast.ImportFrom | ast.Assign) for each in statements)


def test_the_library_s_own_docstring_names_every_module_and_package():
    said = re.findall(r"^    (\w+)/?   ", ast.get_docstring(tree_of(FILES["__init__"])), re.M)
    assert sorted(said) == sorted({name.split(".")[0] for name in FILES} - {"__init__"})


def test_what_the_library_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["all"]]
    declared = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in listed}
    given = declared - {"pillow"} | {"PIL", "imagebart"} | sys.stdlib_module_names
    assert not {
        name: packages_of(tree_of(path)) - given
        for name, path in FILES.items()
        if packages_of(tree_of(path)) - given
    }


def test_every_package_is_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = setup["tool"]["setuptools"]["packages"]
    assert set(packages) == {"imagebart", *(f"imagebart.{name}" for name in PACKAGES)}
    stored = [path for path in LIBRARY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for package, patterns in setup["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        packed = {path for pattern in patterns for path in folder.glob(pattern)}
        assert packed, f"{package} has no such files: {patterns}"
        stored = [path for path in stored if path not in packed]
    assert {path.suffix for path in stored} == {".py"}


def test_no_module_waits_for_itself():
    """Within a layer too: following imports never leads back."""
    trees = {name: tree_of(FILES[name]) for name in MODULES}
    below = {name: global_imports(tree) - {"__init__"} for name, tree in trees.items()}
    while below:
        free = [name for name, needs in below.items() if not needs & below.keys()]
        assert free, f"imports in a circle: {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in free}


def test_the_demo_imports_downwards_and_the_library_imports_none_of_it():
    floor = {name: level for level, names in enumerate(DEMO) for name in names}
    modules = {path.stem: path for path in ROOT.glob("demo/*.py") if path.stem != "__init__"}
    assert modules.keys() == floor.keys(), "give every module of the demo a level"
    for module, path in modules.items():
        names = [name.split(".") for node in ast.walk(tree_of(path)) for name in imported(node)]
        assert all(floor[name[1]] < floor[module] for name in names if name[0] == "demo")
        assert not [name for name in names if name[0] == "app"]
    for path in FILES.values():
        assert not packages_of(tree_of(path)) & {"demo", "app", "gradio", "starlette"}


@pytest.mark.parametrize("path", RUN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_never_import_each_other(path):
    packages = packages_of(tree_of(path))
    assert not packages & SCRIPTS
    assert path.parent.name == "train" or not packages & SHARED


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_the_library_neither_prints_nor_parses(module):
    tree = tree_of(FILES[module])
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {ast.unparse(function) for function in calls}
    assert not called & {"print", "input", "sys.exit", "exit", "logging.basicConfig"}
    assert not packages_of(tree) & {"argparse", "tyro", "click", "tqdm"}


INFERENCE = """
import sys
from imagebart import ImageBART
model = ImageBART.from_pretrained(sys.argv[1])
image, = model.sample(seed=1)
model.inpaint(image, image.convert("L"), seed=2)
heavy = {"lpips", "imagebart.perceptual", "imagebart.show", "torchvision", "torchmetrics"}
heavy |= {"gradio", "tyro", "matplotlib", "scipy", "transformers", "open_clip", "pytest"}
heavy |= {"torch._dynamo"}  # two seconds of every start
print(sorted(heavy & sys.modules.keys()))
"""


JOINT = dict(joint=True, rotary=True, qk_norm=True, conditions={"class": 3, "text": 6, "map": 4})


@pytest.mark.parametrize("shape", [{}, JOINT | {"condition_dropout": True}], ids=["plain", "joint"])
def test_inference_loads_nothing_that_only_training_needs(make_model, tmp_path, shape):
    make_model(**shape).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", INFERENCE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
