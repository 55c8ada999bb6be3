"""Compress: the VQGAN, image x_0 ↔ tokens x_1.   [section 3.2]

    encode   x_0 → z = E(x_0) → x_1 = nearest codes
    decode   x_1 → z_q = codebook[x_1] → G(z_q) ≈ x_0

One configuration spans the published f = 16 models and small ones for a laptop: `patch` folds
p×p pixels into channels before the first convolution, which is where small models save time;
`fine` gives their decoder layers at every pixel again, which is where patches show; `deeper` gives
it more blocks. Both begin as nothing, so that a trained decoder can be given them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagebart.arguments import as_int
from imagebart.notation import Bool, Float, Grid, Images, Latents

Maps = Float[Tensor, "b _ _ _"]
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
    patch: int = 1  # pixels a side folded into channels at the door
    fine: int = 0  # width of the decoder's layers at every pixel, after the patches; 0 = none
    deeper: int = 0  # further residual blocks of every level of the decoder
    commitment: float = 0.25  # weight of the encoder's pull towards its code

    def __post_init__(self):
        for name in ("multipliers", "attention_levels"):  # JSON gives lists back
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("image_size", "K", "embed_dim", "z_channels", "channels", "blocks", "patch"):
            as_int(getattr(self, name), name, 1)
        for name in ("fine", "deeper"):
            as_int(getattr(self, name), name)
        if self.channels % 32:
            raise ValueError(f"channels must be a multiple of 32, got {self.channels}")
        if not self.multipliers:
            raise ValueError("multipliers must be at least one, got none")
        for each in self.multipliers:
            as_int(each, "multipliers", 1)
        if self.fine and self.patch & (self.patch - 1):
            raise ValueError(f"patch must be a power of 2 where fine is not 0, got {self.patch}")
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
    """x_0 ↔ x_1: an encoder, a codebook and a decoder."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.quantiser = Quantiser(config.K, config.embed_dim, config.commitment)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

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
        return self.quantiser.nearest(self.latents(image))

    def decode(self, grid: Grid) -> Images:
        """G(x_1): the images that tokens stand for, about [-1, 1], not clamped."""
        return self.generate(self.quantiser.lookup(grid))

    def latents(self, image: Images) -> Latents:
        """z: what the encoder says before it is rounded to codes."""
        *_, H, W = image.shape
        if H % self.f or W % self.f or not H or not W:
            raise ValueError(f"image sides must be multiples of f = {self.f}, got {H}×{W}")
        image = image.to(self.quant_conv.weight.dtype)
        return self.quant_conv(self.encoder(image))

    def generate(self, z_q: Latents) -> Images:
        return self.decoder(self.post_quant_conv(z_q))

    def forward(self, image: Images, rounds: bool = True) -> tuple[Images, Tensor, Grid]:
        """Reconstruction, codebook loss and codes, differentiable: what training needs.

        Without `rounds` latents go to the decoder as they are. A run that begins so, as a plain
        autoencoder, finds out what to say before it is told to say it in K words; rounded from
        the start, latents collapse to the two or three directions that codes already tell apart.
        """
        z = self.latents(image)
        z_q, loss, code = self.quantiser(z)
        return self.generate(z_q if rounds else z), loss if rounds else 0 * loss, code

    def last_layer(self) -> Tensor:
        """The weight at which the adversarial term is balanced (see perceptual.py)."""
        finest = self.decoder.finish or self.decoder
        return finest.conv_out.weight

    def hold_tokens(self) -> None:
        """Encoder and codebook learn no more: tokens stay what they are, the decoder is free."""
        for part in (self.encoder, self.quant_conv, self.quantiser):
            part.requires_grad_(False)


class Quantiser(nn.Module):
    """The codebook: rounds every latent to its nearest code.

    A codebook shrunk to the entries in use keeps the full one for rounding: `used` lists the full
    index of every entry that still has a token, and `token_of` the token of every full entry,
    an unused one being mapped to a random used one, drawn once (section 3.2).
    """

    def __init__(self, K: int, dim: int, commitment: float):
        super().__init__()
        self.codebook = nn.Embedding(K, dim)
        nn.init.uniform_(self.codebook.weight, -1 / K, 1 / K)
        self.commitment = commitment
        self.register_buffer("used", None)
        self.register_buffer("token_of", None)

    @property
    def K(self) -> int:
        """Tokens in use: what the transformers see."""
        return len(self.codebook.weight) if self.used is None else len(self.used)

    def shrink(self, used: Tensor, generator: torch.Generator | None = None) -> None:
        """Keep tokens for the codes `used` (sorted, unique) only; draw the table for the rest."""
        full = len(self.codebook.weight)
        if len(used) == 0 or used.min() < 0 or used.max() >= full:
            raise ValueError(f"used codes must lie in [0, {full}), at least one, got {used}")
        if not torch.equal(used, used.unique()):
            raise ValueError("used codes must be sorted and unique")
        token_of = torch.randint(len(used), (full,), generator=generator)
        token_of[used.cpu()] = torch.arange(len(used))
        device = self.codebook.weight.device
        self.used, self.token_of = used.to(device), token_of.to(device)

    @torch.no_grad()
    def revive(self, dead: Bool[Tensor, "K"], z: Latents, generator: torch.Generator) -> None:
        """Move codes that nobody uses onto latents drawn from z, where they will be used."""
        rows = rearrange(z, "b c h w -> (b h w) c").float().cpu()
        drawn = torch.randint(len(rows), (int(dead.sum()),), generator=generator)
        weight = self.codebook.weight
        weight[dead] = rows[drawn].to(weight)

    def nearest(self, z: Latents) -> Grid:
        """argmin_k ‖z - e_k‖², as tokens."""
        code = self.nearest_code(z)
        return code if self.token_of is None else self.token_of[code]

    def nearest_code(self, z: Latents) -> Grid:
        """argmin_k ‖z‖² - 2 z·e_k + ‖e_k‖² over the full codebook, in float32.

        Under autocast too, whose rounded product would take other codes for many tokens.
        """
        e = self.codebook.weight.float()
        rows = rearrange(z, "b c h w -> (b h w) c").float()
        with torch.autocast(z.device.type, enabled=False):
            distance = e.square().sum(1) - 2 * rows @ e.T
        return rearrange(
            distance.argmin(1), "(b h w) -> b h w", b=z.shape[0], h=z.shape[2], w=z.shape[3]
        )

    def lookup(self, grid: Grid) -> Latents:
        """e_{x_1}: the codes of tokens."""
        code = grid if self.used is None else self.used[grid]
        return self._at(code)

    def token_embeddings(self) -> Float[Tensor, "K c"]:
        """The code of every token, in token order."""
        weight = self.codebook.weight
        return weight if self.used is None else weight[self.used]

    def forward(self, z: Latents) -> tuple[Latents, Tensor, Grid]:
        """Straight-through: z_q forwards, the identity backwards.

        L_cb = ‖sg[z] - e‖² + commitment · ‖z - sg[e]‖²
        """
        code = self.nearest_code(z)
        e = self._at(code)
        loss = F.mse_loss(e, z.detach()) + self.commitment * F.mse_loss(z, e.detach())
        return z + (e - z).detach(), loss, code

    def _at(self, code: Grid) -> Latents:
        return rearrange(self.codebook(code), "b h w c -> b c h w")


class Encoder(nn.Module):
    """E: residual levels, each but the last halving the sides."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch
        self.conv_in = conv3(3 * config.patch**2, config.channels)
        self.levels = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            attend, last = level in config.attention_levels, level == len(widths) - 1
            after = nn.Identity() if last else Downsample(out)
            self.levels.append(Level(width, out, config.blocks, attend, after))
            width = out
        self.mid = middle(width, config.mid_attention)
        self.norm_out = norm(width)
        self.conv_out = conv3(width, config.z_channels)

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
        self.conv_in = conv3(config.z_channels, width)
        self.mid = middle(width, config.mid_attention)
        self.levels = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            attend = level in config.attention_levels
            after = Upsample(out, out) if level else nn.Identity()
            blocks = config.blocks + 1
            self.levels.append(Level(width, out, blocks, attend, after, config.deeper))
            width = out
        self.norm_out = norm(width)
        self.conv_out = conv3(width, 3 * config.patch**2)
        with (
            torch.no_grad()
        ):  # the pixels of a patch start equal, so that no checkerboard is learned
            first = self.conv_out.weight[:3].clone()
            self.conv_out.weight.copy_(first.repeat_interleave(config.patch**2, dim=0))
        self.finish = Finish(width, config.patch, config.fine) if config.fine else None

    def forward(self, z_q: Latents) -> Images:
        h = self.mid(self.conv_in(z_q))
        for level in self.levels:
            h = level(h)
        h = F.silu(self.norm_out(h))
        image = F.pixel_shuffle(self.conv_out(h), self.patch)
        return image if self.finish is None else self.finish(h, image)


class Finish(nn.Module):
    """What patches cannot say: maps doubled up to every pixel, and what they add to the picture.

    It begins as nothing. Widths halve as sides double, and there are no norms: at this size a
    norm costs as much as a convolution.
    """

    def __init__(self, width: int, patch: int, fine: int):
        super().__init__()
        self.levels = nn.ModuleList()
        while patch > 1:
            patch //= 2
            self.levels.append(nn.Sequential(Upsample(width, fine * patch), Plain(fine * patch)))
            width = fine * patch
        self.conv_in = conv3(width + 3, fine)
        self.block = Plain(fine)
        self.conv_out = conv3(fine, 3)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, h: Maps, image: Images) -> Images:
        for level in self.levels:
            h = level(h)
        h = self.block(self.conv_in(torch.cat([h, image], dim=1)))
        return image + self.conv_out(F.silu(h))


class Level(nn.Module):
    """One resolution: blocks, each with attention if asked, `deeper` more that begin as nothing,
    then a change of size."""

    def __init__(
        self, width: int, out: int, blocks: int, attend: bool, after: nn.Module, deeper: int = 0
    ):
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width if i == 0 else out, out) for i in range(blocks))
        for _ in range(deeper):
            self.blocks.append(Residual(out, out))
            nn.init.zeros_(self.blocks[-1].conv2.weight)
            nn.init.zeros_(self.blocks[-1].conv2.bias)
        self.attention = nn.ModuleList(SelfAttention(out) for _ in range(blocks if attend else 0))
        self.after = after

    def forward(self, h: Maps) -> Maps:
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i < len(self.attention):
                h = self.attention[i](h)
        return self.after(h)


class Residual(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h))))))"""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(width), conv3(width, out)
        self.norm2, self.conv2 = norm(out), conv3(out, out)
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, h: Maps) -> Maps:
        residual = self.conv1(F.silu(self.norm1(h)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.shortcut(h) + residual


class Plain(nn.Module):
    """h + conv(silu(conv(silu(h)))): a residual block without norms."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = conv3(width, width), conv3(width, width)

    def forward(self, h: Maps) -> Maps:
        return h + self.conv2(F.silu(self.conv1(F.silu(h))))


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

    def forward(self, h: Maps) -> Maps:
        return self.conv(F.pad(h, (0, 1, 0, 1)))  # right and below only, as published


class Upsample(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.conv = conv3(width, out)

    def forward(self, h: Maps) -> Maps:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


def middle(width: int, attend: bool) -> nn.Sequential:
    between = SelfAttention(width) if attend else nn.Identity()
    return nn.Sequential(Residual(width, width), between, Residual(width, width))


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def conv3(width: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, padding=1)
