"""Every picture has one reading."""

import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imagebart.data.images import as_given, fit, read_image, to_pil, to_rgb, to_tensor

RED, WHITE = (255, 0, 0), (255, 255, 255)


def ramp(height: int = 6, width: int = 9) -> Image.Image:
    """An RGB picture in which every pixel and every direction is different."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 255 // height, x * 255 // width, (3 * y + 7 * x) % 256], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def pixel(mode: str, value) -> Image.Image:
    return Image.new(mode, (2, 3), value)


def grey16(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


def palette(transparent: bool) -> Image.Image:
    image = pixel("P", 1)
    image.putpalette([0, 0, 0, *RED])
    if transparent:
        image.info["transparency"] = 1
    return image


def keyed(mode: str, value, key) -> Image.Image:
    image = pixel(mode, value)
    image.info["transparency"] = key
    return image


READINGS = {
    "RGB": (pixel("RGB", (1, 2, 3)), (1, 2, 3)),
    "RGBA opaque": (pixel("RGBA", (1, 2, 3, 255)), (1, 2, 3)),
    "RGBA clear": (pixel("RGBA", (1, 2, 3, 0)), WHITE),
    "RGBA half": (pixel("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
    "RGBa premultiplied": (pixel("RGBa", (128, 0, 0, 128)), (255, 127, 127)),
    "RGB keyed": (keyed("RGB", (1, 2, 3), (1, 2, 3)), WHITE),
    "L": (pixel("L", 77), (77, 77, 77)),
    "L keyed": (keyed("L", 77, 77), WHITE),
    "LA clear": (pixel("LA", (77, 0)), WHITE),
    "LA opaque": (pixel("LA", (77, 255)), (77, 77, 77)),
    "1": (pixel("1", 1), WHITE),
    "P": (palette(transparent=False), RED),
    "P keyed": (palette(transparent=True), WHITE),
    "CMYK": (pixel("CMYK", (0, 255, 255, 0)), RED),
    "YCbCr": (pixel("YCbCr", (77, 128, 128)), (77, 77, 77)),
    "I;16 low": (grey16(257), (1, 1, 1)),  # not 255: scaled, not clipped
    "I;16 nearest": (grey16(257 * 5 - 128), (5, 5, 5)),
    "I;16 high": (grey16(65535), WHITE),
    "I;16B": (Image.frombytes("I;16B", (1, 1), b"\x80\x00"), (128, 128, 128)),
    "I": (pixel("I", 257 * 100), (100, 100, 100)),
}


@pytest.mark.parametrize("name", READINGS)
def test_every_mode_has_one_reading(name):
    image, expected = READINGS[name]
    rgb = to_rgb(image)
    assert rgb.mode == "RGB" and rgb.size == image.size
    assert rgb.getpixel((0, 0)) == expected


@pytest.mark.parametrize("image", [pixel("F", 0.5), pixel("I", 65536), pixel("I", -1)])
def test_a_range_that_nobody_states_is_refused(image):
    with pytest.raises(
        ValueError, match=r"must be integers, got floats|grey must lie in 0\.\.65535"
    ):
        to_rgb(image)


def test_16_bits_read_alike_from_a_file(tmp_path):
    values = [0, 257, 128 * 257, 65535]
    for name in ("a.png", "a.tif"):
        grey16(*values).save(tmp_path / name)
        assert [p[0] for p in np.asarray(read_image(tmp_path / name))[0]] == [0, 1, 128, 255]
    grey16(*values).save(tmp_path / "a.png", transparency=257)
    assert [p[0] for p in np.asarray(read_image(tmp_path / "a.png"))[0]] == [0, 255, 128, 255]
    with Image.open(tmp_path / "a.png") as image:
        own = as_given(image)
    assert own.mode == "RGBA" and np.asarray(own)[0, :, 3].tolist() == [255, 0, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {}
    ramp().save(path, exif=exif, **lossless)

    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    read = read_image(path)
    assert read.size == ((6, 9) if orientation > 4 else (9, 6))
    assert np.array_equal(np.asarray(read), np.asarray(expected))


@pytest.mark.parametrize("exif", [b"Exif\x00\x00MM\x00*\x00\x00", b"Exif\x00\xd7MM\x00*\x00\x00"])
def test_broken_exif_turns_nothing(tmp_path, exif):
    ramp().save(tmp_path / "a.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(tmp_path / "a.png").size == (9, 6)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_frame_counts_where_it_stands(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255), (0, 255, 0))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    with Image.open(path) as image:
        assert image.n_frames == 3
        image.seek(2)
        assert to_rgb(image).getpixel((4, 4)) == (0, 255, 0) and image.tell() == 2
    assert read_image(path).getpixel((4, 4)) == RED


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path):
    Image.new("1", (8001, 8000)).save(path)


def rare(path):
    Image.new("RGB", (8, 8)).save(path, format="PCX")


NO_PICTURES = {
    "truncated.png": truncated,
    "truncated.jpg": truncated,
    "truncated.webp": truncated,
    "bomb.png": bomb,
    "rare.png": rare,  # only the formats we name are decoded, whatever a file is called
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("no picture"),
    "drawing.png": lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "folder.png": lambda path: path.mkdir(),
    "dangling.png": lambda path: path.symlink_to("nowhere.png"),
    "missing.png": lambda path: None,
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_whole_picture_is_refused_by_name(tmp_path, name):
    NO_PICTURES[name](tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: must be a readable image, got ."):
        read_image(tmp_path / name)


def test_a_column_of_millions_of_rows_is_refused_by_its_header(tmp_path):
    """33 kB that would take 600 MB: every row costs memory of its own."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 1, 2**24, 8, 0, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(2**25)), b"IEND"]
    whole = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.png: must be a readable image, got 1×16777216 pix"):
        read_image(tmp_path / "a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # kB


def test_fit_keeps_the_centre():
    image = Image.new("RGB", (30, 10), RED)
    image.paste((0, 0, 255), (10, 0, 20, 10))
    for upright in (image, image.rotate(90, expand=True)):
        assert fit(upright, 10).getcolors() == [(100, (0, 0, 255))]
    assert fit(image, (5, 15)).size == (15, 5)


def test_a_picture_that_fits_is_left_alone():
    assert np.array_equal(np.asarray(fit(ramp(), (6, 9))), np.asarray(ramp()))


def test_fit_averages_what_it_shrinks():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = np.asarray(fit(Image.fromarray(checks.astype(np.uint8)).convert("RGB"), 8))
    assert np.abs(small.astype(int) - 127).max() <= 4


@given(*[st.integers(1, 300)] * 2, *[st.integers(1, 60)] * 2)
@example(3, 3, 187, 187)  # 3 / 187 · 187 > 3 in floating point
@settings(max_examples=200, deadline=None)
def test_every_picture_fits_every_size(width, height, new_height, new_width):
    image = Image.new("RGB", (width, height), RED)
    fitted = fit(image, (new_height, new_width))
    assert fitted.size == (new_width, new_height)
    assert fitted.getextrema() == ((255, 255), (0, 0), (0, 0))


def test_pixels_survive_the_round_trip():
    levels = Image.fromarray(np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    x_0 = to_tensor(levels)
    assert x_0.shape == (3, 16, 16) and x_0.dtype == torch.float32
    assert x_0.min() == -1 and x_0.max() == 1
    assert np.array_equal(np.asarray(to_pil(x_0)[0]), np.asarray(levels))
    assert to_tensor([ramp(), ramp()]).shape == (2, 3, 6, 9)
    assert len(to_pil(to_tensor([ramp(), ramp()]))) == 2


def test_pixels_go_to_the_nearest_level_within_the_range():
    levels = torch.tensor([-50.0, 0.4, 0.6, 99.4, 99.6, 254.6, 255.4, 1000.0])
    x_0 = (levels / 127.5 - 1).expand(3, 1, 8)
    pixels = np.asarray(to_pil(x_0)[0])
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 99, 100, 255, 255, 255]


def test_an_upright_picture_is_not_turned_again(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    once = to_rgb(Image.open(tmp_path / "turned.jpg"))
    assert once.size == to_rgb(once).size == (2, 4)
