"""Draw more than is wanted and keep the best: rejection and re-ranking.   [sections 4.1, 4.2]

classifier rejection    of n / rate samples of a class the n that a classifier is surest of
                        (table 2: rates 1.0, 0.5, 0.25, 0.05)
CLIP re-ranking         of so many candidates the n that look most like the prompt
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from imagebart.checkpoint import sha256_of
from imagebart.notation import Float
from imagebart.sampling import image_seeds

Score = Callable[[list[Image.Image]], Sequence[float]]
"""Pictures → a number each, more is better."""


@dataclass(frozen=True, order=True)
class Ranked:
    """A picture, its score and the seed that draws it again."""

    score: float
    seed: int
    image: Image.Image = field(compare=False)


def best_of(
    model,
    num_images: int,
    candidates: int,
    score: Score,
    *,
    seed: int = 0,
    chunk: int = 16,
    **options,
) -> list[Ranked]:
    """The `num_images` best of `candidates` samples, seeds seed, seed + 1, …; the best first.

    They are drawn `chunk` at a time and only the best so far are kept. Options as
    `ImageBART.sample_steps`, one for all. Of equal scores the higher seed wins.
    """
    if not isinstance(candidates, int) or candidates < num_images:
        raise ValueError(f"candidates must be at least {num_images}, got {candidates!r}")
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number, at least 1, got {chunk!r}")
    image_seeds(seed, num_images)
    best: list[Ranked] = []
    for start in range(seed, seed + candidates, chunk):
        seeds = range(start, min(start + chunk, seed + candidates))
        images = model.sample(len(seeds), seed=list(seeds), **options)
        found = map(Ranked, map(float, score(images)), seeds, images)
        best = heapq.nlargest(num_images, [*best, *found])
    return best


def reject(
    model, num_images: int, rate: float, score: Score, *, seed: int = 0, **options
) -> list[Ranked]:
    """Rejection at an acceptance rate in (0, 1]: the best `num_images` of num_images / rate.

    `score` is a classifier's probability of what was asked for. Options as `best_of`.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}")
    candidates = math.ceil(num_images / rate - 1e-9)
    return best_of(model, num_images, candidates, score, seed=seed, **options)


class CLIP(nn.Module):
    """cos(E_image, E_text) by a CLIP model in a folder in Hugging Face's layout.

    ValueError if there is none. `sha256` are the digests of its weights.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"clip must be the folder of a CLIP model, got {folder}")
        from transformers import CLIPModel, CLIPProcessor  # seconds, so only when asked for

        self.model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.longest = self.model.config.text_config.max_position_embeddings
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        self.sha256 = {file.name: sha256_of(file) for file in files}

    @torch.inference_mode()
    def forward(
        self, images: Sequence[Image.Image] | Tensor, captions: Sequence[str]
    ) -> Float[Tensor, "b"]:
        """How well each caption says what its picture (PIL images, or b×3×H×W uint8) shows."""
        # The tokenizer cuts a long caption before its end mark, whose place CLIP reads.
        cut = {"padding": True, "truncation": True, "max_length": self.longest}
        pixels = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        words = self.processor(text=list(captions), return_tensors="pt", **cut)

        # Since transformers 5 the projected embedding is the output's `pooler_output`.
        image = self.model.get_image_features(**pixels).pooler_output
        text = self.model.get_text_features(**words.to(self.model.device)).pooler_output
        return F.cosine_similarity(image, text)

    def likeness(self, prompt: str) -> Score:
        """A score for `best_of`: how much pictures look like the prompt.

        best_of(model, 2, 32, CLIP("models/clip").likeness(prompt), prompt=prompt)
        """
        return lambda images: self(images, [prompt] * len(images)).tolist()
