"""A model's folder: `config.json`, `vqgan.safetensors`, `scale_2.safetensors` … and a card.

A joint network is one file for all scales, `scale_joint.safetensors`, and one row of config.json.

Only JSON and safetensors are read, and untrusted files are checked before anything is built
(fitting.py): errors are ValueErrors of one sentence.
"""

import hashlib
import json
import math
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

from imagebart.arguments import shown
from imagebart.checkpoint import (
    load_tensors,
    read_header,
    read_json,
    save_tensors,
    sha256_of,
    write_json,
)
from imagebart.conditions import ConditionShape, TextVectors, text_shape
from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion
from imagebart.fitting import on_meta, require_bounds, require_weights
from imagebart.int8 import quantise_rows, restore_rows
from imagebart.options import ChainOptions
from imagebart.options import rows as options_of
from imagebart.vqgan import VQGAN, VQGANConfig

SHIPPED = Path(__file__).parent / "pretrained" / "scenery"
CONFIG_FORMAT = 2  # of config.json; raised when an old reader would misread a new file
KNOWN_FORMATS = (1, CONFIG_FORMAT)
JOINT = "joint"
"""What stands for t where one network serves all scales."""

COMPUTED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of weights that models compute in."""
OPTIONAL_ENTRIES = ("names", "guidance", "draws_class")
"""Optional entries of config.json."""

MOST_SCALES = 100
SCALE_NAMES = {str(t) for t in range(1, MOST_SCALES + 1)}
MOST_NAMES = 100_000  # entries of any list
NAME_LENGTH = 200
"""Characters of a class or a kind that are kept."""


def find_folder(
    source: str | Path | None, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """The folder of a model; ids of the form owner/name are downloaded from the Hub."""
    if source is None:
        return SHIPPED
    folder = Path(source)
    if folder.is_dir():
        return folder
    parts = str(source).split("/")
    if len(parts) != 2 or not all(parts) or str(source).startswith((".", "~")):
        raise ValueError(f"a model must be a folder or a Hub id owner/name, got {str(source)!r}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(source),
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "README.md"],
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{source}: neither a folder here nor found on the Hub ({type(error).__name__})"
        ) from None


def read_entries(folder: Path) -> Any:
    """config.json as this version writes it, whatever it holds; ValueError unless it is JSON, of a
    known format."""
    path = folder / "config.json"
    config = read_json(path)
    with _naming(path):
        return upgraded(config)


def read_config(folder: Path) -> dict:
    """config.json of a model; ValueError if it is not one."""
    path, config = Path(folder) / "config.json", read_entries(Path(folder))
    wanted = {"vqgan": dict | str, "alpha_bar": list, "denoisers": dict}
    for name, json_kind in wanted.items():
        if not isinstance(config, dict) or not isinstance(config.get(name), json_kind):
            raise ValueError(f"{path} must hold {', '.join(wanted)}: no {name} there")
    scales = config["denoisers"]
    named = list(scales) == [JOINT] or scales.keys() <= SCALE_NAMES
    if not named or not all(isinstance(shape, dict) for shape in scales.values()):
        raise ValueError(
            f'{path}: denoisers must be {{t: shape}} or {{"{JOINT}": shape}}, '
            f"got {shown(reprlib.repr(scales))}"
        )
    if len(config["alpha_bar"]) > MOST_SCALES:
        raise ValueError(
            f"{path}: alpha_bar must be at most {MOST_SCALES}, got {len(config['alpha_bar'])}"
        )
    for name, kind in ENTRIES.items():
        if isinstance(config.get(name), list) and name == "guidance":
            kind = tuple[float, ...]  # one a scale
        if name in config:
            require_kind(config[name], kind, f"{path}: {name}")
    if "names" in config:
        config["names"] = {
            shown(kind): [shown(name, NAME_LENGTH) for name in names]  # pages and errors show them
            for kind, names in config["names"].items()
        }
    guidance = config.get("guidance", 1.0)
    for each in guidance if isinstance(guidance, list) else [guidance]:
        options_of(ChainOptions)["guidance"].check(each, f"{path}: guidance")
    return config


ENTRIES: dict[str, Any] = {
    "alpha_bar": tuple[float, ...],
    "names": dict[str, tuple[str, ...]],
    "guidance": float,
    "draws_class": bool,
}
TYPE_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    tuple[int, int]: "two whole numbers",
    tuple[int, ...]: "whole numbers",
    tuple[float, ...]: "finite numbers",
    tuple[str, ...]: "names",
    dict[str, tuple[str, ...]]: "names for each condition",
    dict[str, ConditionShape]: "{name: {vocabulary, length, vectors}}",
}
"""Types of the fields of config.json, for errors."""


def require_kind(value, kind: Any, name: str) -> None:
    """ValueError unless a JSON value has this type."""
    if not is_of(value, kind):
        raise ValueError(f"{name} must be {TYPE_WORDS[kind]}, got {shown(reprlib.repr(value))}")


def is_of(value, kind: Any) -> bool:
    """Whether a JSON value has this type: a list is a tuple, and 1 a float.

    A list of more than MOST_NAMES has none.
    """
    if isinstance(value, list | tuple | dict) and len(value) > MOST_NAMES:
        return False
    if get_origin(kind) is tuple:
        each, last = get_args(kind)
        listed = isinstance(value, list | tuple) and (last is ... or len(value) == 2)
        return listed and all(is_of(one, each) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            is_of(one, get_args(kind)[1]) for one in value.values()
        )
    if is_dataclass(kind):
        types = {field.name: field.type for field in fields(kind)}
        if not isinstance(value, dict) or not value.keys() <= types.keys():
            return False
        return all(is_of(one, types[name]) for name, one in value.items())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind


def load_vqgan(folder: Path) -> VQGAN:
    """The VQGAN of a folder, its own or a model's."""
    folder, shape = find_vqgan(Path(folder))
    path = folder / "vqgan.safetensors"
    config = _configured(VQGANConfig, shape, folder)
    stored = {name: size for name, (_, size) in read_header(path).items()}
    require_weights(path, on_meta(lambda: VQGAN(config).shrunk_as(stored)).state_dict())
    tensors, vqgan = load_tensors(path), VQGAN(config)
    with _naming(path):
        vqgan.shrink_as(tensors)
    vqgan.load_state_dict(tensors)
    return vqgan


def find_vqgan(folder: Path) -> tuple[Path, dict]:
    """(folder, shape) of a model's VQGAN: in its own folder, or in a sibling that config.json
    names."""
    config = read_entries(folder)
    shape = config.get("vqgan") if isinstance(config, dict) else None
    if not isinstance(shape, str):
        return folder, _own_shape(folder)
    beside = _folder_beside(folder, shape)
    if beside is None:
        raise ValueError(
            f"{folder}/config.json: vqgan must be its shape or a folder beside this one, "
            f"got {shown(repr(shape))}"
        )
    return beside, _own_shape(beside)


def _own_shape(folder: Path) -> dict:
    """The shape of the VQGAN that lies in this folder; ValueError if there is none."""
    config = read_entries(folder)
    shape = config.get("vqgan") if isinstance(config, dict) else None
    if not isinstance(shape, dict):
        raise ValueError(f"{folder}/config.json must hold vqgan, got no such entry")
    return shape


def _folder_beside(folder: Path, name: str) -> Path | None:
    """Another folder of this name in the same place, if it holds a config.json."""
    beside = folder.resolve().parent / name
    if not re.fullmatch(r"(?!\.)[\w. -]{1,100}", name) or beside.resolve() == folder.resolve():
        return None
    return beside if (beside / "config.json").is_file() else None


def model_sha256(folder: Path) -> str:
    """The SHA-256 of all that a model, a VQGAN or a probe computes with.

    Of the lines "SHA-256 of the file, its name" of every `*config.json` and `*.safetensors` of its
    folder, in order of the names, and of those of a VQGAN beside it that config.json names; of a
    config.json without its `guidance`, which only says how to sample if nobody does.
    """
    patterns = ("*config.json", "*.safetensors")
    files = {path.name: path for pattern in patterns for path in Path(folder).glob(pattern)}
    if "config.json" not in files:
        raise ValueError(f"{folder} must hold config.json, got no such file")
    config = read_json(files["config.json"])
    if isinstance(config, dict) and isinstance(config.get("vqgan"), str):
        beside, _ = find_vqgan(Path(folder))
        for name in ("config.json", "vqgan.safetensors"):
            files[f"{beside.name}/{name}"] = beside / name
    lines = [f"{_sha256_of_part(path)}  {name}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256_of_part(path: Path) -> str:
    """The SHA-256 of a file of a model; of a config.json that has guidance, of all else in it."""
    entries = read_json(path) if path.name == "config.json" else None
    if not isinstance(entries, dict) or "guidance" not in entries:
        return sha256_of(path)
    rest = {name: value for name, value in entries.items() if name != "guidance"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def save_vqgan(vqgan: VQGAN, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a VQGAN into its own or a model's folder. As int8 it would give other tokens: then it
    is float16."""
    dtype = torch.float16 if dtype == torch.int8 else dtype
    save_tensors(_as(vqgan.state_dict(), dtype), Path(folder) / "vqgan.safetensors")
    update_config(Path(folder), {"vqgan": asdict(vqgan.config)})


def share_vqgan(vqgan: VQGAN, folder: Path, name: str) -> None:
    """Write into config.json that the VQGAN is that of the folder `name` beside this one.

    ValueError, and nothing is written, unless the VQGAN there is the same: in its shape, and in its
    weights as they are stored there.
    """
    beside = _folder_beside(folder, name)
    if beside is None:
        raise ValueError(f"{folder}: vqgan_of must be a folder beside this one, got {name!r}")
    if not _holds(beside, vqgan):
        raise ValueError(f"vqgan_of must be a folder with this model's VQGAN, got {name!r}")
    update_config(folder, {"vqgan": name})


def _holds(folder: Path, vqgan: VQGAN) -> bool:
    """Whether the VQGAN of this folder is this one, rounded to the type that it is stored in."""
    shape = _configured(VQGANConfig, _own_shape(folder), folder)
    stored, own = load_tensors(folder / "vqgan.safetensors"), vqgan.state_dict()
    if shape != vqgan.config or stored.keys() != own.keys():
        return False
    return all(torch.equal(own[name].to("cpu", x.dtype), x) for name, x in stored.items())


def load_denoisers(
    folder: Path, rows: dict[str, dict], diffusion: MultinomialDiffusion
) -> dict[int, Denoiser]:
    """{t: denoiser} from the rows of config.json: one network at every scale if it is joint."""
    if JOINT in rows:
        network = load_denoiser(folder, diffusion.T, rows[JOINT], diffusion, joint=True)
        return {t: network.at(t) for t in range(2, diffusion.T + 1)}
    return {int(t): load_denoiser(folder, int(t), row, diffusion) for t, row in rows.items()}


def load_denoiser(
    folder: Path, t: int, shape: dict, diffusion: MultinomialDiffusion, joint: bool = False
) -> Denoiser:
    config = _configured(DenoiserConfig, shape, folder)
    if config.joint != joint:
        raise ValueError(
            f"{folder}/config.json: joint must be {str(joint).lower()} for scale "
            f"{JOINT if joint else t}, got {str(config.joint).lower()}"
        )
    path = Path(folder) / scale_file(config, t)
    with _naming(f"{folder}/config.json"):
        empty = on_meta(lambda: Denoiser(config, diffusion, t))
    require_weights(path, empty.state_dict())
    denoiser = Denoiser(config, diffusion, t)
    denoiser.load_state_dict(restore_rows(load_tensors(path)))
    for module in denoiser.modules():
        if isinstance(module, TextVectors):
            with _naming(path):
                module.require_rows()
    return denoiser


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """ValueErrors name the file, and are short."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {shown(str(error), 300)}") from None


def scale_name(config: DenoiserConfig, t: int) -> str:
    """What scale t goes by in a model's folder."""
    return JOINT if config.joint else str(t)


def scale_file(config: DenoiserConfig, t: int) -> str:
    """The file that holds the weights of scale t."""
    return f"scale_{scale_name(config, t)}.safetensors"


def save_scale(
    tensors: dict[str, Tensor],
    config: DenoiserConfig,
    diffusion: MultinomialDiffusion,
    t: int,
    folder: Path,
    dtype: torch.dtype | None = None,
    **entries,
) -> None:
    """Write scale t of a model, or the joint network of all scales: its weights, and its rows of
    config.json, with these of OPTIONAL_ENTRIES."""
    save_tensors(_as(tensors, dtype), Path(folder) / scale_file(config, t))
    schedule = diffusion.alpha_bar[1:].tolist()
    rows = {"alpha_bar": schedule, "denoisers": {scale_name(config, t): asdict(config)}}
    update_config(Path(folder), rows | entries)


def update_config(folder: Path, entries: dict) -> None:
    """Merge entries into config.json, scales into scales, so that each can be saved on its own."""
    path = folder / "config.json"
    config = read_entries(folder) if path.exists() else {"format": CONFIG_FORMAT}
    scales = config.get("denoisers", {}) | entries.get("denoisers", {})
    config |= entries
    if scales:
        config["denoisers"] = dict(sorted(scales.items()))
    write_json(config, path)


def remove_other_scales(folder: Path, names: Iterable[str]) -> None:
    """Remove all scales but those named, first from config.json, then their files."""
    names, path = set(names), folder / "config.json"
    config = read_json(path)
    rows = config["denoisers"].items()
    write_json(config | {"denoisers": {t: row for t, row in rows if t in names}}, path)
    for file in folder.glob("scale_*.safetensors"):
        name = file.stem.removeprefix("scale_")
        if (name.isdecimal() or name == JOINT) and name not in names:
            file.unlink()


def upgraded(config: dict) -> dict:
    """config.json as this version writes it, from one of format 1 or its own, which is that of a
    file that does not say; ValueError for any other.

    In format 1 a denoiser had `classes`, `text_length`, `text_pieces`, `map_kinds` and
    `droppable`, and a model `class_names` and `map_names`.
    """
    if not isinstance(config, dict):
        return config
    number = config.get("format", CONFIG_FORMAT)
    if type(number) is not int or number not in KNOWN_FORMATS:
        known = " or ".join(map(str, KNOWN_FORMATS))
        raise ValueError(f"format must be {known}, got {reprlib.repr(number)}")
    if number == CONFIG_FORMAT:
        return config
    config = config | {"format": CONFIG_FORMAT}
    if "class_names" in config or "map_names" in config:
        names = {"class": config.pop("class_names", []), "map": config.pop("map_names", [])}
        config["names"] = names
    if isinstance(config.get("denoisers"), dict):
        rows = config["denoisers"].items()
        config["denoisers"] = {
            t: _upgraded_shape(row) if isinstance(row, dict) else row for t, row in rows
        }
    return config


def _upgraded_shape(shape: dict) -> dict:
    """A denoiser's entries in config.json, from those of format 1."""
    shape, conditions = dict(shape), {}
    classes, kinds = shape.pop("classes", 0), shape.pop("map_kinds", 0)
    length, pieces = shape.pop("text_length", 0), shape.pop("text_pieces", 0)
    for number in (classes, kinds, length, pieces):
        require_kind(number, int, "a condition")
    grid: Any = shape.get("grid")
    require_kind(grid, tuple[int, int], "grid")
    if classes:
        conditions["class"] = {"vocabulary": classes, "length": 1}
    if length:
        conditions["text"] = asdict(text_shape(length, pieces))
    if kinds:
        conditions["map"] = {"vocabulary": kinds, "length": math.prod(grid)}
    return shape | {"conditions": conditions, "condition_dropout": shape.pop("droppable", False)}


def require_dtype(dtype: torch.dtype | None, *others: torch.dtype) -> None:
    """ValueError unless weights can be of this type: one that is computed in, or one of `others`.
    None is their own."""
    known = *COMPUTED, *others
    if dtype is not None and dtype not in known:
        raise ValueError(f"dtype must be one of {', '.join(map(str, known))}, got {dtype!r}")


def _as(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Weights as they are stored; int8 is that of int8.py."""
    if dtype == torch.int8:
        return quantise_rows(tensors)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if dtype is not None and x.is_floating_point() else x

    return {name: cast(x) for name, x in tensors.items()}


def _configured(kind: type, values: dict, folder: Path):
    path = f"{folder}/config.json"
    given = {field.name: field.type for field in fields(kind) if field.name in values}
    for name, wanted in given.items():
        require_kind(values[name], wanted, f"{path}: {name}")
    require_bounds({name: values[name] for name in given}, path)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        reason = shown(str(error), 300)
        raise ValueError(f"{path} must describe a {kind.__name__}: {reason}") from None
