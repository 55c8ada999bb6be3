"""What to paint, and how strongly: classes, prompts, maps, classifier-free guidance.  [section 4.1]

A condition is a row of tokens for each image: its class, its text, its map. What is not given is
absent, and seen by nobody, so a chain trained to do without a condition samples with it, without
it, or led from one to the other:

    z = z_against + guidance · ( z_condition - z_against )

z are the logits at one scale. `against` is nothing at all, or the negative prompt; guidance 1 is
plain conditional sampling.
"""

import difflib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagebart.arguments import is_several, to_builtin
from imagebart.data.images import fit_box
from imagebart.data.maps import commonest_kinds
from imagebart.data.text import END, decode_ids, encode_text
from imagebart.data.tokens import TokenFile
from imagebart.decodable import Decodable
from imagebart.denoiser import ABSENT, Condition, Denoiser, DenoiserConfig
from imagebart.model import ImageBART
from imagebart.notation import Bool, Float, Int, Mask, Tokens
from imagebart.options import ChainOptions, Classes, Maps, Texts, rows


@dataclass(frozen=True)
class Asked:
    """What is asked of a batch: `condition` (b, m), what to lead away from, how far at each t."""

    condition: Condition | None
    against: Condition | None
    guidance: dict[int, float]

    def at(self, denoiser: Denoiser) -> Decodable:
        """The denoiser, led if guidance asks for it."""
        scale = self.guidance[denoiser.t]
        return denoiser if scale == 1 else Guided(denoiser, self.against, scale)


class Guided(Decodable):
    """A denoiser whose logits are led; decoded as any other. Both conditions go in one batch."""

    def __init__(self, denoiser: Decodable, against: Condition, scale: float):
        self.denoiser, self.against, self.scale = denoiser, against, scale
        self.n, self.K, self.t = denoiser.n, denoiser.K, denoiser.t

    def start(self, x_t: Tokens, condition: Condition) -> Any:
        """As `Decodable.start`, for twice the rows: those asked for, then those led away from."""
        return self.denoiser.start(twice(x_t), torch.cat([condition, self.against]))

    def step(self, x_prev: Tokens, at: Int[Tensor, "b s"], state: Any) -> Float[Tensor, "b s K"]:
        """As `Decodable.step`."""
        asked, against = self.denoiser.step(twice(x_prev), twice(at), state).chunk(2)
        return against + self.scale * (asked - against)

    def read(self, x_prev: Tokens, end: int, state: Any) -> None:
        """As `Decodable.read`."""
        self.denoiser.read(twice(x_prev), end, state)

    def keep(self, rows: Bool[Tensor, " b"], state: Any) -> None:
        """As `Decodable.keep`."""
        self.denoiser.keep(twice(rows), state)


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def ask(
    model: ImageBART,
    batch: int,
    *,
    classes: Classes = None,
    prompt: Texts = None,
    negative_prompt: Texts = None,
    semantic_map: Maps = None,
    guidance: float | Sequence[float] | None = None,
) -> Asked:
    """The caller's words as tokens; see `options.Conditions`. ValueError if they do not fit."""
    config = model.denoisers[model.T].config
    scales = guidance_of(model, guidance)
    parts = {
        "classes": class_tokens(model, classes, batch),
        "text": text_tokens(model, prompt, batch, "prompt"),
        "map": map_tokens(model, semantic_map, batch),
    }
    against = {
        "classes": class_tokens(model, None, batch),
        "text": text_tokens(model, negative_prompt, batch, "negative_prompt"),
        "map": map_tokens(model, None, batch),
    }
    if not config.condition_parts:
        return Asked(None, None, scales)
    condition, nothing = joined(parts).to(model.device), joined(against).to(model.device)
    if not config.droppable:
        for name in config.condition_parts:
            if (parts[name] == ABSENT).all():
                raise ValueError(f"this model was trained to be given {name} always, got none")
    if (nothing != ABSENT).any() and all(scale == 1 for scale in scales.values()):
        warnings.warn("negative_prompt: not read at guidance 1", stacklevel=2)
    if torch.equal(condition, nothing):  # nothing to lead to
        scales = dict.fromkeys(scales, 1.0)
    return Asked(condition, nothing, scales)


def joined(parts: dict[str, Tensor | None]) -> Int[Tensor, "b m"]:
    return torch.cat([part for part in parts.values() if part is not None], dim=1)


def guidance_of(model: ImageBART, guidance: float | Sequence[float] | None) -> dict[int, float]:
    """{t: guidance}; ValueError where the model cannot be led. None is the model's own default."""
    guidance = model.guidance if guidance is None else guidance
    scales = per_scale(guidance, model.T, "guidance")
    for scale in scales:
        rows(ChainOptions)["guidance"].check(scale, "guidance")
    config = model.denoisers[model.T].config
    if any(scale != 1 for scale in scales) and not (config.condition_parts and config.droppable):
        raise ValueError(
            "guidance must be 1 for a model that was not trained to drop a condition, "
            f"got {guidance}"
        )
    return dict(zip(range(2, model.T + 1), scales, strict=True))


# ── what training data say ────────────────────────────────────────────────────────────────────


def condition_of(
    tokens: TokenFile, indices: np.ndarray, config: DenoiserConfig
) -> Condition | None:
    """What a token file says of its images `indices`, as a condition (b, m) for this denoiser.

    A label of -1 and an empty caption are absent. ValueError if the file lacks a part altogether.
    """
    said = {"classes": tokens.labels, "text": tokens.captions, "map": tokens.maps}
    parts = {}
    for name in config.condition_parts:
        if said[name] is None:
            raise ValueError(f"{tokens.folder}: must hold {name} for this denoiser, got none")
        rows = [said[name][i] for i in indices]
        if name == "text":
            parts[name] = encode_ended(rows, config.text_length)[0]
        else:
            parts[name] = torch.from_numpy(np.array(rows, np.int64)).reshape(len(rows), -1)
    return joined(parts) if parts else None


def pieces_in(captions: Sequence[str], length: int) -> Int[Tensor, " known"]:
    """The pieces of text that captions are made of, sorted."""
    ids, _ = encode_ended(list(captions), length)
    return ids[ids != ABSENT].unique()


def drop(
    condition: Condition, config: DenoiserConfig, chances: dict[str, float], generator
) -> Condition:
    """Condition dropout: each part of each row made absent with its chance; a map half of these
    times in a box of it only, so that part of a map can be asked for too."""
    lengths = [length for _, length in config.condition_parts.values()]
    parts = []
    for name, part in zip(config.condition_parts, condition.split(lengths, dim=1), strict=True):
        gone = torch.rand(len(part), 1, generator=generator) < chances[name]
        if name == "map":
            gone = gone & boxes(len(part), config.grid, generator)
        parts.append(part.masked_fill(gone, ABSENT))
    return torch.cat(parts, dim=1)


def boxes(count: int, grid: tuple[int, int], generator) -> Mask:
    """Places (count, h·w) to leave open: the whole grid or a random box of it, as likely."""
    whole = torch.rand(count, generator=generator) < 0.5
    sides = []
    for length in grid:
        low, high = torch.rand(2, count, generator=generator).mul(length).sort(dim=0).values
        place = torch.arange(length) + 0.5
        sides.append((place > low[:, None]) & (place < high[:, None]))
    inside = sides[0][:, :, None] & sides[1][:, None]
    return (inside | whole[:, None, None]).flatten(1)


# ── classes ───────────────────────────────────────────────────────────────────────────────────


def class_tokens(model: ImageBART, classes: Classes, batch: int) -> Int[Tensor, "b 1"] | None:
    """Class ids (b, 1) from ids or names, one for all or one each; None for a model without."""
    count = model.classes
    given = each_of(classes, batch, int | str, "classes")
    if not count:
        if any(one is not None for one in given):
            raise ValueError(f"this model takes no classes, got {classes!r}")
        return None
    return torch.tensor([[ABSENT if one is None else class_id(model, one)] for one in given])


def class_id(model: ImageBART, name: int | str) -> int:
    """A class's id from its id or its name; ValueError tells near names."""
    if isinstance(name, str) and name in model.class_names:
        return model.class_names.index(name)
    if isinstance(name, int) and 0 <= name < model.classes:
        return name
    near = difflib.get_close_matches(str(name), model.class_names, n=3, cutoff=0.5)
    known = ", ".join(model.class_names[:20]) or "it has no names"
    more = ", …" if len(model.class_names) > 20 else ""
    raise ValueError(
        f"classes must be ids in [0, {model.classes}) or names ({known}{more}), got {name!r}"
        + (f": did you mean {' or '.join(near)}?" if near else "")
    )


# ── text ──────────────────────────────────────────────────────────────────────────────────────


def text_tokens(model: ImageBART, texts: Texts, batch: int, name: str) -> Int[Tensor, "b m"] | None:
    """CLIP's ids (b, m), absent after the end and for an empty text; None for a model without.

    Warns of a text that is too long, and of words that the model has never seen.
    """
    length = model.denoisers[model.T].config.text_length
    given = [one or None for one in each_of(texts, batch, str, name)]
    if not length:
        if any(given):
            raise ValueError(f"this model takes no text, got {name} {texts!r}")
        return None
    ids = torch.full((batch, length), ABSENT)
    wanted = [i for i, one in enumerate(given) if one]
    if wanted:
        ids[wanted], cut = encode_ended([given[i] for i in wanted], length)
        if any(cut):
            warnings.warn(f"{name}: only its first {length - 2} pieces are read", stacklevel=2)
        unknown = unknown_words(model, ids)
        if unknown:
            words = ", ".join(unknown)
            warnings.warn(f"{name}: this model has never seen {words}", stacklevel=2)
    return ids


def encode_ended(texts: list[str], length: int) -> tuple[Int[Tensor, "b m"], list[bool]]:
    """`encode_text`, absent after the first END (a zero there is padding, elsewhere a "!") and
    for an empty text."""
    ids, cut = encode_text(texts, length)
    end = (ids == END).long()
    absent = end.cumsum(1) > end  # behind it
    absent |= torch.tensor([[not text] for text in texts])
    return ids.masked_fill(absent, ABSENT), cut


def unknown_words(model: ImageBART, ids: Int[Tensor, "b m"]) -> list[str]:
    """The pieces that have no vector of their own in this model, spelled."""
    row = model.denoisers[model.T].text_rows.cpu()
    pieces = ids[ids != ABSENT].unique()
    return [decode_ids(piece[None]) for piece in pieces[row[pieces] == ABSENT]]


# ── maps ──────────────────────────────────────────────────────────────────────────────────────


def map_tokens(model: ImageBART, maps: Maps, batch: int) -> Int[Tensor, "b m"] | None:
    """The commonest kind at each token (b, h·w) of maps (H, W) of kinds; None for a model without.

    As of a picture, the model sees the largest centred part of its own shape. A place of -1 is left
    open.
    """
    config = model.denoisers[model.T].config
    given = each_of(maps, batch, np.ndarray, "semantic_map")
    if not config.map_kinds:
        if any(one is not None for one in given):
            raise ValueError("this model takes no semantic map, got one")
        return None
    nothing = torch.full((config.n,), ABSENT)
    rows = [
        nothing if one is None else torch.from_numpy(commonest(one, config).reshape(-1))
        for one in given
    ]
    return torch.stack(rows)


def commonest(kinds: np.ndarray, config: DenoiserConfig) -> np.ndarray:
    """Tokens (h, w), int64, of the part of a map that the model sees; ValueError for what is no map
    of its kinds."""
    if kinds.ndim != 2 or not np.issubdtype(kinds.dtype, np.integer) or not kinds.size:
        raise ValueError(f"a map must be H×W whole numbers, got {kinds.dtype} {kinds.shape}")
    kinds = kinds.astype(np.int64)
    if kinds.min() < ABSENT or kinds.max() >= config.map_kinds:
        raise ValueError(
            f"a map's kinds must lie in [0, {config.map_kinds}), or be {ABSENT} where it is open, "
            f"got {kinds.min()} to {kinds.max()}"
        )
    left, top, right, bottom = fit_box(kinds.shape[::-1], config.grid)
    rows, columns = slice(int(top), math.ceil(bottom)), slice(int(left), math.ceil(right))
    return commonest_kinds(kinds[rows, columns], config.grid)


def each_of(given, batch: int, kind: type, name: str) -> list:
    """One given for all or one each, as a list of `batch`; nothing given is None for each."""
    given = to_builtin(given, kind)
    if given is None or isinstance(given, kind):
        return [given] * batch
    values = [to_builtin(one, kind) for one in given] if is_several(given) else []
    if len(values) != batch or not all(one is None or isinstance(one, kind) for one in values):
        raise ValueError(f"{name} must be one, or {batch} of them, got {given!r:.200}")
    return values


def per_scale(value, T: int, name: str) -> list:
    """One value for every scale t = 2 .. T."""
    value = to_builtin(value, str)
    values = list(value) if is_several(value) else [value] * (T - 1)
    if len(values) != T - 1:
        raise ValueError(f"{name} must be one number, or {T - 1} for t = 2 to {T}, got {value}")
    return values
