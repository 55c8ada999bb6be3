"""Look: a small network that knows what scenery shows.   [how samples are measured and ranked]

An image-text network in CLIP's shape, with heads that read from a picture what is true of it: kind
of place, time of day, weather, season, object, and what covers each place of a 16×16 grid. It ranks
samples unless the user brings a CLIP of their own, and measures them where the weights of larger
networks are not at hand. Made by train/probe.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from imagebart.checkpoint import load_tensors, save_tensors
from imagebart.data.scenery import KINDS, LABELS, OBJECTS, SEASONS, TIMES, WEATHERS
from imagebart.notation import Float, Int
from imagebart.ranking import CLIP, Score

SHIPPED_PROBE = Path(__file__).parent / "pretrained" / "probe"

ATTRIBUTES = {
    "kind": KINDS,
    "time": TIMES,
    "weather": WEATHERS,
    "season": SEASONS,
    "object": OBJECTS,
}
GRID = (16, 16)
"""Places of a picture whose kinds the probe tells."""


@dataclass(frozen=True)
class Seen:
    """What the probe sees in b pictures; on the CPU, wherever the probe is."""

    features: Float[Tensor, "b c"]
    attributes: dict[str, Float[Tensor, "b _"]]
    """probabilities of each attribute's values, in the order of `ATTRIBUTES`"""
    kinds: Int[Tensor, "b 16 16"]
    """the likeliest of `scenery.LABELS` at each place"""

    def values(self, name: str) -> list[str]:
        """The likeliest value of an attribute, picture by picture."""
        return [ATTRIBUTES[name][i] for i in self.attributes[name].argmax(1).tolist()]

    def found(self, asked: Sequence[dict[str, str]]) -> dict[str, float]:
        """The share of what is asked of each picture, {attribute: value}, that is seen in it: of
        all that is asked, and attribute by attribute."""
        seen = {name: self.values(name) for name in self.attributes}
        right: dict[str, list[bool]] = {}
        for i, wish in enumerate(asked):
            for name, value in wish.items():
                right.setdefault(name, []).append(seen[name][i] == value)
        each = {name: sum(values) / len(values) for name, values in right.items()}
        every = [value for values in right.values() for value in values]
        return {"all": sum(every) / len(every), **each}


class Heads(nn.Module):
    """Linear readings of CLIP's image tower: of its summary, and of its patches (2×2 places)."""

    def __init__(self, width: int):
        super().__init__()
        self.attributes = nn.ModuleDict(
            {name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()}
        )
        self.places = nn.Linear(width, 4 * len(LABELS))

    def forward(
        self, summary: Float[Tensor, "b c"], patches: Float[Tensor, "b n c"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "b places kinds"]]:
        """Logits of every attribute, and of the kinds (b, 256, 18) row by row."""
        told = {name: head(summary) for name, head in self.attributes.items()}
        h = GRID[0] // 2
        places = rearrange(self.places(patches), "b (h w) (y x k) -> b (h y w x) k", h=h, y=2, x=2)
        return told, places


class Probe(CLIP):
    """The probe of a folder: CLIP's files and `heads.safetensors`. None is the shipped one.

    ValueError if the folder holds none.
    """

    def __init__(self, folder: str | Path | None = None):
        folder = SHIPPED_PROBE if folder is None else Path(folder)
        super().__init__(folder)
        self.heads = Heads(self.model.config.vision_config.hidden_size)
        self.heads.load_state_dict(load_tensors(folder / "heads.safetensors"))
        self.float().eval().requires_grad_(False)

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image] | Tensor, batch: int = 64) -> Seen:
        """What PIL images, or b×3×H×W uint8, show; any size, scaled to the probe's."""
        parts = [self._look(images[i : i + batch]) for i in range(0, len(images), batch)]
        return Seen(
            torch.cat([part.features for part in parts]),
            {name: torch.cat([part.attributes[name] for part in parts]) for name in ATTRIBUTES},
            torch.cat([part.kinds for part in parts]),
        )

    def _look(self, images: Sequence[Image.Image] | Tensor) -> Seen:
        pixels = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        summary, patches = read(self.model, pixels["pixel_values"])
        told, places = self.heads(summary, patches)
        kinds = rearrange(places.argmax(-1), "b (h w) -> b h w", h=GRID[0])
        chances = {name: logits.softmax(1).cpu() for name, logits in told.items()}
        return Seen(summary.cpu(), chances, kinds.cpu())

    def being(self, name: str, value: str) -> Score:
        """A score for `reject`: the probability that an attribute has this value.

        reject(model, 4, 0.25, Probe().being("kind", "lake"), classes="lake")
        """
        if value not in ATTRIBUTES.get(name, ()):
            raise ValueError(f"{name} must be one of {ATTRIBUTES.get(name)}, got {value!r}")
        i = ATTRIBUTES[name].index(value)
        return lambda images: self.look(images).attributes[name][:, i].tolist()


def read(clip, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor]:
    """CLIP's image tower: its summary (b, c) and its patches (b, n, c)."""
    seen = clip.vision_model(pixel_values=pixels)
    return seen.pooler_output, seen.last_hidden_state[:, 1:]


def save_probe(clip, heads: Heads, folder: Path) -> None:
    """Write the folder that `Probe` reads, weights in fp16."""
    from transformers import CLIPImageProcessor

    size = clip.config.vision_config.image_size
    square = {"height": size, "width": size}
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    clip.save_pretrained(folder, state_dict={n: x.half() for n, x in clip.state_dict().items()})
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **half).save_pretrained(
        folder
    )
    save_tensors(
        {name: x.half() for name, x in heads.state_dict().items()}, folder / "heads.safetensors"
    )
