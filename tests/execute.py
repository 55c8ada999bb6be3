"""Execute notebooks in place, and remove what belongs to one machine.

    python tests/execute.py                               # all, with their solutions: ten minutes
    python tests/execute.py notebooks/07_sample.ipynb     # these

A kernel with one thread runs in the notebook's folder, against the library of this repository.
Widget states and times are removed, and the output of interactive cells, which has another number
in every run. tests/test_notebooks.py runs the notebooks in the same way, and compares.
"""

import asyncio
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Annotated

import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.util import ensure_async
from nbformat import NotebookNode
from nbstripout import strip_output

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))
CELL_SECONDS = 900  # by the clock, on a busy machine
OF_ONE_MACHINE = ["metadata.widgets", "metadata.language_info", "cell.metadata.execution"]


def main(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (*NOTEBOOKS, *SOLUTIONS),
) -> None:
    for path in paths:
        notebook, seconds = executed(path)
        nbformat.write(stripped(notebook), path)
        print(f"{path}: {seconds:.0f} CPU seconds, {path.stat().st_size:,} bytes", flush=True)


def executed(path: Path) -> tuple[NotebookNode, float]:
    """A notebook, run in a kernel of its own, and the CPU seconds that it took.

    A cell that fails raises nbclient's CellExecutionError.
    """
    notebook = nbformat.read(path, as_version=4)
    before = cpu_seconds_of_children()
    with tempfile.TemporaryDirectory() as scratch:
        own = {"JUPYTER_RUNTIME_DIR": scratch, "IPYTHONDIR": scratch}
        env = os.environ | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        PatientClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
        ).execute(cwd=str(path.resolve().parent), env=env)
    return notebook, cpu_seconds_of_children() - before


def stripped(notebook: NotebookNode) -> NotebookNode:
    """The notebook with its outputs, without what has another value on each machine."""
    return strip_output(
        notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=OF_ONE_MACHINE
    )


def cpu_seconds_of_children() -> float:
    """Of the processes that this one has started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class PatientClient(NotebookClient):
    """Looks into a kernel's sockets again and again: if the wake-up of one is lost (seen in one run
    of three), a message that has come lies there unseen until the time limit of its cell."""

    async def async_start_new_kernel_client(self):
        kc = await super().async_start_new_kernel_client()
        for channel in (kc.shell_channel, kc.iopub_channel):
            channel.get_msg = looked_again(channel.get_msg)
        return kc


def looked_again(get_msg: Callable, pause: float = 0.05) -> Callable:
    """`get_msg` of a channel, which looks without waiting, until there is a message."""

    async def get(timeout: float | None = None):
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await ensure_async(get_msg(timeout=0))
            except Empty:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(pause)

    return get


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
