"""diagrams: how the parts are put together, and where a decoder looks.

the whole       chain_of_scales         as the paper's figure 1
one scale       encoder_and_decoder     and who attends to whom
attention       cross_attention         the weights of a decoder's cross-attention
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from imagebart.conditions import Condition
from imagebart.denoiser import Denoiser
from imagebart.notation import Float, Tokens
from imagebart.show import COLOUR_CYCLE, INK, QUIET, STYLE, Picture, drawn, symbol
from imagebart.transformer import CrossAttention

BLUE, ORANGE, GREEN = COLOUR_CYCLE[:3]


@matplotlib.rc_context(STYLE)
def chain_of_scales(pictures: Sequence[Image.Image]) -> Picture:
    """x_0, x_1 … x_T in a row: above, the forward chain to the right; below, the reverse chain.

    ValueError for fewer than three pictures, which is T < 2.
    """
    if len(pictures) < 3:
        raise ValueError(f"a chain has x_0, x_1 and x_2 at least, got {len(pictures)} pictures")
    T, step = len(pictures) - 1, 1.6
    figure = Figure(figsize=(min(10.6, 2.1 * (T + 1)), 2.7), dpi=100)
    ax = canvas(figure, step * T + 1, 2.1)
    for t, picture in enumerate(pictures):
        left = step * t
        ax.imshow(np.asarray(picture.convert("RGB")), extent=(left, left + 1, 0.65, 1.65))
        notes = {0: "image", 1: "tokens", T: "noise"}
        ax.text(left + 0.5, 0.5, f"{symbol('x', t)}  {notes.get(t, '')}".strip(), ha="center")
    for t in range(1, T + 1):
        a, b = step * (t - 1) + 1, step * t
        arrow(ax, (a, 1.4), (b, 1.4), QUIET)
        arrow(ax, (b, 0.9), (a, 0.9), BLUE if t > 1 else ORANGE)
        forget = "encode" if t == 1 else f"forget\n{symbol('β', t)}"
        remember = "decode G" if t == 1 else f"scale {t}\nencoder +\ndecoder"
        remember = remember if t < T or t == 1 else f"scale {t}\ndecoder"
        ax.text((a + b) / 2, 1.47, forget, ha="center", va="bottom", fontsize=8)
        colour = BLUE if t > 1 else ORANGE
        ax.text((a + b) / 2, 0.83, remember, ha="center", va="top", fontsize=8, color=colour)
    ax.text(0, 2.0, "forward chain q, fixed: to the right", va="top", color=INK)
    ax.text(0, 0.15, "reverse chain p, learned, a part at a time: to the left", color=BLUE)
    ax.set(xlim=(0, step * T + 1), ylim=(0.05, 2.1))
    return drawn(figure)


@matplotlib.rc_context(STYLE)
def encoder_and_decoder(n: int = 6) -> Picture:
    """One scale t < T for n tokens: its two halves, and the masks of its three attentions.

    Row i of a mask is filled where slot i may look.
    """
    figure = Figure(figsize=(10.2, 3.0), dpi=100)
    ax = canvas(figure, 10.2, 3.0)
    box(ax, (0.2, 1.15), "encoder", "reads all of $x_t$ at once", GREEN)
    box(ax, (3.1, 1.15), "decoder", "writes $x_{t-1}$, token by token", BLUE)
    arrow(ax, (1.25, 0.55), (1.25, 1.1), INK)
    ax.text(1.25, 0.5, "$x_t$, all tokens", ha="center", va="top")
    arrow(ax, (4.15, 0.55), (4.15, 1.1), INK)
    ax.text(4.15, 0.5, "start, $x_{t-1}$ so far", ha="center", va="top")
    arrow(ax, (2.32, 1.62), (3.08, 1.62), ORANGE)
    ax.text(2.7, 1.7, "cross", ha="center", color=ORANGE, fontsize=8)
    arrow(ax, (4.15, 2.12), (4.15, 2.6), INK)
    ax.text(4.15, 2.65, "probabilities of the next token", ha="center", va="bottom")
    every, before = np.ones((n, n)), np.tril(np.ones((n, n)))
    masks = [
        ("encoder\non itself", every, GREEN),
        ("decoder\non itself", before, BLUE),
        ("decoder\non the encoder", every, ORANGE),
    ]
    for k, (title, mask, colour) in enumerate(masks):
        left, side = 5.75 + 1.55 * k, 1.3
        grid_of(ax, mask, (left, 1.0), side, colour)
        ax.text(left + side / 2, 2.4, title, ha="center", va="bottom", fontsize=8.5, color=colour)
    ax.text(5.7 + 2.2, 0.7, "row i: where slot i may look", ha="center", va="top", fontsize=8.5)
    return drawn(figure)


def canvas(figure: Figure, width: float, height: float) -> Axes:
    ax = figure.subplots()
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return ax


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 3, "shrinkB": 3}
    ax.annotate("", end, start, arrowprops=style)


def box(ax: Axes, corner: tuple[float, float], title: str, text: str, colour: str) -> None:
    (left, bottom), width, height = corner, 2.1, 0.95
    style = "round,pad=0,rounding_size=0.1"
    ax.add_patch(FancyBboxPatch(corner, width, height, style, fc="none", ec=colour, lw=1.8))
    middle = left + width / 2
    ax.text(middle, bottom + 0.62, title, ha="center", color=colour, fontsize=11)
    ax.text(middle, bottom + 0.28, text, ha="center", fontsize=7.5)


def grid_of(
    ax: Axes, mask: np.ndarray, corner: tuple[float, float], side: float, colour: str
) -> None:
    n, (left, bottom) = len(mask), corner
    cell = side / n
    for i, j in np.ndindex(n, n):
        at = left + j * cell, bottom + (n - 1 - i) * cell
        fill = colour if mask[i, j] else "none"
        ax.add_patch(Rectangle(at, cell, cell, fc=fill, ec=QUIET, lw=0.6))


@torch.no_grad()
def cross_attention(
    denoiser: Denoiser, x_prev: Tokens, x_t: Tokens, condition: Condition | None = None
) -> Float[torch.Tensor, "layers heads n n"]:
    """How much the prediction of token i (third axis) looks at x_t^j (fourth), of one image.

    What each layer of the decoder gives to the prefix is left out, so rows sum to at most 1.
    ValueError without an encoder to look at, and for a batch.
    """
    if not denoiser.sees_x_t or len(x_prev) != 1:
        got = f"t = {denoiser.t}, {len(x_prev)} images"
        raise ValueError(f"cross_attention needs a scale with an encoder and one image, got {got}")
    seen: list[torch.Tensor] = []

    def note(layer: CrossAttention, arguments: tuple) -> None:
        x, memory, visible, turns, memory_turns = arguments
        q = rearrange(layer.q(x), "b s (h d) -> b s h d", h=layer.heads)
        k, _ = rearrange(layer.kv(memory), "b s (two h d) -> two b s h d", two=2, h=layer.heads)
        q, k = layer.queries(q, turns).transpose(1, 2), layer.keys(k, memory_turns).transpose(1, 2)
        one = torch.eye(k.shape[2], device=k.device, dtype=k.dtype)  # a value for every slot
        each = one.expand(1, layer.heads, -1, -1)
        weights = F.scaled_dot_product_attention(q, k, each, attn_mask=visible)
        seen.append(weights[0, :, -denoiser.n :, -denoiser.n :])

    layers = [module for module in denoiser.modules() if isinstance(module, CrossAttention)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        denoiser(x_prev, x_t, condition)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen)
