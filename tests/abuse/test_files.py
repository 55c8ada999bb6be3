"""Files of strangers, mutated with fixed seeds: folders of models, checkpoints, pictures, shards.

A case holds if the file is read, or refused within two seconds by a ValueError of one short,
printable line. The slow run writes how many were tried and held into summary.json.
"""

import io
import json
import random
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_official_cli import ATTACKS, checkpoint_of, endless_pickles, evil_pickles

from imagebart import ImageBART
from imagebart.data.images import read_image
from imagebart.data.shards import ShardFolder
from imagebart.released.untrusted import read_checkpoint

SUMMARY = Path(__file__).with_name("summary.json")
SECONDS = 2
LENGTH = 1000  # characters of an error

CONFIG_VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 1.5, 1e308, 10**6, 10**9, 2**31, 2**63, 2**64, 10**400),
    *("", "a", "..", ".", "/", "../model", "a/b", "\x1b[2J", "\u202e", "nul\0", "vector", "plain"),
    *([], [0], [1, 1], [2**64], [None], ["a"], 200 * [1], {}, {"a": {}}, {"2": {}}, {"joint": {}}),
    *("x" * 100_000, [[[[[]]]]], {"class": {"vocabulary": 3, "length": 1}}, 100_000 * [0]),
]
HEADER_VALUES = [
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "U8", "BOOL", "C64", "F4", ""),
    *([], [0], [1], [2**62, 2**62], [0, 4], [-1, 4], 10**9, None, {}),
]


# ── mutations ─────────────────────────────────────────────────────────────────────────────────


def torn(data: bytes, draw: random.Random, within: int | None = None) -> bytes:
    """Some bytes altered, or the end cut off."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(min(len(data), within or len(data)))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)


def places(tree: object, way: tuple = ()) -> list[tuple]:
    """The way to every value of a JSON tree."""
    if not isinstance(tree, dict | list):
        return [way]
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree)
    below = [place for step, value in steps for place in places(value, (*way, step))]
    return [way, *below] if way else below


def altered(tree: dict, values: list, draw: random.Random) -> dict:
    """A JSON tree with one value replaced or removed, or one added."""
    tree = json.loads(json.dumps(tree))
    *way, last = draw.choice(places(tree))
    target = tree
    for step in way:
        target = target[step]
    kind = draw.random()
    if kind < 0.15:
        del target[last]
    elif kind < 0.25 and isinstance(target, dict):
        target[draw.choice(["a", "\x1b[2J", "x" * 100_000, "5", "joint"])] = draw.choice(values)
    else:
        target[last] = draw.choice(values)
    return tree


def mutated_weights(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file, torn, or with another entry in its header."""
    length = int.from_bytes(data[:8], "little")
    if draw.random() < 0.4:
        return torn(data, draw, draw.choice([8, 8 + length, len(data)]))
    header = json.dumps(altered(json.loads(data[8 : 8 + length]), HEADER_VALUES, draw)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutated_folder(files: dict[str, bytes], draw: random.Random) -> dict[str, bytes | None]:
    """Files that differ from those of a model's folder; None for one that is missing."""
    name = draw.choice(sorted(files))
    kind = draw.random()
    if kind < 0.05:
        return {name: draw.choice([None, b"", b"{}", b"[" * 100_000, files["config.json"]])}
    if kind < 0.6 or name == "config.json":
        text = files["config.json"]
        if draw.random() < 0.2:
            return {"config.json": torn(text, draw)}
        return {"config.json": json.dumps(altered(json.loads(text), CONFIG_VALUES, draw)).encode()}
    return {name: mutated_weights(files[name], draw)}


# ── what must hold ────────────────────────────────────────────────────────────────────────────


def broken_promise(read: Callable[[], object]) -> str | None:
    """What a reader did that it must not; None if it read, or refused in time and in a line."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except ValueError as error:
        if not str(error).isprintable() or len(str(error)) > LENGTH:
            return f"said {str(error)[:200]!r}"
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error)[:200]!r}"
    seconds = time.process_time() - start
    return f"took {seconds:.1f} s" if seconds > SECONDS else None


def held(name: str, cases: int, attempt: Callable[[random.Random], Callable], slow: bool) -> None:
    """Each case with a seed of its own; all must hold."""
    failed = {}
    for seed in range(cases):
        if broken := broken_promise(attempt(random.Random(seed))):
            failed[seed] = broken
    conclude(name, cases, failed, slow)


def conclude(name: str, cases: int, failed: dict, slow: bool, **measured: float) -> None:
    """Note how many cases held, after a slow run; fail unless all did."""
    if slow:
        before = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
        row = {"tried": cases, "held": cases - len(failed), "failed": failed, **measured}
        SUMMARY.write_text(json.dumps(before | {name: row}, indent=2) + "\n")
    assert not failed


def run(quick: int, slow: int):
    """A quick part for every run of the tests, all of it for the slow."""
    return pytest.mark.parametrize(
        "cases", [quick, pytest.param(slow, marks=pytest.mark.slow)], ids=["quick", "all"]
    )


@run(quick=100, slow=10_000)
def test_mutated_folders(cases, make_model, tmp_path):
    folder = tmp_path / "above" / "model"
    make_model(T=2, conditions={"class": 3}).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def attempt(draw: random.Random) -> Callable:
        for name, data in (files | mutated_folder(files, draw)).items():
            path = folder / name
            if data is None:
                path.unlink()
            elif not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
        return lambda: ImageBART.from_pretrained(folder, device="cpu")

    held("model folders", cases, attempt, cases == 10_000)


@run(quick=100, slow=5000)
def test_evil_checkpoints(cases, tmp_path):
    marker = tmp_path / "executed"
    evil = [*evil_pickles(marker).values(), *ATTACKS.values()]
    evil += endless_pickles().values() if cases == 5000 else []

    def attempt(draw: random.Random) -> Callable:
        data = draw.choice(evil)
        path = checkpoint_of(
            torn(data, draw) if data and draw.random() < 0.7 else data, tmp_path / "x"
        )
        if draw.random() < 0.2:
            path.write_bytes(torn(path.read_bytes(), draw))
        return lambda: [stored.read() for stored in read_checkpoint(path).values()]

    held("checkpoints", cases, attempt, cases == 5000)
    assert not marker.exists()


@run(quick=150, slow=5000)
def test_odd_pictures(cases, tmp_path):
    whole = pictures()

    def attempt(draw: random.Random) -> Callable:
        data = draw.choice(whole)
        path = tmp_path / "picture"
        path.write_bytes(torn(data, draw, draw.choice([40, 200, len(data)])))
        return lambda: read_image(path)

    held("pictures", cases, attempt, cases == 5000)


def pictures() -> list[bytes]:
    """A small picture in every format that is read, in several modes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    found = []
    for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"):
        image = noise.convert("I").convert("I;16") if mode == "I;16" else noise.convert(mode)
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
            file = io.BytesIO()
            try:
                image.save(file, kind)
            except (OSError, ValueError):  # this format has no such mode
                continue
            found.append(file.getvalue())
    return found


@run(quick=100, slow=5000)
def test_mutated_shards(cases, tmp_path):
    shard = tmp_path / "s.tar"
    picture = pictures()[0]
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("a.png", picture),
            ("a.cls", b"1"),
            ("a.txt", b"said\n"),
            ("é" * 200 + ".png", picture),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    whole = shard.read_bytes()

    def attempt(draw: random.Random) -> Callable:
        shard.write_bytes(torn(whole, draw, draw.choice([160, 512, len(whole)])))

        def read() -> None:
            data = ShardFolder(tmp_path, 8, strict=True)
            for i in range(len(data)):
                data[i]

        return read

    held("shards", cases, attempt, cases == 5000)
