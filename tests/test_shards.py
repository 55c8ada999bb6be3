"""Shards are read by place, and a damaged one is refused."""

import io
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imagebart.data.shards import ShardFolder
from imagebart.data.sources import open_data


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


def test_hidden_files_are_left_out_and_endings_may_be_in_capitals(tmp_path):
    """As tar on macOS writes them: an `._a.cls` beside every file is no class."""
    file = io.BytesIO()
    Image.new("RGB", (12, 12), "teal").save(file, "PNG")
    members = {"._a.PNG": b"x", "a.PNG": file.getvalue(), "._a.cls": b"x", "a.CLS": b"3"}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in (members | {"a.TXT": b"loud"}).items():
            member = tarfile.TarInfo(f"in/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = ShardFolder(tmp_path, 8)
    assert data.files == ["s.tar/in/a.png"] and data[0]["text"] == "loud"
    assert data.classes == [3]


def test_a_sample_has_one_image(shards):
    """What tells of it, as `x.seg.png`, is no picture to learn from."""
    add_to_shard(shards / "s-3.tar", {"x.seg.png": b"", "x.jpg": b"", "x.depth.png": b""})
    assert [name for name in ShardFolder(shards).files if "s-3" in name] == ["s-3.tar/x.jpg"]
    add_to_shard(shards / "s-3.tar", {"x.jpg": b"", "x.png": b""})
    with pytest.raises(ValueError, match=r"must have one image, got s-3.tar/x.jpg and s-3.tar/x.p"):
        ShardFolder(shards)


def test_a_shard_that_was_cut_between_two_files_is_refused(shards):
    path = shards / "s-2.tar"
    with tarfile.open(path) as tar:
        end = tar.getmembers()[6].offset  # the third picture
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match="must be a whole tar file, got no end mark: it was cut"):
        ShardFolder(shards)


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
    with pytest.raises(ValueError, match=r"its shards must hold images, as a\.jpg, got none"):
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
