"""Draw more than is wanted and keep the best: rejection and re-ranking.   [sections 4.1, 4.2]

classifier rejection    of n / rate samples of a class the n that a classifier is surest of
                        (table 2: rates 1.0, 0.5, 0.25, 0.05)
CLIP re-ranking         of so many candidates the n that look most like the prompt

`best_of` ranks samples, `best_edits` edits of a picture, `best_so_far` whatever is drawn by seed.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Unpack, cast

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from imagebart.arguments import as_int, each_of, is_several, quoted, to_builtin
from imagebart.checkpoint import sha256_of
from imagebart.data.text import TEXT_IDS, encode_text
from imagebart.isolation import isolated
from imagebart.model import ImageBART
from imagebart.notation import Float
from imagebart.options import CandidateOptions, EditCandidateOptions, Marks, with_options
from imagebart.sampling import image_seeds
from imagebart.streaming import WORDS

Score = Callable[[list[Image.Image]], Sequence[float]]
"""Pictures → a finite number each, more is better."""

Draw = Callable[..., list[Image.Image]]
"""draw(count, seed=[…]) → so many pictures, each the one of its seed."""


@dataclass(frozen=True, order=True)
class Ranked:
    """A picture, its score and the seed that draws it again."""

    score: float
    seed: int
    image: Image.Image = field(compare=False)


@with_options
def best_of(
    model: ImageBART,
    num_images: int,
    candidates: int,
    score: Score,
    *,
    chunk: int = 16,
    **options: Unpack[CandidateOptions],
) -> list[Ranked]:
    """The `num_images` best of `candidates` samples, seeds seed, seed + 1, …; the best first.

    They are drawn `chunk` at a time and only the best so far are kept. The options
    are one for all. Of equal scores the higher seed wins.
    """
    seed, one = as_int(options.pop("seed", 0), "seed"), one_for_all(options)
    draw = cast(Draw, partial(model.sample, **one))
    steps = best_so_far(draw, num_images, candidates, score, seed=seed, chunk=chunk)
    return deque(steps, 1).pop()


@with_options
def best_edits(
    model: ImageBART,
    image: Image.Image,
    mask: Marks,
    num_images: int,
    candidates: int,
    score: Score,
    *,
    chunk: int = 16,
    **options: Unpack[EditCandidateOptions],
) -> list[Ranked]:
    """The `num_images` best of `candidates` ways to repaint a picture; the best first.

    The score sees the whole picture. The rest as in `best_of`.
    """
    seed, one = as_int(options.pop("seed", 0), "seed"), one_for_all(options)
    draw = cast(Draw, partial(model.inpaint, image, mask, **one))
    steps = best_so_far(draw, num_images, candidates, score, seed=seed, chunk=chunk)
    return deque(steps, 1).pop()


def one_for_all(options: Mapping[str, object]) -> dict[str, Any]:
    """The options; ValueError if what is to be seen is more than one thing: candidates differ by
    their seeds alone."""
    kinds = {name: kind for name, kind in WORDS.items() if name in options}
    each = {name: each_of(options[name], 1, kind, name) for name, kind in kinds.items()}
    return {**options} | {name: one for name, (one,) in each.items()}


def best_so_far(
    draw: Draw,
    num_images: int,
    candidates: int,
    score: Score,
    *,
    seed: int = 0,
    chunk: int = 16,
) -> Iterator[list[Ranked]]:
    """The best of those drawn until now, the best first, after every `chunk` of `candidates`.

    ValueError unless the score of each is a finite number.
    """
    image_seeds(seed, num_images)
    as_int(candidates, "candidates", num_images)
    as_int(chunk, "chunk", 1)
    best: list[Ranked] = []
    for start in range(seed, seed + candidates, chunk):
        seeds = range(start, min(start + chunk, seed + candidates))
        images = draw(len(seeds), seed=list(seeds))
        each = zip(scores_of(images, score), seeds, images, strict=True)
        best = heapq.nlargest(num_images, [*best, *(Ranked(*one) for one in each)])
        yield best


def scores_of(images: list[Image.Image], score: Score) -> list[float]:
    """The score of each picture; ValueError unless that is a finite number for each."""
    given = to_builtin(score(images), list)
    scores = [to_builtin(one, float) for one in given] if is_several(given) else []
    finite = all(isinstance(one, Real) and math.isfinite(one) for one in scores)
    if len(scores) != len(images) or not finite:
        got = quoted(given)
        raise ValueError(f"score must give a finite number for each of {len(images)}, got {got}")
    return [float(one) for one in scores]


@with_options
def reject(
    model: ImageBART,
    num_images: int,
    rate: float,
    score: Score,
    *,
    chunk: int = 16,
    **options: Unpack[CandidateOptions],
) -> list[Ranked]:
    """Rejection at an acceptance rate in (0, 1]: the best `num_images` of num_images / rate.

    `score` is a classifier's probability of what was asked for. The rest as in `best_of`.
    """
    if not isinstance(rate, Real) or not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate!r}")
    candidates = math.ceil(num_images / rate - 1e-9)
    return best_of(model, num_images, candidates, score, chunk=chunk, **options)


class CLIP(nn.Module):
    """cos(E_image, E_text) by a CLIP model in a folder in Hugging Face's layout.

    The text is read as every prompt of this package is (`encode_text`, OpenAI's ids). ValueError if
    there is no such model. `sha256` are the digests of its weights.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"clip must be the folder of a CLIP model, got {folder}")
        from transformers import CLIPImageProcessor, CLIPModel  # seconds, so only when asked for

        self.model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        words = self.model.config.text_config
        if words.vocab_size != TEXT_IDS:
            raise ValueError(
                f"{folder}: CLIP's vocabulary must be the {TEXT_IDS} pieces of OpenAI's, "
                f"got {words.vocab_size}"
            )
        self.longest = words.max_position_embeddings
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        self.sha256 = {file.name: sha256_of(file) for file in files}

    @isolated
    def forward(
        self, images: Sequence[Image.Image] | Tensor, captions: Sequence[str]
    ) -> Float[Tensor, "b"]:
        """How well each caption says what its picture (PIL images, or b×3×H×W uint8) shows."""
        return F.cosine_similarity(self.embed_images(images), self.embed_texts(captions))

    # Since transformers 5 the projected embedding is the output's `pooler_output`.

    @isolated
    def embed_images(self, images: Sequence[Image.Image] | Tensor) -> Float[Tensor, "b d"]:
        """E_image of PIL images, or b×3×H×W uint8."""
        pixels = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        return self.model.get_image_features(**pixels).pooler_output

    @isolated
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """E_text; a longer text than the model can read is cut."""
        ids, _ = encode_text(list(texts), self.longest)
        return self.model.get_text_features(input_ids=ids.to(self.model.device)).pooler_output

    def likeness(self, prompt: str) -> Score:
        """A score for `best_of`: how much pictures look like the prompt.

        best_of(model, 2, 32, CLIP("models/clip").likeness(prompt), prompt=prompt)
        """
        return lambda images: self(images, [prompt] * len(images)).tolist()
