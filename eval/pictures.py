"""The figures of the README and of a model card, from fixed seeds.

python eval/pictures.py --model imagebart/pretrained/scenery --out docs

samples.png           16 samples above 16 held-out renders
chain.png             x_T … x_1 of two samples
edits.png             a render, its mask, and three inpaintings
reconstructions.png   held-out renders above their reconstructions
prompts.png           twelve prompts, two seeds each, if the model takes text
maps.png              semantic maps above samples, without and with prompts, if it takes maps
panorama.png          eight times as wide as the model's pictures, from two prompts if it takes text
"""

from dataclasses import dataclass
from pathlib import Path

from completion import mask_of
from PIL import Image
from reporting import run

from imagebart import ImageBART, show
from imagebart.data import scenery
from imagebart.data.maps import kind_colours, paint_kinds
from imagebart.folders import SHIPPED

PROMPTS = (
    "northern lights over snowy mountains at night",
    "a green meadow at noon",
    "a desert of dunes at sunset",
    "a city at night",
    "a lake among hills in autumn",
    "a sea coast with a sailing boat",
    "a snowy forest under heavy clouds",
    "a canyon at dawn",
    "a volcano at night",
    "a village by a river at noon",
    "islands in the fog",
    "an arctic sea with icebergs at noon",
)


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED
    out: Path = Path("docs")
    seed: int = 0  # of the first sample
    device: str = "auto"


def main(config: Config) -> None:
    model = ImageBART.from_pretrained(config.model, device=config.device)
    renders = [held_out_image(model, i) for i in range(16)]
    config.out.mkdir(parents=True, exist_ok=True)

    samples = model.sample(16, seed=config.seed)
    show.grid([*samples, *renders], columns=8).save(config.out / "samples.png")

    steps = list(model.sample_steps(2, seed=config.seed))
    show.chain(model, steps).save(config.out / "chain.png")

    rows, captions = [], []
    for image, name in ((renders[0], "upper half"), (renders[1], "right half")):
        mask = mask_of(name.removesuffix(" half"), model.image_size)
        edits = model.inpaint(image, mask, 3, seed=config.seed)
        rows += [image, show.mask_overlay(image, mask), *edits]
        captions += ["input", name, "", "", ""]
    show.grid(rows, columns=5, captions=captions).save(config.out / "edits.png")

    back = model.decode(model.encode(renders[:8]))
    show.grid([*renders[:8], *back], columns=8).save(config.out / "reconstructions.png")

    if "map" in model.conditions:
        map_samples(model, config.seed).save(config.out / "maps.png")

    wide = (
        {"prompts": ["a desert at sunset", "a city at night"]} if "text" in model.conditions else {}
    )
    panorama = model.panorama(8 * model.image_size[1], seed=config.seed, **wide)
    show.grid(panorama, columns=1).save(config.out / "panorama.png")
    if "text" in model.conditions:
        pairs = [model.sample(2, prompt=prompt, seed=config.seed) for prompt in PROMPTS]
        first, second = zip(*pairs, strict=True)
        six = [slice(0, 6), slice(6, 12)]
        images = [image for part in six for row in (first, second) for image in row[part]]
        captions = [c for part in six for c in (*PROMPTS[part], *[""] * 6)]
        show.grid(images, columns=6, captions=captions).save(config.out / "prompts.png")


def map_samples(model: ImageBART, seed: int) -> show.Picture:
    """Eight held-out maps, a sample for each, and for the same maps with two prompts."""
    size, colours = model.image_size, kind_colours(model.names["map"])
    scenes = [scenery.render(scenery.scene_seed("validation", i), *size) for i in range(8)]
    maps = [scene.semantic_map for scene in scenes]
    rows, captions = [paint_kinds(one, colours) for one in maps], ["map"] + [""] * 7
    for prompt in (
        (None, "at night under the stars", "at sunset in autumn")
        if "text" in model.conditions
        else (None,)
    ):
        rows += model.sample(8, seed=seed, semantic_map=maps, prompt=prompt)
        captions += [prompt or "no prompt"] + [""] * 7
    return show.grid(rows, columns=8, captions=captions)


def held_out_image(model: ImageBART, index: int) -> Image.Image:
    """Image `index` of scenery's validation split."""
    seed = scenery.scene_seed("validation", index)
    return Image.fromarray(scenery.render(seed, *model.image_size).image)


if __name__ == "__main__":
    run(main, Config, __doc__)
