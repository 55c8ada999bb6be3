"""Pictures that come in and go out: uploads, what an editor sends, files that gradio serves."""

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from demo.requests import sentences
from imagebart import ImageBART, scenery
from imagebart.data import FORMATS, to_pil, to_rgb
from imagebart.editing import Edit, hole_pixels, pixel_hole

MOST_PIXELS = 16_000_000
EXAMPLES = 8
PAINT = "#ff9a3c"


def read_picture(file: dict, convert: Callable = to_rgb) -> Image.Image:
    """A picture that was uploaded, converted; ValueError if it is none.

    Gradio's own reader would clip 16-bit grey and pass over EXIF turns.
    """
    try:
        with Image.open(file["path"], formats=FORMATS) as image:
            pixels = convert(image)
            pixels.info.clear()  # where and when it was taken; and EXIF would turn it once more
            return pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = MOST_PIXELS // 10**6
        raise ValueError(f"an image must have at most {most} million pixels, got more") from None
    except Exception:  # decoders raise whatever a broken file drives them into
        names = ", ".join(FORMATS)
        raise ValueError(f"an image must be a whole file, one of {names}, got another") from None


def layer_mask(layer: Image.Image) -> Image.Image:
    """White where a layer is painted: not transparent or, without transparency, itself white."""
    if not layer.has_transparency_data:
        return layer.convert("L").point(lambda grey: 255 * (grey >= 128))
    return layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 0))


def read_editor(editor: dict | None) -> tuple[Image.Image, np.ndarray]:
    """(the image, where it is marked) of what the editor sent."""
    if not editor or not editor.get("background"):
        raise ValueError("there is no image yet: upload one, paste one, or take an example")
    image = read_picture(editor["background"])
    marked = np.zeros((image.height, image.width), bool)
    for file in editor.get("layers") or []:
        marked |= hole_pixels(read_picture(file, layer_mask), image.size)
    return image, marked


def token_map(edit: Edit) -> Image.Image:
    """What the model sees, with its grid of tokens: those to be repainted tinted, others dimmed."""
    model, image = edit.model, to_pil(edit.x_0)[0]
    mask = Image.fromarray(pixel_hole(model, edit.hole)[0, 0].cpu().numpy())
    scale = max(1, 512 // image.width)
    dimmed = Image.blend(image, Image.new("RGB", image.size, "#101820"), 0.6)
    tinted = Image.blend(image, Image.new("RGB", image.size, PAINT), 0.6)
    picture = Image.composite(tinted, dimmed, mask)
    picture = picture.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell, pixels = model.vqgan.f * scale, np.array(picture)
    pixels[cell::cell], pixels[:, cell::cell] = 90, 90
    return Image.fromarray(pixels)


def for_editor(image: Image.Image, *layers: Image.Image) -> dict:
    """A value that shows in the editor; None would not clear what is there."""
    return {
        "background": stored(image),
        "layers": [stored(layer) for layer in layers],
        "composite": None,
    }


def stored(image: Image.Image) -> str:
    """A PNG file of its own for gradio, which deletes it when it is old.

    Given the image itself, gradio writes it anew at every yield, even while a browser reads it.
    """
    path = Path(os.environ["GRADIO_TEMP_DIR"], uuid4().hex, "image.png")
    path.parent.mkdir()
    image.save(path)
    return str(path)


@sentences()
def chosen_for_editor(results: list | None, index: int) -> dict:
    """The result that is selected in a gallery, the first if none is, for the editor."""
    if not results:
        raise ValueError("there is no picture yet")
    path, _ = results[min(index, len(results) - 1)]
    if not Path(path).is_file():
        raise ValueError("this picture is too old and gone, draw it again")
    return for_editor(Image.open(path))


def example_pictures(model: ImageBART) -> list[Image.Image]:
    """Scenery that the model has not seen."""
    H, W = model.image_size
    scenes = [scenery.render(scenery.scene_seed("test", i), H, W) for i in range(EXAMPLES)]
    return [Image.fromarray(scene.image) for scene in scenes]
