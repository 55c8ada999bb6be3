"""show: figures of tokens, chains, edits and small distributions, for notebooks and the app.

    source code            source
    images                 grid, strip, chain
    one image              tokens, mask_overlay, framed, heat    (PIL images, for a strip)
    numbers                bars, curves
    decoding               Passes: the positions that each pass read

No global state of matplotlib, PIL or torch is used or changed.
"""

import ast
import inspect
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imagebart.checkpoint import atomic_write
from imagebart.editing.pasting import Box
from imagebart.model import ImageBART
from imagebart.notation import Bool, Int

WIDTH, HEIGHT, GAP = 1060, 256, 8  # pixels: widest row, tallest picture, between pictures
INK, QUIET, PAPER = "#2b2d33", "#b9bdc6", "#ffffff"
COLOUR_CYCLE = ("#3a6ea5", "#d9822b", "#4f9d69", "#8e6bb0", "#c2504d", "#6f7785")
MASK_COLOUR = (232, 80, 91)
STYLE: dict[Any, Any] = {  # to matplotlib's types each name is a literal
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Picture:
    """An image that a notebook stores once (a PIL image is stored in two formats).

    PNG for charts; JPEG for photographs, where it takes less than half the bytes.
    """

    image: Image.Image

    def save(self, path: str | Path) -> None:
        """Write a PNG, atomically."""
        with atomic_write(path) as draft:
            self.image.save(draft, format="PNG", optimize=True)

    def __repr__(self) -> str:
        return f"<Picture {self.image.width}×{self.image.height}>"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        png = encoded(self.image, "PNG", optimize=True)
        jpeg = encoded(self.image, "JPEG", quality=88, subsampling=0)
        stored = {"image/jpeg": jpeg} if 2 * len(jpeg) < len(png) else {"image/png": png}
        return {"text/plain": repr(self)} | stored


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ── code ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Code:
    """Code as text; a notebook shows it highlighted."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


def source(*functions: Callable, body: bool = False) -> Code:
    """The source code of functions, methods or classes, under the names of their files.

    With `body` only the lines that compute: see `computing_lines`.
    """
    return Code("\n\n".join(code_of(function, body) for function in functions))


def code_of(function: Callable, body: bool = False) -> str:
    """A comment with the file's name and the equation, if the docstring is tagged with one, then
    the code; `body` as `source`. ValueError without Python source."""
    function = function.fget if isinstance(function, property) else function
    function = inspect.unwrap(function)
    try:
        code = dedent(inspect.getsource(function)).rstrip()
    except (TypeError, OSError):
        raise ValueError(f"source needs a function written in Python, got {function!r}") from None
    equations = re.findall(r"\[(eq\. \d+)\]", function.__doc__ or "")
    place = ", ".join([f"{function.__module__.replace('.', '/')}.py", *equations])
    return f"# {place}\n{computing_lines(code) if body else code}"


def computing_lines(code: str) -> str:
    """A function's or class's code without docstrings, decorators, imports and statements that
    only check what the caller gives. Signatures of several lines lose their types."""
    lines = dict(enumerate(code.splitlines(), 1))
    (top,) = ast.parse(code).body
    gone = set(range(1, top.lineno))  # decorators
    for node in ast.walk(top):
        for statement in getattr(node, "body", ()) if isinstance(node, ast.stmt) else ():
            if only_checks(statement):
                gone |= set(range(statement.lineno, statement.end_lineno + 1))
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno + 1:
            lines[node.lineno] = " " * node.col_offset + plain_signature(node)
            gone |= set(range(node.lineno + 1, node.body[0].lineno))
    return "\n".join(line for i, line in lines.items() if i not in gone and line.strip())


def plain_signature(function: ast.FunctionDef) -> str:
    """def name(arguments): without types, and without defaults where it would be too long."""
    names = deepcopy(function.args)
    for one in ast.walk(names):
        if isinstance(one, ast.arg):
            one.annotation = None
    signature = f"def {function.name}({ast.unparse(names)}):"
    if function.col_offset + len(signature) > 100:
        signature = re.sub(r"=[^,)]*", "", signature).replace("*, ", "")
    return signature


def only_checks(statement: ast.stmt) -> bool:
    """A docstring, an import, an `if` that ends by raising, a call of `require_…`, or a loop of
    nothing else."""
    if isinstance(statement, ast.For):
        return not statement.orelse and all(map(only_checks, statement.body))
    if isinstance(statement, ast.If):
        return not statement.orelse and isinstance(statement.body[-1], ast.Raise)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func).startswith("require_")
    text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return text or isinstance(statement, ast.ImportFrom)


# ── images side by side ───────────────────────────────────────────────────────────────────────


def grid(
    images: Iterable[Image.Image],
    columns: int = 4,
    captions: Sequence[str] | None = None,
    height: int | None = None,
) -> Picture:
    """Images in rows of `columns`, each with its caption above; "" is no caption.

    `height` is that of one image in pixels; by default as tall as fits, at most 256. Raises
    ValueError if there is no image, or not one caption an image.
    """
    images = [image.convert("RGB") for image in images]
    captions = [""] * len(images) if captions is None else list(captions)
    if not images or columns < 1:
        raise ValueError(f"grid needs an image and a column, got {len(images)} and {columns}")
    if len(captions) != len(images):
        raise ValueError(f"captions must be one an image, {len(images)}, got {len(captions)}")
    columns = min(columns, len(images))
    height = height or fitting_height(images, columns)
    images = [resized(image, height) for image in images]
    starts = range(0, len(images), columns)
    rows = [row_of(images[i : i + columns], captions[i : i + columns]) for i in starts]
    return Picture(stacked(rows))


def strip(
    images: Iterable[Image.Image],
    captions: Sequence[str] | None = None,
    height: int | None = None,
) -> Picture:
    """Images in one row."""
    images = list(images)
    return grid(images, max(1, len(images)), captions, height)


def chain(model: ImageBART, steps: Iterable, height: int | None = None) -> Picture:
    """x_T … x_1, decoded: one row per image, one column per step of `sample_steps`.

    ValueError if there is no step.
    """
    steps = list(steps)
    decoded = [cast(list[Image.Image], model.decode(step.tokens)) for step in steps]
    names = [step_name(step.t, model.T) for step in steps]
    rows = len(decoded[0]) if decoded else 1
    blank = [""] * len(steps) * (rows - 1)
    images = [column[row] for row in range(rows) for column in decoded]
    return grid(images, len(steps), names + blank, height)


def step_name(t: int, T: int) -> str:
    """x₃ (noise), x₂, x₁ (clean)"""
    return symbol("x", t) + {T: " (noise)", 1: " (clean)"}.get(t, "")


def symbol(letter: str, t: int) -> str:
    """A letter with a subscript: x₁₂"""
    return letter + str(t).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def fitting_height(images: Sequence[Image.Image], columns: int) -> int:
    """The tallest height at which every row is at most WIDTH wide."""
    aspects = [image.width / image.height for image in images]
    widest = max(sum(aspects[i : i + columns]) for i in range(0, len(images), columns))
    return max(1, min(HEIGHT, int((WIDTH - GAP * (columns - 1)) / widest)))


def resized(image: Image.Image, height: int) -> Image.Image:
    size = max(1, round(image.width * height / image.height)), height
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def row_of(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """One row, its captions centred over the images, in two lines if some need it."""
    captions = [broken(c, image.width) for c, image in zip(captions, images, strict=True)]
    top = max((22 + 16 * caption.count("\n") for caption in captions if caption), default=0)
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    row = Image.new("RGB", (width, top + max(image.height for image in images)), PAPER)
    pen, left = ImageDraw.Draw(row), 0
    for image, caption in zip(images, captions, strict=True):
        row.paste(image, (left, top))
        middle = left + image.width / 2, top / 2 - 1
        font = font_that_fits(caption, image.width)
        pen.text(middle, caption, INK, font, anchor="mm", align="center")
        left += image.width + GAP
    return row


def broken(caption: str, width: int) -> str:
    """The caption, in two lines of similar length if one is wider than `width`."""
    spaces = [i for i, letter in enumerate(caption) if letter == " "]
    if not spaces or caption_font().getlength(caption) <= width:
        return caption
    middle = min(spaces, key=lambda i: abs(2 * i + 1 - len(caption)))
    return f"{caption[:middle]}\n{caption[middle + 1 :]}"


def font_that_fits(caption: str, width: int) -> ImageFont.FreeTypeFont:
    """The captions' font at a size at which no line is wider than `width`."""
    longest = max(map(caption_font().getlength, caption.split("\n")))
    return caption_font(max(6, min(13, int(13 * width / max(1, longest)))))


@cache
def caption_font(size: int = 13) -> ImageFont.FreeTypeFont:
    """matplotlib's own font, which has the Greek letters and subscripts."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    width = max(row.width for row in rows)
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1)
    sheet, top = Image.new("RGB", (width, height), PAPER), 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return sheet


# ── tokens and masks ──────────────────────────────────────────────────────────────────────────


def code_colours(model: ImageBART) -> UInt8[Tensor, "K 3"]:
    """The mean colour each code decodes to, uint8.

    All codes are decoded at once, as a mosaic of 3×3 tiles of which the middle one is read, as the
    decoder normalises over the image and was not trained on images of one code.
    """
    columns = math.ceil(math.sqrt(model.K))
    codes = torch.arange(columns**2) % model.K
    mosaic = repeat(codes, "(r c) -> 1 (r 3) (c 3)", c=columns)
    pixels = cast(Tensor, model.decode(mosaic, output_type="pt"))[0]
    f = pixels.shape[-1] // mosaic.shape[-1]
    tiles = rearrange(pixels, "d (r y) (c x) -> (r c) d y x", y=3 * f, x=3 * f)
    middle = tiles[: model.K, :, f : 2 * f, f : 2 * f].mean((2, 3))
    return (255 * middle + 0.5).to("cpu", torch.uint8)


def tokens(token_grid: Int[Tensor, "... h w"], colours: UInt8[Tensor, "K 3"]) -> Image.Image:
    """A token grid (h, w) or (1, h, w) as an image: every token in the colour of its code.

    `colours` are `code_colours(model)`, so that the map resembles the decoded image.
    """
    token_grid = torch.as_tensor(token_grid).cpu()
    if token_grid.ndim == 3 and len(token_grid) == 1:
        token_grid = token_grid[0]
    if token_grid.ndim != 2:
        raise ValueError(f"tokens must be one grid (h, w), got shape {tuple(token_grid.shape)}")
    least, most = int(token_grid.min()), int(token_grid.max())
    if least < 0 or most >= len(colours):
        raise ValueError(f"tokens must lie in [0, {len(colours)}), got {least} to {most}")
    image = Image.fromarray(np.asarray(colours)[token_grid.numpy()])
    cell = max(1, HEIGHT // image.height)
    return image.resize((image.width * cell, image.height * cell), Image.Resampling.NEAREST)


def mask_overlay(image: Image.Image, mask: Bool[np.ndarray, "H W"]) -> Image.Image:
    """The image with the masked pixels tinted; ValueError if the sizes differ."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(
            f"mask must be as large as the image, {pixels.shape[:2]}, got {mask.shape}"
        )
    tinted = 0.4 * pixels + 0.6 * np.array(MASK_COLOUR)
    return Image.fromarray(np.where(mask[..., None], tinted, pixels).round().astype(np.uint8))


def framed(image: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """The image with the borders of boxes (`pasting.Box`, in its pixels), each in a colour."""
    image = image.convert("RGB")
    pen, thick = ImageDraw.Draw(image), max(2, image.height // 64)
    for k, box in enumerate(boxes):
        corners = box.left, box.top, box.left + box.width - 1, box.top + box.height - 1
        pen.rectangle(corners, outline=COLOUR_CYCLE[k % len(COLOUR_CYCLE)], width=thick)
    return image


def heat(values: Tensor, low: float | None = None, high: float | None = None) -> Image.Image:
    """A grid (h, w) of numbers as a heat map: white at `low`, blue, almost black at `high`.

    By default the minimum and the maximum; other values are clamped.
    """
    values = torch.as_tensor(values).detach().cpu().double()
    if values.ndim != 2 or not values.isfinite().all():
        raise ValueError(f"heat needs a grid of finite numbers, got shape {tuple(values.shape)}")
    low = values.min().item() if low is None else low
    high = values.max().item() if high is None else high
    place = ((values - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    ramp = np.array(
        [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (PAPER, COLOUR_CYCLE[0], INK)]
    )
    colour = np.stack([np.interp(place, [0, 0.5, 1], channel) for channel in ramp.T], axis=-1)
    image = Image.fromarray(colour.round().astype(np.uint8))
    cell = max(1, HEIGHT // image.height)
    return image.resize((image.width * cell, image.height * cell), Image.Resampling.NEAREST)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────


@matplotlib.rc_context(STYLE)
def bars(
    panels: Mapping[str, Sequence[float]],
    names: Sequence[str] | None = None,
    ylabel: str = "probability",
    top: float | None = None,
) -> Picture:
    """Small bar charts side by side on one scale; bars are labelled 0, 1, … or `names`.

    Up to six named bars have one colour each in all charts. With `top` the axis goes from 0 to
    there, whatever the bars.
    """
    heights = {title: numbers(values) for title, values in panels.items()}
    if not heights:
        raise ValueError("bars needs at least one chart, got none")
    words = 0.1 * sum(map(len, names or ()))  # inches that the names take under their bars
    width = 1.0 + max(2.2, words) * len(heights)
    figure = Figure(figsize=(min(12.0, width), 2.4), dpi=100)
    axes = figure.subplots(1, len(heights), sharey=True, squeeze=False)[0]
    for ax, (title, values) in zip(axes, heights.items(), strict=True):
        own = names is not None and len(values) <= len(COLOUR_CYCLE)
        ax.bar(
            range(len(values)), values, width=0.7, color=COLOUR_CYCLE[: len(values) if own else 1]
        )
        ax.set_xticks(range(len(values)), names or [str(k) for k in range(len(values))])
        ax.set_title(title)
    axes[0].set_ylabel(ylabel)
    if top is not None:
        axes[0].set_ylim(0, top)
    return drawn(figure)


@matplotlib.rc_context(STYLE)
def curves(
    lines: Mapping[str, Sequence[float]],
    x: Sequence[float] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    *,
    doubling: bool = False,
    log: bool = False,
    bottom: float | None = None,
) -> Picture:
    """Lines over x (0, 1, … by default) with a legend, unless the only one is called ""; short
    ones have markers.

    A line may be shorter than x. With `doubling` the axis of x is logarithmic, with `log` that of
    y. With `bottom` the axis of y begins there.
    """
    figure = Figure(figsize=(7.5, 2.4), dpi=100)
    ax = figure.subplots()
    for k, (name, line) in enumerate(lines.items()):
        values = numbers(line)
        at = range(len(values)) if x is None else x[: len(values)]
        marker = "o" if len(values) <= 24 else None
        ax.plot(at, values, marker=marker, color=COLOUR_CYCLE[k % len(COLOUR_CYCLE)], label=name)
    if doubling:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
    else:
        whole = x is None or all(at == int(at) for at in x)
        ax.xaxis.set_major_locator(MaxNLocator(integer=whole, steps=[1, 2, 5, 10]))
    if log:
        ax.set_yscale("log")
    if bottom is not None:
        ax.set_ylim(bottom=bottom)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if any(lines):
        figure.legend(loc="outside right center")
    return drawn(figure)


def drawn(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Picture(Image.open(buffer).convert("RGB"))


def numbers(values: Iterable | Tensor) -> np.ndarray:
    values = values.detach().cpu() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=float).reshape(-1)


# ── decoding ──────────────────────────────────────────────────────────────────────────────────


class Passes:
    """The passes of decoding one scale, noted: give it as `on_pass` to `sampling.decode_parallel`.

    `at` is a list of the positions (b, s) that each pass read.
    """

    def __init__(self):
        self.at: list[Int[Tensor, "b s"]] = []

    def __call__(self, t: int, at: Int[Tensor, "b s"]) -> None:
        self.at.append(at.cpu().clone())

    def __len__(self) -> int:
        return len(self.at)

    def settled(self, n: int) -> Int[Tensor, " n"]:
        """The pass, from 1, in which each of the n positions of one image got its last token.

        A pass begins at the first position that is not settled. ValueError for a batch.
        """
        if any(len(at) != 1 for at in self.at):
            raise ValueError(f"settled needs one image, got {len(self.at[0])}")
        first = torch.tensor([int(at[0, 0]) for at in self.at])
        return (first[:, None] <= torch.arange(n)).sum(0)
