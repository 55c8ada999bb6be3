"""The command line: python -m imagebart COMMAND …

    sample      pictures from noise, one file a seed
    edit        repaint what a mask marks, one half of a picture, or what lies beyond its borders
    panorama    a picture wider than the model's
    import      a released model → a folder that `ImageBART.from_pretrained` reads

`python -m imagebart COMMAND --help` says more.
"""

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from PIL import Image
from tqdm import tqdm

from imagebart.checkpoint import atomic_write
from imagebart.data.images import read_image
from imagebart.distributed import finish, part_of, start
from imagebart.editing.masks import pixel_mask, read_mask
from imagebart.model import ImageBART
from imagebart.options import (
    EditingOptions,
    PanoramaOptions,
    SamplingOptions,
    as_dataclass,
    options_given,
)
from imagebart.released.importing import PUBLISHED, import_released


@dataclass(frozen=True)
class Import:
    """Fetch a released model, verify it, and convert it: nothing in it is executed.

    Needs room on the disk for the archive and for the model, and memory for one scale twice over.
    """

    name: tyro.conf.Positional[Literal[tuple(PUBLISHED)]]  # type: ignore[valid-type]  # a table's
    out: Path  # the folder to write; new or empty
    # instead of the download: a zip archive, a folder of scale1.ckpt …, or a VQGAN's .ckpt
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    url: str | None = None  # another address of the archive
    raw: tyro.conf.FlagCreatePairsOff[bool] = False  # the last weights, not the averaged ones

    def run(self) -> None:
        with Bars() as bars:
            import_released(
                self.name,
                self.out,
                source=self.source,
                url=self.url,
                ema=not self.raw,
                progress=bars.show,
            )
        print(f"{self.out}: {PUBLISHED[self.name].about}")


SampleFields: Any = as_dataclass(SamplingOptions, without=("semantic_map",))
EditFields: Any = as_dataclass(EditingOptions, without=("semantic_map",))
PanoramaFields: Any = as_dataclass(PanoramaOptions)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, and where it runs."""

    model: str | None = None  # a folder or a Hugging Face Hub id; the shipped model if not given
    device: str | None = None  # "cpu", "cuda" …; the best there is if not given

    def load(self, device: torch.device | None = None) -> ImageBART:
        return ImageBART.from_pretrained(self.model, device=device or self.device)


@dataclass(frozen=True, kw_only=True)
class Sample(Model, SampleFields):
    """Draw pictures: OUT/seed_0.png, OUT/seed_1.png … each written as soon as its batch is drawn.

    Thousands need no more memory than a batch. Under `torchrun … -m imagebart sample` every process
    draws its part of the same pictures.
    """

    out: Path = Path("samples")  # the folder to write to
    num_images: int = 1

    def run(self) -> None:
        ranks = start(self.device)
        part = part_of(self.num_images, ranks)
        model = self.load(ranks.device)
        options = options_given(self, SamplingOptions)
        stream = model.sample_stream(self.num_images, part=part, **options)
        seeds = range(self.seed + part.start, self.seed + part.stop)
        drawn = zip(seeds, chain.from_iterable(stream), strict=True)
        for seed, image in tqdm(drawn, total=len(part), unit="img", disable=not ranks.is_main):
            save(image, file_of(seed, self.out))
        finish(ranks)
        if ranks.is_main:
            last = file_of(self.seed + self.num_images - 1, self.out)
            print(
                last if self.num_images == 1 else f"{file_of(self.seed, self.out)} to {last.name}"
            )


@dataclass(frozen=True, kw_only=True)
class Edit(Model, EditFields):
    """Repaint a part of an image: OUT/seed_0.png … All other pixels stay, bit for bit.

    `--passes` alone stands for `--process refined --passes`.
    """

    image: tyro.conf.Positional[Path] = tyro.MISSING
    # a picture as large as the image, white where to repaint, black or transparent where not
    mask: Path | None = None
    keep: Literal["upper", "lower", "left", "right"] | None = None  # the half that stays
    left: int = 0  # pixels to add beyond the border
    right: int = 0
    top: int = 0
    bottom: int = 0
    out: Path = Path("edits")  # the folder to write to
    num_images: int = 1

    def run(self) -> None:
        margins = {name: getattr(self, name) for name in ("left", "right", "top", "bottom")}
        wanted = [self.mask is not None, self.keep is not None, any(margins.values())]
        if sum(wanted) != 1:
            raise ValueError("give one of --mask, --keep, or --left --right --top --bottom")
        image = read_image(self.image)
        mask = None if self.mask is None else pixel_mask(read_mask(self.mask), image.size)
        model, options = self.load(), options_given(self, EditingOptions)
        if "passes" in options:
            options.setdefault("process", "refined")
        if mask is not None:
            images = model.inpaint(image, mask, self.num_images, **options)
        elif self.keep is not None:
            images = model.complete(image, self.num_images, keep=self.keep, **options)
        else:
            images = model.outpaint(image, self.num_images, **margins, **options)
        save_by_seed(cast(list[Image.Image], images), self.out, self.seed)


@dataclass(frozen=True, kw_only=True)
class Panorama(Model, PanoramaFields):
    """Draw a wide picture, from one prompt or from several that follow from left to right."""

    width: int = 768
    height: int | None = None  # the model's if not given
    out: Path = Path("panorama.png")  # the file to write, a PNG

    def run(self) -> None:
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"--out must be the name of a .png file, got {self.out}")
        model, options = self.load(), options_given(self, PanoramaOptions)
        (image,) = model.panorama(self.width, self.height, **options)
        save(image, self.out)
        print(self.out)


def save_by_seed(images: list[Image.Image], out: Path, seed: int) -> None:
    for i, image in enumerate(images):
        save(image, file_of(seed + i, out))
        print(file_of(seed + i, out))


def file_of(seed: int, out: Path) -> Path:
    return out / f"seed_{seed}.png"


def save(image: Image.Image, path: Path) -> None:
    """The whole picture or nothing."""
    with atomic_write(path) as draft:
        image.save(draft, format="PNG")


COMMANDS = {"sample": Sample, "edit": Edit, "panorama": Panorama, "import": Import}


class Bars:
    """One progress bar after another, a new one for every label."""

    def __init__(self):
        self.bar, self.label = None, None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def show(self, label: str, done: int, total: int) -> None:
        """`done` of `total` (0: not known) bytes, or steps if the total is 1."""
        if label != self.label:
            self._close()
            unit = dict(unit="") if total == 1 else dict(unit="B", unit_scale=True)
            self.bar, self.label = tqdm(desc=label, total=total or None, **unit), label
        self.bar.update(done - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def main(arguments: list[str]) -> None:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        help_asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(__doc__.strip(), file=sys.stdout if help_asked else sys.stderr)
        sys.exit(0 if help_asked else 2)
    prog = f"python -m imagebart {arguments[0]}"
    try:
        tyro.cli(command, args=arguments[1:], prog=prog).run()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: nothing is half-written")


if __name__ == "__main__":
    main(sys.argv[1:])
