"""Prompts as ids of CLIP's byte-pair encoding, identical to OpenAI's.   [section 4.2]

text  → clean, lower-case  → words  → bytes of each word  → merged into pieces  → ids
"""

import gzip
import html
from collections.abc import Iterator
from functools import cache, lru_cache
from heapq import heapify, heappop, heappush
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import ftfy
import regex
import torch
from jaxtyping import Int
from torch import Tensor

TEXT_LENGTH = 77  # ids a prompt has, with its start and end
START, END = 49406, 49407
TEXT_IDS = 49408  # ids there are
GONE = -1  # where a piece was, before it became a part of its left neighbour

MERGES = Path(__file__).with_name("clip_bpe_merges.txt.gz")  # see THIRD_PARTY.md
SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,  # for what lower() leaves, such as ſ, an s here
)
ENDLESS = regex.compile("&#[0-9]{4301,};?")  # Python reads no decimal number of more digits


def encode_text(
    text: str | list[str], length: int = TEXT_LENGTH
) -> tuple[Int[Tensor, "b m"], list[bool]]:
    """Text as CLIP's ids (b, length), int64, and for each prompt whether it was cut to fit.

    A row is START, the pieces of the text, END, then zeros. Zero is also the id of a "!" inside a
    word: a prompt ends at its first END, not at its first zero. A prompt of more than length - 2
    pieces loses the rest and keeps END.

    Any string has ids. Control characters (NUL) vanish, a lone surrogate becomes U+FFFD, mojibake
    and HTML escapes are undone, emoji and every script are spelled in UTF-8 bytes, in the order
    they are stored. An empty text is START, END. "<|endoftext|>" in a text is END, as in OpenAI's
    code. ValueError for what is not a string, and for a length below 2.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple):
        raise ValueError(f"text must be a string or a list of strings, got {_kind(text)}")
    for one in texts:
        if not isinstance(one, str):
            raise ValueError(f"every text of a list must be a string, got {_kind(one)}")
    if not isinstance(length, int) or length < 2:
        raise ValueError(f"length must be a whole number from 2 (start and end), got {length!r}")

    ids, cut = torch.zeros(len(texts), length, dtype=torch.int64), []
    for row, one in zip(ids, texts, strict=True):
        pieces = _first_pieces(one, length - 1)  # one more than fits, if there is one
        kept = pieces[: length - 2]
        row[: len(kept) + 2] = torch.tensor([START, *kept, END])
        cut.append(len(pieces) > len(kept))
    return ids, cut


def decode_ids(ids: Int[Tensor, " m"]) -> str:
    """The text that one row of ids spells, up to its first END: lower-case, words set apart.

    Bytes that are no UTF-8, as where an emoji was cut in two, show as U+FFFD. ValueError for what
    is not a row of ids.
    """
    if not isinstance(ids, Int[Tensor, " m"]):  # type: ignore[arg-type]  # to mypy it is Annotated
        raise ValueError(f"ids must be one row of whole numbers, got {_kind(ids)}")
    spelled = _vocabulary().spelled
    text = b""
    for i in ids.tolist():
        if not 0 <= i < TEXT_IDS:
            raise ValueError(f"ids must lie in 0 .. {TEXT_IDS - 1}, got {i}")
        if i == END:
            break
        text += spelled[i]
    return text.decode("utf-8", errors="replace").strip()


def _kind(value: object) -> str:
    """Type and shape of a wrong argument, for errors."""
    shape = f" of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else ""
    return type(value).__name__ + shape


class Vocabulary(NamedTuple):
    """CLIP's pieces: 256 bytes, the same 256 at the end of a word, 48,894 merged pairs."""

    byte_ids: dict[int, int]
    """byte → id inside a word; 256 more at its end"""
    merged: dict[tuple[int, int], int]
    """two neighbours → id of the two as one. Ids grow with rarity: the lowest merges first."""
    spelled: list[bytes]
    """id → its bytes, with a space where a word ends"""


@cache
def _vocabulary() -> Vocabulary:
    """The vocabulary, read from the merges file once, at the first text."""
    # The file has printable bytes as themselves and the others as characters from U+0100 on.
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printing]
    letters = [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(hidden))]
    id_of = {name: i for i, name in enumerate(letters + [name + "</w>" for name in letters])}

    merged, spelled = {}, [bytes([byte]) for byte in printing + hidden]
    spelled += [letter + b" " for letter in spelled]
    with gzip.open(MERGES, "rt", encoding="utf-8") as lines:
        pairs = islice(lines, 1, 1 + START - len(spelled))  # a heading first; CLIP stops early
        for i, (left, right) in enumerate(map(str.split, pairs), len(spelled)):
            merged[id_of[left], id_of[right]] = id_of[left + right] = i
            spelled.append(spelled[id_of[left]] + spelled[id_of[right]])

    byte_ids = {byte: i for i, byte in enumerate(printing + hidden)}
    return Vocabulary(byte_ids, merged, [*spelled, b"", b""])  # START and END spell nothing


@lru_cache(maxsize=256)
def _first_pieces(text: str, count: int) -> tuple[int, ...]:
    """Ids of so many pieces of a text at most. A request's prompt is read more than once: when it
    is checked, and for every batch of its images."""
    return tuple(islice(_pieces(text), count))


def _pieces(text: str) -> Iterator[int]:
    """Ids of the pieces of a text, word by word."""
    byte_ids, merged, _ = _vocabulary()
    for match in WORD.finditer(_clean(text)):
        word = match.group()
        if word in SPECIAL:
            yield SPECIAL[word]
        else:
            *body, last = (byte_ids[byte] for byte in word.encode())
            yield from _merge([*body, last + 256], merged)


def _clean(text: str) -> str:
    """Mojibake repaired, HTML escapes undone twice, lower-case. White space is left to `WORD`."""
    return _unescape(_unescape(ftfy.fix_text(text))).lower()


def _unescape(text: str) -> str:
    """`&amp;` → `&`; numbers as long as `ENDLESS` become U+FFFD, as in html.unescape."""
    return html.unescape(ENDLESS.sub("\ufffd", text))


def _merge(ids: list[int], merged: dict[tuple[int, int], int]) -> list[int]:
    """Merge neighbours until no pair is in the table: the lowest id first, then the leftmost.

    A priority queue and a linked list make it O(n log n) in the bytes of a word, since an untrusted
    prompt may be one word of a megabyte.
    """
    ids = [*ids, GONE]  # a sentinel beyond both ends (the list is circular)
    left, right = list(range(-1, len(ids) - 1)), [*range(1, len(ids)), 0]
    queue = [(merged[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merged]
    heapify(queue)
    while queue:
        joined, i = heappop(queue)
        if ids[i] == GONE or merged.get((ids[i], ids[right[i]])) != joined:
            continue  # one of the two was merged before
        ids[i], ids[right[i]] = joined, GONE
        right[i] = right[right[i]]
        left[right[i]] = i
        for start in (left[i], i):
            pair = ids[start], ids[right[start]]
            if pair in merged:
                heappush(queue, (merged[pair], start))
    return [i for i in ids if i != GONE]
