"""What is learned from: every picture has one reading, every step its images."""

import io
import json
import os
import resource
import shutil
import struct
import tarfile
import time
import warnings
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from imagebart.__main__ import main
from imagebart.data import scenery
from imagebart.data.images import (
    Batches,
    ImageFolder,
    SceneryData,
    fit,
    read_image,
    to_pil,
    to_rgb,
    to_tensor,
)
from imagebart.data.sources import ShardFolder, open_data, summary_of

RED, WHITE = (255, 0, 0), (255, 255, 255)


def ramp(height: int = 6, width: int = 9) -> Image.Image:
    """An RGB picture in which every pixel and every direction is different."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 255 // height, x * 255 // width, (3 * y + 7 * x) % 256], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def plain(path, colour=RED, size=(8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def colour_of(item: dict) -> tuple:
    return to_pil(item["image"])[0].getpixel((0, 0))


# ── Pictures ──────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
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
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255), (0, 255, 0))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    with Image.open(path) as image:
        assert image.n_frames == 3
        image.seek(2)
        assert to_rgb(image).getpixel((4, 4)) == RED
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


# ── Image folders ─────────────────────────────────────────────────────────────────────────────


def test_files_come_in_natural_order_and_rubbish_stays_out(tmp_path):
    for name in ("a10.png", "a2.PNG", "a01.jpg", "b/c.webp", "a1.png"):
        plain(tmp_path / name)
    for name in ("._a2.png", ".cache/x.png"):
        plain(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    files = ImageFolder(tmp_path).files
    assert files == ["a01.jpg", "a1.png", "a2.PNG", "a10.png", os.path.join("b", "c.webp")]


def test_folders_are_classes_and_an_image_in_none_has_none(tmp_path):
    for name in ("10/x.png", "9/y/x.png", "9/x.png"):
        plain(tmp_path / name)
    data = ImageFolder(tmp_path)
    assert data.names["class"] == ("9", "10")
    assert [data[i]["class"] for i in range(3)] == [0, 0, 1]
    plain(tmp_path / "loose.png")
    data = ImageFolder(tmp_path)
    assert data.names["class"] == ("9", "10") and data.classes == [0, 0, 1, -1]
    assert summary_of(data) == "4 images, 2 classes, 1 of them in no class"


def test_an_item_has_its_image_label_and_caption(tmp_path):
    plain(tmp_path / "a.png", size=(12, 8))
    (tmp_path / "a.txt").write_text("\n a red square \na crimson square\n", encoding="utf-8-sig")
    plain(tmp_path / "b.png", (0, 0, 255))
    data = ImageFolder(tmp_path, size=4)
    assert data[0]["image"].shape == (3, 4, 4) and colour_of(data[0]) == RED
    assert data[0]["text"] == "a red square" and data[1]["text"] == ""
    assert data.texts(0) == ["a red square", "a crimson square"] and data.texts(1) == []
    assert ImageFolder(tmp_path)[0]["image"].shape == (3, 8, 12)
    with pytest.raises(IndexError):
        data[2]


def test_captions_come_from_a_table_too(tmp_path):
    plain(tmp_path / "in" / "a.png")
    plain(tmp_path / "in" / "b.png")
    (tmp_path / "metadata.csv").write_text('file_name,text\nin/a.png,"one, two"\nin/a.png,three\n')
    data = ImageFolder(tmp_path)
    assert data.texts(0) == ["one, two", "three"] and data[1]["text"] == ""
    row = {"file_name": "in/b.png", "text": "schön"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    data = ImageFolder(tmp_path)
    assert data[0]["text"] == "" and data[1]["text"] == "schön"


def test_a_row_without_a_text_is_no_caption(tmp_path):
    plain(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png\na.png,red\n")
    assert ImageFolder(tmp_path).texts(0) == ["red"]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": null}')
    assert ImageFolder(tmp_path).texts(0) == []


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('{"file_name": "a.png", "text": 5}', "a text must be a string, got int"),
        ("{", "must have file_name and text"),
        ('{"file_name": "a.png"}', "must have file_name and text"),
        ("[1]", "must have file_name and text"),
        ('{"file_name": "images/a.png", "text": "x"}', "must be relative to"),
    ],
)
def test_a_table_of_captions_that_means_nothing_is_refused(tmp_path, table, sentence):
    plain(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(table)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl: .*{sentence}"):
        ImageFolder(tmp_path)


def test_a_count_is_spread_over_the_folder(tmp_path):
    for i in range(9):
        plain(tmp_path / f"{i // 3}" / f"{i}.png")
    data = ImageFolder(tmp_path, count=3)
    assert len(data) == 3 and data.classes == [0, 1, 2]
    with pytest.raises(ValueError, match=r"count must lie in 1\.\.9, got 10"):
        ImageFolder(tmp_path, count=10)


def test_no_images_is_an_error_that_says_what_was_sought(tmp_path):
    with pytest.raises(ValueError, match=r"must hold images \(\.png \.jpg .*\), got none"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="must be a folder that can be read"):
        ImageFolder(tmp_path / "missing")


def test_circles_of_links_end(tmp_path):
    plain(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "alias").symlink_to(tmp_path / "in")
    names = [Path(name).parts for name in ImageFolder(tmp_path).files]
    assert ("in", "a.png") in names and ("alias", "a.png") in names
    assert all(len(set(parts)) == len(parts) for parts in names)


def test_names_may_be_any_bytes(tmp_path):
    name = os.fsdecode(b"\xff\xfe.png")
    plain(tmp_path / "1.png")
    (tmp_path / name).write_bytes(b"broken")
    data = ImageFolder(tmp_path, strict=True)
    with pytest.raises(ValueError) as refusal:
        data[1]
    str(refusal.value).encode("utf-8")  # can be printed


# ── Unreadable images ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mixed(tmp_path):
    """Twelve images of which 2, 3 and 11 cannot be read; the colour tells the number."""
    for i in range(12):
        plain(tmp_path / f"{i}.png", (i, 0, 0))
    for i in (2, 3, 11):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    return tmp_path


def numbers(data, order) -> list[int]:
    return [colour_of(data[i])[0] for i in order]


def test_an_unreadable_image_gives_way_to_the_next_and_is_named_once(mixed):
    data = ImageFolder(mixed)
    with pytest.warns(UserWarning, match="next image takes its place") as told:
        assert numbers(data, range(12)) == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
        assert numbers(data, range(12)) == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
    named = [str(warning.message).split(": ")[0] for warning in told]
    assert named == [str(mixed / f"{i}.png") for i in (2, 3, 11)]


def test_the_replacement_does_not_depend_on_the_way_there(mixed):
    with pytest.warns(UserWarning):
        assert numbers(ImageFolder(mixed), [2]) == numbers(ImageFolder(mixed), [3, 2])[1:] == [4]


def test_workers_share_what_they_find(mixed):
    data = ImageFolder(mixed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        items = list(DataLoader(data, batch_size=None, num_workers=2))
    assert [colour_of(item)[0] for item in items] == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the parent need not find them again
        assert numbers(data, [2, 3, 11]) == [4, 4, 0]


def test_measurements_stop_at_the_first(mixed):
    data = ImageFolder(mixed, strict=True)
    with pytest.raises(ValueError, match=r"2\.png: must be a readable image"):
        numbers(data, range(12))


@pytest.mark.filterwarnings("ignore")
def test_too_many_unreadable_images_stop_the_run(tmp_path):
    for i in range(30):
        plain(tmp_path / f"{i}.png", (i, 0, 0))
    data = ImageFolder(tmp_path)
    for i in range(0, 22, 2):
        (tmp_path / f"{i}.png").unlink()  # removed while the run goes on
    assert numbers(data, range(0, 20, 2)) == list(range(1, 21, 2))
    with pytest.raises(ValueError, match="at most 10 of 30 images may be unreadable, got 11"):
        data[20]


@pytest.mark.filterwarnings("ignore")
def test_of_many_images_one_in_a_thousand_may_be_unreadable(tmp_path):
    plain(tmp_path / "0.png")
    for i in range(1, 12_000):
        (tmp_path / f"{i}.png").symlink_to("0.png" if i % 100 else "nowhere.png")
    data = ImageFolder(tmp_path)
    for i in range(1, 13):
        data[100 * i]
    with pytest.raises(ValueError, match="at most 12 of 12000 images may be unreadable, got 13"):
        data[1300]


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_rubbish_stops_the_run(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"must be readable, got none from 1\.png on"):
        ImageFolder(tmp_path)[1]


def test_a_caption_that_is_not_text_is_an_unreadable_image(mixed):
    (mixed / "0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"0\.txt: must be UTF-8 text"):
        ImageFolder(mixed, strict=True)[0]


def spoil(path: Path, way: int) -> str:
    """Make an image unreadable in one of seven ways; the fault that a scan should name."""
    whole = path.read_bytes()
    if way == 0:
        path.write_bytes(b"")
        return "empty"
    if way == 1:
        path.write_bytes(b"a page of text")
        return "no image"
    if way == 2:
        path.unlink()
        path.symlink_to("nowhere.png")
        return "not there"
    if way == 3:
        path.write_bytes(whole[:48])
        return "cut short"
    if way == 4:
        header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[24:29]
        path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
        return "too large"
    if way == 5:
        Image.new("F", (8, 8)).save(path, "TIFF")
        return "pixels of unknown range"
    path.with_suffix(".txt").write_bytes(b"\xff\xfe")
    return "a caption that is no text"


@pytest.mark.filterwarnings("ignore")
def test_a_scan_names_all_bad_files_by_fault_and_training_replaces_them(tmp_path, capsys):
    """Of a thousand images 21, in seven ways."""
    for i in range(1000):
        plain(tmp_path / f"{i}.png", (i % 256, 0, 0))
    names = [f"{40 * i + 3}.png" for i in range(21)]
    expected = {name: spoil(tmp_path / name, i % 7) for i, name in enumerate(names)}
    (tmp_path / "phone.HEIC").write_bytes(b"")
    with pytest.raises(SystemExit, match="all images must be readable, got 21 that are not"):
        main(["data", str(tmp_path), "--size", "16"])
    lines, named, fault = capsys.readouterr().out.splitlines(), {}, ""
    for line in lines:
        if line.startswith("    "):
            named[line.strip()] = fault
        else:
            fault = line.rsplit(", ", 1)[0]
    assert named == expected
    assert "1 files .heic are not read: convert them, to JPEG say" in lines
    assert sum(int(line.split()[0]) for line in lines if "smaller than the size" in line) == 979

    data = open_data(tmp_path, 8, unreadable=0.03)
    held_out = open_data(tmp_path, 8, "validation").files
    for i in range(len(data)):
        data[i]
    assert set(data.unreadable_files) == expected.keys() - set(held_out)


# ── Scenery, and data by name ─────────────────────────────────────────────────────────────────


def test_scenery_is_rendered_as_its_seed_says():
    data = SceneryData("validation", 32, count=3, width=48)
    item = data[2]
    scene = scenery.render(scenery.scene_seed("validation", 2), 32, 48)
    assert np.array_equal(np.asarray(to_pil(item["image"])[0]), scene.image)
    assert data.names["class"][item["class"]] == scene.kind and item["text"] == scene.caption
    assert data.names["class"] == tuple(scenery.KINDS) and len(data) == 3
    with pytest.raises(IndexError):
        data[3]


def test_data_are_opened_by_name(tmp_path):
    assert isinstance(open_data("scenery", 32), SceneryData)
    assert len(open_data("scenery", 32, "validation", 7)) == 7
    plain(tmp_path / "train" / "a.png")
    plain(tmp_path / "validation" / "b.png")
    assert open_data(tmp_path, 8).files == ["a.png"]
    assert open_data(str(tmp_path), 8, "validation").files == ["b.png"]
    with pytest.raises(ValueError, match="must have a folder test, got none"):
        open_data(tmp_path, 8, "test")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        open_data("scenery", 32, "validation", 0)
    with pytest.raises(ValueError, match=r"count must lie in 1\.\.1, got 0"):
        open_data(tmp_path, 8, "validation", 0)
    with pytest.raises(ValueError, match="scenery must have one size, got None"):
        open_data("scenery", None)


@pytest.mark.parametrize("below", ["", "train", "Training"])
def test_without_a_folder_for_validation_some_are_held_out_by_name(tmp_path, below):
    """The same ones when others come or go, and never one that is trained on."""
    for i in range(200):
        plain(tmp_path / below / f"{i}.png")
    train, validation = (open_data(tmp_path, 8, split).files for split in ("train", "validation"))
    assert len(train) + len(validation) == len({*train, *validation}) == 200
    assert 1 <= len(validation) <= 12
    for name in [*train[:90], *validation[1:]]:
        (tmp_path / below / name).unlink()
    assert open_data(tmp_path, 8, "validation").files == validation[:1]
    assert open_data(tmp_path, 8, "train").files == train[90:]
    assert len(open_data(tmp_path, 8, "validation", held_out=0.5)) > 30


def test_both_parts_have_an_image_or_the_folder_is_refused(tmp_path):
    plain(tmp_path / "a.png")
    with pytest.raises(ValueError, match="must hold two images, one of them to be held out"):
        open_data(tmp_path, 8)
    for i in range(4):
        plain(tmp_path / f"{i}.png")
        for share in (1e-9, 0.5, 1 - 1e-9):
            parts = [open_data(tmp_path, 8, split, held_out=share) for split in ("train", "test")]
            assert min(map(len, parts)) > 0 and sum(map(len, parts)) == 2 + i
    with pytest.raises(ValueError, match="held_out must be a share, between 0 and 1, got 200"):
        open_data(tmp_path, 8, held_out=200)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "VAL"])
def test_validation_has_the_classes_of_training(tmp_path, name):
    for path in ("ant", "bee", "cat"):
        plain(tmp_path / "train" / path / "a.png")
    plain(tmp_path / name / "cat" / "b.png")
    plain(tmp_path / name / "bee" / "b.png")
    data = open_data(tmp_path, 8, "validation")
    assert data.names["class"] == ("ant", "bee", "cat") and data.classes == [1, 2]
    plain(tmp_path / name / "dog" / "b.png")
    with pytest.raises(ValueError, match="classes must be those of the training images, got dog"):
        open_data(tmp_path, 8, "validation")
    shutil.rmtree(tmp_path / name)
    plain(tmp_path / name / "b.png")
    with pytest.raises(ValueError, match="classes must be those of the training images, got none"):
        open_data(tmp_path, 8, "validation")


def test_data_are_known_by_what_is_in_them(tmp_path):
    """Wherever they lie; other pixels under the same name and of the same size are other data."""
    for folder in ("a", "b", "c", "d", "e"):
        plain(tmp_path / folder / "1.bmp")
        plain(tmp_path / folder / "2.bmp")
    plain(tmp_path / "c" / "2.bmp", (0, 9, 0))
    (tmp_path / "d" / "2.txt").write_text("a square")
    plain(tmp_path / "e" / "3.bmp")
    a, b, *others = (ImageFolder(tmp_path / folder).digest() for folder in "abcde")
    assert a == b and len({a, *others}) == 4
    sizes = [SceneryData("train", 32, count).digest() for count in (3, 4)]
    assert len({*sizes, SceneryData("validation", 32, 3).digest()}) == 3


# ── Batches ───────────────────────────────────────────────────────────────────────────────────

SIZES = {"count": st.integers(1, 20), "batch": st.integers(1, 30), "seed": st.integers(0, 2**63)}


@given(**SIZES)
@settings(max_examples=100, deadline=None)
def test_every_image_is_seen_once_an_epoch(count, batch, seed):
    steps = 3 * count
    seen = [i for indices in Batches(count, batch, seed, steps=steps) for i in indices]
    assert len(seen) == steps * batch
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))


@given(**SIZES, start=st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_a_resumed_run_sees_what_it_would_have_seen(count, batch, seed, start):
    whole = list(Batches(count, batch, seed, steps=25))
    rest = Batches(count, batch, seed, start_step=start, steps=25)
    assert list(rest) == whole[start:] and len(rest) == 25 - start
    assert rest.at(3).tolist() == whole[3]  # steps may be asked for in any order


@given(count=st.integers(1, 20), each=st.integers(1, 9), world=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_ranks_together_see_what_one_sees(count, each, world):
    batch = each * world
    parts = [slice(each * rank, each * rank + each) for rank in range(world)]
    shares = [Batches(count, batch, 5, steps=7, part=part) for part in parts]
    together = [list(chain(*indices)) for indices in zip(*shares, strict=True)]
    assert together == list(Batches(count, batch, 5, steps=7))


def test_the_order_depends_on_seed_and_epoch():
    def epochs(seed):
        return [tuple(Batches(100, 100, seed).at(epoch)) for epoch in range(2)]

    assert len({*epochs(0), *epochs(1)}) == 4


def test_the_order_is_the_same_in_every_release():
    assert list(Batches(10, 4, seed=0, steps=3)) == [[4, 6, 2, 7], [3, 5, 9, 0], [8, 1, 9, 1]]


def test_a_late_start_draws_no_earlier_epoch(monkeypatch):
    """Of the thousand epochs before, none."""
    drawn, default_rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda of: (drawn.append(of), default_rng(of))[1])
    indices = list(Batches(1_281_167, 256, 0, start_step=5_000_000, steps=5_000_020))
    assert len(indices) == 20 and drawn == [[0, 5_000_000 * 256 // 1_281_167]]


def test_loaders_follow_the_batches(tmp_path):
    for i in range(5):
        plain(tmp_path / f"{i}.png", (i, 0, 0))
    batches = Batches(5, 3, seed=1, start_step=1, steps=4)
    loader = DataLoader(ImageFolder(tmp_path, 8), batch_sampler=batches, num_workers=2)
    seen = [[image.getpixel((0, 0))[0] for image in to_pil(b["image"])] for b in loader]
    assert seen == list(batches) and len(loader) == 3


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 4"):
        Batches(0, 4)
    with pytest.raises(ValueError, match=r"start_step must lie in \[0, steps\], got 3 of 2"):
        Batches(5, 4, start_step=3, steps=2)


def test_an_upright_picture_is_not_turned_again(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    once = to_rgb(Image.open(tmp_path / "turned.jpg"))
    assert once.size == to_rgb(once).size == (2, 4)


# ── maps beside images ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mapped(tmp_path) -> Path:
    """A folder of one image of 40×20 and its map: kind 0 above, 1 below, left open in a corner."""
    picture = np.zeros((20, 40, 3), np.uint8)
    kinds = np.zeros((20, 40), np.uint8)
    picture[10:], kinds[10:], kinds[:5, 10:15] = 255, 1, 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(kinds).save(tmp_path / "a.map.png")
    (tmp_path / "map_names.txt").write_text("sky\nground\n")
    return tmp_path


def test_a_map_is_cut_and_scaled_as_its_image(mapped):
    data = ImageFolder(mapped, 10)
    assert data.files == ["a.png"] and data.names["map"] == ("sky", "ground")
    expected = np.zeros((10, 10), np.int64)
    expected[5:], expected[:2, :2] = 1, -1  # the middle 20 columns, every second place of them
    expected[2, :2] = data[0]["map"][2, 0]  # 5 rows are two and a half
    assert np.array_equal(data[0]["map"], expected)
    assert torch.equal(data[0]["image"][0] > 0, torch.from_numpy(expected == 1))
    assert ImageFolder(mapped)[0]["map"].shape == (20, 40)
    assert ImageFolder(mapped / ".." / mapped.name, 10).names["map"] == ("sky", "ground")


def test_names_of_kinds_may_lie_above_the_splits(mapped):
    for split in ("train", "validation"):
        (mapped / split).mkdir()
        for name in ("a.png", "a.map.png"):
            shutil.copy(mapped / name, mapped / split)
    for split in ("train", "validation"):
        assert open_data(mapped, 10, split).names["map"] == ("sky", "ground")
    (mapped / "validation" / "map_names.txt").write_text("sky\nsea\n")
    with pytest.raises(ValueError, match=r"kinds of maps must be those of .*train, got others"):
        open_data(mapped, 10, "validation")


def test_without_names_there_are_no_maps(mapped):
    (mapped / "map_names.txt").unlink()
    data = ImageFolder(mapped, 10)
    assert data.files == ["a.png"] and data.names["map"] == () and "map" not in data[0]


def test_wrong_maps_are_one_sentence(mapped):
    data = ImageFolder(mapped, 10, strict=True)
    Image.fromarray(np.full((20, 40), 2, np.uint8)).save(mapped / "a.map.png")
    with pytest.raises(ValueError, match=r"kinds must lie in \[0, 2\), or be 255 .* got 2"):
        data[0]
    Image.new("RGB", (40, 20)).save(mapped / "a.map.png")
    with pytest.raises(ValueError, match="must have one channel, got RGB"):
        data[0]
    (mapped / "a.map.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="must be a map, a PNG"):
        data[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (900, 900)).astype(np.uint8)).save(
        mapped / "a.map.png"
    )
    png = (mapped / "a.map.png").read_bytes()
    assert png.count(b"IDAT") > 1  # damaged behind the first of them, Pillow raises a SyntaxError
    at = png.rindex(b"IDAT")
    (mapped / "a.map.png").write_bytes(png[:at] + bytes(4) + png[at + 4 :])
    with pytest.raises(ValueError, match="must be a map, a PNG"):
        data[0]
    (mapped / "a.map.png").unlink()
    with pytest.raises(ValueError, match="must be a map, a PNG"):
        data[0]


# ── shards ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two tar files of three and two pictures, each of its own grey, with classes and captions."""
    for shard, names in (("s-10.tar", "de"), ("s-2.tar", "abc")):
        with tarfile.open(tmp_path / shard, "w") as tar:
            for name in names:
                grey = 40 * ("abcde".index(name) + 1)
                file = io.BytesIO()
                Image.new("RGB", (12, 12), (grey,) * 3).save(file, "PNG")
                said = f"grey {grey}\nof {name}\n".encode()
                parts = {".png": file.getvalue(), ".txt": said, ".cls": b"%d" % (grey // 80)}
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"folder/{name}{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return tmp_path


def test_shards_are_read_by_place(shards):
    assert isinstance(open_data(shards, 8), ShardFolder)
    data = ShardFolder(shards, 8)
    assert len(data) == 5
    assert data.names["class"] == ("0", "1", "2")
    for i in (4, 0, 2, 1, 3):
        grey = 40 * (i + 1)
        item = data[i]
        assert item["image"].shape == (3, 8, 8) and item["class"] == grey // 80
        assert torch.allclose(item["image"], torch.tensor(grey / 127.5 - 1), atol=1e-6)
        assert data.texts(i) == [f"grey {grey}", f"of {'abcde'[i]}"]
        assert item["text"] == f"grey {grey}"
    assert [data[i]["class"] for i in range(5)] == data.classes
    parts = [open_data(shards, 8, split, at_most=99) for split in ("train", "validation")]
    assert sorted(parts[0].files + parts[1].files) == sorted(data.files)
    assert data.digest() == ShardFolder(shards).digest()
    data.take(2)
    assert data.files == ["s-2.tar/folder/a.png", "s-2.tar/folder/c.png"]


def test_loaders_with_workers_read_shards(shards):
    loader = DataLoader(ShardFolder(shards, 8), 5, num_workers=2)
    (batch,) = loader
    assert batch["class"].tolist() == [0, 1, 1, 2, 2]


def test_wrong_shards_are_one_sentence(shards):
    with tarfile.open(shards / "s-3.tar", "w") as tar:
        for name, content in (("x.png", b"no picture"), ("x.cls", b"seven")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"a \.cls must hold a whole number"):
        ShardFolder(shards)
    (shards / "s-3.tar").write_bytes(b"no tar file")
    with pytest.raises(ValueError, match=r"s-3\.tar: must be a whole tar file"):
        ShardFolder(shards)
    for path in shards.glob("*.tar"):
        path.unlink()
    with tarfile.open(shards / "none.tar", "w"):
        pass
    with pytest.raises(ValueError, match="its shards must hold images, got none"):
        ShardFolder(shards)


@pytest.mark.parametrize("label", [b"100000000", b"-5", b"9" * 5000, "٣".encode(), b"1e3", b""])
def test_a_class_is_a_small_whole_number(shards, label):
    add_to_shard(shards / "s-3.tar", {"x.png": b"", "x.cls": label})
    start = time.process_time()
    with pytest.raises(ValueError, match=r"a \.cls must (hold|be) a whole number.*, got") as raised:
        ShardFolder(shards)
    assert time.process_time() - start < 2 and len(str(raised.value)) < 300


def add_to_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("size", [-1, -512, -1024, 2**40])
def test_members_lie_within_their_shard(shards, size):
    path = shards / "s-2.tar"
    content = bytearray(path.read_bytes())
    content[124:136] = bytes([0xFF if size < 0 else 0x80]) + (size % 2**88).to_bytes(11, "big")
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"s-2\.tar: must be a whole tar file, got"):
        ShardFolder(shards)


def test_names_in_a_shard_are_cut_and_printable(shards):
    name = "\x1b[2J" + 100_000 * "a" + ".png"
    add_to_shard(shards / "s-3.tar", {name: b"none"})
    with pytest.raises(ValueError, match=r"\\x1b\[2Jaaa.*must be a readable image") as raised:
        ShardFolder(shards, 8, strict=True)[3]
    assert str(raised.value).isprintable() and len(str(raised.value)) < 800


def test_a_text_of_megabytes_is_no_caption(shards):
    add_to_shard(shards / "s-3.tar", {"x.png": b"none", "x.txt": bytes(2**20 + 1)})
    with pytest.raises(ValueError, match=r"x\.txt: must be at most 1048576 bytes, got 1048577"):
        ShardFolder(shards).texts(3)


def test_a_broken_picture_in_a_shard_is_replaced(shards):
    with tarfile.open(shards / "s-3.tar", "w") as tar:
        member = tarfile.TarInfo("x.png")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"none"))
    data = ShardFolder(shards, 8)
    assert data.names["class"] == ("0", "1", "2") and data.classes[3] == -1
    with pytest.warns(UserWarning, match=r"x\.png: must be a readable image"):
        assert torch.equal(data[3]["image"], data[4]["image"])
    with pytest.raises(ValueError, match="must be a readable image"):
        ShardFolder(shards, 8, strict=True)[3]
