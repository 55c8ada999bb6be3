"""Text has OpenAI's ids, whatever the text; what does not fit is cut, and the caller is told."""

import hashlib
import importlib.util
import json
import tomllib
from inspect import unwrap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebart.data.text import (
    END,
    MERGES,
    START,
    TEXT_IDS,
    _clean,
    _merge,
    _vocabulary,
    decode_ids,
    encode_text,
)

ROOT = Path(__file__).parents[1]
FIXTURE = Path(__file__).with_name("fixtures") / "clip_bpe.json"
KNOWN = json.loads(FIXTURE.read_text(encoding="utf-8"))["texts"]  # [text, its ids], by open_clip


def ids_of(text: str) -> list[int]:
    """The ids between start and end, of a text that fits."""
    ids, cut = encode_text(text)
    assert cut == [False]
    return ids[0, 1 : ids[0].tolist().index(END)].tolist()


def test_ids_are_those_of_open_clip():
    ids, cut = encode_text([text for text, _ in KNOWN])
    assert len(KNOWN) > 300 and 5 < sum(cut) < 20
    for row, (text, known) in zip(ids.tolist(), KNOWN, strict=True):
        assert row == known + [0] * (77 - len(known)), ascii(text)


@pytest.fixture(scope="module")
def open_clip():
    """open_clip's tokenizer alone: the whole package takes seconds to import."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip_torch is not installed")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tokenize


# open_clip writes <start_of_text> where OpenAI writes <|startoftext|>: neither, then.
SCRAPS = [
    *("Snowy", "ΟΔΟΣ", "İ", "10th", "Ⅷ", "שלום", "富士山", "🎈👩\u200d👧", " ", "\n"),
    *("'ſ", "'s'T", "!!a", "?!", "&amp;amp;", "&#x41;", "&#0;", "cafÃ©", "\0", "\x85", "\ud83d"),
]
TEXTS = st.lists(st.sampled_from(SCRAPS) | st.text(max_size=8), max_size=40)


@settings(max_examples=50)
@given(scraps=TEXTS)
def test_any_text_has_the_ids_of_open_clip(open_clip, scraps):
    text = "".join(scraps)
    assert torch.equal(encode_text(text)[0], open_clip(text))


def test_a_row_is_start_pieces_end_zeros():
    ids, cut = encode_text(["", "a lake", "a lake " * 100])
    assert ids.dtype == torch.int64 and ids.shape == (3, 77)
    assert cut == [False, False, True]
    assert ids[0].tolist() == [START, END] + [0] * 75
    assert ids[1].tolist() == [START, *ids_of("a lake"), END] + [0] * 73
    assert ids[2].tolist() == [START, *(ids_of("a lake") * 38)[:75], END]


@pytest.mark.parametrize("length", [2, 3, 10, 77, 300])
def test_a_text_is_cut_only_where_it_must_be(length):
    fits, too_long = "lake " * (length - 2), "lake " * (length - 1)
    ids, cut = encode_text([fits, too_long], length)
    assert cut == [False, True]
    assert torch.equal(ids[0], ids[1])
    assert ids[0].tolist() == [START, *ids_of("lake") * (length - 2), END]


def test_decoding_spells_the_text():
    text = "a red balloon 🎈 , behind snowy mountains in 1 8 4 8 !"
    assert decode_ids(encode_text(text)[0][0]) == text
    assert decode_ids(encode_text("Café!!a")[0][0]) == "café !! a"
    assert decode_ids(torch.tensor([START, 0, 320, END, 320, 0])) == "!a"  # 0 is a letter too
    assert decode_ids(encode_text("🏔")[0][0, :2]) == "\ufffd"  # half of it


def test_what_decoding_spells_has_the_same_ids():
    """Of the texts that fit, and that spelled anew do not happen to look like broken ones."""
    spelled = [(decode_ids(torch.tensor(known)), known) for _, known in KNOWN if len(known) < 77]
    sound = [(text, known) for text, known in spelled if _clean(text) == text]
    assert len(sound) > 290
    for text, known in sound:
        assert ids_of(text) == known[1:-1], ascii(text)


def test_names_of_start_and_end_in_a_text_are_start_and_end():
    """As in OpenAI's code, from which open_clip differs here."""
    ids = encode_text("a <|startoftext|> b <|EndOfText|> c")[0][0, 1:6].tolist()
    assert ids == [*ids_of("a"), START, *ids_of("b"), END, *ids_of("c")]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a\0 la\x07ke", "a lake"),
        ("a \ud83d lake", "a \ufffd lake"),
        ("\ud83c\udf88", "🎈"),
        ("<b> &amp;lt;", "<b> <"),
        ("&#" + "9" * 5000 + ";", "\ufffd"),
        ("&amp;amp;#" + "9" * 5000, "\ufffd"),
        ("&#" + "0" * 4000 + "65;", "a"),
    ],
    ids=["control", "lone surrogate", "surrogate pair", "twice", "endless", "escaped", "zeros"],
)
def test_broken_text_is_mended(text, same):
    assert ids_of(text) == ids_of(same)


@pytest.mark.parametrize("text", ["snowy lake " * 5000, "etaoinshrdlu" * 10_000, "a" * 100_000])
def test_a_long_text_takes_no_longer_than_reading_it(text, monkeypatch):
    """A handful of look-ups a letter: joining pairs one pass at a time would take a number that
    grows with the square of the letters, minutes for a word of 100,000."""
    merged = _vocabulary().merged
    looked_up = Counted(merged)
    vocabulary = _vocabulary()._replace(merged=looked_up)
    monkeypatch.setattr("imagebart.data.text._vocabulary", lambda: vocabulary)
    assert encode_text(text)[1] == [True]
    assert 0 < looked_up.times < 10 * len(text)


class Counted(dict):
    """A table that counts how often it is read."""

    times = 0

    def __contains__(self, key) -> bool:
        self.times += 1
        return super().__contains__(key)

    def __getitem__(self, key):
        self.times += 1
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.times += 1
        return super().get(key, default)


def test_joining_is_the_lowest_pair_first_everywhere():
    """Against the plain loop: look for the lowest pair, join it from left to right, repeat."""

    def plainly(ids):
        while pairs := [pair for pair in pairwise(ids) if pair in merged]:
            lowest, joined = min(pairs, key=merged.get), []
            while ids:
                step = 2 if tuple(ids[:2]) == lowest else 1
                joined.append(merged[lowest] if step == 2 else ids[0])
                ids = ids[step:]
            ids = joined
        return ids

    merged = _vocabulary().merged
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 60):
        ids = torch.randint(64, 90, (n,), generator=generator).tolist()  # letters, A..Z and a..z
        ids = [i if n % 2 else 64 + i % 3 for i in ids]  # few letters: pairs that overlap
        assert _merge(ids, merged) == plainly(ids)


@pytest.mark.parametrize("text", [None, 3, b"a lake", ["a lake", None], {"a lake"}, [["a lake"]]])
def test_only_strings_are_text(text):
    with pytest.raises(ValueError, match=r"must be a string.*got (NoneType|int|bytes|set|list)"):
        encode_text(text)


@pytest.mark.parametrize("length", [1, 0, -77, True, 7.0, None])
def test_a_length_holds_start_and_end(length):
    with pytest.raises(ValueError, match="length must be a whole number from 2"):
        encode_text("a lake", length)


@pytest.mark.parametrize("wrong", [-1, TEXT_IDS])
def test_only_ids_are_decoded(wrong):
    with pytest.raises(ValueError, match=f"ids must lie in 0 .. 49407, got {wrong}"):
        decode_ids(torch.tensor([START, wrong, END]))
    with pytest.raises(ValueError, match="one row of whole numbers, got list"):
        unwrap(decode_ids)([START, wrong, END])


def test_the_merges_are_the_file_that_the_notice_names_and_are_installed():
    digest = hashlib.sha256(MERGES.read_bytes()).hexdigest()
    notice = MERGES.with_name("THIRD_PARTY.md")
    assert digest in notice.read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["setuptools"]["package-data"]["imagebart.data"]
    assert {MERGES.name, notice.name} <= set(packed)
