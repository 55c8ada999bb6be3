"""Shards that lie on a web server: fetched once, whole, then read as a folder of shards."""

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebart.cache import cache_folder
from imagebart.checkpoint import atomic_write, run_lock
from imagebart.data.shards import parts_of

AT_ONCE = 8
"""Shards that are fetched at the same time."""
SECONDS = 60
"""How long a server may be silent."""
MOST_SHARDS = 1_000_000


def is_remote(name: str) -> bool:
    """Whether a data set's name is an address."""
    return name.startswith(("http://", "https://"))


def fetched(address: str) -> Path:
    """The folder on this disk of the shards at an address, which may have a range of numbers, as
    webdataset writes it: https://host/shard-{00..99}.tar. What is there already is not fetched;
    other ranks of this machine wait.

    It lies below `cache_folder()`, and holds these shards alone. ValueError for a range that is
    none, and for a shard that cannot be fetched, or is not a whole tar file.
    """
    folder = cache_folder() / "shards" / hashlib.sha256(address.encode()).hexdigest()[:16]
    shards = addresses(address)
    paths = [folder / name for name in file_names(shards)]
    with run_lock(folder, wait=True), ThreadPoolExecutor(AT_ONCE) as threads:
        for other in {*folder.glob("*.tar")} - {*paths}:
            other.unlink()
        for _ in threads.map(fetch, shards, paths):
            pass
    return folder


def addresses(address: str) -> list[str]:
    """Every address that one with a range stands for; ValueError for a range that is none."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", address)
    if len(parts) == 1 and "{" not in address:
        return [address]
    if len(parts) != 4 or "{" in parts[0] + parts[3]:
        raise ValueError(f"an address must have one range at most, {{000..123}}, got {address}")
    before, low, high, after = parts
    if not 0 <= int(high) - int(low) < MOST_SHARDS:
        raise ValueError(f"a range must rise, by {MOST_SHARDS} at most, got {address}")
    return [f"{before}{i:0{len(low)}d}{after}" for i in range(int(low), int(high) + 1)]


def file_names(shards: list[str]) -> list[str]:
    """The name on this disk of the shard at each address: the last part of its path, behind its
    number where that is the same for two of them."""
    last = [re.sub(r"[^\w.-]", "_", one.split("?")[0].rsplit("/", 1)[1]) for one in shards]
    names = [f"{name.removesuffix('.tar')}.tar" for name in last]
    if len({*names}) == len(names):
        return names
    return [f"{i}-{name}" for i, name in enumerate(names)]


def fetch(address: str, path: Path) -> None:
    """Fetch a shard to a path unless it is there; ValueError if it cannot be, or is not whole."""
    if path.exists():
        return
    try:
        with (
            urllib.request.urlopen(address, timeout=SECONDS) as answer,
            atomic_write(path) as draft,
        ):
            with open(draft, "wb") as file:
                shutil.copyfileobj(answer, file, 2**20)
            parts_of(path.parent, draft.name)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{address}: must be a shard that can be fetched, got {error}") from error
