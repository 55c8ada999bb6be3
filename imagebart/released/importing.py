"""A published archive → a model's folder: download, unpack, convert, write.

    import_released("ffhq-4", "models/ffhq-4")                          downloads
    import_released("ffhq-4", "models/ffhq-4", source="scales/")        what is already on disk

One scale is in memory at a time. The folder is renamed into place when it is complete and checked;
an interrupted download is kept and resumed.
"""

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError

from imagebart.arguments import shown
from imagebart.cache import cache_folder
from imagebart.checkpoint import run_lock, sha256_of
from imagebart.diffusion import MultinomialDiffusion
from imagebart.folders import save_scale, save_vqgan
from imagebart.presets import Preset, find_preset
from imagebart.released.official import (
    FIRST_STAGE,
    Tensors,
    convert_denoiser,
    convert_vqgan,
    require_schedule,
    under,
)
from imagebart.released.untrusted import is_zip, open_zip, read_checkpoint
from imagebart.vqgan import VQGAN, VQGANConfig

OnProgress = Callable[[str, int, int], None]
"""Called with the current action, bytes done, bytes in total (0: unknown)."""

BLOCK_BYTES = 2**22
MAX_UNPACKED_BYTES = 2**34
"""Maximum unpacked size of a checkpoint in bytes; a released scale has 5·10⁹."""


@dataclass(frozen=True)
class Published:
    """Where a model was published according to its authors; `--url` gives another address."""

    url: str
    about: str
    vqgan: VQGANConfig | None = None  # for a VQGAN alone; else the name is a preset
    files: tuple[str, ...] = ()  # file names of a VQGAN's checkpoint


_OMMER = "https://ommer-lab.com/files/"
_HEIBOX = "https://heibox.uni-heidelberg.de/f/"
PUBLISHED = {
    "ffhq-2": Published(_OMMER + "ffhq_2_scales_custom.zip", "FFHQ faces, two scales"),
    "ffhq-4": Published(_OMMER + "ffhq_4_scales_geometric.zip", "FFHQ faces, four scales"),
    "churches": Published(_OMMER + "churches_3_scales.zip", "LSUN churches, three scales"),
    "bedrooms": Published(_OMMER + "bedrooms_3_scales.zip", "LSUN bedrooms, three scales"),
    "cats": Published(_OMMER + "cats_3_scales.zip", "LSUN cats, three scales"),
    "imagenet-4": Published(
        _OMMER + "cin_4_scales_geometric.zip", "ImageNet by class, four scales"
    ),
    "imagenet-5": Published(_OMMER + "cin_5_scales_custom.zip", "ImageNet by class, five scales"),
    "vqgan-f16-1024": Published(
        _HEIBOX + "140747ba53464f49b476/?dl=1",
        "VQGAN of ImageNet, 1024 codes",
        VQGANConfig(K=1024),
        ("vqgan-f16-1024.ckpt", "last.ckpt"),
    ),
    "vqgan-f16-16384": Published(
        _HEIBOX + "867b05fc8c4841768640/?dl=1",
        "VQGAN of ImageNet, 16384 codes",
        VQGANConfig(K=16_384),
        ("vqgan-f16-16384.ckpt", "vqgan-imagenet.ckpt", "last.ckpt"),
    ),
}


def import_released(
    name: str,
    out: str | Path,
    *,
    source: str | Path | None = None,
    url: str | None = None,
    ema: bool = True,
    progress: OnProgress = lambda *_: None,
) -> Path:
    """Write the released model `name` as a folder that `ImageBART.from_pretrained` reads.

    `source` is a zip archive, a folder of scale1.ckpt, scale2.ckpt …, or a VQGAN's one .ckpt; None
    downloads from `url`, or from where the model was published. `ema` takes the averaged weights.
    Raises ValueError, with nothing written, if a file is invalid.
    """
    if name not in PUBLISHED:
        raise ValueError(f"the model must be one of {', '.join(PUBLISHED)}, got {name!r}")
    if source is not None and url is not None:
        raise ValueError("a model comes from a file or from an address, got both")
    out, row = Path(out), PUBLISHED[name]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: must be a new or an empty folder, got something that is there")
    if source is not None:
        with drafted(out) as draft:
            _convert(name, Path(source), Path(source).name, draft, ema, progress)
        return out
    address, folder = url or row.url, cache_folder() / name
    with held(folder):
        archive = download(address, folder, progress)
        with drafted(out) as draft, removed_if_unfit(archive):
            _convert(name, archive, address, draft, ema, progress)
        shutil.rmtree(folder, ignore_errors=True)
    return out


# ── conversion ────────────────────────────────────────────────────────────────────────────────


def _convert(
    name: str, source: Path, origin: str, draft: Path, ema: bool, progress: OnProgress
) -> None:
    config = PUBLISHED[name].vqgan
    convert = _import_chain if config is None else partial(_import_vqgan, config)
    sources = convert(name, source, draft, ema, progress)
    (draft / "README.md").write_text(card(name, origin, sources, ema), encoding="utf-8")


def _import_vqgan(
    config: VQGANConfig, name: str, source: Path, draft: Path, ema: bool, progress: OnProgress
) -> dict:
    with open_checkpoints(source, draft) as members:
        member = _vqgan_member(source, members, PUBLISHED[name].files)
        label = f"converting {_base(member)}"
        with members[member](progress) as path, named(name, path, _base(member)):
            progress(label, 0, 1)
            save_vqgan(convert_vqgan(read_checkpoint(path), config), draft)
            progress(label, 1, 1)
            return {_base(member): sha256_of(path)}


def _vqgan_member(source: Path, members: "Members", files: tuple[str, ...]) -> str:
    """The only checkpoint, or the only one with a known name."""
    found = list(members)
    if len(found) > 1:
        found = [member for member in members if _base(member) in files]
    if len(found) != 1:
        raise ValueError(
            f"{source}: must hold one checkpoint, or one called {' or '.join(files)}, "
            f"got {len(found)} of {len(members)}"
        )
    return found[0]


def _import_chain(name: str, source: Path, draft: Path, ema: bool, progress: OnProgress) -> dict:
    preset = find_preset(name)
    diffusion = MultinomialDiffusion(preset.alpha_bar, preset.K)
    sources, codebook = {}, None
    with open_checkpoints(source, draft) as members:
        scales = _scale_members(source, members, preset.T - 1)
        if is_zip(source):
            sources[source.name] = sha256_of(source)
        for t, member in scales.items():
            label = f"converting {_base(member)} ({t - 1} of {preset.T - 1})"
            with members[member](progress) as path, named(name, path, _base(member)):
                progress(label, 0, 1)
                tensors = read_checkpoint(path)
                require_schedule(tensors, preset.alpha_bar)
                codebook = _same_codebook(codebook, _codebook(tensors))
                if t == 2:
                    save_vqgan(_vqgan_of(tensors, preset), draft)
                denoiser = convert_denoiser(tensors, preset.denoiser(t), diffusion, t, ema)
                save_scale(denoiser.state_dict(), denoiser.config, diffusion, t, draft)
                sources[_base(member)] = sha256_of(path)
                del denoiser, tensors  # freed before the next one is read
                progress(label, 1, 1)
    return sources


def _scale_members(source: Path, members: dict, count: int) -> dict[int, str]:
    """{t: the member of scale t}, with the paper's t."""
    if list(members) == [str(source)] and not is_checkpoint(source):
        raise ValueError(
            f"{source}: must be a zip archive or a folder of scales, got something else or a part "
            "of one"
        )
    scales = {}
    for number in range(1, count + 1):
        found = [member for member in members if _base(member) == f"scale{number}.ckpt"]
        if len(found) != 1:
            got = "none" if not found else f"{len(found)} of them"
            raise ValueError(
                f"{source}: must hold scale1.ckpt to scale{count}.ckpt, got {got} "
                f"for scale{number}.ckpt"
            )
        scales[number + 1] = found[0]
    extra = [m for m in members if re.fullmatch(r"scale\d+\.ckpt", _base(m))]
    if len(extra) != count:
        raise ValueError(
            f"{source}: must hold scale1.ckpt to scale{count}.ckpt only, got {len(extra)} scales"
        )
    return scales


def _codebook(tensors: Tensors) -> torch.Tensor:
    """The used codes, which must be equal in all scales of a model."""
    stored = under(FIRST_STAGE + "quantize.", tensors)
    for part in ("used", "embedding.weight"):
        if part not in stored:
            raise ValueError(f"{FIRST_STAGE}quantize.{part} must be there, got nothing")
    used, codes = stored["used"].read().long(), stored["embedding.weight"].read()
    a_list = used.ndim == 1 and codes.ndim == 2 and 0 < len(used) <= len(codes)
    if not a_list or used.min() < 0 or used.max() >= len(codes):
        raise ValueError("quantize.used must list rows of the codebook, one at least")
    return codes[used]


def _vqgan_of(tensors: Tensors, preset: Preset) -> VQGAN:
    vqgan = convert_vqgan(under(FIRST_STAGE, tensors), preset.vqgan)
    if vqgan.K != preset.K:
        raise ValueError(f"the codebook must have {preset.K} codes in use, got {vqgan.K}")
    return vqgan


def _same_codebook(before: torch.Tensor | None, now: torch.Tensor) -> torch.Tensor:
    if before is not None and not torch.equal(before, now):
        raise ValueError("all scales must share one codebook, got another one")
    return now


# ── files and archives ────────────────────────────────────────────────────────────────────────

Members = dict[str, Callable]
"""{name: a function of `progress` that gives a context with the path of that file}"""


@contextmanager
def open_checkpoints(source: Path, scratch: Path) -> Iterator[Members]:
    """The checkpoints in a folder or a zip archive, or `source` itself."""
    if source.is_dir():
        paths = sorted(source.rglob("*.ckpt"))
        yield {str(path): _in_place(path) for path in paths if path.is_file()}
    elif not source.is_file():
        raise ValueError(f"{source}: must be a file or a folder, got nothing there")
    elif is_checkpoint(source) or source.suffix == ".ckpt" or not is_zip(source):
        yield {str(source): _in_place(source)}
    else:
        try:
            with open_zip(source) as archive:
                entries = [e for e in archive.infolist() if e.filename.endswith(".ckpt")]
                yield {e.filename: _unpacked(archive, e, scratch) for e in entries}
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as e:
            raise ValueError(f"{source}: must be a whole zip archive, {shown(str(e))}") from None


def is_checkpoint(path: Path) -> bool:
    """Whether a file was written by torch.save, whose format is a zip archive too."""
    try:
        with open_zip(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _in_place(path: Path) -> Callable:
    return lambda progress: contextlib.nullcontext(path)


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, scratch: Path) -> Callable:
    @contextmanager
    def unpack(progress: OnProgress) -> Iterator[Path]:
        small = entry.file_size <= min(MAX_UNPACKED_BYTES, 100 * entry.compress_size + 2**20)
        if not small:
            raise ValueError(
                f"{shown(entry.filename)}: must unpack to at most {MAX_UNPACKED_BYTES} bytes and a "
                f"hundred times its size, got {entry.file_size} bytes from {entry.compress_size}"
            )
        path = scratch / f".{uuid4().hex[:8]}.ckpt"  # never the archive's own path
        try:
            with archive.open(entry) as packed, open(path, "wb") as file:
                while block := packed.read(BLOCK_BYTES):
                    file.write(block)
                    progress(f"unpacking {_base(entry.filename)}", file.tell(), entry.file_size)
            yield path
        finally:
            path.unlink(missing_ok=True)

    return unpack


def _base(member: str) -> str:
    """The last part of a path in an archive, as an error or a progress bar may show it."""
    return shown(re.split(r"[/\\]", member)[-1])


@contextmanager
def named(model: str, path: Path, label: str | None = None) -> Iterator[None]:
    """Errors name the file and the model."""
    try:
        yield
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{label or path.name} is not what {model} needs: {reason}") from None


@contextmanager
def drafted(out: Path) -> Iterator[Path]:
    """A draft folder, renamed to `out` at the end of the block; removed on an exception."""
    draft = out.with_name(f".{out.name}.{uuid4().hex[:8]}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
        if out.is_dir():
            out.rmdir()
        os.replace(draft, out)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise ValueError(
                f"{out}: must be a folder that can be written, {_why(error)}"
            ) from None
        raise


def _why(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    full = full or "No space left" in str(error) or "File too large" in str(error)
    return f"got a full disk ({error})" if full else f"got {error}"


# ── downloads ─────────────────────────────────────────────────────────────────────────────────


LOST = (
    *(urllib.error.URLError, http.client.HTTPException),
    *(ssl.SSLError, TimeoutError, ConnectionError),
)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder of a download for this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: must be a folder that can be written, {_why(error)}") from None
    with run_lock(folder) if os.name == "posix" else contextlib.nullcontext():
        yield


@contextmanager
def removed_if_unfit(archive: Path) -> Iterator[None]:
    """Remove a download that is not an archive; keep one that is, as other options may fit it."""
    try:
        yield
    except ValueError as error:
        if zipfile.is_zipfile(archive):
            raise ValueError(f"{error}; the download is kept: --from {archive}") from None
        shutil.rmtree(archive.parent, ignore_errors=True)
        raise ValueError(
            f"{error}; the downloaded file was removed, try again or give --from"
        ) from None


def download(url: str, folder: Path, progress: OnProgress = lambda *_: None) -> Path:
    """Download `url` into `folder`, resuming an earlier attempt.

    Raises ValueError with the address and the alternatives.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"an address must begin with http:// or https://, got {url!r}")
    whole, part, note = folder / "archive", folder / "archive.part", folder / "archive.json"
    if whole.exists() and _noted(note).get("url") == url:
        return whole
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, note, progress)
        os.replace(part, whole)
    except LOST as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"{url}: cannot be fetched ({reason}); try again to resume, give another address "
            "with --url, or files you already have with --from"
        ) from None
    except OSError as error:
        raise ValueError(f"{folder}: must be a folder that can be written, {_why(error)}") from None
    return whole


def _fetch(url: str, part: Path, note: Path, progress: OnProgress) -> None:
    before = _noted(note)
    have = part.stat().st_size if part.exists() and before.get("url") == url else 0
    headers = {"User-Agent": "imagebart", "Accept-Encoding": "identity"}
    if have and before.get("version"):
        # The server sends the rest only if the file is unchanged.
        headers |= {"Range": f"bytes={have}-", "If-Range": before["version"]}
    request = urllib.request.Request(url, headers=headers)
    with _opened_url(request, part) as reply:
        resumed = reply.status == 206
        have = have if resumed else 0
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else 0
        etag = reply.headers.get("ETag") or ""
        version = reply.headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag
        note.write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")
        with open(part, "ab" if resumed else "wb") as file:
            while block := reply.read(BLOCK_BYTES):
                file.write(block)
                have += len(block)
                progress("downloading", have, total)
    if total and have != total:
        raise ConnectionError(f"the connection was lost after {have} of {total} bytes")


def _opened_url(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not part.exists():
            raise
        part.unlink()  # the part is as long as the file or longer: start again
        request.remove_header("Range")
        return urllib.request.urlopen(request, timeout=60)


def _noted(note: Path) -> dict:
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


# ── the model card ────────────────────────────────────────────────────────────────────────────


def card(name: str, origin: str, sources: dict[str, str], ema: bool) -> str:
    """README.md: description, source and licence."""
    row = PUBLISHED[name]
    weights = "the averaged (EMA) weights" if ema else "the weights last trained, not averaged"
    if row.vqgan:
        kind, weights = "taming-transformers (Esser, Rombach, Ommer; CVPR 2021)", "the weights"
        licence = "The code that trained it is under the MIT licence; nothing separate is said of"
    else:
        kind = "ImageBART (Esser, Rombach, Blattmann, Ommer; NeurIPS 2021)"
        licence = "The repository that published it carries no licence, and nothing is said of"
    table = "\n".join(f"| `{file}` | `{digest}` |" for file, digest in sources.items())
    return f"""# {name}: {row.about}

A released model of {kind}, converted by `python -m imagebart import {name}`: {weights}, in
float32, with this kit's names. Nothing was trained or altered.

Source: {origin}

| file | SHA-256 |
| --- | --- |
{table}

Licence: {licence}
the weights. Ask their authors before you distribute them.
"""
