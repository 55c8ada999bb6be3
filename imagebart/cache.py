"""Where downloads lie: one folder, of every command."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """IMAGEBART_CACHE; else imagebart in XDG_CACHE_HOME; else ~/.cache/imagebart."""
    if own := os.environ.get("IMAGEBART_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imagebart"
