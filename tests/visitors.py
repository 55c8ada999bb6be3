"""What visitors send, and what they get: pictures, requests, and how to compare them."""

from pathlib import Path

import numpy as np
from gradio_client import handle_file
from PIL import Image

LONG = f"text of at most 1000 characters, got '{39 * 'x'}…"
"""What is said of 1,001 times x."""


def pixels(images) -> list[np.ndarray]:
    """RGB of a gallery that a client got, or of PIL images."""
    if not isinstance(images[0], Image.Image):
        images = [Image.open(entry["image"]) for entry in images]
    return [np.asarray(image.convert("RGB")) for image in images]


def assert_same(got, expected) -> None:
    assert len(got) == len(expected)
    for one, other in zip(pixels(got), pixels(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def stroke(width: int, height: int) -> tuple[np.ndarray, Image.Image]:
    """A thin stroke: where it is, and as an editor's layer."""
    masked = np.zeros((height, width), bool)
    masked[height // 5 : height // 2, width // 3] = True
    layer = np.zeros((height, width, 4), np.uint8)
    layer[masked] = 255, 150, 60, 255
    return masked, Image.fromarray(layer)


def saved(image: Image.Image, folder: Path, name: str = "image.png", **options):
    image.save(folder / name, **options)
    return handle_file(folder / name)


def editor(background, layer=None) -> dict:
    return {"background": background, "layers": [layer] if layer else [], "composite": None}


def request_of(image: Image.Image, layer: Image.Image | None, folder: Path) -> dict:
    """What the editor sends, for an endpoint that is called here."""
    named = {"image.png": image} | ({"layer.png": layer} if layer else {})
    for name, one in named.items():
        one.save(folder / name)
    background, *layers = ({"path": str(folder / name)} for name in named)
    return editor(background, *layers)


def opened_all(items) -> list[Image.Image]:
    """The pictures of a gallery's (file, caption)."""
    return [Image.open(path) for path, _ in items]


def source_for(path: str) -> dict:
    """The source of a picture that is shown as it is."""
    return {"path": path, "shown": path, "size": [*Image.open(path).size]}
