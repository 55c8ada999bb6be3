"""The command line: imagebart COMMAND …, or python -m imagebart COMMAND …

    sample      pictures from noise, one file a seed
    edit        repaint what a mask marks, one half of a picture, or what lies beyond its borders
    reimagine   a picture as it would have been under other words
    panorama    a picture wider than the model's
    import      a released model → a folder that `ImageBART.from_pretrained` reads
    data        what is in a folder of images, and which of them cannot be read
    serve       the page, with the options of app.py, from a copy of the repository

Pictures are PNG files that hold their settings. No file is overwritten unless
`--overwrite` is given. `imagebart serve` runs the page; `imagebart --tyro-print-completion bash`
prints what a shell completes.
"""

import json
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm
from tyro.extras import subcommand_cli_from_dict

from imagebart import __version__
from imagebart.checkpoint import atomic_write
from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import enlarged, read_image, to_edit, to_pil
from imagebart.data.scan import scan, skipped_files
from imagebart.data.sources import HELD_OUT, open_data, summary_of
from imagebart.distributed import finish, part_of, start
from imagebart.editing.inpainting import other_half, repainted
from imagebart.editing.masks import pixel_mask, read_mask
from imagebart.editing.panorama import panorama_steps, wide_image
from imagebart.editing.reimagining import reimagined
from imagebart.model import ImageBART
from imagebart.options import (
    InpaintOptions,
    OutputOptions,
    PanoramaOptions,
    ReimaginingOptions,
    SamplingOptions,
    as_dataclass,
    options_given,
    rows,
)
from imagebart.released.importing import PUBLISHED, import_released
from imagebart.sampling import decoder, image_seeds
from imagebart.settings import chunk_of, file_stem


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
EditFields: Any = as_dataclass(InpaintOptions, without=("semantic_map",))
MAPS = ("semantic_map", "source_semantic_map")
ReimagineFields: Any = as_dataclass(ReimaginingOptions, without=MAPS)
PanoramaFields: Any = as_dataclass(PanoramaOptions)
OutputFields: Any = as_dataclass(OutputOptions)
DIRECTIONS = ("left", "right", "top", "bottom")
Words = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT]")]
ManyWords = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT …]")]
Number = Annotated[int, tyro.conf.arg(aliases=("-n",))]
Out = Annotated[Path, tyro.conf.arg(aliases=("-o",))]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which model, where it runs, and what it writes."""

    model: str | None = None  # a folder or a Hugging Face Hub id; the shipped model if not given
    device: str | None = None  # "cpu", "cuda" …; the best there is if not given
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False  # replace files of the same name
    jsonl: tyro.conf.FlagCreatePairsOff[bool] = False  # print a JSON line a picture: file, settings

    def load(self, device: torch.device | None = None) -> ImageBART:
        return ImageBART.from_pretrained(self.model, device=device or self.device)

    def require_new(self, paths: Iterable[Path]) -> None:
        """ValueError if these files cannot be written, or if one is there, unless files may be
        overwritten."""
        for path in (paths := [*paths]):
            if path.is_dir():
                raise ValueError(f"--out must be the name of a file, got the folder {path}")
            if path.exists() and not self.overwrite:
                raise ValueError(f"{path} is there already: give another --out, or --overwrite")
        for folder in {path.parent for path in paths}:
            there = next(one for one in (folder, *folder.parents) if one.exists())
            if not there.is_dir() or not os.access(there, os.W_OK):
                raise ValueError(f"--out must lie in a folder that can be written to, got {there}")

    def save(self, image: Image.Image, path: Path, options: dict) -> None:
        """The whole picture or nothing."""
        about = {"command": type(self).__name__.lower(), "model": self.model or "shipped"}
        with atomic_write(path) as draft:
            image.save(draft, format="PNG", pnginfo=chunk_of(about | options))

    def report(self, path: Path, options: dict) -> None:
        print(json.dumps({"file": str(path), **options}) if self.jsonl else path)


@dataclass(frozen=True, kw_only=True)
class Sample(Command, SampleFields, OutputFields):
    """Draw pictures, one file a seed, each written as soon as its batch is drawn.

    Thousands need no more memory than a batch. Under `torchrun … -m imagebart sample` every process
    draws its part of the same pictures.
    """

    words: Words = None  # the same as --prompt
    out: Out = Path("samples")  # the folder to write to
    num_images: Number = 1

    def run(self) -> None:
        options = checked_options(self, SamplingOptions, prompt=self.words)
        output = checked_options(self, OutputOptions)
        ranks = start(self.device)
        part = part_of(self.num_images, ranks)
        files = Files(self, options | output)
        files.require_new(part)
        stream = self.load(ranks.device).sample_stream(self.num_images, part=part, **options)
        drawn = tqdm(chain.from_iterable(stream), "pictures", len(part), disable=not ranks.is_main)
        for i, image in zip(part, drawn, strict=True):
            files.save(enlarged(image, self.enlarge), i)
        finish(ranks)
        if ranks.is_main:
            files.report(self.num_images)


@dataclass(frozen=True, kw_only=True)
class Edit(Command, EditFields):
    """Repaint a part of an image, one file a seed. All other pixels stay, bit for bit.

    `--passes` without `--process` stands for `--process refined --passes`.
    """

    image: tyro.conf.Positional[Path] = tyro.MISSING
    words: Words = None  # the same as --prompt
    # single: every scale once; refined: then more passes at t = 2; annealed: several passes at
    # every scale, as released. single if nothing is given, refined if --passes is
    process: Literal["single", "refined", "annealed"] | None = None
    # a picture as large as the image: what is opaque at least half is repainted, whatever its
    # colour; if nothing is transparent, what is white (grey of more than half fades)
    mask: Path | None = None
    keep: Literal["upper", "lower", "left", "right"] | None = None  # the half that stays
    left: int = 0  # pixels to add beyond the border
    right: int = 0
    top: int = 0
    bottom: int = 0
    overlap: int = 0  # pixels of the image that are drawn anew at the sides that grow
    out: Out = Path("edits")  # the folder to write to
    num_images: Number = 1

    def run(self) -> None:
        margins = {name: getattr(self, name) for name in DIRECTIONS}
        wanted = [self.mask is not None, self.keep is not None, any(margins.values())]
        if sum(wanted) != 1:
            raise ValueError("give one of --mask, --keep, or --left --right --top --bottom")
        if self.invert_mask and self.mask is None:
            raise ValueError("--invert-mask needs a --mask to invert")
        if self.overlap and not any(margins.values()):
            raise ValueError("--overlap needs a --left, --right, --top or --bottom")
        options = checked_options(self, InpaintOptions, prompt=self.words)
        if "context" in options and any(margins.values()):
            raise ValueError("--context needs a --mask or --keep; where an image grows, --overlap")
        if "passes" in options:
            options.setdefault("process", "refined")
        where = margins | {"overlap": self.overlap, "keep": self.keep}
        files = Files(self, options | {name: given for name, given in where.items() if given})
        files.require_new(range(self.num_images))
        image = read_image(self.image, convert=to_edit)
        mask = None if self.mask is None else pixel_mask(read_mask(self.mask), image.size)
        model = self.load()
        if self.keep is not None:
            mask = other_half(self.keep, image.size)
        with passes_shown(options) as how:
            for i, edited in enumerate(self.edits(model, image, mask, how)):
                files.save(edited, i)
        files.report(self.num_images)

    def edits(
        self, model: ImageBART, image: Image.Image, mask: np.ndarray | None, options: dict
    ) -> Iterator[Image.Image]:
        """One picture after another, each as soon as it is drawn."""
        if mask is not None:
            how = cast(InpaintOptions, options)
            for edit, one in repainted(model, image, mask, self.num_images, how):
                yield from edit.pictures(one)
            return
        margins = {name: getattr(self, name) for name in DIRECTIONS} | {"overlap": self.overlap}
        for seed in image_seeds(self.seed, self.num_images):
            yield from model.outpaint(image, **margins, **options | {"seed": seed})


@dataclass(frozen=True, kw_only=True)
class Reimagine(Command, ReimagineFields):
    """The whole picture as it would have been under other words, one file a seed, of the model's
    size. `--source-prompt` are the words that it shows now."""

    image: tyro.conf.Positional[Path] = tyro.MISSING
    words: Words = None  # the same as --prompt
    out: Out = Path("reimagined")  # the folder to write to
    num_images: Number = 1

    def run(self) -> None:
        options = checked_options(self, ReimaginingOptions, prompt=self.words)
        files = Files(self, options)
        files.require_new(range(self.num_images))
        image, model = read_image(self.image), self.load()
        with passes_shown(options) as how:
            own = cast(ReimaginingOptions, how)
            batches = reimagined(model, image, self.num_images, own)
            pictures = chain.from_iterable(map(to_pil, batches))
            for i, one in enumerate(pictures):
                files.save(one, i)
        files.report(self.num_images)


@dataclass(frozen=True, kw_only=True)
class Panorama(Command, PanoramaFields, OutputFields):
    """Draw a wide picture, from one prompt or from several that follow from left to right."""

    words: ManyWords = ()  # the same as --prompts
    width: int = 768
    height: int | None = None  # the model's if not given
    out: Out = Path("panorama.png")  # the file to write, a PNG

    def run(self) -> None:
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"--out must be the name of a .png file, got {self.out}")
        options = checked_options(self, PanoramaOptions, prompts=self.words)
        output = checked_options(self, OutputOptions)
        self.require_new([self.out])
        image = self.drawn(self.load(), options)
        size = {"width": self.width, "height": image.height}
        options |= output | size | {"seed": self.seed}
        self.save(enlarged(image, self.enlarge), self.out, options)
        self.report(self.out, options)

    def drawn(self, model: ImageBART, options: dict) -> Image.Image:
        """The picture, with a bar that shows how much of the chain is done."""
        with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:
            for step in panorama_steps(model, self.width, self.height, **options):
                bar.update(step.done - bar.n)
        wrap = options.get("wrap", False)
        (image,) = to_pil(wide_image(model, step.tokens, self.width, self.height, wrap))
        return image


@dataclass(frozen=True, kw_only=True)
class Data:
    """Read every image of a folder once, as training will; say how it is split, and list what
    cannot be read by what is wrong with it. The exit code is 1 if there is any."""

    folder: tyro.conf.Positional[Path] = tyro.MISSING
    size: int = 256  # pixels a side of the model; smaller images are enlarged
    held_out: float = HELD_OUT  # share of a folder without splits that is its validation split

    def run(self) -> None:
        bad, roots = 0, set()
        for split in ("train", "validation"):
            data = cast(ImageFolder, open_data(self.folder, None, split, held_out=self.held_out))
            print(f"{split}: {summary_of(data)}")
            *_, found = tqdm(scan(data, self.size), total=len(data), unit="img")
            print("\n".join(found.lines()))
            bad += found.bad_count
            roots.add(data.root)
        for root in roots:
            for ending, count in sorted(skipped_files(root).items()):
                print(f"{count:,} files {ending} are not read: convert them, to JPEG say")
        if bad:
            raise ValueError(f"{self.folder}: all images must be readable, got {bad} that are not")


def serve(arguments: tyro.conf.Positional[list[str]]) -> None:
    """The page, with the options of app.py, from a copy of the repository."""
    page = Path(__file__).parents[1] / "app.py"
    if not page.is_file():
        sys.exit("error: serve must run in a copy of the repository, which has app.py, got none")
    sys.path.insert(0, str(page.parent))
    sys.argv = [str(page), *arguments]
    runpy.run_path(str(page), run_name="__main__")


COMMANDS: dict[str, Callable] = {
    "sample": Sample,
    "edit": Edit,
    "reimagine": Reimagine,
    "panorama": Panorama,
    "import": Import,
    "data": Data,
    "serve": serve,
}


@dataclass
class Files:
    """A command's pictures: one file a seed, named after the prompt and the seed."""

    command: Sample | Edit | Reimagine
    options: dict

    def path(self, i: int) -> Path:
        stem = file_stem(self.command.seed + i, self.options.get("prompt"))
        return self.command.out / f"{stem}.png"

    def require_new(self, numbers: Iterable[int]) -> None:
        self.command.require_new(map(self.path, numbers))

    def save(self, image: Image.Image, i: int) -> None:
        self.command.save(image, self.path(i), self.options | {"seed": self.command.seed + i})

    def report(self, count: int) -> None:
        for i in range(count):
            self.command.report(self.path(i), self.options | {"seed": self.command.seed + i})


def checked_options(command: Command, table: type, **positional: str | tuple | None) -> dict:
    """The options that a command was given, also as words without a name; ValueError for a number
    out of bounds, and for a prompt that is given twice."""
    options = options_given(command, table)
    for name, words in positional.items():
        if words and name in options:
            raise ValueError(f"the prompt must be given once, got {words!r} and --{name}")
        if words:
            options[name] = words
    for name, value in options.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            rows(table)[name].check(value, f"--{name.replace('_', '-')}")
    return options


@contextmanager
def passes_shown(options: dict) -> Iterator[dict]:
    """The same options, with a bar that counts the passes of every scale."""
    with tqdm(unit=" passes") as bar:

        def on_pass(t: int, _: torch.Tensor) -> None:
            bar.set_description_str(f"scale {t}", refresh=False)
            bar.update()

        method = decoder(options.get("method", "parallel"))
        yield options | {"method": partial(method, on_pass=on_pass)}


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


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors and warnings are sentences, each warning is said once."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--version"], ["-V"]):
        print(f"imagebart {__version__}")
        return
    if arguments[:1] == ["serve"]:
        return serve(arguments[1:])
    about = __doc__.split("\n\n")[-1]
    command = subcommand_cli_from_dict(
        COMMANDS, prog="imagebart", description=about, args=arguments or ["--help"]
    )
    said: set[str] = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:
            tqdm.write(f"warning: {message}", sys.stderr)
        said.add(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = say
        try:
            command.run()
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("stopped: nothing is half-written")


if __name__ == "__main__":
    main()
