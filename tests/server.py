"""The page in a process of its own, for tests that use it as visitors do."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
OWN = {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """`python app.py` in a process of its own, as a user starts it."""

    def __init__(self, folder: Path, *arguments: str, **environment: str):
        self.folder = folder
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--device", "cpu"]
        self.log = folder / "log.txt"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env=os.environ | OWN | {"TMPDIR": str(folder)} | environment,
                stdout=log,
                stderr=log,
            )
        while self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/healthz", timeout=60)
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError(f"the app ended at once: {self.log.read_text()}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its log says then where every thread is
            self.process.wait()
            where = self.log.read_text()[-8000:]
            raise AssertionError(f"the app must end within 60 s of SIGTERM, got {where}") from None
