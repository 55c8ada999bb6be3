"""The run record: versions, hardware and date, which every script of eval/ adds to its results."""

import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "numpy")


def run_record(device: torch.device, packages: tuple[str, ...] = PACKAGES) -> dict:
    """Versions, hardware and date (UTC), as plain values for a JSON file."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions, "hardware": hardware(device), "date": date}


def options_of(config) -> dict[str, str]:
    """Every field of a script's `Config` as text."""
    return {name: recorded(value) for name, value in asdict(config).items()}


def recorded(value: object) -> str:
    """An option as text; paths in this repository are relative to it."""
    return str(value).replace(f"{Path(__file__).parents[1]}{os.sep}", "")


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
