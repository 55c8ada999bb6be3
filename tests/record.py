"""The record of what the shipped model draws: hashes of tokens, and likelihoods.

    python tests/record.py        writes tests/fixtures/record.json

It holds the SHA-256 of every token grid that is decoded while the shipped model samples, edits and
draws a panorama, for a few seeds and settings, and the bits per token of a picture. Pixels are left
out: convolutions round differently on different processors. tests/test_record.py draws all of it
again. The edits are of pictures filled under the mask before they are encoded. The record is made
anew only when what is drawn is meant to change: other weights, another order of the random numbers,
another default; never for a refactoring.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagebart import ImageBART
from imagebart.data import scenery

RECORD = Path(__file__).parent / "fixtures" / "record.json"


def digest(grids: list[torch.Tensor]) -> str:
    """SHA-256 of token grids (b, h, w) with their shapes."""
    said = hashlib.sha256()
    for grid in grids:
        said.update(repr(tuple(grid.shape)).encode())
        said.update(grid.cpu().numpy().astype("<u2").tobytes())
    return said.hexdigest()


def decoded(model: ImageBART, draw: Callable[[], object]) -> str:
    """The digest of all tokens that the model decodes during `draw`."""
    grids, generate = [], model.generate
    model.generate = lambda tokens, *known: (grids.append(tokens), generate(tokens, *known))[1]
    try:
        draw()
    finally:
        model.generate = generate
    assert grids, "nothing was decoded"
    return digest(grids)


def disc(size: int) -> np.ndarray:
    """A mask: True in a disc left of the middle."""
    y, x = np.mgrid[:size, :size] / size
    return (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.05


def record() -> dict:
    """{"tokens": {what is drawn: digest}, "bits": {what is given: bits per token, t = 2 .. T}}"""
    chain = ImageBART.from_pretrained(device="cpu")
    scene = scenery.render(scenery.scene_seed("test", 5))
    image, mask, night = Image.fromarray(scene.image), disc(128), "a city at night"
    drawn = {
        "sample": lambda: chain.sample(2, seed=0),
        "sample, a prompt": lambda: chain.sample(prompt=night, seed=3),
        "sample, a class, guidance": lambda: chain.sample(classes="desert", guidance=2, seed=7),
        "sample, filtered": lambda: chain.sample(
            seed=11, temperature=[0.8, 0.9, 1.0, 1.0], top_k=200, top_p=0.95
        ),
        "sample, a negative prompt": lambda: chain.sample(
            prompt="a lake", negative_prompt="snow", guidance=[1.5, 2, 3, 3], seed=4
        ),
        "inpaint": lambda: chain.inpaint(image, mask, 2, seed=1),
        "inpaint, a prompt": lambda: chain.inpaint(image, mask, prompt=night, seed=2, context=1),
        "inpaint, refined": lambda: chain.inpaint(
            image, mask, seed=3, process="refined", passes=3, feather=4
        ),
        "inpaint, annealed": lambda: chain.inpaint(image, mask, seed=4, process="annealed"),
        "complete": lambda: chain.complete(image, keep="lower", seed=5),
        "outpaint": lambda: chain.outpaint(image, left=24, seed=6),
        "panorama": lambda: chain.panorama(176, prompts=["a desert at noon", night], seed=8),
        "panorama, wrapped": lambda: chain.panorama(192, wrap=True, seed=9),
        "map": lambda: chain.sample(semantic_map=scene.semantic_map, seed=1),
        "map, a prompt": lambda: chain.sample(
            semantic_map=scene.semantic_map, prompt="at night under the stars", seed=2
        ),
    }
    tokens = {name: decoded(chain, draw) for name, draw in drawn.items()}
    tokens["encode"] = digest([chain.encode(image)])
    bits = {
        "nothing": chain.bits_per_token(image, seed=0),
        "a prompt": chain.bits_per_token(image, seed=0, prompt=scene.caption),
        "a map": chain.bits_per_token(image, seed=0, semantic_map=scene.semantic_map),
    }
    return {
        "tokens": tokens,
        "bits": {
            name: [round(one.item(), 5) for _, one in sorted(of.items())]
            for name, of in bits.items()
        },
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
