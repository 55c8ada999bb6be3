"""A folder of images: what an item has, and what happens to images that cannot be read."""

import json
import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import ORIENTATION, TURNS, to_pil
from imagebart.data.sources import open_data, summary_of

RED = (255, 0, 0)


def plain(path, colour=RED, size=(8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def colour_of(item: dict) -> tuple:
    return to_pil(item["image"])[0].getpixel((0, 0))


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


def test_a_table_s_names_may_be_spelled_otherwise_and_lost_rows_are_told(tmp_path):
    """Case, backslashes, accents in two characters; an exact name comes first."""
    accents = unicodedata.normalize("NFC", "bär.png")
    for name in ("in/a.png", f"in/{accents}", "in/A2.png", "in/a2.PNG"):
        plain(tmp_path / name)
    said = {
        "In\\A.PNG": "one",
        "in/" + unicodedata.normalize("NFD", "bär.png"): "two",
        "in/a2.PNG": "three",
    }
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in said.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = ImageFolder(tmp_path)
    texts = {name: data.texts(i) for i, name in enumerate(data.files)}
    assert texts == {
        "in/a.png": ["one"],
        f"in/{accents}": ["two"],
        "in/A2.png": [],
        "in/a2.PNG": ["three"],
    }
    lines += [json.dumps({"file_name": "in/A2.PNG", "text": "which of two?"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"metadata\.jsonl: 1 rows name no image: in/A2\.PNG"):
        ImageFolder(tmp_path)


def test_a_caption_s_ending_may_be_in_capitals(tmp_path):
    plain(tmp_path / "a.png")
    (tmp_path / "a.TXT").write_text("loud")
    assert ImageFolder(tmp_path)[0]["text"] == "loud"


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


# ── unreadable images ─────────────────────────────────────────────────────────────────────────


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


def with_orientation(number: int | None) -> Image.Exif:
    exif = Image.Exif()
    if number is not None:
        exif[ORIENTATION] = number
    return exif


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(20, 40), (24, 24)])
@pytest.mark.parametrize("orientation", [None, *TURNS])
def test_a_map_is_made_upright_as_its_image(tmp_path, ending, shape, orientation):
    """Whether it lies as the file does, is upright, or says itself how it lies."""
    kinds = Image.fromarray(np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8))
    upright = kinds if orientation is None else kinds.transpose(TURNS[orientation])
    picture = Image.fromarray(255 * np.asarray(kinds)).convert("RGB")
    picture.save(tmp_path / f"a{ending}", exif=with_orientation(orientation))
    (tmp_path / "map_names.txt").write_text("sky\nground\n")
    stored = {None: kinds, 3: upright.transpose(Image.Transpose.ROTATE_180)}
    if upright.size != kinds.size:
        stored[1] = upright
    for own, semantic_map in stored.items():
        semantic_map.save(tmp_path / "a.map.png", exif=with_orientation(own))
        for size in (None, 8, (16, 8)):
            item = ImageFolder(tmp_path, size, strict=True)[0]
            assert item["map"].shape == item["image"].shape[1:]
            if size is None:
                assert torch.equal(item["image"][0] > 0, torch.from_numpy(item["map"] == 1))


def test_a_map_has_its_image_s_aspect_ratio_up_to_rounding(mapped):
    data = ImageFolder(mapped, 10, strict=True)
    for width, height in ((20, 10), (13, 7), (13, 6), (400, 200)):
        Image.new("L", (width, height)).save(mapped / "a.map.png")
        assert data[0]["map"].shape == (10, 10)
    for width, height in ((20, 40), (20, 20), (40, 24), (36, 20), (400, 220)):
        Image.new("L", (width, height)).save(mapped / "a.map.png")
        says = f"a.map.png: must have the aspect ratio of its image, 40×20, got {width}×{height}"
        with pytest.raises(ValueError, match=says):
            data[0]


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
