"""Pictures: any image file → RGB → a size → b 3 H W in [-1, 1], and back.

read_image, to_rgb       any image as upright 8-bit RGB in sRGB
as_given, restored       its own colours and transparency, and a result that has them too
fit, fit_box             centre crop to a size
enlarged                 … or several times as large
to_tensor, to_pil        x_0 of pictures, pictures of x_0
"""

import os
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from imagebart.arguments import shown, warn_caller
from imagebart.checkpoint import PathLike
from imagebart.data.colours import from_srgb, mode_of, profile_of, to_srgb

Size = int | tuple[int, int]

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""The only decoders that are used."""
MAX_PIXELS = 64_000_000  # a small file may decompress to gigabytes
MAX_SIDE = 2**15  # a row costs memory of its own

OTHER_COLOURS = (("CMYK", "CMYK"), ("L", "1"), ("L", "L"), ("L", "LA"))
"""(mode of a profile, mode of an image) of pictures that are not RGB, which it describes."""

ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF tag; value → transpose that makes the pixels upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: PathLike,
    file: BinaryIO | None = None,
    convert: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """The image in a file, as RGB; ValueError naming the file if it cannot be decoded.

    `file` has the bytes if they are stored elsewhere; `convert` replaces `to_rgb`.
    """
    try:
        with Image.open(file or path, formats=FORMATS) as image:
            require_size(image)
            return (convert or to_rgb)(image)
    except Exception as error:  # decoders raise any exception on a broken file
        reason = shown(str(error), 200)
        raise ValueError(f"{printable(path)}: must be a readable image, got {reason}") from error


def require_size(image: Image.Image) -> None:
    """ValueError for an image that costs too much to decode; only its header is read."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise ValueError(
            f"{image.width}×{image.height} pixels, at most {MAX_PIXELS} and {MAX_SIDE} a side fit"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as upright 8-bit RGB in sRGB, without EXIF (so it is not rotated twice).

    The picture that `as_given` gives, its colours converted from its profile, its transparency
    composited on white. ValueError as there.
    """
    given = as_given(image)
    profile = profile_of(given)
    rgb = to_srgb(given.convert("RGB"), profile) if profile else given.convert("RGB")
    if given.mode == "RGBA":
        rgb.putalpha(given.getchannel("A"))
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    rgb.info = {}
    return rgb


def as_given(image: Image.Image) -> Image.Image:
    """Any image as upright 8-bit RGB, RGBA if something in it is transparent, in its own colours.

    An animation's frame at which it stands, the first of a file just opened; EXIF orientation
    applied; 16-bit grey scaled, not clipped; palettes converted. `info` has its profile, if it is
    one of RGB; grey and CMYK are converted, into sRGB if they have a profile. ValueError for float
    pixels and integers beyond 16 bits, whose range is unknown, and for images without pixels.
    """
    if not isinstance(image, Image.Image) or 0 in image.size:
        got = f"{image.width}×{image.height}" if isinstance(image, Image.Image) else type(image)
        raise ValueError(f"an image must be a PIL image of a pixel at least, got {got}")
    image.load()
    turn, profile = turn_of(image), profile_of(image)

    image = _eight_bits(image)
    given, kept = _coloured(image, profile)
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            given.putalpha(alpha)
    if turn is not None:
        given = given.transpose(turn)
    given.info = {"icc_profile": kept} if kept else {}
    return given


EXACT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX")
"""Modes whose pixels 8-bit RGB has too."""


def to_edit(image: Image.Image) -> Image.Image:
    """The picture that `as_given` gives; warns the caller if its pixels are not the image's own."""
    given, profile = as_given(image), profile_of(image)
    described = profile is not None and (mode_of(profile), image.mode) in OTHER_COLOURS
    if image.mode not in EXACT or described:
        own = f"{image.mode} with a profile" if image.mode in EXACT else image.mode
        warn_caller(f"an image of mode {own} is converted: the result is 8-bit RGB everywhere")
    return given


def _coloured(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """(8-bit RGB without transparency, the profile of its colours; None is sRGB)."""
    mode = mode_of(profile) if profile else None
    if profile and (mode, image.mode) in OTHER_COLOURS:
        return to_srgb(image.convert(mode), profile), None
    opaque = image.convert("RGBA") if image.has_transparency_data else image
    return opaque.convert("RGB"), profile if mode == "RGB" else None


def restored(
    result: Image.Image,
    given: Image.Image,
    changed: np.ndarray | None = None,
    at: tuple[int, int] = (0, 0),
) -> Image.Image:
    """A result, RGB in sRGB, as a picture of the kind of `given` (of `as_given`): in its profile,
    and with its own pixels and transparency where it is not `changed` (H, W; None is nowhere).

    What is changed is opaque. `at` is the place (left, top) of the picture in a larger result.
    """
    profile = profile_of(given)
    whole = from_srgb(result, profile) if profile else result.copy()
    whole = whole.convert(given.mode)
    kept = np.ones(given.size[::-1], bool) if changed is None else ~changed
    whole.paste(given, at, Image.fromarray(kept))
    whole.info = {"icc_profile": profile} if profile else {}
    return whole


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """The transpose of the EXIF orientation; None for upright images."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # invalid EXIF is ignored, the pixels are valid
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey 0 .. 65535 → 0 .. 255, rounded, with its transparency; other modes unchanged."""
    if image.mode == "F":
        raise ValueError("pixels must be integers, got floats (mode F)")
    if not image.mode.startswith("I"):
        return image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey must lie in 0..65535, got {values.min()}..{values.max()}")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the grey value that means transparent
        opaque = 255 * (values != image.info["transparency"])
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return grey


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Centre crop to the aspect ratio of `size` (a side, or (height, width)), resized to it."""
    height, width = (size, size) if isinstance(size, int) else size
    box = fit_box(image.size, (height, width))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def fit_box(
    image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The crop of `fit` for an image of `image_size` (width, height) and `size` (height, width).

    (left, top, right, bottom) in pixels of the image.
    """
    (W, H), (height, width) = image_size, size
    scale = min(W / width, H / height)
    left = max(0.0, (W - scale * width) / 2)  # rounding may give -1e-14
    top = max(0.0, (H - scale * height) / 2)
    return left, top, W - left, H - top


def enlarged(image: Image.Image, times: int) -> Image.Image:
    """The image, so many times larger a side: resampled, so without more detail."""
    if times == 1:
        return image
    size = image.width * times, image.height * times
    return image.resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image | Sequence[Image.Image]) -> Tensor:
    """x_0 of one RGB image (3 H W), or of several of one size (b 3 H W), float32 in [-1, 1]."""
    if not isinstance(image, Image.Image):
        return torch.stack([to_tensor(each) for each in image])
    pixels = rearrange(np.asarray(image), "H W c -> c H W")
    return torch.from_numpy(pixels / np.float32(127.5) - 1)


def to_bytes(images: Tensor) -> Tensor:
    """x_0 of any shape as uint8: clamped to [-1, 1], rounded to 256 levels."""
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).byte()


def to_pil(images: Tensor) -> list[Image.Image]:
    """PIL images of x_0 (b 3 H W, or 3 H W), by `to_bytes`."""
    batch = images if images.dim() == 4 else images[None]
    pixels = rearrange(to_bytes(batch).cpu(), "b c H W -> b H W c").numpy()
    return [Image.fromarray(each) for each in pixels]


def printable(path: PathLike) -> str:
    """A path as printable text, whatever its bytes."""
    return shown(os.fsencode(path).decode("utf-8", "replace"), 300)
