"""Data sets are opened by name; each has its splits."""

import gc
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from test_image_folder import plain

from imagebart.data import scenery
from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import to_pil
from imagebart.data.painted import Painted
from imagebart.data.sources import SceneryData, open_data


def test_scenery_is_rendered_as_its_seed_says():
    data = SceneryData("validation", 32, count=3, width=48)
    item = data[2]
    scene = scenery.render(scenery.scene_seed("validation", 2), 32, 48)
    assert np.array_equal(np.asarray(to_pil(item["image"])[0]), scene.image)
    assert data.names["class"][item["class"]] == scene.kind and item["text"] == scene.caption
    assert data.names["class"] == tuple(scenery.KINDS) and len(data) == 3
    with pytest.raises(IndexError):
        data[3]


def test_a_scene_that_is_kept_is_painted_once(tmp_path, monkeypatch):
    """By any process, also one that opens the file later."""
    new = SceneryData("train", 32, 3, width=48)
    kept = pickle.loads(pickle.dumps(SceneryData("train", 32, 3, width=48, keep=tmp_path)))
    first = kept[2]
    painted = []
    monkeypatch.setattr(scenery, "render", lambda *given: painted.append(given))
    again, later = kept[2], SceneryData("train", 32, 3, width=48, keep=tmp_path)[2]
    assert not painted
    monkeypatch.undo()
    for item in (first, again, later):
        assert item.keys() == new[2].keys() and item["text"] == new[2]["text"]
        assert item["class"] == new[2]["class"] and torch.equal(item["image"], new[2]["image"])
        assert np.array_equal(item["map"], new[2]["map"])
        item["map"][:] = 0  # its own
    assert torch.equal(kept[0]["image"], new[0]["image"])  # one that is not there yet


def test_kept_scenes_close_their_file(tmp_path):
    gone = pickle.loads(pickle.dumps(Painted(tmp_path, "train", 2, 16, 16)))
    file = gone._file
    os.fstat(file)
    del gone
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_half_a_scene_is_none(tmp_path):
    """A row that was begun when its process was killed."""
    painted = Painted(tmp_path, "train", 2, 16, 16)
    scene = np.full((16, 16, 3), 7, np.uint8), np.full((16, 16), 3, np.uint8), "A hill.", 4
    painted.keep(1, *scene)
    assert painted[0] is None and painted[1][2:] == ("A hill.", 4)
    with open(painted.path, "r+b") as file:
        file.truncate(painted.path.stat().st_size - 1)
        file.truncate(painted.path.stat().st_size + 1)
    assert painted[1] is None
    with pytest.raises(ValueError, match=r"must be 3 scenes, .* bytes, got"):
        Painted(tmp_path, "train", 3, 16, 16)
    with pytest.raises(ValueError, match="a caption must have at most 256 bytes"):
        painted.keep(0, *scene[:2], 257 * "a", 4)


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
            splits = ("train", "validation")
            parts = [open_data(tmp_path, 8, split, held_out=share) for split in splits]
            assert min(map(len, parts)) > 0 and sum(map(len, parts)) == 2 + i
    with pytest.raises(ValueError, match="held_out must be a share, between 0 and 1, got 200"):
        open_data(tmp_path, 8, held_out=200)


def test_a_folder_without_splits_has_no_test_images(tmp_path):
    """Those held out are seen in training, when the best weights are chosen."""
    for i in range(9):
        plain(tmp_path / f"{i}.png")
    for split in ("test", "Validation"):
        with pytest.raises(ValueError, match=f"must have a folder {split}, got none"):
            open_data(tmp_path, 8, split)


@pytest.mark.parametrize("name", ["val", "Test"])
def test_a_split_without_training_is_refused_and_is_no_class(tmp_path, name):
    plain(tmp_path / "lakes" / "a.png")
    plain(tmp_path / name / "lakes" / "b.png")
    with pytest.raises(ValueError, match=f"must have a folder train beside {name}, got none"):
        open_data(tmp_path, 8)


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
