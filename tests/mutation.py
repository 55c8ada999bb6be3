"""Mutation testing: does a test of a module fail when one place of the module is wrong?

    pip install mutmut==3.8.1
    python tests/mutation.py vqgan                # 60 mutants drawn by seed 0: some minutes
    python tests/mutation.py vqgan --count 1000   # all of them

mutmut changes one operator, number, word, argument or condition at a time, in a copy of the
repository, and runs on each mutant those tests of the module that reach the changed function.
Mutants that no test kills must be in survivors.json, with the reason why they may live.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

ROOT = Path(__file__).parents[1]
SURVIVORS = Path(__file__).with_name("survivors.json")
JUDGES = {  # module: the tests that are run on its mutants, and which of them: quick ones
    "diffusion": ("diffusion", ""),
    "vqgan": ("vqgan quantiser official", "(vqgan or quantiser) and not presets and not size"),
    "guidance": ("guidance conditions", "not travel and not full_mask and not every_option"),
    "sampling": (
        "sampling",
        "not thousand and not widths and not batch and not bfloat16 and not chosen and not draft_c",
    ),
    "denoiser": ("denoiser conditions", "not entropy and not travel and not refused_in"),
    "editing/process": (
        "process official particles",
        "those_of_each or every_version or larger or first_redraw or repeated or once_down or "
        "survive_ann or chains or noise_of_its or noised or particles",
    ),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["imagebart"]
only_mutate = ["imagebart/{module}.py"]
also_copy = ["eval", "train", "demo"]
timeout_multiplier = 4.0
timeout_constant = 5.0
pytest_add_cli_args = ["--hypothesis-profile", "quick"]
pytest_add_cli_args_test_selection = {tests}
"""
UNTESTED = 33  # exit code of a mutant that no test reaches; 0 is that of one that all tests pass


def main(module: Annotated[str, tyro.conf.Positional], count: int = 60, seed: int = 0) -> None:
    """Judge `count` mutants of `module`, drawn by `seed`."""
    known = json.loads(SURVIVORS.read_text(encoding="utf-8")).get(module, {})
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs"))
        files, which = JUDGES[module]
        tests = [*(f"tests/test_{name}.py" for name in files.split()), "-k", which]
        with open(copy / "pyproject.toml", "a", encoding="utf-8") as file:
            file.write(SETTINGS.format(module=module, tests=json.dumps(tests)))
        every = names(copy, module)
        chosen = sorted(every, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        mutmut(copy, "run", "--max-children", "1", *chosen[:count])
        record = copy / "mutants" / "imagebart" / f"{module}.py.meta"
        codes = json.loads(record.read_text(encoding="utf-8"))["exit_code_by_key"]
        judged = {name: code for name, code in codes.items() if code is not None}
        alive = [name for name, code in judged.items() if code in (0, UNTESTED)]
        survivors = [what_changed(mutmut(copy, "show", name), name) for name in alive]
    for survivor in survivors:
        print(f"{survivor}\n    {known.get(survivor, 'NOT EXPLAINED')}")
    unexplained = sum(survivor not in known for survivor in survivors)
    print(
        f"{module}: {len(judged)} of {len(every)} mutants: {len(judged) - len(alive)} killed, "
        f"{len(alive) - unexplained} explained, {unexplained} neither"
    )
    sys.exit(unexplained > 0)


def names(folder: Path, module: str) -> list[str]:
    """The names of all mutants of a module."""
    listing = (
        "import sys; from mutmut.mutation.file_mutation import mutate_file_contents as mutants; "
        "path = sys.argv[1]; print(*mutants(path, open(path).read()).mutant_names, sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", listing, f"imagebart/{module}.py"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [f"imagebart.{module.replace('/', '.')}.{name}" for name in run.stdout.split()]


def mutmut(folder: Path, *command: str) -> str:
    """What a command of mutmut prints."""
    run = subprocess.run(
        [sys.executable, "-m", "mutmut", *command], cwd=folder, capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(f"error: mutmut {command[0]}: {run.stdout[-3000:]}{run.stderr[-3000:]}")
    return run.stdout


def what_changed(diff: str, name: str) -> str:
    """A mutant in one line that does not depend on line numbers: function: before → after."""
    lines = [line for line in diff.splitlines() if line[:3] not in ("---", "+++")]
    before, after = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    function = name.rpartition("__mutmut_")[0].rpartition(".x")[2].strip("_ǁ").replace("ǁ", ".")
    return f"{function}: {before} → {after}"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
