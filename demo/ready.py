"""What the page shows before anybody has asked for anything: a sample of each idea.

    python -m demo.ready        draws them anew, with the shipped model: after a change of weights

They are files, since drawing them would take longer than all else that the page does as it starts.
"""

from pathlib import Path

from PIL import Image

from demo.parts import IDEAS
from demo.pictures import stored
from demo.requests import settings_of_each
from imagebart import ImageBART
from imagebart.settings import chunk_of, file_stem, settings_of

READY = Path(__file__).parent / "ready"


def ready_pictures() -> list[tuple[str, str]]:
    """(file, prompt) of each for a gallery."""
    pictures = [Image.open(path) for path in READY.glob("*.png")]
    pictures.sort(key=lambda picture: settings_of(picture)["seed"])
    return [(stored(one, settings_of(one)), settings_of(one)["prompt"]) for one in pictures]


def draw_ready(model: ImageBART, folder: Path = READY) -> None:
    """A file for each of `IDEAS`, with its settings, in place of those before."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        path.unlink()
    prompts = list(IDEAS.values())
    images = model.sample(len(prompts), prompt=prompts, seed=0)
    about = settings_of_each("sample", {"prompt": prompts, "seed": 0}, len(prompts))
    for image, own in zip(images, about, strict=True):
        path = folder / f"{file_stem(own['seed'], own['prompt'])}.png"
        image.save(path, pnginfo=chunk_of(own))


if __name__ == "__main__":
    draw_ready(ImageBART.from_pretrained(device="cpu"))
