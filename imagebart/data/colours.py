"""Colour profiles (ICC): into sRGB, in which models see and draw, and back.

profile_of             the profile of a picture
to_srgb, from_srgb     pixels between a profile and sRGB
"""

import io
from functools import lru_cache

from PIL import Image, ImageCms

MOST_PROFILE_BYTES = 2**20
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour spaces of the profiles that are read: the mode of their pixels."""


def profile_of(image: Image.Image) -> bytes | None:
    """The profile that a picture holds; None for one without, or whose profile cannot be used."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MOST_PROFILE_BYTES:
        return None
    return profile if mode_of(profile) else None


@lru_cache(maxsize=8)
def mode_of(profile: bytes) -> str | None:
    """The mode of the pixels that a profile describes; None if it cannot be used."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
        mode = SPACES.get(space)
        if mode:
            into_srgb(profile, mode)
        if mode == "RGB":
            out_of_srgb(profile)
    except Exception:  # of a damaged profile; the pixels are valid
        return None
    return mode


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of `mode_of(profile)`, whose colours are the profile's, as RGB in sRGB."""
    return into_srgb(profile, image.mode).apply(image)


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An RGB image in sRGB as one in the colours of a profile of RGB."""
    return out_of_srgb(profile).apply(image)


@lru_cache(maxsize=8)
def into_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.ImageCmsTransform(source, srgb(), mode, "RGB")


@lru_cache(maxsize=8)
def out_of_srgb(profile: bytes) -> ImageCms.ImageCmsTransform:
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.ImageCmsTransform(srgb(), target, "RGB", "RGB")


def srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
