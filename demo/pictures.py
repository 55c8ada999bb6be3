"""Input and output images: uploads, the editor's value, files that gradio serves."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from PIL import Image

from demo.files import opened, renewed
from demo.requests import (
    CHUNK,
    MOST_PIXELS,
    options_of_best,
    ranked,
    read_layers,
    sentences,
    settings_of_each,
)
from demo.style import PAINT, SEEN
from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.data.images import MAX_SIDE, as_given, enlarged, to_pil, to_rgb
from imagebart.editing.inpainting import MaskedImage
from imagebart.editing.masks import masked_pixels, pixel_mask, upright
from imagebart.editing.pasting import softened
from imagebart.ranking import Draw, Score
from imagebart.settings import chunk_of, file_stem

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")  # fewer than the library's: visitors are strangers
EXAMPLES = 8
MOST_PREVIEW = (512, 512)
SECONDS_BETWEEN_PREVIEWS, PARTS_BETWEEN_PREVIEWS = 2, 4
"""At least, between the end of one and the beginning of the next; parts of what the one took."""
FAST_PNG = 2**20
"""Pixels beyond which a file is written fast, and about an eighth larger."""
MOST_SHOWN = 2**20
"""Pixels of a picture in an editor: it sends all that it shows with its mask."""
NO_IMAGE = "there is no image yet: upload one, paste one, or take an example"

EditorSource = dict
"""The picture in an editor: the "path" of its file, that of what is "shown", its "size", [W, H].
The browser keeps it, so that it is of the moment at which the editor is looked at."""


def read_picture(file: dict, convert: Callable = to_rgb) -> Image.Image:
    """An uploaded image, converted; ValueError if it is not an image, or not uploaded.

    Gradio's own reader clips 16-bit grey and ignores the EXIF orientation.
    """
    with opened(file.get("path") if isinstance(file, dict) else None) as source:
        return decoded(source, convert)


def opened_path(file: dict) -> str:
    """The path of a file that visitors may have; ValueError for another."""
    with opened(file.get("path") if isinstance(file, dict) else None):
        return file["path"]


def decoded(source: BinaryIO, convert: Callable) -> Image.Image:
    """An image of one of `UPLOAD_FORMATS`, converted."""
    try:
        with Image.open(source, formats=UPLOAD_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError
            return convert(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = f"{MOST_PIXELS // 10**6} million pixels, {MAX_SIDE} a side"
        raise ValueError(f"an image must have at most {most}, got more") from None
    except Exception:  # decoders raise any exception on a broken file
        names = ", ".join(UPLOAD_FORMATS)
        raise ValueError(f"an image must be a whole file, one of {names}, got another") from None


def read_editor(editor: dict | None) -> tuple[Image.Image, np.ndarray]:
    """(image as it was given, levels of the mask) of an editor's value: the mask gets the size of
    the image, of which the editor may show a smaller copy."""
    image = picture_of(editor)
    layers = [read_picture(file, upright) for file in read_layers(editor)]
    if editor.get("source"):
        layers = [layer.resize(image.size, Image.Resampling.NEAREST) for layer in layers]
    return image, pixel_mask(layers, image.size)


def picture_of(editor: dict | None) -> Image.Image:
    """The picture in an editor, as it was given."""
    return read_picture({"path": source_of(editor)}, as_given)


def source_of(editor: dict | None) -> str:
    """The file of the picture in an editor: that of its source, since the browser's copy has lost
    the colour profile, the transparency, and maybe pixels; that copy if it has no source, or has
    all pixels of one that is too old. ValueError without a picture."""
    if not editor or not editor.get("background"):
        raise ValueError(NO_IMAGE)
    copy, source = editor["background"], read_source(editor.get("source"))
    if not source:
        return copy["path"]
    there, _ = (renewed(source[name]) for name in ("path", "shown"))
    return source["path"] if there or size_of(copy) != source["size"] else copy["path"]


def read_source(source: Any) -> EditorSource | None:
    """A source that the browser gave back; ValueError for another."""
    match source:
        case None:
            return None
        case {"path": str(), "shown": str(), "size": [int(W), int(H)]} if W > 0 and H > 0:
            return source
    raise ValueError("the picture must be one that the page put into the editor")


def size_of(file: dict) -> list[int]:
    """[W, H] of a visitor's picture."""
    return read_picture(file, lambda image: [*image.size])


def token_map(edit: MaskedImage) -> Image.Image:
    """The model's input with its token grid: masked tokens tinted, others dimmed."""
    model, image = edit.model, to_pil(edit.x_0)[0]
    mask = Image.fromarray(masked_pixels(model, edit.masked)[0, 0].cpu().numpy())
    scale = max(1, 512 // image.width)
    dimmed = Image.blend(image, Image.new("RGB", image.size, "#101820"), 0.6)
    tinted = Image.blend(image, Image.new("RGB", image.size, PAINT), 0.6)
    picture = Image.composite(tinted, dimmed, mask)
    picture = picture.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell, pixels = model.vqgan.f * scale, np.array(picture)
    pixels[cell::cell], pixels[:, cell::cell] = 90, 90
    return Image.fromarray(pixels)


def marked_picture(edit: MaskedImage) -> Image.Image:
    """The image in small before it is edited: what will be drawn in the colour of masks, as far as
    its border is soft; dark what the model does not see."""
    soft = softened(edit.marked[None, None], edit.feather)[0, 0] * edit.opacity.cpu()
    picture, seen = to_pil(edit.x)[0], Image.fromarray(edit.box.inside(edit.size))
    for colour, how_much in (
        ("#101820", 0.6 * (255 - np.asarray(seen.convert("L")))),
        (PAINT, SEEN * 255 * soft.numpy()),
    ):
        picture.paste(colour, mask=Image.fromarray(how_much.astype(np.uint8)))
    picture.thumbnail(MOST_PREVIEW)
    return picture


def for_editor(shown: str, *layers: Image.Image) -> dict:
    """The editor's value: what is in the file is shown, below the layers."""
    return {"background": shown, "layers": [stored(one) for one in layers], "composite": None}


def with_source(image: Image.Image, path: str | None = None) -> tuple[dict, EditorSource]:
    """(an editor's value, its source), `path` if the image is in a file: a large picture is shown
    smaller."""
    size = shown_size(image.size)
    shown = stored(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2))
    path = path or (shown if size == image.size else stored(image))
    return for_editor(shown), {"path": path, "shown": shown, "size": [*image.size]}


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(W, H) of such a picture in an editor: `MOST_SHOWN` pixels or just above, if it has more."""
    W, H = size
    share = min(1, math.sqrt(MOST_SHOWN / (W * H)))
    return math.ceil(share * W), math.ceil(share * H)


def stored(image: Image.Image, settings: dict | None = None) -> str:
    """Write a PNG file for gradio, which deletes old files: its settings are in it and in its name.

    Given the image itself, gradio would rewrite it at every yield, even while a browser reads it.
    """
    known = settings or {}
    name = file_stem(known["seed"], known.get("prompt")) if known else "image"
    path = Path(os.environ["GRADIO_TEMP_DIR"], uuid4().hex, f"{name}.png")
    path.parent.mkdir()
    level = 1 if image.width * image.height > FAST_PNG else 6
    image.save(path, pnginfo=chunk_of(known) if known else None, compress_level=level)
    return str(path)


def labelled(images: Sequence[Image.Image], settings: Sequence[dict]) -> list[tuple[str, str]]:
    """(file, caption) of each image for a gallery, enlarged as it says; the caption is its seed."""
    return [
        (stored(enlarged(image, own.get("enlarge", 1)), own), f"seed {own['seed']}")
        for image, own in zip(images, settings, strict=True)
    ]


def ranked_images(
    command: str,
    settings: dict,
    draw: Draw,
    count: int,
    candidates: int,
    score: Score,
    options: dict,
    chunk: int = CHUNK,
) -> Iterator[tuple[dict, str, list[tuple[str, str]]]]:
    """(the options that draw the best so far again, a status, the best for a gallery), chunk by
    chunk; `settings` is what their files say beside those options."""
    for best, line in ranked(draw, count, candidates, score, options, chunk):
        chosen = options_of_best(options, best)
        about = settings_of_each(command, chosen | settings, len(best))
        yield chosen, line, labelled([one.image for one in best], about)


class Throttle:
    """When a growing image is previewed: first, last, and every few seconds between, less often if
    that itself takes seconds."""

    def __init__(self):
        self.next = -math.inf

    def due(self, done: float) -> bool:
        return done == 1 or time.perf_counter() > self.next

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """While a preview is drawn."""
        began = time.perf_counter()
        yield
        now = time.perf_counter()
        self.next = now + max(SECONDS_BETWEEN_PREVIEWS, PARTS_BETWEEN_PREVIEWS * (now - began))


def growing(
    steps: Iterator[tuple[Image.Image, float]], settings: dict
) -> Iterator[tuple[tuple[str, str], float]]:
    """((file, caption), share done) of a growing image: a new file for every preview."""
    throttle = Throttle()
    for picture, part in steps:
        if throttle.due(part):
            with throttle.drawing():
                (file,) = labelled([picture], [settings])
        yield file, part


@sentences()
def chosen_for_editor(results: list | None, index: int) -> tuple[dict, EditorSource]:
    """The selected result of a gallery, by default the first, for the editor."""
    if not results:
        raise ValueError("there is no picture yet")
    return from_file(results[min(index, len(results) - 1)]["image"])


def from_file(file: dict) -> tuple[dict, EditorSource]:
    """A visitor's picture for the editor, as in `with_source`."""
    return with_source(read_picture(file, as_given), file["path"])


def example_pictures(model: ImageBART) -> list[Image.Image]:
    """Scenery of the test split."""
    H, W = model.image_size
    scenes = [scenery.render(scenery.scene_seed("test", i), H, W) for i in range(EXAMPLES)]
    return [Image.fromarray(scene.image) for scene in scenes]
