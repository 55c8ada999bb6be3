"""Files of visitors: the app's own folder, and the one function that opens them.

private_folder     a folder of this process, deleted at its end; those of dead processes go first
opened             a visitor's file, open for reading; ValueError for any other file
renewed            whether there is one, which is kept as if it were new
check_files        every file that a request names must be one of ours
tidy               bounds the age and the total size of all files
"""

import fcntl
import heapq
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PREFIX = "imagebart-"
LOCK = ".lock"
MOST_FILE = 80 * 2**20
"""Bytes of one file: the largest result, 16 million pixels, fits uncompressed."""
MOST_STORED = 2**30
"""Bytes of all files together."""
MOST_FILES = 20_000
MOST_SORTED = 1000
"""Files that are sorted at once."""
MOST_SECONDS = 3600
MOST_NAMED = 256
"""Files that a request may name."""
DEEPEST = 32
"""Levels of nested lists and dictionaries in a request."""
REFUSED = "an image must be a file uploaded to this app within the last hour, got another"


# ── opening ───────────────────────────────────────────────────────────────────────────────────


def opened(path: Any) -> BinaryIO:
    """A visitor's file, open for reading.

    It must be a regular file of at most `MOST_FILE` bytes inside the app's own folder, by its real
    path: no device, pipe, folder or link out of it, and no address, for nothing is ever fetched.
    Raises ValueError in the same words whether or not there is such a file.
    """
    if not is_ours(path):
        raise ValueError(REFUSED)
    try:
        how = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(os.path.realpath(path), how), "rb")
    except (OSError, ValueError):
        raise ValueError(REFUSED) from None
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_FILE:
        file.close()
        raise ValueError(REFUSED)
    return file


def renewed(path: Any) -> bool:
    """Whether there is such a file of a visitor; it is kept as if it came now."""
    try:
        with opened(path) as file:
            os.utime(file.fileno())
    except ValueError:
        return False
    return True


def is_ours(path: Any) -> bool:
    """Whether a path lies inside the app's own folder; the file need not exist."""
    if not isinstance(path, str):
        return False
    try:
        return Path(os.path.realpath(path)).parent.is_relative_to(folder())
    except (OSError, ValueError):  # for example a NUL, or a name that is too long
        return False


def folder() -> Path:
    """The app's own folder, which is also where gradio stores uploads."""
    return Path(os.path.realpath(os.environ["GRADIO_TEMP_DIR"]))


def check_files(body: Any) -> None:
    """ValueError if a request names a file that is not ours, at any depth.

    Gradio opens, copies or fetches such files before an endpoint is called.
    """
    level, named = [body], 0
    for _ in range(DEEPEST):
        found = [value["path"] for value in level if isinstance(value, dict) and "path" in value]
        paths = [path for path in found if path is not None]
        named += len(paths)
        if named > MOST_NAMED:
            raise ValueError(f"a request must name at most {MOST_NAMED} files, got more")
        if not all(is_ours(path) for path in paths):
            raise ValueError(REFUSED)
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"a request must be nested at most {DEEPEST} levels deep, got more")


# ── the folder ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder readable by this user only, in use for all files of visitors; deleted at the end.

    It is locked as long as this process lives, so that a later start can tell that it is dead.
    """
    remove_leftovers()
    own = f"{PREFIX}{os.getpid()}-"
    with (
        tempfile.TemporaryDirectory(prefix=own, ignore_cleanup_errors=True) as name,
        open(Path(name, LOCK), "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(name)
        yield folder()


def remove_leftovers() -> None:
    """Delete the folders that this user's dead processes left behind, by `kill -9` for example."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        with suppress(OSError):
            found = left.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and is_left(left):
                shutil.rmtree(left, ignore_errors=True)


def is_left(left: Path) -> bool:
    """Whether nobody holds the lock of a folder, or, before it is locked, its process is dead."""
    try:
        with open(left / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except FileNotFoundError:
        return not is_alive(left.name.removeprefix(PREFIX).partition("-")[0])
    except OSError:
        return False


def is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def tidy(kept: frozenset[str] = frozenset(), room: int = 0) -> None:
    """Delete files older than `MOST_SECONDS`, and the oldest if there are more than `MOST_FILES`
    or if all together exceed `MOST_STORED`.

    `kept` are files of the page itself; `room` is the size of a file about to come. The files are
    read one at a time, and the oldest sorted a few at a time: a list of all would stay with Python.
    """
    count, total, too_old = 0, room, time.time() - MOST_SECONDS
    for changed, size, path in stored_files(kept):
        if changed < too_old:
            remove(path)
        else:
            count, total = count + 1, total + size

    def too_many() -> bool:
        return count > MOST_FILES or total > MOST_STORED

    while too_many() and (oldest := heapq.nsmallest(MOST_SORTED, stored_files(kept))):
        for _, size, path in oldest:
            if too_many():
                remove(path)
                count, total = count - 1, total - size


def remove(path: str) -> None:
    """Delete a file, and its folder if that has no others."""
    with suppress(OSError):
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def stored_files(kept: frozenset[str] = frozenset()) -> Iterator[tuple[float, int, str]]:
    """(time of last change, bytes, path) of every file of a visitor."""
    for entry in entries_below(str(folder())):
        with suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            if entry.name != LOCK and entry.path not in kept:
                yield found.st_ctime, found.st_size, entry.path


def entries_below(path: str) -> Iterator[os.DirEntry]:
    """All that is no folder, one at a time."""
    with suppress(OSError), os.scandir(path) as entries:  # a folder may go meanwhile
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from entries_below(entry.path)
            else:
                yield entry
