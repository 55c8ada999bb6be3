"""Transformer parts: attention, blocks, and the caches that make decoding cheap.   [section 3.3]

Everything is pre-norm. Two ways through a decoder give the same numbers: `Decoder.forward` reads
a whole sequence at once (training, likelihood); `Decoder.step` reads a few slots of it and takes
the rest from a `Cache` (sampling).

Rounding: a float32 product of few rows is not summed in the order of a product of many, so a token
decoded alone could differ from the same token decoded in a batch. `step` therefore sends its rows
through every layer in tiles of one fixed size. Equal seeds then give equal tokens, whatever comes
along in the same pass: by construction, not by tolerance.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagebart.notation import Bool, Float, Int

TILE = 16
"""Rows that go through a layer together while decoding."""

Sequence = Float[Tensor, "b s c"]
Memory = Float[Tensor, "b m c"]
Heads = Float[Tensor, "b s heads d"]
Keys = Float[Tensor, "b key heads d"]
Rows = Float[Tensor, "rows c"]
Present = Bool[Tensor, "b _"] | None
"""Which slots of each row are there; None: all. A slot that is not there is seen by none."""


class SelfAttention(nn.Module):
    """softmax(q kᵀ / √d) v over the sequence itself."""

    def __init__(self, width: int, heads: int, head_width: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=bias)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Sequence, visible: Bool[Tensor, "*b #s s"] | None = None) -> Sequence:
        q, k, v = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.heads)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.out(rearrange(a, "b h s d -> b s (h d)"))

    def step(self, rows: Rows, cache: "LayerCache", window: "Window") -> Rows:
        q, cache.k[window.here], cache.v[window.here] = window.heads(
            in_tiles(self.qkv, rows), 3, self.heads
        )
        a = attend(q, cache.k, cache.v, window.visible)
        return in_tiles(self.out, window.to_rows(a))


class CrossAttention(nn.Module):
    """softmax(q kᵀ / √d) v with keys and values from the encoder's output."""

    def __init__(self, width: int, heads: int, head_width: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, heads * head_width, bias=bias)
        self.kv = nn.Linear(width, 2 * heads * head_width, bias=bias)
        self.out = nn.Linear(heads * head_width, width)

    def forward(
        self, x: Sequence, memory: Memory, visible: Bool[Tensor, "b 1 1 m"] | None
    ) -> Sequence:
        q = rearrange(self.q(x), "b s (h d) -> b h s d", h=self.heads)
        k, v = rearrange(self.kv(memory), "b s (two h d) -> two b h s d", two=2, h=self.heads)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.out(rearrange(a, "b h s d -> b s (h d)"))

    def cached_keys_values(self, memory: Memory) -> tuple[Keys, Keys]:
        """In tiles: an image's do not depend on how many others there are."""
        rows = in_tiles(self.kv, rearrange(memory, "b m c -> (b m) c"))
        b, heads = len(memory), self.heads
        k, v = rearrange(rows, "(b m) (two h d) -> two b m h d", b=b, two=2, h=heads)
        return k, v

    def step(self, rows: Rows, cache: "LayerCache", window: "Window") -> Rows:
        (q,) = window.heads(in_tiles(self.q, rows), 1, self.heads)
        a = attend(q, cache.memory_k, cache.memory_v, cache.memory_visible)
        return in_tiles(self.out, window.to_rows(a))


class MLP(nn.Module):
    """Linear, GELU, Linear; four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Sequence) -> Sequence:
        return self.down(F.gelu(self.up(x)))

    def step(self, rows: Rows) -> Rows:
        return in_tiles(self.down, F.gelu(in_tiles(self.up, rows)))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, head_width: int, bias: bool):
        super().__init__()
        self.norm1, self.attention = (
            nn.LayerNorm(width),
            SelfAttention(width, heads, head_width, bias),
        )
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Sequence, visible: Bool[Tensor, "b 1 1 s"] | None) -> Sequence:
        x = x + self.attention(self.norm1(x), visible)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention if there is an encoder, MLP."""

    def __init__(self, width: int, heads: int, head_width: int, bias: bool, cross: bool):
        super().__init__()
        shape = width, heads, head_width, bias
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(*shape)
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.cross = CrossAttention(*shape) if cross else None
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(
        self,
        x: Sequence,
        visible: Bool[Tensor, "*b s s"],
        memory: Memory | None,
        memory_visible: Bool[Tensor, "b 1 1 m"] | None,
    ) -> Sequence:
        x = x + self.attention(self.norm1(x), visible)
        if self.cross is not None:
            x = x + self.cross(self.norm_cross(x), memory, memory_visible)
        return x + self.mlp(self.norm2(x))

    def step(self, rows: Rows, cache: "LayerCache", window: "Window") -> Rows:
        rows = rows + self.attention.step(self.norm1(rows), cache, window)
        if self.cross is not None:
            rows = rows + self.cross.step(self.norm_cross(rows), cache, window)
        return rows + self.mlp.step(self.norm2(rows))


class Encoder(nn.Module):
    """Bidirectional: every slot sees every slot."""

    def __init__(self, depth: int, width: int, heads: int, head_width: int, bias: bool):
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, head_width, bias) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Sequence, present: Present = None) -> Sequence:
        visible = seen_by_all(present)
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)


class Decoder(nn.Module):
    """Causal after its first `prefix` slots, which see each other."""

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        head_width: int,
        bias: bool,
        cross: bool,
        prefix: int,
    ):
        super().__init__()
        self.heads, self.head_width, self.prefix = heads, head_width, prefix
        self.blocks = nn.ModuleList(
            DecoderBlock(width, heads, head_width, bias, cross) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Sequence,
        memory: Memory | None = None,
        memory_present: Present = None,
        prefix_present: Present = None,
    ) -> Sequence:
        visible = causal(x.shape[1], self.prefix, x.device)
        if prefix_present is not None:
            there = F.pad(prefix_present, (0, x.shape[1] - self.prefix), value=True)
            visible = visible & seen_by_all(there)
        for block in self.blocks:
            x = block(x, visible, memory, seen_by_all(memory_present))
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
                weight.new_zeros(2, batch, slots, self.heads, self.head_width),
                None if memory is None else block.cross.cached_keys_values(memory),
                visible,
                prefix_present,
            )
            for block in self.blocks
        ]

    def step(self, x: Sequence, slots: Int[Tensor, "b s"], cache: list["LayerCache"]) -> Sequence:
        """The outputs at `slots` (b, s) of each row, given their inputs; the cache knows the rest.

        Slots may differ from row to row. A slot sees those before it and the prefix, so whatever
        lies before must have been read earlier or be part of this step.
        """
        first = cache[0]
        window = Window(slots, first.k.shape[1], self.prefix, first.prefix_present, x.dtype)
        rows = window.to_rows(x)
        for block, layer in zip(self.blocks, cache, strict=True):
            rows = block.step(rows, layer, window)
        return window.from_rows(self.norm(rows))


class LayerCache:
    """Keys and values of one layer: of the slots read so far, and of the encoder's memory."""

    def __init__(
        self,
        kv: Tensor,
        memory: tuple[Keys, Keys] | None,
        memory_visible: Float[Tensor, "b 1 1 m"] | None,
        prefix_present: Present,
    ):
        self.k, self.v = kv
        self.memory_k, self.memory_v = memory if memory is not None else (None, None)
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
    ):
        self.batch, self.length = slots.shape
        self.here = torch.arange(self.batch, device=slots.device)[:, None], slots
        key = torch.arange(total, device=slots.device)
        seen = key <= slots[..., None]
        if prefix > 1:
            seen = seen | (key < prefix)
        visible = seen[:, None]
        if prefix_present is not None:
            there = F.pad(prefix_present, (0, total - prefix), value=True)
            visible = visible & seen_by_all(there)
        self.visible = as_bias(visible, dtype)
        self.padding = -self.batch * self.length % TILE

    def to_rows(self, x: Sequence) -> Rows:
        """(b, s, c) → (b·s, c), filled up to whole tiles."""
        rows = x.flatten(0, 1)
        return F.pad(rows, (0, 0, 0, self.padding)) if self.padding else rows

    def from_rows(self, rows: Rows) -> Sequence:
        return rows[: self.batch * self.length].unflatten(0, (self.batch, self.length))

    def heads(self, rows: Rows, parts: int, heads: int) -> tuple[Heads, ...]:
        """(b·s, parts·heads·d) → parts of (b, s, heads, d)."""
        return self.from_rows(rows).unflatten(-1, (parts, heads, -1)).unbind(2)


def attend(q: Heads, k: Keys, v: Keys, visible: Float[Tensor, "b 1 #s key"] | None) -> Sequence:
    """softmax(q kᵀ / √d + visible) v, `TILE` queries at a time: each meets products of one shape.

    A matter of CPUs in float32; a GPU takes all queries at once.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).flatten(2)
    count = q.shape[2]
    short = 0, 0, 0, -count % TILE
    q = F.pad(q, short)
    each = visible is not None and visible.shape[2] > 1  # a mask for every query, not one for all
    visible = F.pad(visible, short) if each else visible
    tiles = []
    for first in range(0, count, TILE):
        here = slice(first, first + TILE)
        mask = visible[:, :, here] if each else visible
        tiles.append(F.scaled_dot_product_attention(q[:, :, here], k, v, mask))
    return torch.cat(tiles, dim=2)[:, :, :count].transpose(1, 2).flatten(2)


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


def in_tiles(layer: nn.Linear, rows: Rows) -> Float[Tensor, "rows c_out"]:
    """layer(rows), `TILE` rows at a time: every row meets a product of the same shape.

    A matter of CPUs in float32; a GPU takes all rows at once.
    """
    count = len(rows)
    if count == TILE or rows.device.type != "cpu":
        return layer(rows)
    if count % TILE:
        rows = F.pad(rows, (0, 0, 0, -count % TILE))
    return torch.cat([layer(tile) for tile in rows.split(TILE)])[:count]
