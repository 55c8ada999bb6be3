"""What the documents show can be done: links lead somewhere, commands parse, the block runs."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

import app
from imagebart import ImageBART
from imagebart.__main__ import COMMANDS
from imagebart.conditions import text_shape, text_tokens

ROOT = Path(__file__).parents[1]
PAGES = (
    "*.md",
    "docs/*.md",
    "eval/README.md",
    "train/README.md",
    "notebooks/README.md",
    "imagebart/pretrained/*/README.md",
)
DOCUMENTS = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
SCRIPT = re.compile(r"python (?:-m )?((?:eval|train)/\w+\.py|app\.py|imagebart \w+)([^\n;&|#}`]*)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def commands() -> list[tuple[str, str]]:
    """(script, options) of every command in the documents and in the scripts' own words."""
    pages = [*DOCUMENTS, *ROOT.glob("eval/*.py"), *ROOT.glob("train/*.py"), ROOT / "app.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    found = {match.groups() for match in SCRIPT.finditer(re.sub(r"\\\n\s*", " ", text))}
    found = {(script, options.split("   ")[0].strip(" .")) for script, options in found}
    return sorted((script, options) for script, options in found if "…" not in options)


def config_of(script: str) -> type:
    """The options that a script takes."""
    if script.startswith("imagebart "):
        return COMMANDS[script.split()[1]]
    if script == "app.py":
        return app.Config
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Config


def test_the_documents_are_found():
    assert {"main", "eval", "notebooks", "probe", "scenery"} <= {
        "main" if path.parent == ROOT else path.parent.name for path in DOCUMENTS
    }
    assert len(commands()) > 60


@each_document
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("script", sorted({script for script, _ in commands()}))
def test_commands_are_understood(script):
    config = config_of(script)
    for of, options in commands():
        if of == script:
            words = shlex.split(re.sub(r"\$\{?\w+\}?", "2", options))
            tyro.cli(config, args=words)  # ends the process for what it does not know


def test_the_python_of_the_documents_runs(make_model, tmp_path, monkeypatch):
    model = make_model(
        T=3, conditions={"class": 2, "text": text_shape(8, vectors=16)}, condition_dropout=True
    )
    model.names["class"] = ["lake", "desert"]
    for denoiser in model.denoisers.values():
        denoiser.know_text(text_tokens(["a lake city at night desert noon northern lights"], 16)[0])
    Image.new("RGB", (40, 36), "teal").save(tmp_path / "photo.png")
    Image.fromarray(np.uint8(255) * np.eye(36, 40, dtype=np.uint8)).save(tmp_path / "mask.png")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert "5000" in block and "1024" in block
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageBART, "from_pretrained", lambda *_, **__: model)
    said: dict = {}
    exec(block.replace("5000", "5").replace("1024", "96"), said)
    assert said["wide"].size == (96, 32) and len(said["edits"]) == 1
    assert said["best"][0].image.size == (40, 36)
    assert set(said["bits"]) == {2, 3}


def test_the_readme_is_read_in_five_minutes():
    words = (ROOT / "README.md").read_text().split()
    assert sum(any(c.isalnum() for c in word) for word in words) <= 1000  # not the lines of tables
