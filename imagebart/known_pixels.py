"""What the decoder takes from pixels that are known: so what it paints fits what stays.

A token of an edit stands for 8×8 pixels or more, and says little of how a line goes on that the
picture has beside it. So the known pixels and the mask enter every resolution of the decoder, as in
the asymmetric VQGAN of Zhu et al. 2023. The tokens stay what they are, and so does decoding without
known pixels, bit for bit: the maps below are added to the decoder's, start at zero, and learn alone
(train/compression.py --train known).
"""

import torch
from torch import nn

from imagebart.notation import Bool, Float, Images

Known = Float[torch.Tensor, "b 4 H W"]
"""Pixels in [-1, 1], 0 where unknown, and the mask: 1 where known."""


def known_pixels(image: Images, unknown: Bool[torch.Tensor, "b 1 H W"]) -> Known:
    """The pixels of images, without those that are unknown, and the mask."""
    mask = (~unknown).to(image.dtype)
    return torch.cat([image * mask, mask.expand(len(image), -1, -1, -1)], dim=1)


class KnownPixels(nn.Module):
    """Known pixels → a map to add at each resolution of the decoder.

    `widths` are the decoder's, {pixels a side of a place: width}, such as {1: 16, 2: 32, 4: 64}.
    """

    def __init__(self, widths: dict[int, int], channels: int):
        super().__init__()
        self.sides = tuple(sorted(widths))
        steps = self.sides[-1].bit_length()
        wide = [min(channels * 2**i, 8 * channels) for i in range(steps)]
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(wide[i - 1] if i else 4, wide[i], 3, stride=2 if i else 1, padding=1),
                nn.SiLU(),
                nn.Conv2d(wide[i], wide[i], 3, padding=1),
                nn.SiLU(),
            )
            for i in range(steps)
        )
        self.add = nn.ModuleList(
            nn.Conv2d(wide[side.bit_length() - 1], widths[side], 1) for side in self.sides
        )
        for layer in self.add:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, known: Known) -> dict[int, Float[torch.Tensor, "b _ _ _"]]:
        maps, h = {}, known
        add = dict(zip(self.sides, self.add, strict=True))
        for i, layer in enumerate(self.down):
            h = layer(h)
            if 2**i in add:
                maps[2**i] = add[2**i](h)
        return maps
