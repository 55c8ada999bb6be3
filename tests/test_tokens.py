"""Token files: what was encoded comes back, and nothing half-written is read."""

import json
import os
import pickle
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from imagebart.conditions import ABSENT, CONDITIONS, ConditionShape, text_shape, text_tokens
from imagebart.data.batches import Batches
from imagebart.data.tokens import TokenFile, TokenWriter


def grids(count: int = 5, K: int = 65536) -> torch.Tensor:
    return torch.randint(0, K, (count, 2, 3), generator=torch.Generator().manual_seed(0))


def write(folder, count: int = 5, K: int = 65536, **header) -> torch.Tensor:
    tokens = grids(count, K)
    with TokenWriter(folder, count, (2, 3), K, **header) as writer:
        for start in range(0, count, 2):
            part = slice(start, start + 2)
            writer.append(tokens[part])
    return tokens


def test_tokens_come_back(tmp_path):
    tokens = grids()
    tokens[0, 0, :2] = torch.tensor([0, 65535])
    text = text_tokens(["", "a\nb", "c\u2028d", "schön", '"'], 9)[0]
    header = {"image_size": 32, "names": {"class": ["x", "y"]}, "vqgan_sha256": "f00", "data": "d"}
    with TokenWriter(tmp_path / "t", 5, (2, 3), 65536, split="train", **header) as writer:
        writer.append(tokens[:2], {"class": torch.tensor([1, 0]), "text": text[:2]})
        writer.append(tokens[2:], {"class": [1, 1, -1], "text": text[2:]})
    file = TokenFile(tmp_path / "t")
    assert (len(file), file.height, file.width, file.K) == (5, 2, 3, 65536)
    assert (file.image_size, file.names["class"], file.vqgan_sha256) == (32, ("x", "y"), "f00")
    assert (file.data, file.split) == ("d", "train")
    batch = file.batch([4, 0, 4])
    assert batch.dtype == torch.int64 and torch.equal(batch, tokens[[4, 0, 4]].reshape(3, 6))
    assert torch.equal(file.batch(torch.arange(5)), tokens.reshape(5, 6))
    assert torch.equal(file.batch(Batches(5, 5).at(0)).sort(0)[0], tokens.reshape(5, 6).sort(0)[0])
    assert file.conditions["class"].tolist() == [[1], [0], [1], [1], [-1]]
    assert (file.conditions["text"] == text.numpy()).all()


def test_conditions_are_optional(tmp_path):
    write(tmp_path)
    assert TokenFile(tmp_path).conditions == {}


def test_a_text_is_cut_to_a_denoiser_as_if_it_was_tokenised_for_it(tmp_path):
    """Whatever it says: its end, a "!", which is 0, or the end within the text."""
    texts = ["", "lake", "a lake at night", "lake!?", "a <|endoftext|> b", "lake " * 90]
    with TokenWriter(tmp_path, 6, (2, 3), 9) as writer:
        writer.append(grids(6, 9), {"text": CONDITIONS["text"].tokenise(texts, (2, 3))})
    for length in (2, 3, 5, 6, 77, 80):
        cut = TokenFile(tmp_path).condition(range(6), {"text": text_shape(length)})
        short = min(length, 77)  # what CLIP reads
        assert torch.equal(cut[:, :short], text_tokens(texts, short)[0])
        assert (cut[:, short:] == ABSENT).all()


def test_a_file_of_format_1_is_read(tmp_path):
    """Its labels, captions and maps are the class, the text and the map."""
    tokens = write(tmp_path, K=9, format=1, classes=["x", "y"], map_names=["sky", "sea"])
    texts, maps = ["", "a\nb", "c\u2028d", "schön", '"'], np.arange(30).reshape(5, 6) % 2
    np.save(tmp_path / "labels.npy", np.int32([1, 0, 1, 1, -1]))
    np.save(tmp_path / "maps.npy", maps.astype(np.int16))
    lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in texts]
    (tmp_path / "captions.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    file = TokenFile(tmp_path)
    assert torch.equal(file.batch(range(5)), tokens.reshape(5, 6))
    assert file.names == {"class": ("x", "y"), "text": (), "map": ("sky", "sea")}
    shapes = {"class": ConditionShape(2, 1), "text": text_shape(5), "map": ConditionShape(2, 6)}
    parts = torch.tensor([[1], [0], [1], [1], [-1]]), text_tokens(texts, 5)[0], maps
    assert torch.equal(
        file.condition(range(5), shapes), torch.cat([*map(torch.as_tensor, parts)], 1)
    )
    (tmp_path / "captions.jsonl").write_text('"one"\n')
    with pytest.raises(ValueError, match="must hold 5 captions, got 1"):
        TokenFile(tmp_path)


def test_tokens_stay_on_the_disk(tmp_path):
    write(tmp_path, count=20_000)
    file = TokenFile(tmp_path)
    copy = pickle.dumps(file)
    assert len(copy) < 1000
    assert torch.equal(pickle.loads(copy).batch([7]), file.batch([7]))


def test_an_encode_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path, 5, (2, 3), 9) as writer:
        writer.append(grids(2, 9))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_encode_that_is_killed_leaves_nothing_readable(tmp_path):
    child = os.fork()
    if child == 0:
        try:
            writer = TokenWriter(tmp_path, 5, (2, 3), 9)
            writer.append(grids(2, 9), {"class": [1, 2]})
        finally:
            os._exit(1)  # as abrupt as a kill: nothing is closed, nothing is cleaned up
    os.waitpid(child, 0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    with pytest.raises(ValueError, match="must hold finished tokens"):
        TokenFile(tmp_path)
    (tmp_path / "class.npy").write_bytes(b"committed just before a kill")
    tokens = write(tmp_path)
    assert torch.equal(TokenFile(tmp_path).batch(range(5)), tokens.reshape(5, 6))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokens.json", "tokens.npy"]


def test_the_header_comes_last(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(Path(b).name), replace(a, b)))
    with TokenWriter(tmp_path, 1, (2, 3), 9) as writer:
        writer.append(grids(1, 9), {"class": [1], "text": [[0, 1]]})
    assert sorted(renamed) == ["class.npy", "text.npy", "tokens.json", "tokens.npy"]
    assert renamed[-1] == "tokens.json"


def test_a_full_disk_leaves_nothing_readable(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError):
            write(tmp_path, count=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_finished_tokens_are_never_overwritten(tmp_path):
    tokens = write(tmp_path)
    with pytest.raises(ValueError, match="must hold no finished token file"):
        TokenWriter(tmp_path, 5, (2, 3), 9)
    assert torch.equal(TokenFile(tmp_path).batch(range(5)), tokens.reshape(5, 6))


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"tokens": grids(6, 9)}, "at most 5 grids"),
        ({"tokens": torch.zeros(2, 3, 2, dtype=torch.long)}, "at most 5 grids"),
        ({"tokens": torch.full((1, 2, 3), 9)}, r"must lie in \[0, 9\), got 9"),
        ({"tokens": torch.full((1, 2, 3), -1)}, r"must lie in \[0, 9\), got -1"),
        ({"tokens": grids(2, 9), "conditions": {"class": [1]}}, "class must be given for every"),
        ({"tokens": grids(2, 9), "conditions": {"depth": [1, 2]}}, "a condition must be one of"),
        (
            {"tokens": grids(1, 9), "conditions": {"map": [[0, 40_000, 3, -1, 2, 1]]}},
            "map must fit int16, got up to 40000",
        ),
    ],
)
def test_a_batch_that_does_not_belong_is_refused(tmp_path, batch, sentence):
    with pytest.raises(ValueError, match=sentence), TokenWriter(tmp_path, 5, (2, 3), 9) as writer:
        writer.append(**batch)
    assert list(tmp_path.iterdir()) == []


def test_every_image_must_be_appended(tmp_path):
    writer = TokenWriter(tmp_path, 5, (2, 3), 9)
    writer.append(grids(3, 9))
    with pytest.raises(ValueError, match="must get 5 images, got 3"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def spoil_header(folder, **changes):
    header = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**header, **changes}))


def spoil_array(folder):
    content = (folder / "tokens.npy").read_bytes()
    (folder / "tokens.npy").write_bytes(content[:-1])


def spoil_class(folder):
    spoil_header(folder, conditions={"class": 1})
    np.save(folder / "class.npy", np.zeros((4, 1), np.int32))


SPOILT = {
    r"tokens\.json: format must be 2, got 3": lambda f: spoil_header(f, format=3),
    r"tokens\.json: format must be 2, got None": lambda f: (f / "tokens.json").write_text("[]"),
    r"tokens\.json: must be JSON": lambda f: (f / "tokens.json").write_text("{"),
    r"tokens\.json: K must be at least 1, got None": lambda f: spoil_header(f, K=None),
    r"tokens\.npy: must be uint16 \(6, 6\)": lambda f: spoil_header(f, count=6),
    r"tokens\.npy: must be uint16 \(5, 9\)": lambda f: spoil_header(f, width=3, height=3),
    r"tokens\.npy: must be a whole array": spoil_array,
    r"tokens\.npy: must be a whole array, got .*No such": lambda f: (f / "tokens.npy").unlink(),
    r"class\.npy: must be int32 \(5, 1\)": spoil_class,
    "a condition must be one of": lambda f: spoil_header(f, conditions={"depth": 6}),
}


@pytest.mark.parametrize("sentence", SPOILT)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, sentence):
    write(tmp_path)
    SPOILT[sentence](tmp_path)
    with pytest.raises(ValueError, match=sentence):
        TokenFile(tmp_path)


def test_a_token_that_is_no_code_is_refused(tmp_path):
    write(tmp_path)
    spoil_header(tmp_path, K=10)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 10\)"):
        TokenFile(tmp_path).batch([0])


def test_K_must_fit_in_16_bits(tmp_path):
    with pytest.raises(ValueError, match=r"K must lie in 1\.\.65536, got 65537"):
        TokenWriter(tmp_path, 5, (2, 3), 65537)


def test_images_of_rare_words_come_more_often(tmp_path):
    texts = ["a lake", "a lighthouse at a lake", "a boathouse", "two cactus trees", ""]
    with TokenWriter(tmp_path, 5, (2, 3), 9) as writer:
        writer.append(grids(5, 9), {"text": CONDITIONS["text"].tokenise(texts, (2, 3))})
    file = TokenFile(tmp_path)
    assert file.repeated({}).tolist() == [0, 1, 2, 3, 4]
    words = {"lake": 2, "lighthouse": 3, "cactus": 2, "boat": 9, "": 7}
    assert file.repeated(words).tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4]


def test_without_text_no_image_is_repeated(tmp_path):
    write(tmp_path)
    assert TokenFile(tmp_path).repeated({"lake": 2}).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("has_text", [True, False])
def test_what_is_not_repeated_takes_no_memory(tmp_path, has_text):
    """But for the indices themselves: texts of millions of images are gigabytes."""
    text = {"text": np.full((20_000, 77), ABSENT)} if has_text else {}
    with TokenWriter(tmp_path, 20_000, (2, 3), 9) as writer:
        writer.append(grids(20_000, 9), text)
    file = TokenFile(tmp_path)
    tracemalloc.start()
    assert len(file.repeated({} if has_text else {"lake": 2})) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 8 * 4
