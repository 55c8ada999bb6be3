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
    info, text = PngInfo(), json.dumps(settings, ensure_ascii=False)
    info.add_itxt(PARAMETERS, without_surrogates(text))
    return info


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which no UTF-8 has, as a model reads it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
