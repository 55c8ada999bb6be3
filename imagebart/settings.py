"""How a picture was made, in the picture: a PNG's text chunk "parameters", as JSON.

Other programs show this chunk as it is. Pillow gives it as `image.info["parameters"]`.
"""

import json
import re
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

PARAMETERS = "parameters"
MOST_CHARACTERS = 100_000
MOST_WORDS = 6
"""Words of a prompt in the name of a file."""
MOST_BYTES = 200
"""UTF-8 bytes of them; a name on a disk has 255, with seed, ending and what a draft adds."""


def chunk_of(settings: dict[str, Any]) -> PngInfo:
    """What `Image.save(…, pnginfo=)` writes."""
    info = PngInfo()
    info.add_itxt(PARAMETERS, json.dumps(settings, ensure_ascii=False))
    return info


def settings_of(image: Image.Image) -> dict[str, Any]:
    """The settings that a picture holds; {} for a picture without, or with another program's."""
    text = image.info.get(PARAMETERS)
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def file_stem(seed: int, prompt: str | None = None) -> str:
    """The name of a picture's file: "a-lake-at-dusk_seed5", without a prompt "seed5"."""
    words = "-".join(re.findall(r"[^\W_]+", (prompt or "").lower())[:MOST_WORDS])
    cut = words.encode()[:MOST_BYTES].decode(errors="ignore")  # a character cut in two goes
    return "_".join(filter(None, [cut, f"seed{seed}"]))
