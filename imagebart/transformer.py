"""Transformer parts: attention, blocks, and the caches that make decoding cheap.   [section 3.3]

Everything is pre-norm. Two ways through a decoder give the same numbers: `Decoder.forward` reads
a whole sequence at once (training, likelihood); `Decoder.step` reads a few slots of it and takes
the rest from a `LayerCache` (sampling).

Rounding: a float32 product of few rows is not summed in the order of a product of many, so a token
decoded alone could differ from the same token decoded in a batch. `step` therefore sends its rows
through every layer in tiles of one fixed size, or several tiles at once where this processor has
been tried to round them alike. Equal seeds then give equal tokens, whatever comes along in the same
pass: by construction, not by tolerance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagebart.linear import Linear, rounds_alike
from imagebart.notation import Bool, Float, Int
from imagebart.rotary import Places, Rotation, rotate, rotation

TILE = 16
"""Rows that go through a layer together while decoding. With 8, rows of width 512 round by their
place in the tile on Intel processors without AVX-512."""
TOGETHER = 16, 8, 4, 2
"""So many tiles go through a layer at once where that changes no bit: a CPU then fetches a layer's
weights once and not once a tile."""

Vectors = Float[Tensor, "b s c"]
Memory = Float[Tensor, "b m c"]
Heads = Float[Tensor, "b s heads d"]
Keys = Float[Tensor, "b key heads d"]
Rows = Float[Tensor, "rows c"]
Present = Bool[Tensor, "b _"] | None
"""Which slots of each row are there; None: all. A slot that is not there is seen by none."""


@dataclass(frozen=True)
class BlockShape:
    """The sizes of a transformer's blocks."""

    width: int
    heads: int
    head_width: int  # heads · head_width need not equal the width
    bias: bool = False  # biases of queries, keys and values
    qk_norm: bool = False  # normalised queries and keys, see `Attention`

    @property
    def inner(self) -> int:
        """The width of all heads together."""
        return self.heads * self.head_width


class Attention(nn.Module):
    """What self- and cross-attention share: how queries and keys are made comparable.

    With `qk_norm` both are normalised (mean 0, variance 1 over a head's dimensions), and each head
    learns how sharp its scores are (Dehghani et al. 2023); with a rotation they turn by their
    places.
    """

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.heads = shape.heads
        self.sharpness = nn.Parameter(torch.ones(shape.heads)) if shape.qk_norm else None

    def queries(self, q: Heads, turns: Rotation | None) -> Heads:
        if self.sharpness is not None:
            q = normalised(q) * self.sharpness[:, None].to(q.dtype)
        return q if turns is None else rotate(q, turns)

    def keys(self, k: Keys, turns: Rotation | None) -> Keys:
        if self.sharpness is not None:
            k = normalised(k)
        return k if turns is None else rotate(k, turns)


class SelfAttention(Attention):
    """softmax(q kᵀ / √d) v over the sequence itself."""

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.qkv = Linear(shape.width, 3 * shape.inner, bias=shape.bias)
        self.out = Linear(shape.inner, shape.width)

    def forward(
        self,
        x: Vectors,
        visible: Bool[Tensor, "*b #s s"] | None = None,
        turns: Rotation | None = None,
    ) -> Vectors:
        q, k, v = rearrange(self.qkv(x), "b s (three h d) -> three b s h d", three=3, h=self.heads)
        q, k = self.queries(q, turns), self.keys(k, turns)
        a = attend_all(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible)
        return self.out(rearrange(a, "b h s d -> b s (h d)"))

    def step(self, rows: Rows, cache: "LayerCache", window: "Window") -> Rows:
        q = self.queries(self.read(rows, cache, window), window.turns)
        a = attend(q, cache.k, cache.v, window.visible, window.tile)
        return in_tiles(self.out, window.to_rows(a), window.tile)

    def read(self, rows: Rows, cache: "LayerCache", window: "Window") -> Heads:
        """Keys, turned, and values into the cache; the queries as they are."""
        q, k, v = window.heads(in_tiles(self.qkv, rows, window.tile), 3, self.heads)
        cache.k[window.here], cache.v[window.here] = self.keys(k, window.turns), v
        return q


class CrossAttention(Attention):
    """softmax(q kᵀ / √d) v with keys and values from the encoder's output."""

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.q = Linear(shape.width, shape.inner, bias=shape.bias)
        self.kv = Linear(shape.width, 2 * shape.inner, bias=shape.bias)
        self.out = Linear(shape.inner, shape.width)

    def forward(
        self,
        x: Vectors,
        memory: Memory,
        visible: Bool[Tensor, "b 1 1 m"] | None,
        turns: Rotation | None = None,
        memory_turns: Rotation | None = None,
    ) -> Vectors:
        q = rearrange(self.q(x), "b s (h d) -> b s h d", h=self.heads)
        k, v = rearrange(self.kv(memory), "b s (two h d) -> two b s h d", two=2, h=self.heads)
        q, k = self.queries(q, turns), self.keys(k, memory_turns)
        a = attend_all(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible)
        return self.out(rearrange(a, "b h s d -> b s (h d)"))

    def cached_keys_values(
        self, memory: Memory, memory_turns: Rotation | None
    ) -> tuple[Keys, Keys]:
        """Of each image alone: they do not depend on how many others there are."""
        kv = torch.cat([self.kv(image) for image in one_by_one(memory)])
        k, v = rearrange(kv, "b m (two h d) -> two b m h d", two=2, h=self.heads)
        return self.keys(k, memory_turns), v

    def step(self, rows: Rows, cache: "LayerCache", window: "Window") -> Rows:
        (q,) = window.heads(in_tiles(self.q, rows, window.tile), 1, self.heads)
        q = self.queries(q, window.turns)
        a = attend(q, cache.memory_k, cache.memory_v, cache.memory_visible, window.tile)
        return in_tiles(self.out, window.to_rows(a), window.tile)


class MLP(nn.Module):
    """Linear, GELU, Linear; four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def forward(self, x: Vectors) -> Vectors:
        return self.down(F.gelu(self.up(x)))

    def step(self, rows: Rows, tile: int) -> Rows:
        return in_tiles(self.down, F.gelu(in_tiles(self.up, rows, tile)), tile)


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(shape.width), SelfAttention(shape)
        self.norm2, self.mlp = nn.LayerNorm(shape.width), MLP(shape.width)

    def forward(
        self, x: Vectors, visible: Bool[Tensor, "b 1 1 s"] | None, turns: Rotation | None
    ) -> Vectors:
        x = x + self.attention(self.norm1(x), visible, turns)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention if there is an encoder, MLP."""

    def __init__(self, shape: BlockShape, cross: bool):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(shape.width), SelfAttention(shape)
        self.crosses = cross
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(shape.width), CrossAttention(shape)
        self.norm2, self.mlp = nn.LayerNorm(shape.width), MLP(shape.width)

    def forward(
        self,
        x: Vectors,
        visible: Bool[Tensor, "*b s s"],
        memory: Memory | None,
        memory_visible: Bool[Tensor, "b 1 1 m"] | None,
        turns: Rotation | None,
        memory_turns: Rotation | None,
    ) -> Vectors:
        x = x + self.attention(self.norm1(x), visible, turns)
        if self.crosses:
            x = x + self.cross(self.norm_cross(x), memory, memory_visible, turns, memory_turns)
        return x + self.mlp(self.norm2(x))

    def step(self, rows: Rows, cache: "LayerCache", window: "Window") -> Rows:
        rows = rows + self.attention.step(self.norm1(rows), cache, window)
        if self.crosses:
            rows = rows + self.cross.step(self.norm_cross(rows), cache, window)
        return rows + self.mlp.step(self.norm2(rows), window.tile)

    def read(self, rows: Rows, cache: "LayerCache", window: "Window") -> None:
        """Into the cache, and no further."""
        self.attention.read(self.norm1(rows), cache, window)


class DecoderBlocks(nn.ModuleList):
    """A list of modules that are all of this type."""

    def __iter__(self) -> Iterator[DecoderBlock]:
        return cast(Iterator[DecoderBlock], super().__iter__())


class Turned(nn.Module):
    """Its tables of rotations, the buffers, stay in float32 whatever the weights become: they are
    in no file, from which they could come back."""

    def _apply(self, fn, recurse: bool = True) -> Self:
        tables = {name: x for name, x in self._buffers.items() if x is not None and not x.is_meta}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            self._buffers[name] = table.to(cast(Tensor, self._buffers[name]).device)
        return self


class Encoder(Turned):
    """Bidirectional: every slot sees every slot. With `places`, positions are rotary."""

    turns: Rotation | None

    def __init__(
        self,
        depth: int,
        shape: BlockShape,
        places: Places | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(shape) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.width)
        self.register_buffer("turns", turns_of(places, shape.head_width), persistent=False)

    def forward(self, x: Vectors, present: Present = None) -> Vectors:
        visible = seen_by_all(present)
        for block in self.blocks:
            x = block(x, visible, self.turns)
        return self.norm(x)


class Decoder(Turned):
    """Causal after its first `prefix` slots, which see each other.

    With `places` of its own slots, and `memory_places` of those it cross-attends to, positions are
    rotary. A slot is turned by the place that it predicts.
    """

    turns: Rotation | None
    memory_turns: Rotation | None

    def __init__(
        self,
        depth: int,
        shape: BlockShape,
        *,
        cross: bool,
        prefix: int,
        places: Places | None = None,
        memory_places: Places | None = None,
    ):
        super().__init__()
        self.shape, self.prefix = shape, prefix
        self.tile = TILE
        self.blocks = DecoderBlocks(DecoderBlock(shape, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.width)
        self.register_buffer("turns", turns_of(places, shape.head_width), persistent=False)
        self.register_buffer(
            "memory_turns", turns_of(memory_places, shape.head_width), persistent=False
        )

    def forward(
        self,
        x: Vectors,
        memory: Memory | None = None,
        memory_present: Present = None,
        prefix_present: Present = None,
    ) -> Vectors:
        visible = causal(x.shape[1], self.prefix, x.device)
        if prefix_present is not None:
            there = F.pad(prefix_present, (0, x.shape[1] - self.prefix), value=True)
            visible = visible & there[:, None, None]
        turns = None if self.turns is None else self.turns[:, : x.shape[1]]
        seen = seen_by_all(memory_present)
        for block in self.blocks:
            x = block(x, visible, memory, seen, turns, self.memory_turns)
        return self.norm(x)

    def cache(
        self,
        batch: int,
        slots: int,
        memory: Memory | None,
        memory_present: Present = None,
        prefix_present: Present = None,
    ) -> list["LayerCache"]:
        """Room for `slots` slots a row; the memory's keys and values, once."""
        weight, visible = self.norm.weight, seen_by_all(memory_present)
        visible = None if visible is None else as_bias(visible, weight.dtype)
        return [
            LayerCache(
                weight.new_zeros(2, batch, slots, self.shape.heads, self.shape.head_width),
                None
                if memory is None
                else block.cross.cached_keys_values(memory, self.memory_turns),
                visible,
                prefix_present,
            )
            for block in self.blocks
        ]

    def step(self, x: Vectors, slots: Int[Tensor, "b s"], cache: list["LayerCache"]) -> Vectors:
        """The outputs at `slots` (b, s) of each row, given their inputs; the cache knows the rest.

        Slots may differ from row to row. A slot sees those before it and the prefix, so whatever
        lies before must have been read earlier or be part of this step.
        """
        rows, last, window = self._below_the_last(x, slots, cache)
        rows = last.step(rows, cache[-1], window)
        return window.from_rows(self.norm(rows))

    def read(self, x: Vectors, slots: Int[Tensor, "b s"], cache: list["LayerCache"]) -> None:
        """As `step`, for slots whose outputs nobody wants: later slots will see them."""
        rows, last, window = self._below_the_last(x, slots, cache)
        last.read(rows, cache[-1], window)

    def _below_the_last(
        self, x: Vectors, slots: Int[Tensor, "b s"], cache: list["LayerCache"]
    ) -> tuple[Rows, DecoderBlock, "Window"]:
        """What enters the last block, that block, and the slots."""
        first = cache[0]
        shape = first.k.shape[1], self.prefix, first.prefix_present
        turns = None if self.turns is None else self.turns[:, slots]
        window = Window(slots, *shape, x.dtype, self.tile, turns)
        rows = window.to_rows(x)
        *below, last = self.blocks
        for block, layer in zip(below, cache[:-1], strict=True):
            rows = block.step(rows, layer, window)
        return rows, last, window


class LayerCache:
    """Keys and values of one layer: of the slots read so far, and of the encoder's memory if there
    is one."""

    memory_k: Keys
    memory_v: Keys

    def __init__(
        self,
        kv: Tensor,
        memory: tuple[Keys, Keys] | None,
        memory_visible: Float[Tensor, "b 1 1 m"] | None,
        prefix_present: Present,
    ):
        self.k, self.v = kv
        if memory is not None:
            self.memory_k, self.memory_v = memory
        self.memory_visible, self.prefix_present = memory_visible, prefix_present

    def keep(self, rows: Bool[Tensor, " b"]) -> None:
        """Forget the other rows."""
        for name, value in vars(self).items():
            if value is not None:
                setattr(self, name, value[rows])


class Window:
    """The slots of one step, and how they travel: as sequences to attention, as rows elsewhere.

    Plain views instead of einops: with a few rows a pass, patterns would take as long as products.
    """

    def __init__(
        self,
        slots: Int[Tensor, "b s"],
        total: int,
        prefix: int,
        prefix_present: Present,
        dtype: torch.dtype,
        tile: int,
        turns: Rotation | None,
    ):
        self.tile, self.turns = tile, turns
        self.batch, self.length = slots.shape
        self.here = torch.arange(self.batch, device=slots.device)[:, None], slots
        key = torch.arange(total, device=slots.device)
        seen = key <= slots[..., None]
        if prefix > 1:
            seen = seen | (key < prefix)
        visible = seen[:, None]
        if prefix_present is not None:
            there = F.pad(prefix_present, (0, total - prefix), value=True)
            visible = visible & there[:, None, None]
        self.visible = as_bias(visible, dtype)
        self.padding = -self.batch * self.length % tile

    def to_rows(self, x: Vectors) -> Rows:
        """(b, s, c) → (b·s, c), filled up to whole tiles."""
        rows = x.flatten(0, 1)
        return F.pad(rows, (0, 0, 0, self.padding)) if self.padding else rows

    def from_rows(self, rows: Rows) -> Vectors:
        return rows[: self.batch * self.length].unflatten(0, (self.batch, self.length))

    def heads(self, rows: Rows, parts: int, heads: int) -> tuple[Heads, ...]:
        """(b·s, parts·heads·d) → parts of (b, s, heads, d)."""
        return self.from_rows(rows).unflatten(-1, (parts, heads, -1)).unbind(2)


def attend_all(
    q: Float[Tensor, "b heads s d"],
    k: Float[Tensor, "b heads key d"],
    v: Float[Tensor, "b heads key d"],
    visible: Bool[Tensor, "*b #s key"] | None,
) -> Float[Tensor, "b heads s d"]:
    """softmax(q kᵀ / √d) v over whole sequences.

    A CPU that learns in bfloat16 is given plain products, two images at a time so that their
    scores stay in its caches: PyTorch's fused kernel takes two and a half times as long there.
    """
    if not (q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    bias = None if visible is None else as_bias(visible, q.dtype)
    pairs = [x.split(2) for x in (q * q.shape[-1] ** -0.5, k, v)]
    biases = bias.split(2) if bias is not None and bias.ndim == 4 else [bias] * len(pairs[0])
    parts = []
    for q, k, v, bias in zip(*pairs, biases, strict=True):
        scores = q @ k.transpose(-1, -2)
        parts.append((scores if bias is None else scores + bias).softmax(-1) @ v)
    return torch.cat(parts)


def attend(
    q: Heads, k: Keys, v: Keys, visible: Float[Tensor, "b 1 #s key"] | None, tile: int
) -> Vectors:
    """softmax(q kᵀ / √d + visible) v, `tile` queries at a time: each meets products of one shape.

    A matter of CPUs in float32; a GPU takes all queries at once.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    count = q.shape[2]
    if count == tile or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).flatten(2)
    short = 0, 0, 0, -count % tile
    q = F.pad(q, short)
    if visible is None or visible.shape[2] == 1:  # one mask for all queries
        masks = [visible] * (q.shape[2] // tile)
    else:
        masks = list(F.pad(visible, short).split(tile, dim=2))
    tiles = []
    for q_tile, mask in zip(q.split(tile, dim=2), masks, strict=True):
        tiles.append(F.scaled_dot_product_attention(q_tile, k, v, mask))
    return torch.cat(tiles, dim=2)[:, :, :count].transpose(1, 2).flatten(2)


def normalised(x: Heads) -> Heads:
    """Mean 0 and variance 1 over the last dimension."""
    return F.layer_norm(x, x.shape[-1:]).to(x.dtype)


def normal_parameter(*shape: int) -> nn.Parameter:
    """A table that begins as normal(0, 0.02), as all weights of a scale do."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=0.02))


def turns_of(places: Places | None, head_width: int) -> Rotation | None:
    """The turns of slots at these places; none where positions are not rotary.

    They are computed on the CPU: on the meta device such tables would load PyTorch's compiler.
    """
    if places is None:
        return None
    with torch.device("cpu"):
        turns = rotation(places, head_width)
    return turns.to(torch.get_default_device())


def seen_by_all(present: Present) -> Bool[Tensor, "b 1 1 _"] | None:
    """The slots that are there, as a mask for every head and query."""
    return None if present is None else rearrange(present, "b m -> b 1 1 m")


def as_bias(visible: Bool[Tensor, "*_"], dtype: torch.dtype) -> Float[Tensor, "*_"]:
    """What is added to scores: 0 where a slot is seen, -inf where it is not.

    Attention would make it of a mask in every layer; so it is made once a step.
    """
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)


def causal(length: int, prefix: int, device: torch.device) -> Bool[Tensor, "s s"]:
    """True where slot i (row) may see slot j (column): j <= i, or j in the prefix."""
    slot = torch.arange(length, device=device)
    return (slot <= slot[:, None]) | (slot < prefix)


def one_by_one(x: Tensor) -> tuple[Tensor, ...]:
    """Each image alone, so that it meets products of one shape; a GPU takes all at once."""
    return x.split(1) if x.device.type == "cpu" else (x,)


def in_tiles(layer: nn.Linear, rows: Rows, tile: int) -> Float[Tensor, "rows c_out"]:
    """layer(rows), `tile` rows at a time: every row meets a product of the same shape, or of more
    tiles that has been tried to give the same bits.

    A matter of CPUs in float32; a GPU takes all rows at once.
    """
    count = len(rows)
    if count == tile or rows.device.type != "cpu":
        return layer(rows)
    if count % tile:
        rows = F.pad(rows, (0, 0, 0, -count % tile))
    sizes = tile_sizes(layer, rows, tile)
    if len(sizes) == 1:
        return layer(rows)[:count]
    return torch.cat([layer(some) for some in rows.split(sizes)])[:count]


def tile_sizes(layer: nn.Linear, rows: Rows, tile: int) -> list[int]:
    """Into how many rows each product of a layer is split; in all, as many as there are."""
    sizes: list[int] = []
    left = len(rows)
    for size in (*(tiles * tile for tiles in TOGETHER), tile):
        if left >= size and (size == tile or rounds_alike(layer, rows, size, tile)):
            sizes += [size] * (left // size)
            left %= size
    return sizes
