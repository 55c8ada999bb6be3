"""Shards of a web server are fetched once, whole, and are then a data set as any."""

import functools
import http.server
import threading
from pathlib import Path

import pytest
from test_shards import shards  # noqa: F401

from imagebart.cache import cache_folder
from imagebart.data import remote
from imagebart.data.remote import addresses
from imagebart.data.shards import ShardFolder
from imagebart.data.sources import open_data
from imagebart.released import importing


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_) -> None:
        """Nothing."""


@pytest.fixture
def served(shards, tmp_path, monkeypatch):  # noqa: F811
    """The address of two shards, s-1.tar and s-2.tar, and what is asked of their server."""
    (shards / "s-10.tar").rename(shards / "s-1.tar")
    handler = type("Handler", (Counting,), {"asked": []})
    monkeypatch.setenv("IMAGEBART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=shards)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/s-", handler.asked, shards
        server.shutdown()
        thread.join()


def test_all_downloads_lie_in_one_folder(monkeypatch, tmp_path):
    for name in ("IMAGEBART_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "imagebart"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "imagebart"
    monkeypatch.setenv("IMAGEBART_CACHE", "~/own")
    assert cache_folder() == Path.home() / "own"
    assert remote.cache_folder is importing.cache_folder is cache_folder


def test_shards_of_a_server_are_those_of_a_folder(served):
    address, asked, folder = served
    name = f"{address}{{1..2}}.tar"
    data = open_data(name, 8, at_most=99)
    assert isinstance(data, ShardFolder) and sorted(asked) == ["/s-1.tar", "/s-2.tar"]
    assert data.digest() == open_data(folder, 8, at_most=99).digest()
    assert len(open_data(name, 8, "validation")) + len(data) == 5
    assert len(asked) == 2
    assert len(open_data(f"{address}2.tar", 8)) == 2 and len(asked) == 3


def test_what_cannot_be_fetched_is_one_sentence_and_leaves_nothing(served, tmp_path):
    address, _, folder = served
    with pytest.raises(
        ValueError, match=r"s-3\.tar: must be a shard that can be fetched, got HTTP"
    ):
        open_data(f"{address}{{1..3}}.tar", 8)
    cut = folder / "s-2.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"s-2\.tar: must be a shard .*must be a whole tar file"):
        open_data(f"{address}2.tar", 8)
    before = [path.name for path in Path(tmp_path / "cache").rglob("*2.tar*")]
    assert before == ["s-2.tar"]  # of the three above
    with pytest.raises(ValueError, match="must be a shard that can be fetched, got"):
        open_data("http://127.0.0.1:1/s.tar", 8)


def test_an_address_that_is_none_is_one_sentence(served):
    address, _, _ = served
    with pytest.raises(ValueError, match=r"s-a b\.tar: must be a shard that can be fetched, got "):
        open_data(f"{address}a b.tar", 8)


def test_shards_of_one_name_are_all_fetched(served):
    """The range may lie in a folder or in the query; a shard that is none of these goes."""
    address, asked, folder = served
    for i in (1, 2):
        (folder / f"part{i}").mkdir()
        (folder / f"s-{i}.tar").rename(folder / f"part{i}" / "data.tar")
    address = address.removesuffix("s-")
    name = f"{address}part{{1..2}}/data.tar"
    data = ShardFolder(remote.fetched(name))
    assert sorted(asked) == ["/part1/data.tar", "/part2/data.tar"]
    names = [
        f"{i}-data.tar/folder/{one}.png" for i, part in enumerate(("de", "abc")) for one in part
    ]
    assert data.files == names
    (data.root / "data.tar").write_bytes((data.root / "0-data.tar").read_bytes())
    assert ShardFolder(remote.fetched(name)).files == data.files and len(asked) == 2
    remote.fetched(f"{address}part1/data.tar?copy={{1..2}}")
    assert sorted(asked[2:]) == [f"/part1/data.tar?copy={i}" for i in (1, 2)]


def test_a_range_is_every_number_in_it():
    assert addresses("https://a/b.tar") == ["https://a/b.tar"]
    numbers = [one.removeprefix("https://a/") for one in addresses("https://a/{08..11}.tar")]
    assert numbers == ["08.tar", "09.tar", "10.tar", "11.tar"]
    for wrong in ("https://a/{1..2}{3..4}.tar", "https://a/{1,2}.tar", "https://a/{x..2}.tar"):
        with pytest.raises(ValueError, match="must have one range at most"):
            addresses(wrong)
    with pytest.raises(ValueError, match="a range must rise"):
        addresses("https://a/{2..1}.tar")
