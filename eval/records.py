"""The run record: what was measured, with what, where and when. Every script of eval/ writes one.

    commit      of the code, the files of it that were changed since, the SHA-256 of all its files
    models      the SHA-256 of each, its config.json and all weights (`folders.model_sha256`)
    options     of the script; where one was left to the model, the model's own
    data        the SHA-256 of the images that were read (`sha256_of_images`); null if none were
    n, seeds    how many, and the first and the last seed of the random draws
    versions, hardware, date (UTC)

A `Run` also keeps rows of results beside the file that is to be written (rows.py): run again with
the same options, models, files, code, libraries and kind of device, a script goes on where it was
stopped.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rows import Columns, ImageRows

from imagebart.checkpoint import read_json, sha256_of, write_json
from imagebart.distributed import pick_device
from imagebart.folders import find_folder, model_sha256

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "torchvision", "numpy")
CODE = ("imagebart", "eval/*.py", "requirements.txt", ":(exclude)*.md")
"""What a change of changes what is measured."""
TRAINING_CODE = ("train/*.py", *CODE)
"""The same of what is trained first."""
ELSEWHERE = ("out", "picture", "device", "batch")
"""Options that change no figure."""


class Run:
    """One measurement: its models, its unfinished rows, its record.

    `models` are the folders or Hub ids of everything with weights that takes part, None the shipped
    model. ValueError if one is missing.
    """

    def __init__(
        self,
        config,
        models: Iterable[str | Path | None] = (),
        packages: tuple[str, ...] = PACKAGES,
        code: tuple[str, ...] = CODE,
    ):
        folders = {recorded(one or find_folder(one)): find_folder(one) for one in models}
        self.identity = {
            "commit": commit(code),
            "models": {name: model_sha256(folder) for name, folder in folders.items()},
            "options": options_of(config),
        }
        self.files: dict[str, str | None] = {}
        self.packages = {one: version(one) for one in packages}
        self.device = pick_device(getattr(config, "device", "auto")).type
        self.folder = folder_of_rows(config.out) if config.out else None

    def reads(self, **digests: str | None) -> None:
        """What takes part beside the models, by digest: pictures, captions, weights of others. To
        be said before there are `rows`."""
        self.files |= digests

    def rows(self, name: str, n: int, columns: Columns) -> ImageRows:
        """ImageRows that are kept beside the record until it is written, or in memory."""
        if self.folder is None:
            return ImageRows(None, n, columns)
        self._claim(self.folder / "run.json")
        readable = re.sub(r"\W+", "_", name)
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # names that read alike differ
        return ImageRows(self.folder / f"{readable}_{digest}.npy", n, columns)

    def _claim(self, path: Path) -> None:
        """ValueError unless the rows are this run's: of the same options, models, files, code,
        libraries and kind of device."""
        options = self.identity["options"].items()
        identity = {
            "code": self.identity["commit"]["sha256"],
            "models": self.identity["models"],
            "files": self.files,
            "options": {k: v for k, v in options if k not in ELSEWHERE},
            "guidance": [own_guidance(find_folder(one)) for one in self.identity["models"]],
            "versions": self.packages,
            "device": self.device,
        }
        if not path.exists():
            write_json(identity, path)
        known = read_json(path)
        other = [name for name in identity if known.get(name) != identity[name]]
        if other:
            raise ValueError(
                f"{path.parent} must hold this run's rows, got those of other {', '.join(other)}: "
                "delete it, or write to another --out"
            )

    def record(
        self,
        device: torch.device,
        *,
        data: str | None,
        n: int,
        seeds: tuple[int, int],
        **resolved,
    ) -> dict:
        """What makes the measurement identifiable, as plain values for a JSON file.

        `resolved` are options that the script's `Config` left open, as they were.
        """
        return self.identity | {
            "options": self.identity["options"] | resolved,
            "data": data,
            "n": n,
            "seeds": list(seeds),
            "versions": {"python": platform.python_version()} | self.packages,
            "hardware": hardware(device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def folder_of_rows(out: Path) -> Path:
    """Where the rows of a run are until its record `out` is written."""
    return out.with_name(f"{out.stem}.rows")


def commit(code: tuple[str, ...] = CODE) -> dict:
    """The commit of the code, which files of it were changed, and the SHA-256 of all of them.
    Outside of a checkout there is no commit (`id` is None), and nothing is known to be changed."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", *code).splitlines()
        files = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *code)
        names = files.split("\0")
    except (OSError, subprocess.CalledProcessError):
        head, changed, names = None, [], code_below(code)
    each = sorted({name for name in names if (ROOT / name).is_file()})
    digests = (f"{name} {sha256_of(ROOT / name)}\n" for name in each)
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"id": head, "changed": [line[3:] for line in changed], "sha256": whole}


def code_below(code: tuple[str, ...]) -> list[str]:
    """The files of the code where git does not know them."""
    found = [one for pattern in code if pattern[0] != ":" for one in ROOT.glob(pattern)]
    found += [below for one in found if one.is_dir() for below in one.rglob("*")]
    names = [one.relative_to(ROOT).as_posix() for one in found if one.suffix not in (".md", ".pyc")]
    return sorted(names)


def own_guidance(folder: Path) -> float | list[float] | None:
    """What a model is guided by if nobody says otherwise; None for what is never guided."""
    return read_json(folder / "config.json").get("guidance")


def other_guidance(record: dict, root: Path) -> float | list[float] | None:
    """The guidance of a record, if that is not what its model takes now."""
    given = record.get("options", {}).get("guidance")
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    folders = [root / path for path in record.get("models", {})]
    owns = [own_guidance(folder) for folder in folders if (folder / "config.json").exists()]
    return None if given in owns else given


def is_current(record: dict) -> bool:
    """Whether a record is of this code, and of the weights, and the guidance, of the models that
    lie where it says."""
    models = record.get("models", {})
    same = all(
        (ROOT / path).is_dir() and model_sha256(ROOT / path) == digest
        for path, digest in models.items()
    )
    same = same and other_guidance(record, ROOT) is None
    return bool(models) and same and same_code(record["commit"])


def same_code(then: dict | None) -> bool:
    """Whether the code is that of an earlier `commit()`, whose tree was clean."""
    now = commit()
    if then is None or None in (now["id"], then["id"]) or now["changed"] or then["changed"]:
        return False
    try:
        return not _git("diff", "--name-only", then["id"], now["id"], "--", *CODE)
    except subprocess.CalledProcessError:
        return False  # a commit that is not here


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", ROOT, *words], check=True, capture_output=True, text=True
    ).stdout


def sha256_of_images(digests: Iterable[bytes]) -> str:
    """The SHA-256 of a set of images: of the digests of their RGB bytes (`image_digest`), in
    order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def image_digest(pixels) -> bytes:
    """SHA-256 of an image's RGB bytes, an array H×W×3 of uint8, row by row."""
    return hashlib.sha256(pixels.tobytes()).digest()


def options_of(config) -> dict:
    """Every field of a script's `Config`."""
    return {name: plain(value) for name, value in asdict(config).items()}


def plain(value: object) -> object:
    """An option as JSON has it; paths in this repository are relative to it."""
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return recorded(value) if isinstance(value, str | Path) else value


def recorded(value: object) -> str:
    """A path as text, relative to this repository if it lies there."""
    return str(value).replace(f"{ROOT}{os.sep}", "")


def hardware(device: torch.device) -> str:
    """Name of the processor of `device`, and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
