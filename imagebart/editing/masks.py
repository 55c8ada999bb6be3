"""Masks: images, files and arrays as levels, 0 = known; tokens as pixels.   [section 4.3]"""

import numpy as np
from einops import repeat
from PIL import Image
from torch import Tensor

from imagebart.checkpoint import PathLike
from imagebart.data.images import read_image, turn_of
from imagebart.model import ImageBART
from imagebart.notation import Bool
from imagebart.options import Marks

MASK_MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")
"""Modes of images that can be masks."""

HALF = 128
"""The least level that is marked."""
LEVELS = "booleans, or uint8 up to 255"
"""What a mask holds."""


def pixel_mask(mask: Marks, size: tuple[int, int]) -> np.ndarray:
    """The mask as levels, uint8 (H, W): 0 is known, 128 to 255 marked; `size` = (W, H).

    In a picture with transparency all that is opaque at least half is marked, whatever its colour.
    In one without, white is marked, and so is any colour with a component of at least half. From
    grey of half to white the new picture fades in (`opacity`); transparency does not fade.

    A mask is an image of a mode in `MASK_MODES`, rotated by its EXIF orientation; or an array
    (H, W) or (H, W, 3) of booleans (True is white) or of uint8 0 .. 255; or a list of them, layers,
    which count together: two that are opaque by a third are opaque by five ninths, and marked.
    ValueError for all else, and unless each has the image's size.
    """
    layers = mask if isinstance(mask, list) else [mask]
    covering, white = np.zeros(size[::-1]), np.zeros(size[::-1], np.uint8)
    for picture in map(mask_picture, layers):
        if picture.size != size:
            wanted, got = ("{}×{}".format(*one) for one in (size, picture.size))
            raise ValueError(f"the mask must be as large as the image, {wanted}, got {got}")
        alpha = alpha_of(picture)
        if alpha.min(initial=255) < 255:
            covering = 1 - (1 - covering) * (1 - alpha / 255)
        else:
            white = np.maximum(white, brightness_of(picture))
    white[white < HALF] = 0
    return np.where(covering * 255 >= HALF - 0.5, np.uint8(255), white)


def opacity(levels: np.ndarray) -> np.ndarray:
    """How much of a pixel is the new picture, float32: 0 below `HALF`, where it begins, 1 at 255.

    Of a mask with a soft edge the half that lies inside fades; what lies outside is known.
    """
    return ((levels.astype(np.float32) - HALF + 1) / (256 - HALF)).clip(0, 1)


def mask_picture(mask: Image.Image | np.ndarray) -> Image.Image:
    """The mask as an upright image; ValueError if it is neither image nor array, or has 1 where 255
    is meant."""
    if isinstance(mask, Image.Image) and mask.mode in MASK_MODES:
        if mask.mode == "L" and mask.getextrema()[1] == 1:
            raise ValueError(f"the mask must be {LEVELS}, got a picture of mode L up to 1")
        return upright(mask)
    if isinstance(mask, Image.Image) or not (
        isinstance(mask, np.ndarray)
        and mask.dtype in (bool, np.uint8)
        and (mask.ndim == 2 or mask.shape[2:] == (3,))
    ):
        raise ValueError(
            f"the mask must be a picture of mode {', '.join(MASK_MODES)}, or an array H×W or "
            f"H×W×3 of booleans or uint8, got {kind_of(mask)}"
        )
    if mask.dtype == bool:
        return Image.fromarray(mask * np.uint8(255))
    if mask.max(initial=0) == 1:
        raise ValueError(f"the mask must be {LEVELS}, got uint8 up to 1")
    return Image.fromarray(mask)


def upright(picture: Image.Image) -> Image.Image:
    """Rotated by its EXIF orientation, which is removed so that it is applied once."""
    picture.load()
    turn = turn_of(picture)
    turned = picture.copy() if turn is None else picture.transpose(turn)
    turned.info = {name: turned.info[name] for name in ("transparency",) if name in turned.info}
    return turned


def kind_of(mask: object) -> str:
    """A description of what was given as a mask, for errors."""
    if isinstance(mask, Image.Image):
        return f"mode {mask.mode}"
    arrays = np.ndarray | Tensor
    return f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, arrays) else f"{mask!r:.60}"


def alpha_of(picture: Image.Image) -> np.ndarray:
    """How opaque each pixel is, (H, W), 0 .. 255."""
    if picture.mode == "I;16":
        key = picture.info.get("transparency", -1)
        return np.where(np.asarray(picture) == key, 0, 255)
    if not picture.has_transparency_data:
        return np.full(picture.size[::-1], 255)
    return np.asarray(picture.convert("RGBA").getchannel("A"))


def brightness_of(picture: Image.Image) -> np.ndarray:
    """The largest of each pixel's components, uint8 (H, W)."""
    if picture.mode == "I;16":
        return (np.asarray(picture) >> 8).astype(np.uint8)
    return np.asarray(picture.convert("RGB")).max(2)


def read_mask(path: PathLike) -> Image.Image:
    """The image of a file for `pixel_mask`, not composited on white as by `images.read_image`.

    ValueError unless the file is a complete image.
    """
    return read_image(path, convert=upright)


def masked_pixels(model: ImageBART, masked: Bool[Tensor, "1 h w"]) -> Bool[Tensor, "1 1 H W"]:
    """The pixels of the masked tokens, at the model's size."""
    f = model.vqgan.f
    return repeat(masked, "1 h w -> 1 1 (h fh) (w fw)", fh=f, fw=f)
