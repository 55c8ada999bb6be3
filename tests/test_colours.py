"""Colours of a profile go into sRGB and come back; a profile that cannot be used is none."""

import struct

import numpy as np
import pytest
from PIL import Image

from imagebart.data.colours import from_srgb, profile_of, to_srgb
from imagebart.data.images import as_given, read_image, restored, to_rgb

D50 = (0.9642, 1.0, 0.8249)
DISPLAY_P3 = {  # red, green and blue as XYZ, adapted to D50
    b"rXYZ": (0.5151, 0.2412, -0.0011),
    b"gXYZ": (0.2920, 0.6922, 0.0419),
    b"bXYZ": (0.1571, 0.0666, 0.7841),
}


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def icc(space: bytes, xyz: dict, curves: list[bytes], gamma: float) -> bytes:
    """A profile of version 2 of `space`, whose curves are powers."""
    tags = {name: b"XYZ \0\0\0\0" + fixed(*at) for name, at in {**xyz, b"wtpt": D50}.items()}
    power = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags |= dict.fromkeys(curves, power)
    tags[b"cprt"] = b"text\0\0\0\0none\0\0\0\0"
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    table, data = b"", b""
    for name, content in tags.items():
        at = 128 + 4 + 12 * len(tags) + len(data)
        table += name + struct.pack(">II", at, len(content))
        data += content + bytes(-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ "
    )
    return (head + bytes(12) + b"acsp" + bytes(28) + fixed(*D50)).ljust(128, b"\0") + body


PROFILE = icc(b"RGB ", DISPLAY_P3, [b"rTRC", b"gTRC", b"bTRC"], 2.2)
LINEAR_GREY = icc(b"GRAY", {}, [b"kTRC"], 1.0)


def photograph(mode: str = "RGB", size: tuple[int, int] = (9, 6)) -> Image.Image:
    """Muted colours, which sRGB has, in the colours of `PROFILE`."""
    pixels = np.random.default_rng(0).integers(90, 170, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.info["icc_profile"] = PROFILE
    return image


def away(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures."""
    assert one.mode == other.mode
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_colours_of_a_profile_become_those_of_srgb():
    """A red of Display P3 is a stronger red in sRGB; grey stays nearly as it is."""
    image = Image.new("RGB", (2, 2), (200, 100, 100))
    red, green, blue = to_srgb(image, PROFILE).getpixel((0, 0))
    assert red > 205 and green < 98 and blue < 100
    grey = to_srgb(Image.new("RGB", (2, 2), (120, 120, 120)), PROFILE).getpixel((0, 0))
    assert max(grey) - min(grey) <= 1 and abs(grey[0] - 120) <= 2
    assert away(from_srgb(to_srgb(photograph(), PROFILE), PROFILE), photograph()) <= 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_files_are_read_in_srgb(tmp_path, suffix):
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    options = lossless.get(suffix, {})
    photograph().save(tmp_path / f"a.{suffix}", icc_profile=PROFILE, **options)
    read = read_image(tmp_path / f"a.{suffix}")
    assert away(read, to_srgb(photograph(), PROFILE)) <= (6 if suffix == "jpg" else 0)
    assert away(read, photograph()) > 8 and not read.info


def test_grey_and_ink_of_a_profile_become_srgb():
    """Half of the light is a grey of 188."""
    for mode, value in (("L", 128), ("LA", (128, 255)), ("1", 1)):
        image = Image.new(mode, (2, 2), value)
        image.info["icc_profile"] = LINEAR_GREY
        grey = 255 if mode == "1" else 188
        assert max(abs(level - grey) for level in to_rgb(image).getpixel((0, 0))) <= 1
        assert "icc_profile" not in as_given(image).info
    rgb = Image.new("RGB", (2, 2), (128, 128, 128))
    rgb.info["icc_profile"] = LINEAR_GREY  # which does not describe it
    assert to_rgb(rgb).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    "profile", [b"", b"none", PROFILE[:200], PROFILE + bytes(2**20), "text", None]
)
def test_a_profile_that_cannot_be_used_is_none(profile):
    image = Image.new("RGB", (2, 2), (200, 100, 100))
    image.info["icc_profile"] = profile
    assert profile_of(image) is None
    assert to_rgb(image).getpixel((0, 0)) == (200, 100, 100) and not as_given(image).info


def test_a_result_is_a_picture_like_the_one_that_was_given():
    """Its own pixels, profile and transparency where nothing changed, elsewhere the result."""
    image = photograph("RGBA")
    image.putalpha(Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9) * 4))
    given, changed = as_given(image), np.zeros((6, 9), bool)
    changed[2:4, 3:6] = True
    result = Image.new("RGB", (9, 6), (120, 140, 100))
    whole = restored(result, given, changed)
    assert whole.mode == "RGBA" and whole.info["icc_profile"] == PROFILE
    assert np.array_equal(np.asarray(whole)[~changed], np.asarray(image)[~changed])
    assert (np.asarray(whole)[changed][:, 3] == 255).all()
    seen = np.asarray(to_rgb(whole))[changed].astype(int)
    assert np.abs(seen - (120, 140, 100)).max() <= 2
    assert (np.asarray(whole)[changed][:, :3] != (120, 140, 100)).any()
    assert np.array_equal(np.asarray(to_rgb(whole))[~changed], np.asarray(to_rgb(image))[~changed])

    grown = restored(Image.new("RGB", (20, 10)), given, at=(5, 2))
    assert np.array_equal(np.asarray(grown)[2:8, 5:14], np.asarray(image))
    assert (np.asarray(grown)[:2, :, 3] == 255).all()
