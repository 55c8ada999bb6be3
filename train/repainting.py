"""Learn to fit known pixels: random masks, and what is painted under them."""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebart.editing.harmonic import harmonic
from imagebart.known_pixels import known_pixels
from imagebart.notation import Bool, Grid, Images
from imagebart.vqgan import VQGAN

LEAST_SHARE, MOST_SHARE = 0.1, 0.6
"""Of the image, what a mask marks."""
CHANNELS = 32
"""`known_channels` of a VQGAN that learns to fit known pixels."""


class Repainter(nn.Module):
    """A VQGAN at work on an edit whose masked tokens are right: the image, repainted where marked.

    Known tokens are those of the image without what is marked, which is filled as in an edit.
    """

    def __init__(self, vqgan: VQGAN):
        super().__init__()
        self.vqgan = vqgan

    def forward(self, image: Images, marks: Bool[Tensor, "b 1 H W"]) -> tuple[Images, Tensor, Grid]:
        """The repainted images, no codebook loss, and the tokens; as `VQGAN.forward`."""
        marks = marks.to(image.device)
        with torch.no_grad():
            each = zip(image.split(1), marks.split(1), strict=True)
            filled = torch.cat([harmonic(one, unknown) for one, unknown in each])
            whole, known = self.vqgan.encode(image), self.vqgan.encode(filled)
            masked = F.max_pool2d(marks.float(), self.vqgan.f)[:, 0] > 0
            grid = torch.where(masked, whole, known)
        painted = self.vqgan.decode(grid, known_pixels(image, marks))
        return torch.where(marks, painted, image.to(painted.dtype)), painted.new_zeros(()), grid


def seeing_known(vqgan: VQGAN) -> VQGAN:
    """The VQGAN, or if it does not fit known pixels one that will, and is else the same."""
    if vqgan.config.known_channels:
        return vqgan
    same = VQGAN(replace(vqgan.config, known_channels=CHANNELS))
    tensors = vqgan.state_dict()
    same.shrink_as(tensors)
    same.load_state_dict(same.state_dict() | tensors)
    return same


def marks_of(places: Iterable[int], image: Images, seed: int, step: int) -> Bool[Tensor, "b 1 H W"]:
    """The masks of a step's images, by their places in the batch over all ranks."""
    *_, H, W = image.shape
    first = (seed * 1_000_003 + step) * 10_007
    return torch.stack([random_marks((H, W), first + place) for place in places])


def random_marks(size: tuple[int, int], seed: int) -> Bool[Tensor, "1 H W"]:
    """A half, a rectangle or a smooth shape, of LEAST_SHARE to MOST_SHARE of an image (H, W)."""
    (H, W), generator = size, torch.Generator().manual_seed(seed)
    kind, share = torch.rand(2, generator=generator).tolist()
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * share
    if kind < 0.5:  # a smooth shape
        coarse = torch.randn(1, 1, 6, 6, generator=generator)
        noise = F.interpolate(coarse, size, mode="bicubic")[0]
        return noise > noise.flatten().quantile(1 - share)
    stretch, top, left = torch.rand(3, generator=generator).tolist()
    if kind < 0.75:  # from edge to edge
        height, width = (share * H, W) if stretch < 0.5 else (H, share * W)
        top, left = float(top < 0.5), float(left < 0.5)
    else:
        ratio = 2 ** (2 * stretch - 1)
        height, width = min(H, H * (share * ratio) ** 0.5), min(W, W * (share / ratio) ** 0.5)
    y, x = round(top * (H - height)), round(left * (W - width))
    marks = torch.zeros(1, H, W, dtype=torch.bool)
    marks[:, y : y + round(height), x : x + round(width)] = True
    return marks
