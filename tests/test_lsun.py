"""LSUN's lmdb is a data set as any; it is only read, and its package may be missing."""

import io
import pickle
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader, Subset

from imagebart.data.lsun import LMDB, LmdbFolder
from imagebart.data.sources import open_data


def grey(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (value,) * 3).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def lsun(tmp_path) -> Path:
    """Six images of their own grey, under keys as LSUN's, and one that is none."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path), map_size=2**20) as database, database.begin(write=True) as write:
        for i in range(6):
            write.put(f"{i:040x}".encode(), grey(40 * i))
        write.put(b"f" * 40, b"no picture")
    return tmp_path


def test_an_lmdb_is_read_in_the_order_of_its_keys(lsun):
    before = (lsun / LMDB).read_bytes()
    data = open_data(lsun, 8, at_most=99, held_out=0.3)
    assert isinstance(data, LmdbFolder)
    whole = LmdbFolder(lsun, 8)
    assert len(data) + len(open_data(lsun, 8, "validation", held_out=0.3)) == len(whole) == 7
    six, other = (Subset(x, range(6)) for x in (whole, pickle.loads(pickle.dumps(whole))))
    batches = [*DataLoader(six, 3, num_workers=2), *DataLoader(other, 3)]
    for i in range(6):
        for batch in (batches[i // 3], batches[2 + i // 3]):
            assert batch["image"][i % 3].mean() == pytest.approx(40 * i / 127.5 - 1, abs=1e-6)
            assert batch["class"][i % 3] == -1 and batch["text"][i % 3] == ""
    assert whole.names == {"class": (), "map": ()} and whole.files[0] == "0" * 40
    with pytest.warns(UserWarning, match="f: must be a readable image"):
        assert whole[6]["image"].mean() == -1  # the next one
    assert whole.digest() == LmdbFolder(lsun).digest() != data.digest()
    assert (lsun / LMDB).read_bytes() == before


def test_what_is_no_lmdb_and_a_package_that_is_missing_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / LMDB).write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match="an lmdb needs `pip install lmdb`, got none"):
        open_data(tmp_path, 8)
    monkeypatch.undo()
    pytest.importorskip("lmdb")
    with pytest.raises(ValueError, match="must be an lmdb that can be read, got"):
        open_data(tmp_path, 8)
