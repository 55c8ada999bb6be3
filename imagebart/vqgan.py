"""Compress: the VQGAN, image x_0 ↔ tokens x_1.   [section 3.2]

    encode   x_0 → z = E(x_0) → x_1 = nearest codes (quantiser.py)
    decode   x_1 → z_q = codebook[x_1] → G(z_q) ≈ x_0

One configuration spans the published f = 16 models and small ones for a laptop: `patch` folds
p×p pixels into channels before the first convolution, which is where small models save time;
`pixel_channels` gives the decoder a stage at full resolution, where patches would show;
`extra_decoder_blocks` makes its levels deeper; with `known_channels` what it paints is made to fit
known pixels (known_pixels.py). All three start at zero output, so that they can be added to a
trained decoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagebart.arguments import as_int
from imagebart.known_pixels import Known, KnownPixels, TwoConvs, conv, doubled
from imagebart.notation import Float, Grid, Images, Latents
from imagebart.quantiser import QUANTISERS

FeatureMaps = Float[Tensor, "b _ _ _"]
"""Feature maps, where a layer may change their number and size."""


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a VQGAN; the default is the published f = 16 model with 1024 codes."""

    image_size: int = 256  # pixels a side that it was trained at; other sizes work too
    K: int = 1024  # codes in the codebook
    embed_dim: int = 256  # width of a code
    z_channels: int = 256  # width of the encoder's output
    channels: int = 128  # width of the finest level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level, fine to coarse
    blocks: int = 2  # residual blocks a level (the decoder has one more)
    attention_levels: tuple[int, ...] = (4,)  # levels with self-attention, 0 = finest
    mid_attention: bool = True  # self-attention between the two middle blocks
    patch: int = 1  # pixels a side folded into channels first
    pixel_channels: int = 0  # width of the decoder's full-resolution stage; 0 = none
    extra_decoder_blocks: int = 0  # further residual blocks of every level of the decoder
    known_channels: int = (
        0  # finest width of what fits a painting to known pixels; 0: there is none
    )
    quantiser: str = "vector"  # a row of quantiser.QUANTISERS
    commitment: float = 0.25  # weight of the encoder's pull towards its code

    def __post_init__(self):
        for name in ("multipliers", "attention_levels"):  # JSON gives lists back
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("image_size", "K", "embed_dim", "z_channels", "channels", "blocks", "patch"):
            as_int(getattr(self, name), name, 1)
        for name in ("pixel_channels", "extra_decoder_blocks", "known_channels"):
            as_int(getattr(self, name), name)
        if self.channels % 32:
            raise ValueError(f"channels must be a multiple of 32, got {self.channels}")
        if not self.multipliers:
            raise ValueError("multipliers must be at least one, got none")
        for each in self.multipliers:
            as_int(each, "multipliers", 1)
        if self.pixel_channels and self.patch & (self.patch - 1):
            raise ValueError(
                f"patch must be a power of 2 where pixel_channels is not 0, got {self.patch}"
            )
        if self.quantiser not in QUANTISERS:
            raise ValueError(
                f"quantiser must be one of {tuple(QUANTISERS)}, got {self.quantiser!r}"
            )
        if self.image_size % self.f:
            raise ValueError(f"image_size must be a multiple of {self.f}, got {self.image_size}")
        if any(not 0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels must lie in [0, {len(self.multipliers)}), "
                f"got {self.attention_levels}"
            )

    @property
    def f(self) -> int:
        """Pixels a side that one token stands for."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (h, w) of an image of the training size."""
        return self.image_size // self.f, self.image_size // self.f


class VQGAN(nn.Module):
    """x_0 ↔ x_1: an encoder, a quantiser and a decoder."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        quantiser = QUANTISERS[config.quantiser]
        self.quantiser = quantiser(config.K, config.embed_dim, config.commitment)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        self.known = KnownPixels(config.known_channels) if config.known_channels else None

    @property
    def K(self) -> int:
        return self.quantiser.K

    @property
    def f(self) -> int:
        return self.config.f

    def encode(self, image: Images) -> Grid:
        """x_1 = E(x_0): the tokens of images, int64 (b, H/f, W/f).

        Raises ValueError if a side is not a multiple of f.
        """
        return self.quantiser.encode(self.latents(image))

    def decode(self, grid: Grid, known: Known | None = None) -> Images:
        """G(x_1): the images that tokens stand for, about [-1, 1], not clamped.

        They are made to fit the `known` pixels of these images, if this VQGAN has learned to.
        """
        painted = self.generate(self.quantiser.lookup(grid))
        return painted if known is None or self.known is None else self.known(painted, known)

    def latents(self, image: Images) -> Latents:
        """z: the encoder's output, before it is quantised."""
        *_, H, W = image.shape
        if H % self.f or W % self.f or not H or not W:
            raise ValueError(f"image sides must be multiples of f = {self.f}, got {H}×{W}")
        image = image.to(self.quant_conv.weight.dtype)
        return self.quant_conv(self.encoder(image))

    def generate(self, z_q: Latents) -> Images:
        return self.decoder(self.post_quant_conv(z_q))

    def forward(self, image: Images, quantise: bool = True) -> tuple[Images, Tensor, Grid]:
        """Reconstruction, codebook loss and codes, differentiable: what training needs.

        Without `quantise` latents go to the decoder as they are. A run that begins so, as a plain
        autoencoder, learns what to encode before it has to be said in K codes; quantised from the
        start, latents collapse to the two or three directions that codes already tell apart.
        """
        z = self.latents(image)
        z_q, loss, code = self.quantiser(z)
        return self.generate(z_q if quantise else z), loss if quantise else 0 * loss, code

    def last_layer(self) -> Tensor:
        """The weight at which the adversarial term is balanced (see perceptual.py): the last that
        learns."""
        finest = (self.decoder.finish or self.decoder).conv_out.weight
        if self.known is None or finest.requires_grad:
            return finest
        return self.known.conv_out.weight

    def shrink_as(self, tensors: dict[str, Tensor]) -> None:
        """Shrink the quantiser as it was in the VQGAN whose state dict this is."""
        start = "quantiser."
        own = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
        self.quantiser.shrink_as(own)

    def shrunk_as(self, shapes: dict[str, tuple[int, ...]]) -> "VQGAN":
        """Itself, whose quantiser has room for the tables of tokens that a file of these shapes
        has."""
        count = shapes.get("quantiser.used")
        if count:
            self.quantiser.make_room(count[0])
        return self

    def hold_tokens(self) -> None:
        """Freeze encoder and quantiser: tokens stay as they are, and only the decoder learns."""
        for part in (self.encoder, self.quant_conv, self.quantiser):
            part.requires_grad_(False)

    def hold_known(self) -> None:
        """Freeze what fits paintings to known pixels, which plain images do not teach."""
        if self.known is not None:
            self.known.requires_grad_(False)

    def hold_all_but_known(self) -> None:
        """Freeze all but what fits paintings to known pixels, which must be there."""
        if self.known is None:
            raise ValueError("known_channels must be at least 1 to learn from known pixels, got 0")
        self.requires_grad_(False)
        self.known.requires_grad_(True)


class Encoder(nn.Module):
    """E: residual levels, each but the last halving the sides."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch
        self.conv_in = conv(3 * config.patch**2, config.channels)
        self.levels = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            attend, last = level in config.attention_levels, level == len(widths) - 1
            after = nn.Identity() if last else Downsample(out)
            self.levels.append(Level(width, out, config.blocks, attend, after))
            width = out
        self.mid = middle(width, config.mid_attention)
        self.norm_out = norm(width)
        self.conv_out = conv(width, config.z_channels)

    def forward(self, image: Images) -> Latents:
        h = self.conv_in(F.pixel_unshuffle(image, self.patch))
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """G: the encoder's mirror, with one more block a level."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        width = widths[-1]
        self.patch = config.patch
        self.conv_in = conv(config.z_channels, width)
        self.mid = middle(width, config.mid_attention)
        self.levels = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            attend = level in config.attention_levels
            after = Upsample(out, out) if level else nn.Identity()
            blocks, extra = config.blocks + 1, config.extra_decoder_blocks
            self.levels.append(Level(width, out, blocks, attend, after, extra))
            width = out
        self.norm_out = norm(width)
        self.conv_out = conv(width, 3 * config.patch**2)
        with torch.no_grad():  # the pixels of a patch start equal: there is no checkerboard
            for p in self.conv_out.parameters():
                p.copy_(p[:3].repeat_interleave(config.patch**2, dim=0))
        pixel_channels = config.pixel_channels
        self.finish = Finish(width, config.patch, pixel_channels) if pixel_channels else None

    def forward(self, z_q: Latents) -> Images:
        h = self.mid(self.conv_in(z_q))
        for level in self.levels:
            h = level(h)
        h = F.silu(self.norm_out(h))
        image = F.pixel_shuffle(self.conv_out(h), self.patch)
        return image if self.finish is None else self.finish(h, image)


class Finish(nn.Module):
    """The full-resolution stage: maps upsampled to every pixel, and a residual to the picture.

    Its output starts at zero. Widths halve as sides double, and there are no norms: at this size a
    norm costs as much as a convolution.
    """

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.levels = nn.ModuleList()
        while patch > 1:
            patch //= 2
            out = channels * patch
            self.levels.append(nn.Sequential(Upsample(width, out), TwoConvs(out)))
            width = out
        self.conv_in = conv(width + 3, channels)
        self.block = TwoConvs(channels)
        self.conv_out = conv(channels, 3)
        start_at_zero(self.conv_out)

    def forward(self, h: FeatureMaps, image: Images) -> Images:
        for level in self.levels:
            h = level(h)
        h = self.block(self.conv_in(torch.cat([h, image], dim=1)))
        return image + self.conv_out(F.silu(h))


class Level(nn.Module):
    """One resolution: blocks, each with attention if asked, `extra` more whose output starts at
    zero, then a change of size."""

    def __init__(
        self, width: int, out: int, blocks: int, attend: bool, after: nn.Module, extra: int = 0
    ):
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width if i == 0 else out, out) for i in range(blocks))
        for _ in range(extra):
            block = Residual(out, out)
            start_at_zero(block.conv2)
            self.blocks.append(block)
        self.attention = nn.ModuleList(SelfAttention(out) for _ in range(blocks if attend else 0))
        self.after = after

    def forward(self, h: FeatureMaps) -> FeatureMaps:
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i < len(self.attention):
                h = self.attention[i](h)
        return self.after(h)


class Residual(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h))))))"""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(width), conv(width, out)
        self.norm2, self.conv2 = norm(out), conv(out, out)
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, h: FeatureMaps) -> FeatureMaps:
        residual = self.conv1(F.silu(self.norm1(h)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.shortcut(h) + residual


class SelfAttention(nn.Module):
    """Every place of the map looks at every other: one head, 1×1 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, h: Latents) -> Latents:
        a = self.norm(h)
        q, k, v = (rearrange(f(a), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(rearrange(a, "b 1 (h w) c -> b c h w", h=h.shape[2]))


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, h: FeatureMaps) -> FeatureMaps:
        return self.conv(F.pad(h, (0, 1, 0, 1)))  # right and below only, as published


class Upsample(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.conv = conv(width, out)

    def forward(self, h: FeatureMaps) -> FeatureMaps:
        return self.conv(doubled(h))


def middle(width: int, attend: bool) -> nn.Sequential:
    between = SelfAttention(width) if attend else nn.Identity()
    return nn.Sequential(Residual(width, width), between, Residual(width, width))


def start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
