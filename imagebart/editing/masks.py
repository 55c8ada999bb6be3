"""Masks: images, files and arrays as booleans, True = repaint; tokens as pixels.   [section 4.3]"""

import numpy as np
from einops import repeat
from PIL import Image
from torch import Tensor

from imagebart.data.images import PathLike, read_image, turn_of
from imagebart.model import ImageBART
from imagebart.notation import Bool

MASK_MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")
"""Modes of images that can be masks."""


def pixel_mask(mask: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask as booleans (H, W), True = repaint; `size` = (W, H) is the image's.

    A pixel is repainted if it is white or at least half as bright, known if it is darker or
    transparent. A mask is an image of a mode in `MASK_MODES`, rotated by its EXIF orientation; or
    an array (H, W) or (H, W, 3) of booleans (True is white) or of uint8 0 .. 255. ValueError for
    all else, and unless the mask has the image's size.
    """
    picture = mask_picture(mask)
    if picture.size != size:
        wanted, got = ("{}×{}".format(*one) for one in (size, picture.size))
        raise ValueError(f"the mask must be as large as the image, {wanted}, got {got}")
    return on_black(picture) >= 128


def mask_picture(mask: Image.Image | np.ndarray) -> Image.Image:
    """The mask as an upright image; ValueError if it is neither image nor array."""
    if isinstance(mask, Image.Image) and mask.mode in MASK_MODES:
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
        raise ValueError("the mask must be booleans, or uint8 up to 255, got uint8 up to 1")
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


def on_black(picture: Image.Image) -> np.ndarray:
    """Grey (H, W), 0 .. 255, composited on black."""
    if picture.mode == "I;16":
        grey = np.asarray(picture)
        return np.where(grey == picture.info.get("transparency", -1), 0, grey >> 8)
    if picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(black, picture.convert("RGBA"))
    return np.asarray(picture.convert("L"))


def read_mask(path: PathLike) -> Image.Image:
    """The image of a file for `pixel_mask`, not composited on white as by `images.read_image`.

    ValueError unless the file is a complete image.
    """
    return read_image(path, convert=upright)


def masked_pixels(model: ImageBART, masked: Bool[Tensor, "1 h w"]) -> Bool[Tensor, "1 1 H W"]:
    """The pixels of the masked tokens, at the model's size."""
    f = model.vqgan.f
    return repeat(masked, "1 h w -> 1 1 (h fh) (w fw)", fh=f, fw=f)
