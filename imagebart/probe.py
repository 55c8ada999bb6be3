"""The probe: a small network that recognises scenery.   [how samples are measured and ranked]

A CLIP with linear heads for the attributes of an image (kind of place, time of day, weather,
season, object) and for the semantic map at 16×16. It ranks samples unless the user gives another
CLIP, and measures them where larger networks' weights are not available. Trained by train/probe.py.
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
from imagebart.isolation import isolated
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
"""Resolution of the predicted semantic map."""


@dataclass(frozen=True)
class Predictions:
    """The probe's predictions for b images, on the CPU."""

    features: Float[Tensor, "b c"]
    attributes: dict[str, Float[Tensor, "b _"]]
    """probabilities of each attribute's values, in the order of `ATTRIBUTES`"""
    kinds: Int[Tensor, "b 16 16"]
    """the most probable of `scenery.LABELS` at each place"""

    def values(self, name: str) -> list[str]:
        """The most probable value of an attribute for each image."""
        return [ATTRIBUTES[name][i] for i in self.attributes[name].argmax(1).tolist()]

    def accuracy(self, targets: Sequence[dict[str, str]]) -> dict[str, float]:
        """Share of correct predictions, over all attributes ("all") and for each attribute.

        `targets` has a dict {attribute: value} per image.
        """
        predicted = {name: self.values(name) for name in self.attributes}
        right: dict[str, list[bool]] = {}
        for i, target in enumerate(targets):
            for name, value in target.items():
                right.setdefault(name, []).append(predicted[name][i] == value)
        each = {name: sum(values) / len(values) for name, values in right.items()}
        every = [value for values in right.values() for value in values]
        return {"all": sum(every) / len(every), **each}


class ProbeHeads(nn.Module):
    """Linear heads on CLIP's image tower: on the pooled output, and on its patches (2×2 places)."""

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
        attributes = {name: head(summary) for name, head in self.attributes.items()}
        h = GRID[0] // 2
        places = rearrange(self.places(patches), "b (h w) (y x k) -> b (h y w x) k", h=h, y=2, x=2)
        return attributes, places


class Probe(CLIP):
    """The probe in a folder: CLIP's files and `heads.safetensors`; None is the shipped one.

    ValueError if the folder has no probe.
    """

    def __init__(self, folder: str | Path | None = None):
        folder = SHIPPED_PROBE if folder is None else Path(folder)
        super().__init__(folder)
        self.heads = ProbeHeads(self.model.config.vision_config.hidden_size)
        self.heads.load_state_dict(load_tensors(folder / "heads.safetensors"))
        self.float().eval().requires_grad_(False)

    @isolated
    def predict(self, images: Sequence[Image.Image] | Tensor, batch: int = 64) -> Predictions:
        """Predictions for PIL images, or b×3×H×W uint8; resized to the probe's size."""
        parts = [self._predict(images[i : i + batch]) for i in range(0, len(images), batch)]
        return Predictions(
            torch.cat([part.features for part in parts]),
            {name: torch.cat([part.attributes[name] for part in parts]) for name in ATTRIBUTES},
            torch.cat([part.kinds for part in parts]),
        )

    def _predict(self, images: Sequence[Image.Image] | Tensor) -> Predictions:
        pixels = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        summary, patches = read(self.model, pixels["pixel_values"])
        attributes, places = self.heads(summary, patches)
        kinds = rearrange(places.argmax(-1), "b (h w) -> b h w", h=GRID[0])
        probabilities = {name: logits.softmax(1).cpu() for name, logits in attributes.items()}
        return Predictions(summary.cpu(), probabilities, kinds.cpu())

    def being(self, name: str, value: str) -> Score:
        """A score for `reject`: the probability that an attribute has this value.

        reject(model, 4, 0.25, Probe().being("kind", "lake"), classes="lake")
        """
        if name not in ATTRIBUTES:
            raise ValueError(f"an attribute must be one of {', '.join(ATTRIBUTES)}, got {name!r}")
        if value not in ATTRIBUTES[name]:
            raise ValueError(f"{name} must be one of {', '.join(ATTRIBUTES[name])}, got {value!r}")
        i = ATTRIBUTES[name].index(value)
        return lambda images: self.predict(images).attributes[name][:, i].tolist()


def read(clip, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor]:
    """CLIP's image tower: pooled output (b, c) and patches (b, n, c)."""
    outputs = clip.vision_model(pixel_values=pixels)
    return outputs.pooler_output, outputs.last_hidden_state[:, 1:]


def save_probe(clip, heads: ProbeHeads, folder: Path) -> None:
    """Write the folder that `Probe` reads, weights in fp16."""
    from transformers import CLIPImageProcessor

    size = clip.config.vision_config.image_size
    square = {"height": size, "width": size}
    half = [0.5] * 3
    clip.save_pretrained(folder, state_dict={n: x.half() for n, x in clip.state_dict().items()})
    processor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=square, image_mean=half, image_std=half
    )
    processor.save_pretrained(folder)
    save_tensors(
        {name: x.half() for name, x in heads.state_dict().items()}, folder / "heads.safetensors"
    )
