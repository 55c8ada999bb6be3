"""One thing for one name, and the field's word for each thing."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("imagebart", "demo", "train", "eval")
CODE = [ROOT / "app.py", *(path for one in FOLDERS for path in sorted(ROOT.glob(f"{one}/**/*.py")))]
TESTS = [path for path in sorted(ROOT.glob("tests/*.py")) if path != Path(__file__)]
DOCUMENTS = sorted(
    path for path in ROOT.glob("**/*.md") if not {".venv", "node_modules"} & {*path.parts}
)

# ── one thing for one name ────────────────────────────────────────────────────────────────────

SCRIPT = {"main", "Config", "summary", "summary_line", "ROOT", "__all__"}
"""What every script or package defines for itself."""
OPERATIONS = {"inpaint", "outpaint", "panorama", "reimagine"}
"""An endpoint of the demo has the name of the method that it calls."""
LAYERS = {"Encoder", "Decoder", "SelfAttention"}
"""Of convolutions in vqgan.py, of tokens in transformer.py."""


def defined_in(path: Path) -> set[str]:
    """The names that a file defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8"), path.name).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for at in targets for one in ast.walk(at) if isinstance(one, ast.Name)}
    return names


def test_no_name_is_defined_for_two_things():
    places = defaultdict(list)
    for path in CODE:
        for name in defined_in(path):
            places[name].append(str(path.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    allowed = SCRIPT | OPERATIONS | LAYERS
    assert not {name: files for name, files in twice.items() if name not in allowed}
    assert not allowed - twice.keys(), "allowed, but defined once: take it off the list"


# ── the field's words ─────────────────────────────────────────────────────────────────────────

OLD_WORDS = {  # a private word, as a regular expression: the field's word
    r"receipts?": "run record",
    r"[Jj]ury|\.meet\(|\.verdict\(|\.look\(": "metrics: update, sync, compute; predict",
    r"told (nothing|class|classes|the map|all that|what the data)|nats_told": "unconditional",
    r"[Hh]eld by tests|tests? holds? them": "verified by tests",
    r"shell door|[Ff]rom a shell|shell command": "command line",
    r"rooms": "tabs, packages",
    r"whole\.py": "arguments.py",
    r"[Ww]ish(es)?": "condition, target, prompts",
    r"[Hh]oles?|HOLES?|hole_\w+|\w+_holes?(_\w+)?": "mask, masked tokens, span",
    r"around(?==)|--around|(looks|course)(?=\()|turn(?=: int|=)": "resampling, schedule, pass",
    r"reckon(ed|s)?": "computed",
    r"Belief|beliefs?|[Bb]elieve[ds]?": "x_1 prediction, probability",
    r"Asked|asked_along|ask(?=\()": "encoded condition",
    r"critics?|Critics?": "discriminator",
    r"\.droppable|droppable(?= ?[=:,])": "condition dropout",
    r"(deeper|refined|fine|rounds|against|led|still)(?=\()": "what it is",
    r"(against|led|still|asked|wishes|told)(?=(: \w+)? = )": "negative, guided, ᾱ, condition",
    r"told_(everywhere|page|server)|(options|each|x_t)_said": "given",
    r"(the|other|every|public) doors?|DOORS": "public function, command line, interface",
}
"""Each is looked for as a whole word in code, tests, documents and notebooks."""


def lines_with(word: str) -> list[str]:
    pattern, found = re.compile(rf"(?<!\w)(?:{word})(?!\w)"), []
    for path in [*CODE, *TESTS, *DOCUMENTS, *sorted(ROOT.glob("notebooks/**/*.ipynb"))]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) < 1000 and pattern.search(line):  # longer lines are pictures
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    return found


@pytest.mark.parametrize("word", OLD_WORDS)
def test_a_private_word_does_not_come_back(word):
    found = lines_with(word)
    assert not found, f"say {OLD_WORDS[word]!r}\n" + "\n".join(found)


# ── names that docstrings refer to ────────────────────────────────────────────────────────────

MODULES = {
    path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(ROOT.glob("imagebart/**/*.py"))
    if path.stem not in ("__init__", "__main__")
}


def test_what_a_docstring_refers_to_is_there():
    """`module.name`, and `module.Class.name`, of the library."""
    lost = []
    for path in sorted(ROOT.glob("imagebart/**/*.py")):
        for name in re.findall(r"`(\w+(?:\.\w+)+)", path.read_text(encoding="utf-8")):
            first, *attributes = name.split(".")
            if first not in MODULES or attributes[-1] in ("py", "npy", "safetensors"):
                continue
            found = importlib.import_module(MODULES[first])
            for attribute in attributes:
                found = getattr(found, attribute, None)
            if found is None:
                lost.append(f"{path.relative_to(ROOT)}: {name}")
    assert not lost
