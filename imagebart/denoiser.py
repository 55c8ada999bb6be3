"""Remember: one scale of the chain, p_θ^{t-1}(x_{t-1} | x_t).   [section 3.3]

t < T   an encoder reads all of x_t, a causal decoder writes x_{t-1} and cross-attends to it
t = T   x_T is pure noise and says nothing, so the decoder stands alone

p_θ^{t-1}(x_{t-1} | x_t) = Π_i p_θ(x_{t-1}^i | x_{t-1}^{<i}, x_t)
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from imagebart.conditions import (
    ABSENT,
    CONDITIONS,
    Condition,
    ConditionShape,
    TextVectors,
    TokenVectors,
    checked,
    pieces_of,
    split_condition,
)
from imagebart.decodable import Decodable
from imagebart.diffusion import MultinomialDiffusion
from imagebart.linear import Linear
from imagebart.notation import Bool, Float, Int, Logits, PerPosition, Tokens
from imagebart.rotary import Places, grid_places
from imagebart.transformer import (
    BlockShape,
    Decoder,
    Encoder,
    LayerCache,
    Present,
    Vectors,
    in_tiles,
    normal_parameter,
    one_by_one,
)

OUTPUTS = ("plain", "residual", "posterior")


@dataclass(frozen=True)
class DenoiserConfig:
    """The shape of one scale's transformer. The released models are rows of presets.py."""

    grid: tuple[int, int] = (16, 16)  # tokens (h, w) of a training image
    width: int = 256
    heads: int = 8
    head_width: int = 32  # heads · head_width need not equal the width
    encoder_depth: int = 6  # unused at t = T, unless the network is joint
    decoder_depth: int = 3
    bias: bool = False  # biases of queries, keys and values
    head_bias: bool = True  # bias of the output layer
    conditions: dict[str, ConditionShape] = field(default_factory=dict)  # by name; {}: none
    condition_dropout: bool = False  # trained to do without any of its conditions
    joint: bool = False  # one network for every scale, T included
    axial_positions: bool = True  # a row plus a column vector, not one vector a place
    rotary: bool = False  # positions turn queries and keys; no vectors then
    qk_norm: bool = False  # normalised queries and keys
    map_in_place: bool = False  # a map's vectors are added at their places, none stand before them
    output: str = "posterior"  # what the logits are built from, see `Denoiser.logits`

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))  # JSON gives a list back
        object.__setattr__(self, "conditions", checked(self.conditions, self.grid))
        if self.output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got {self.output!r}")
        if min(*self.grid, self.width, self.heads, self.head_width, self.decoder_depth) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if self.rotary and self.head_width % 4:
            raise ValueError(f"head_width must be a multiple of 4 to be rotary, got {self}")
        if self.map_in_place and not (self.joint and "map" in self.conditions):
            raise ValueError(f"map_in_place must be of a joint network with a map, got {self}")

    @property
    def n(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def before(self) -> dict[str, ConditionShape]:
        """The conditions whose vectors stand before the image's."""
        shapes = self.conditions
        return {name: shapes[name] for name in shapes if not (self.map_in_place and name == "map")}


class Denoiser(nn.Module, Decodable):
    """p_θ^{t-1}: tokens of scale t-1 given those of scale t, one after another.

    A joint network (the ablation of section 4.4) is one set of weights for all t, and `at(t)` is
    the same network at scale t. It has an encoder at T too, whose input begins with a start vector
    for each scale. A vector of the scale is added to the decoder's input at every position: how
    reliable x_t is depends on the scale, and no position needs attention to find it out.
    """

    def __init__(self, config: DenoiserConfig, diffusion: MultinomialDiffusion, t: int):
        super().__init__()
        if not 2 <= t <= diffusion.T:
            raise ValueError(f"t must lie in [2, {diffusion.T}], got {t}")
        self.config, self.diffusion = config, diffusion
        self.n, self.K, self.t = config.n, diffusion.K, t
        K, width = diffusion.K, config.width
        shape = BlockShape(width, config.heads, config.head_width, config.bias, config.qk_norm)
        self.sees_x_t = t < diffusion.T or config.joint
        scales = (diffusion.T - 1,) if config.joint else ()
        if self.sees_x_t:
            self.noisy_tokens = nn.Embedding(K, width)
            self.noisy_positions = positions(config)
            self.encoder_prefix = Prefix(config, scales)
            self.encoder = Encoder(config.encoder_depth, shape, places=encoder_places(config))
        self.map_vectors = map_vectors(config) if config.map_in_place else None
        self.next_map_vectors = map_vectors(config) if config.map_in_place else None
        self.tokens = nn.Embedding(K, width)
        self.positions = positions(config)
        self.prefix = Prefix(config) if not self.sees_x_t else Start(width)
        self.decoder = Decoder(
            config.decoder_depth,
            shape,
            cross=self.sees_x_t,
            prefix=self.prefix.length,
            places=decoder_places(config, self.sees_x_t),
            memory_places=encoder_places(config) if self.sees_x_t else None,
        )
        self.scale_vectors = nn.Parameter(torch.zeros(*scales, width)) if config.joint else None
        self.head = Linear(width, K, bias=config.head_bias)
        self.log_gain = nn.Parameter(torch.zeros(scales)) if config.output == "residual" else None
        self.apply(_initialise)

    def know_text(self, ids: Int[Tensor, "b m"]) -> None:
        """Give the pieces of these texts vectors of their own, where they have none yet; pieces
        without one are not attended to."""
        pieces = pieces_of(ids)
        for module in self.modules():
            if isinstance(module, TextVectors):
                module.know(pieces)

    @property
    def text_rows(self) -> Int[Tensor, " pieces"]:
        """Row of each piece of text in this denoiser's table, `ABSENT` if it knows it not."""
        (text,) = (one for one in self.modules() if isinstance(one, TextVectors))
        return text.row

    def at(self, t: int) -> "Denoiser":
        """The denoiser of scale t: a joint network serves all with the same weights."""
        if t == self.t:
            return self
        if not self.config.joint:
            raise ValueError(f"only a joint network serves every scale, got one of t = {self.t}")
        if not 2 <= t <= self.diffusion.T:
            raise ValueError(f"t must lie in [2, {self.diffusion.T}], got {t}")
        same = copy.copy(self)  # shallow: parameters are shared
        same.t = t
        return same

    def forward(
        self, x_prev: Tokens, x_t: Tokens | None, condition: Condition | None = None
    ) -> Logits:
        """Teacher-forced logits b×n×K: position i sees x_{t-1}^{<i}, all of x_t, the condition.

        Their softmax are the factors of p(x_{t-1} | x_t) = Π_i p(x_{t-1}^i | x_{t-1}^{<i}, x_t),
        at t = T those of p(x) = Π_i p(x_i | x_{<i}).   [eq. 1]

        `condition` holds the tokens (b, m) of all conditions, (b,) if a class is the only one.
        x_t is ignored at t = T, unless the network is a joint one.
        """
        return self.logits(self.head(self.features(x_prev, x_t, condition)), x_t)

    def loss(
        self, x_prev: Tokens, x_t: Tokens, x_1: Tokens, condition: Condition | None = None
    ) -> PerPosition:
        """L_t of every token, in nats; arguments as `forward`.

        A CPU takes its logits two images at a time: b×n×K numbers would not stay in its caches.
        """
        hidden = self.features(x_prev, x_t, condition)
        few = 2 if hidden.device.type == "cpu" else len(hidden)
        losses = []
        for h, now, image in zip(hidden.split(few), x_t.split(few), x_1.split(few), strict=True):
            losses.append(self.diffusion.loss_t(self.logits(self.head(h), now), now, image, self.t))
        return torch.cat(losses)

    def features(self, x_prev: Tokens, x_t: Tokens | None, condition: Condition | None) -> Vectors:
        """What the output layer reads, b×n×c; arguments as `forward`."""
        memory, memory_present = self.encode(x_t, condition)
        prefix, present = self.decoder_prefix(len(x_prev), condition)
        x = torch.cat([prefix, self.tokens(x_prev[:, :-1])], dim=1)
        at = F.pad(self.places_of(condition), (0, 0, self.prefix.length - 1, 0))
        hidden = self.decoder(x + at, memory, memory_present, present)
        return hidden[:, self.prefix.length - 1 :]

    # ── the encoder ───────────────────────────────────────────────────────────────────────────

    def encode(
        self, x_t: Tokens | None, condition: Condition | None
    ) -> tuple[Vectors | None, Present]:
        """What the decoder cross-attends to, prefix and x_t read in both directions, and which of
        its slots are there."""
        if not self.sees_x_t:
            return None, None
        if x_t is None:
            raise ValueError(f"x_t must be given to the denoiser of t = {self.t}, got None")
        prefix, present = self.encoder_prefix(len(x_t), self._checked(condition), self.t)
        x = self.noisy_tokens(x_t) + self.noisy_positions()
        if self.map_vectors is not None:
            x = x + self.map_vectors(self._kinds(condition))
        present = None if present is None else F.pad(present, (0, self.n), value=True)
        return self.encoder(torch.cat([prefix, x], dim=1), present), present

    # ── the decoder, a few positions at a time ────────────────────────────────────────────────

    def start(self, x_t: Tokens, condition: Condition | None = None) -> "Decoding":
        """Everything that is computed once a scale: memory, its keys and values, the prefix.

        Each image goes through alone, so that its numbers do not depend on its neighbours.
        """
        batch, memory = len(x_t), self._memory_of_each(x_t, condition)
        prefix, present = self.decoder_prefix(batch, condition)
        cache = self.decoder.cache(batch, self.prefix.length + self.n - 1, *memory, present)
        positions = self.places_of(condition).expand(batch, -1, -1)
        if self.prefix.length > 1:
            slots = torch.arange(self.prefix.length, device=prefix.device)
            at = F.pad(positions[:, :1], (0, 0, self.prefix.length - 1, 0))
            self.decoder.read(prefix + at, repeat(slots, "s -> b s", b=batch), cache)
        return Decoding(cache, prefix[:, -1:], positions, x_t)

    def step(
        self, x_prev: Tokens, at: Int[Tensor, "b s"], state: "Decoding"
    ) -> Float[Tensor, "b s K"]:
        """As `Decodable.step`."""
        return self.logits(self.predict(x_prev, at, state), state.x_t.gather(1, at))

    def predict(
        self, x_prev: Tokens, at: Int[Tensor, "b s"], state: "Decoding"
    ) -> Float[Tensor, "b s K"]:
        """The network's output f of a `step`, which `logits` makes logits of."""
        hidden = self.decoder.step(*self._inputs(x_prev, at, state), state.cache)
        f = in_tiles(self.head, rearrange(hidden, "b s c -> (b s) c"), self.decoder.tile)
        return rearrange(f, "(b s) K -> b s K", b=len(at)).float()

    def read(self, x_prev: Tokens, end: int, state: "Decoding") -> None:
        """As `Decodable.read`."""
        if end:
            at = repeat(torch.arange(end, device=x_prev.device), "s -> b s", b=len(x_prev))
            self.decoder.read(*self._inputs(x_prev, at, state), state.cache)

    def keep(self, rows: Bool[Tensor, " b"], state: "Decoding") -> None:
        """As `Decodable.keep`."""
        for layer in state.cache:
            layer.keep(rows)
        state.first = state.first[rows]
        state.positions = state.positions[rows]
        state.x_t = state.x_t[rows]

    def _inputs(
        self, x_prev: Tokens, at: Int[Tensor, "b s"], state: "Decoding"
    ) -> tuple[Vectors, Int[Tensor, "b s"]]:
        """What the decoder reads at positions `at`, and its slots for them."""
        before = x_prev.gather(1, (at - 1).clamp(min=0))
        x = torch.where(at[..., None] == 0, state.first, self.tokens(before))
        x = x + state.positions.gather(1, repeat(at, "b s -> b s c", c=x.shape[-1]))
        return x, at + self.prefix.length - 1

    # ── from features to logits ───────────────────────────────────────────────────────────────

    def logits(self, f: Logits, x_t: Tokens | None) -> Logits:
        """The network's output f as logits of x_{t-1}; float32.

        plain       f
        residual    exp(s)·f + log q(x_t | x_{t-1}),  s learned           (the released models)
        posterior   log( ᾱ_{t-1}·softmax(f) + (1-ᾱ_{t-1})/K ) + log q(x_t | x_{t-1})

        The last is ours: f predicts x_1, and the noise that x_{t-1} carries, which is known,
        is not left to the network.
        """
        f = f.float()
        output, diffusion, t = self.config.output, self.diffusion, self.t
        if output == "plain":
            return f
        if self.log_gain is not None:  # residual
            gain = self.log_gain[t - 2] if self.config.joint else self.log_gain
            f = gain.exp() * f
        elif t > 2:
            alpha_bar = float(diffusion.alpha_bar[t - 1])
            f = (alpha_bar * f.softmax(-1) + (1 - alpha_bar) / self.K).log()
        if not self.sees_x_t or x_t is None:
            return f
        return f + diffusion.log_likelihood(x_t, t).to(f.dtype)

    @property
    def adds_noise(self) -> bool:
        """Whether `logits` adds the noise of x_{t-1} to f, which is a prediction of x_1 then."""
        return self.config.output == "posterior" and self.t > 2

    def initialise_from_codebook(
        self, codes: Float[Tensor, "K c"], generator: torch.Generator | None = None
    ) -> None:
        """Start token embeddings as a random projection of the codes, so that near codes start
        near; a little better than random vectors after short trainings."""
        codes = F.normalize(codes - codes.mean(0), dim=1)
        mix = torch.randn(codes.shape[1], self.config.width, generator=generator)
        start = 0.02 * codes.cpu() @ mix
        tables = [self.tokens] + ([self.noisy_tokens] if self.sees_x_t else [])
        for table in tables:
            table.weight.data.copy_(start)

    # ── helpers ───────────────────────────────────────────────────────────────────────────────

    def places_of(self, condition: Condition | None) -> Float[Tensor, "*b n c"]:
        """What is added to the decoder's input: where the next token lies; of a joint network the
        scale; and what a map in place shows there. `encode` has checked the condition."""
        places = self.positions()[None]
        if self.scale_vectors is not None:
            places = places + self.scale_vectors[self.t - 2]
        if self.next_map_vectors is None:
            return places
        return places + self.next_map_vectors(self._kinds(condition))

    def _kinds(self, condition: Condition | None) -> Int[Tensor, "b n"]:
        """Rows of `map_vectors` for the map of each place; the condition has been checked."""
        assert condition is not None  # a denoiser with a map is always given tokens, maybe `ABSENT`
        return split_condition(condition, self.config.conditions)["map"] - ABSENT

    def decoder_prefix(self, batch: int, condition: Condition | None) -> tuple[Vectors, Present]:
        return self.prefix(batch, None if self.sees_x_t else self._checked(condition))

    def _memory_of_each(
        self, x_t: Tokens, condition: Condition | None
    ) -> tuple[Vectors | None, Present]:
        """What the encoder gives; on a CPU, rows that are equal to the one before share it."""
        if not self.sees_x_t:
            return None, None
        images = one_by_one(x_t)
        conditions = [None] * len(images) if condition is None else one_by_one(condition)
        each: list[tuple] = []
        before = None
        for image, said in zip(images, conditions, strict=True):
            row = image if said is None else torch.cat([image, said.reshape(len(said), -1)], dim=1)
            is_new = before is None or not torch.equal(row, before)
            each.append(self.encode(image, said) if is_new else each[-1])
            before = row
        memory, present = zip(*each, strict=True)
        return torch.cat(memory), None if present[0] is None else torch.cat(present)

    def _checked(self, condition: Condition | None) -> Int[Tensor, "b m"] | None:
        """The condition as tokens (b, m), each part within its vocabulary or absent."""
        shapes = self.config.conditions
        if not shapes:
            if condition is not None:
                raise ValueError(f"this denoiser takes no condition, got {condition}")
            return None
        wanted = " and ".join(f"{name} of length {one.length}" for name, one in shapes.items())
        if condition is None:
            raise ValueError(f"this denoiser takes {wanted}, got {condition}")
        tokens = condition[:, None] if condition.ndim == 1 else condition.flatten(1)
        if tokens.shape[1] != sum(shape.length for shape in shapes.values()):
            raise ValueError(f"this denoiser takes {wanted}, got {tuple(condition.shape)}")
        if not (self.training and tokens.is_cuda):  # a look at them would hold up every step
            self.require_known(tokens)
        return tokens

    def require_known(self, tokens: Int[Tensor, "b m"]) -> None:
        """ValueError unless each part of a condition lies within its vocabulary, or is absent where
        this denoiser learned without it. On a GPU whoever trains has looked before."""
        if not len(tokens):
            return
        for name, part in split_condition(tokens, self.config.conditions).items():
            count = self.config.conditions[name].vocabulary
            low, high = int(part.min()), int(part.max())
            if low < ABSENT or high >= count:
                raise ValueError(f"{name} must lie in [0, {count}), got {low} to {high}")
            if not self.config.condition_dropout and (part == ABSENT).all(1).any():
                raise ValueError(f"this denoiser was trained to have {name} always, got none")


@dataclass
class Decoding:
    """One scale being decoded: caches, the first input, a vector for each place, and x_t."""

    cache: list[LayerCache]
    first: Vectors
    positions: Float[Tensor, "b n c"]
    x_t: Tokens


class Start(nn.Module):
    """One learned vector that begins the sequence; a joint network has one for each scale."""

    length = 1

    def __init__(self, width: int, scales: tuple[int, ...] = ()):
        super().__init__()
        self.vector = normal_parameter(*scales, width)

    def forward(
        self, batch: int, condition: None = None, t: int | None = None
    ) -> tuple[Vectors, Present]:
        """The vectors, and which of them are there."""
        vector = self.vector if t is None or self.vector.ndim == 1 else self.vector[t - 2]
        return repeat(vector, "c -> b 1 c", b=batch), None


class Prefix(Start):
    """The condition's vectors, one a token, and the start vector.

    An absent token has a slot too, which is not attended to. The first token is drawn from the last
    slot, which must be present: that is the start vector's, except where a class is always given,
    which stands last as in the released models.
    """

    def __init__(self, config: DenoiserConfig, scales: tuple[int, ...] = ()):
        super().__init__(config.width, scales)
        self.every, self.shapes = config.conditions, config.before
        self.length = 1 + sum(shape.length for shape in self.shapes.values())
        self.start_first = list(self.shapes) == ["class"] and not config.condition_dropout
        for name, shape in self.shapes.items():
            kind = CONDITIONS[name]
            placed_by_rotation = kind.spatial and config.rotary
            embed = TokenVectors if placed_by_rotation else kind.embed
            self.add_module(kind.weights, embed(shape, config.width))

    def forward(
        self, batch: int, condition: Int[Tensor, "b m"] | None = None, t: int | None = None
    ) -> tuple[Vectors, Present]:
        start, _ = super().forward(batch, t=t)
        if condition is None or not self.shapes:
            return start, None
        parts = split_condition(condition, self.every)
        embedded = [
            self.get_submodule(CONDITIONS[name].weights)(parts[name]) for name in self.shapes
        ]
        vectors, present = zip(*embedded, strict=True)
        front = int(self.start_first)
        slots = [start, *vectors] if front else [*vectors, start]
        given = torch.cat(present, dim=1)
        return torch.cat(slots, dim=1), F.pad(given, (front, 1 - front), value=True)


def map_vectors(config: DenoiserConfig) -> nn.Embedding:
    """A vector for an open place, `ABSENT`, and one for each kind of a map."""
    return nn.Embedding(1 + config.conditions["map"].vocabulary, config.width)


class LearnedPositions(nn.Module):
    """One vector a place."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.table = normal_parameter(config.n, config.width)

    def forward(self) -> Float[Tensor, "n c"]:
        return self.table


class AxialPositions(nn.Module):
    """A vector for the row plus one for the column."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        h, w = config.grid
        self.rows = normal_parameter(h, config.width)
        self.columns = normal_parameter(w, config.width)

    def forward(self) -> Float[Tensor, "n c"]:
        return rearrange(self.rows[:, None] + self.columns, "h w c -> (h w) c")


class RotaryPositions(nn.Module):
    """Nothing is added: places turn queries and keys instead (rotary.py)."""

    nothing: Float[Tensor, ""]

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.shape = config.n, config.width
        self.register_buffer("nothing", torch.zeros(()), persistent=False)

    def forward(self) -> Float[Tensor, "n c"]:
        return self.nothing.expand(self.shape)


def positions(config: DenoiserConfig) -> nn.Module:
    """Positions are those of the token to be predicted (decoder) or read (encoder)."""
    if config.rotary:
        return RotaryPositions(config)
    return AxialPositions(config) if config.axial_positions else LearnedPositions(config)


def encoder_places(config: DenoiserConfig) -> Places | None:
    """Where the encoder's slots lie, if positions are rotary: the condition's, the start, x_t's."""
    if not config.rotary:
        return None
    with torch.device("cpu"):  # as `turns_of`
        start = torch.zeros(1, 2, dtype=torch.int64)
        return torch.cat([condition_places(config), start, grid_places(config.grid)])


def decoder_places(config: DenoiserConfig, sees_x_t: bool) -> Places | None:
    """Where the tokens lie that the decoder's slots predict, if positions are rotary.

    Without an encoder the condition stands before them.
    """
    if not config.rotary:
        return None
    with torch.device("cpu"):  # as `turns_of`
        before = [] if sees_x_t else [condition_places(config)]
        return torch.cat([*before, grid_places(config.grid)])


def condition_places(config: DenoiserConfig) -> Places:
    """A map lies on the grid; a class and a text lie nowhere and are not turned."""
    parts = [
        grid_places(config.grid)
        if CONDITIONS[name].spatial
        else torch.zeros(shape.length, 2, dtype=torch.int64)
        for name, shape in config.before.items()
    ]
    return torch.cat([torch.zeros(0, 2, dtype=torch.int64), *parts])


def _initialise(module: nn.Module) -> None:
    """Weights normal(0, 0.02), biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
