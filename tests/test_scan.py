"""A scan of a folder of images names what training will replace."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from test_image_folder import plain

from imagebart.__main__ import main
from imagebart.data.image_folder import ImageFolder
from imagebart.data.scan import FAULTS, scan
from imagebart.data.sources import open_data


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


@pytest.mark.parametrize(
    "name", ["outfits", "must be UTF-8", "truncated", "No such file", "'utf-8' codec"]
)
def test_a_fault_does_not_depend_on_the_name_of_the_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for way in range(7):
        plain(Path(name) / f"{way}.png")
    expected = [spoil(Path(name) / f"{way}.png", way) for way in range(7)]
    *_, found = scan(ImageFolder(name))
    assert {file: fault for fault, files in found.bad.items() for file in files} == {
        f"{way}.png": fault for way, fault in enumerate(expected)
    }


def test_faults_of_maps_have_names(tmp_path):
    (tmp_path / "map_names.txt").write_text("sky\nground\n")
    maps = {
        "a map of another shape": Image.new("L", (8, 16)),
        "a map with unknown kinds": Image.new("L", (8, 8), 2),
        "a map with colours": Image.new("RGB", (8, 8)),
        "a map that cannot be read": None,
    }
    for fault, semantic_map in maps.items():
        plain(tmp_path / f"{fault}.png")
        if semantic_map is not None:
            semantic_map.save(tmp_path / f"{fault}.map.png")
    *_, found = scan(ImageFolder(tmp_path))
    assert found.bad == {fault: [f"{fault}.png"] for fault in maps} and found.images == 0
    assert {*maps} < {*FAULTS.values()}
