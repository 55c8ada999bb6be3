"""Conditions: what an image is to show, as tokens that stand before it.   [sections 4.1, 4.2]

`CONDITIONS` is the table. Its keys, "class", "text" and "map", are the one name of each condition
in data sets, token files, configurations, presets and errors. A new condition (a depth map, say)
is a row, the functions in it, and a data set whose items have its key; a row of
`options.Conditions` shows it to callers.

A condition is a row of tokens for each image, in the table's order. `ABSENT` stands for a token
that is not given: it is not attended to, so a denoiser trained with condition dropout samples with
any of its conditions or without.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from imagebart.arguments import warn_caller
from imagebart.data.images import fit_box
from imagebart.data.maps import commonest_kinds
from imagebart.data.text import END, TEXT_IDS, TEXT_LENGTH, decode_ids, encode_text
from imagebart.notation import Bool, Float, Int, Mask
from imagebart.transformer import normal_parameter

if TYPE_CHECKING:
    from imagebart.model import ImageBART

ABSENT = -1
"""The token of what is not given."""

Condition = Int[Tensor, "b *m"]
"""Tokens (b, m) of all conditions of a batch, or (b,) where a class is the only one."""

Embedded = tuple[Float[Tensor, "b m c"], Bool[Tensor, "b m"]]
"""A vector for each token, and which tokens are present."""


@dataclass(frozen=True)
class ConditionShape:
    """One condition of a denoiser, as config.json has it."""

    vocabulary: int  # tokens lie in [0, vocabulary)
    length: int  # tokens for each image
    vectors: int = 0  # of text: tokens that have a vector, those of the training data; 0: all

    def __post_init__(self):
        if self.vocabulary < 1 or self.length < 1 or self.vectors < 0:
            raise ValueError(f"a condition must have a vocabulary and a length, got {self}")


@dataclass(frozen=True)
class ConditionKind:
    """A row of the table of conditions.

    encode    (model, values, option): a caller's values, None where nothing is given, as tokens
              (b, length) of this model; ValueError if they do not fit
    tokenise  (values, grid): a data set's values of a batch, as tokens (b, m) for the token file
    embed     (shape, width): the module that turns tokens into `Embedded`
    """

    option: str  # the caller's keyword argument
    value: type | UnionType  # what a caller gives for one image
    encode: Callable[..., Int[Tensor, "b m"]]
    tokenise: Callable[..., Int[np.ndarray, "b m"]]
    stored: type  # integers of the token file
    embed: Callable[[ConditionShape, int], nn.Module]
    weights: str  # name of that module in a denoiser's weights
    negative: str | None = None  # the caller's keyword argument for what to guide away from
    end: int | None = None  # the token that ends a row; a row that is cut to fit keeps it
    spatial: bool = False  # a token for each place of the image; dropped whole or in a box


# ── vectors ───────────────────────────────────────────────────────────────────────────────────


class TokenVectors(nn.Embedding):
    """A vector for the token."""

    def __init__(self, shape: ConditionShape, width: int):
        super().__init__(shape.vocabulary, width)

    def forward(self, tokens: Int[Tensor, "b m"]) -> Embedded:  # type: ignore[override]  # a pair
        return super().forward(tokens.clamp(min=0)), tokens != ABSENT


class PlacedVectors(nn.Module):
    """A vector for the token plus one for its place."""

    def __init__(self, shape: ConditionShape, width: int):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, width)
        self.positions = normal_parameter(shape.length, width)

    def forward(self, tokens: Int[Tensor, "b m"]) -> Embedded:
        return self.tokens(tokens.clamp(min=0)) + self.positions, tokens != ABSENT


class TextVectors(PlacedVectors):
    """Pieces of text, of which a small model has vectors for those of its training data only.

    `row` (49,408) is the piece's row of the table, or `ABSENT`: such a piece is not attended to.
    """

    row: Int[Tensor, " pieces"]

    def __init__(self, shape: ConditionShape, width: int):
        super().__init__(replace(shape, vocabulary=shape.vectors or shape.vocabulary), width)
        row = torch.arange(shape.vocabulary, dtype=torch.int32)
        self.register_buffer("row", torch.full_like(row, ABSENT) if shape.vectors else row)

    def know(self, pieces: Int[Tensor, " known"]) -> None:
        """Give those of these pieces that have no row the first free ones; ValueError if there are
        too few."""
        is_free = torch.ones(self.tokens.num_embeddings, dtype=torch.bool, device=self.row.device)
        is_free[self.row[self.row != ABSENT].long()] = False
        new, free = pieces[self.row[pieces] == ABSENT], is_free.nonzero()[:, 0]
        if len(new) > len(free):
            wanted = len(is_free) - len(free) + len(new)
            raise ValueError(f"vectors of text must be at least {wanted}, got {len(is_free)}")
        self.row[new] = free[: len(new)].to(self.row.dtype)

    def require_rows(self) -> None:
        """ValueError unless every piece has a row of the table, or none."""
        low, high, count = int(self.row.min()), int(self.row.max()), self.tokens.num_embeddings
        if low < ABSENT or high >= count:
            raise ValueError(f"rows of pieces must lie in [{ABSENT}, {count}), got {low} to {high}")

    def forward(self, tokens: Int[Tensor, "b m"]) -> Embedded:
        row = self.row[tokens.clamp(min=0)].long()
        return super().forward(torch.where(tokens == ABSENT, ABSENT, row))


# ── class ─────────────────────────────────────────────────────────────────────────────────────


def encode_classes(
    model: "ImageBART", values: Sequence[int | str | None], option: str
) -> Int[Tensor, "b 1"]:
    """Class ids from ids or names."""
    return torch.tensor(
        [[ABSENT if one is None else class_id(model, one, option)] for one in values]
    )


def class_id(model: "ImageBART", name: int | str, option: str) -> int:
    """A class's id from its id or its name; ValueError tells near names."""
    count, names = model.conditions["class"].vocabulary, model.names["class"]
    if isinstance(name, str) and name in names:
        return names.index(name)
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < count:
        return name
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    known = ", ".join(names[:20]) or "it has no names"
    more = ", …" if len(names) > 20 else ""
    raise ValueError(
        f"{option} must be ids in [0, {count}) or names ({known}{more}), got {name!r}"
        + (f": did you mean {' or '.join(near)}?" if near else "")
    )


def tokenise_class(ids: Sequence[int], grid: tuple[int, int]) -> Int[np.ndarray, "b 1"]:
    """Class ids, -1 where it is not known."""
    return np.asarray(ids, np.int64).reshape(-1, 1)


# ── text ──────────────────────────────────────────────────────────────────────────────────────


def encode_prompts(
    model: "ImageBART", values: Sequence[str | None], option: str
) -> Int[Tensor, "b m"]:
    """CLIP's ids of texts; warns of a text that is too long, and of pieces without a vector."""
    length = model.conditions["text"].length
    ids, cut = text_tokens([one or "" for one in values], length)
    if any(cut):
        warn_caller(f"{option}: only its first {length - 2} pieces are read")
    row, pieces = model.denoisers[model.T].text_rows.cpu(), pieces_of(ids)
    unknown = [decode_ids(piece[None]) for piece in pieces[row[pieces] == ABSENT]]
    if unknown:
        words = ", ".join(unknown)
        warn_caller(f"{option}: this model has never seen {words}")
    return ids


def tokenise_text(texts: Sequence[str], grid: tuple[int, int]) -> Int[np.ndarray, "b 77"]:
    """CLIP's ids, as many as CLIP reads."""
    return text_tokens(list(texts), TEXT_LENGTH)[0].numpy()


def text_tokens(texts: list[str], length: int) -> tuple[Int[Tensor, "b m"], list[bool]]:
    """`data.text.encode_text`, absent after the first END (a zero there is padding, elsewhere a
    "!") and for an empty text."""
    ids, cut = encode_text(texts, length)
    end = (ids == END).long()
    absent = end.cumsum(1) > end  # behind it
    absent |= torch.tensor([not text for text in texts], dtype=torch.bool)[:, None]
    return ids.masked_fill(absent, ABSENT), cut


def pieces_of(ids: Int[Tensor, "b m"]) -> Int[Tensor, " known"]:
    """The pieces of text that occur, sorted."""
    return ids[ids != ABSENT].unique()


# ── map ───────────────────────────────────────────────────────────────────────────────────────


def encode_maps(
    model: "ImageBART", values: Sequence[np.ndarray | None], option: str
) -> Int[Tensor, "b m"]:
    """The commonest kind at each token (b, h·w) of maps (H, W) of kinds, -1 where it is open.

    As of a picture, the model sees the largest centred part of its own shape.
    """
    count, grid = model.conditions["map"].vocabulary, model.grid
    nothing = np.full(grid, ABSENT)
    rows = [nothing if one is None else commonest(one, count, grid, option) for one in values]
    return torch.from_numpy(np.stack(rows).reshape(len(rows), -1))


def commonest(
    kinds: np.ndarray, count: int, grid: tuple[int, int], option: str
) -> Int[np.ndarray, "h w"]:
    """Tokens (h, w), int64, of the part of a map that the model sees; ValueError for what is no map
    of `count` kinds."""
    if kinds.ndim != 2 or not np.issubdtype(kinds.dtype, np.integer) or not kinds.size:
        raise ValueError(f"{option} must be H×W whole numbers, got {kinds.dtype} {kinds.shape}")
    kinds = kinds.astype(np.int64)
    if kinds.min() < ABSENT or kinds.max() >= count:
        raise ValueError(
            f"kinds of {option} must lie in [0, {count}), or be {ABSENT} where it is open, "
            f"got {kinds.min()} to {kinds.max()}"
        )
    left, top, right, bottom = fit_box(kinds.shape[::-1], grid)
    rows, columns = slice(int(top), math.ceil(bottom)), slice(int(left), math.ceil(right))
    return commonest_kinds(kinds[rows, columns], grid)


def tokenise_map(maps: Sequence[np.ndarray], grid: tuple[int, int]) -> Int[np.ndarray, "b m"]:
    """The commonest kind at each token (b, h·w) of maps (H, W)."""
    return np.stack([commonest_kinds(np.asarray(one), grid).reshape(-1) for one in maps])


# ── the table ─────────────────────────────────────────────────────────────────────────────────

CONDITIONS = {
    "class": ConditionKind(
        option="classes",  # one, or one for each image
        value=int | str,
        encode=encode_classes,
        tokenise=tokenise_class,
        stored=np.int32,
        embed=TokenVectors,
        weights="classes",
    ),
    "text": ConditionKind(
        option="prompt",  # as in diffusers
        negative="negative_prompt",
        value=str,
        encode=encode_prompts,
        tokenise=tokenise_text,
        stored=np.int32,
        end=END,
        embed=TextVectors,
        weights="text",
    ),
    "map": ConditionKind(
        option="semantic_map",
        value=np.ndarray,
        encode=encode_maps,
        tokenise=tokenise_map,
        stored=np.int16,
        spatial=True,
        embed=PlacedVectors,
        weights="map",
    ),
}
"""Every condition by its name.

Callers' keyword arguments have names of their own, since that is what users of image libraries
type, and since `class` is a word of Python.
"""


def by_class(count: int) -> dict[str, ConditionShape]:
    """The conditions of a denoiser that takes one of `count` classes, or none if there are none."""
    return {"class": ConditionShape(count, 1)} if count else {}


def class_count(shapes: dict[str, ConditionShape]) -> int:
    """The number of classes among these conditions; 0 if a class is none of them."""
    return shapes["class"].vocabulary if "class" in shapes else 0


def text_shape(length: int, vectors: int = 0) -> ConditionShape:
    """CLIP's vocabulary, with vectors for so many of its pieces (0: all)."""
    return ConditionShape(TEXT_IDS, length, vectors)


def find_condition(name: str) -> ConditionKind:
    """The row of a condition; ValueError names the known ones."""
    if name not in CONDITIONS:
        raise ValueError(f"a condition must be one of {', '.join(CONDITIONS)}, got {name!r}")
    return CONDITIONS[name]


def checked(shapes: dict[str, ConditionShape], grid: tuple[int, int]) -> dict[str, ConditionShape]:
    """A denoiser's conditions in the table's order; ValueError for one that is not in it, for one
    with a token for each place whose length is another, and for `vectors` of any but a text."""
    shapes = {  # JSON gives dictionaries back
        name: ConditionShape(**shape) if isinstance(shape, dict) else shape
        for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        kind = find_condition(name)
        if kind.spatial and shape.length != math.prod(grid):
            raise ValueError(f"length of {name} must be {math.prod(grid)}, got {shape.length}")
        if shape.vectors and kind.embed is not TextVectors:
            raise ValueError(f"vectors of {name} must be 0, only a text's differ, got {shape}")
    return {name: shapes[name] for name in CONDITIONS if name in shapes}


def option_names() -> set[str]:
    """The callers' keyword arguments, negative ones among them."""
    kinds = CONDITIONS.values()
    return {kind.option for kind in kinds} | {kind.negative for kind in kinds if kind.negative}


# ── condition dropout, for training ───────────────────────────────────────────────────────────


def fitted(rows: Int[Tensor, "b m"], name: str, length: int) -> Int[Tensor, "b length"]:
    """Rows of a token file at a denoiser's length: absent tokens added, or cut but for the end."""
    if rows.shape[1] < length:
        return nn.functional.pad(rows, (0, length - rows.shape[1]), value=ABSENT)
    cut, end = rows[:, :length].clone(), CONDITIONS[name].end
    if end is not None:
        cut[cut[:, -1] != ABSENT, -1] = end
    return cut


def drop(
    condition: Condition,
    shapes: dict[str, ConditionShape],
    chances: dict[str, float],
    grid: tuple[int, int],
    generator: torch.Generator,
) -> Condition:
    """Condition dropout: each condition of each row made absent with its chance.

    A spatial one half of these times in a box of it only, so that a part of it can be given too.
    """
    parts = []
    for name, part in split_condition(condition, shapes).items():
        gone = torch.rand(len(part), 1, generator=generator) < chances[name]
        if CONDITIONS[name].spatial:
            gone = gone & boxes(len(part), grid, generator)
        parts.append(part.masked_fill(gone, ABSENT))
    return torch.cat(parts, dim=1)


def split_condition(condition: Condition, shapes: dict[str, ConditionShape]) -> dict[str, Tensor]:
    """A condition (b, m) as {name: its tokens}."""
    parts = condition.split([shape.length for shape in shapes.values()], dim=1)
    return dict(zip(shapes, parts, strict=True))


def boxes(count: int, grid: tuple[int, int], generator: torch.Generator) -> Mask:
    """Places (count, h·w) to leave open: the whole grid or a random box of it, as likely."""
    whole = torch.rand(count, generator=generator) < 0.5
    sides = []
    for length in grid:
        low, high = torch.rand(2, count, generator=generator).mul(length).sort(dim=0).values
        place = torch.arange(length) + 0.5
        sides.append((place > low[:, None]) & (place < high[:, None]))
    inside = sides[0][:, :, None] & sides[1][:, None]
    return (inside | whole[:, None, None]).flatten(1)
