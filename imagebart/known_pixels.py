"""After the decoder: what it has painted, made to fit the pixels that are known.

A token of an edit stands for 8×8 pixels or more, and says little of how a line goes on that the
picture has beside it. At the known pixels it shows by how much the decoder misses them. A small
U-Net reads what was painted, that error and the mask, and corrects what was painted. (Zhu et al.
2023 lead known pixels and mask into the decoder itself for the same purpose; with the decoder held,
its error teaches more in few steps.)

The tokens stay what they are, and so does decoding without known pixels, bit for bit. The network
starts as no correction, and learns alone (train/compression.py --train known).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebart.notation import Bool, Float, Images

Known = Float[Tensor, "b 4 H W"]
"""Pixels in [-1, 1], 0 where unknown, and the mask: 1 where known."""

PATCH, LEAST_SIDES = 2, 8
"""Pixels a side of what the network takes as one place; its sides are multiples of LEAST_SIDES."""


def known_pixels(image: Images, unknown: Bool[Tensor, "b 1 H W"]) -> Known:
    """The pixels of images, without those that are unknown, and the mask."""
    mask = (~unknown).to(image.dtype)
    return torch.cat([image * mask, mask.expand(len(image), -1, -1, -1)], dim=1)


class KnownPixels(nn.Module):
    """painted → painted + U(painted, error where known, mask); three levels of `channels`, twice
    and three times as many."""

    def __init__(self, channels: int):
        super().__init__()
        fine, middle, coarse = widths = [channels, 2 * channels, 3 * channels]
        self.conv_in = conv(7 * PATCH**2, fine)
        self.down = nn.ModuleList([conv(fine, middle, 2), conv(middle, coarse, 2)])
        self.before = nn.ModuleList(TwoConvs(width) for width in widths)
        self.bottom = TwoConvs(coarse)
        self.up = nn.ModuleList([conv(coarse, middle), conv(middle, fine)])
        self.after = nn.ModuleList([TwoConvs(middle), TwoConvs(fine)])
        self.conv_out = conv(fine, 3 * PATCH**2)
        for p in self.conv_out.parameters():
            nn.init.zeros_(p)

    def forward(self, painted: Images, known: Known) -> Images:
        *_, H, W = painted.shape
        pixels, mask = known.to(painted.dtype).split([3, 1], dim=1)
        x = torch.cat([painted, pixels - mask * painted, mask], dim=1)
        x = F.pad(x, (0, -W % LEAST_SIDES, 0, -H % LEAST_SIDES), mode="replicate")
        correction = self.correction(F.pixel_unshuffle(x, PATCH))
        return painted + F.pixel_shuffle(correction, PATCH)[..., :H, :W]

    def correction(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        h = self.before[0](self.conv_in(x))
        passed = [h]
        for down, block in zip(self.down, self.before[1:], strict=True):
            h = block(down(h))
            passed.append(h)
        h = self.bottom(h)
        for up, block, finer in zip(self.up, self.after, passed[-2::-1], strict=True):
            h = block(doubled(up(h)) + finer)
        return self.conv_out(F.silu(h))


class TwoConvs(nn.Module):
    """h + conv(silu(conv(silu(h)))): a residual block without norms."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = conv(width, width), conv(width, width)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return h + self.conv2(F.silu(self.conv1(F.silu(h))))


def conv(width: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, stride=stride, padding=1)


def doubled(h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Every place as 2×2."""
    return F.interpolate(h, scale_factor=2.0, mode="nearest")
