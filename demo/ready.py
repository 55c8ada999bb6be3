"""What the page shows before anybody has asked for anything: for each idea the best of eight
samples, as the shipped probe sees it ("Best of" 8).

    python -m demo.ready        draws them anew, with the shipped model: after a change of weights

They are files, since drawing them would take longer than all else that the page does as it starts.
"""

from pathlib import Path

from PIL import Image

from demo.parts import IDEAS
from demo.pictures import stored
from demo.requests import settings_of_each
from imagebart import ImageBART
from imagebart.probe import Probe
from imagebart.ranking import CLIP, best_of
from imagebart.settings import chunk_of, file_stem, settings_of

READY = Path(__file__).parent / "ready"
CANDIDATES = 8


def ready_pictures() -> list[tuple[str, str]]:
    """(file, prompt) of each for a gallery."""
    pictures = [Image.open(path) for path in READY.glob("*.png")]
    pictures.sort(key=lambda picture: settings_of(picture)["seed"])
    return [(stored(one, settings_of(one)), settings_of(one)["prompt"]) for one in pictures]


def draw_ready(model: ImageBART, ranker: CLIP, folder: Path = READY) -> None:
    """A file for each of `IDEAS`, with its settings, in place of those before."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        path.unlink()
    for i, prompt in enumerate(IDEAS.values()):
        score, seed = ranker.likeness(prompt), i * CANDIDATES
        (best,) = best_of(model, 1, CANDIDATES, score, prompt=prompt, seed=seed)
        (own,) = settings_of_each("sample", {"prompt": prompt, "seed": best.seed}, 1)
        path = folder / f"{file_stem(best.seed, prompt)}.png"
        best.image.save(path, pnginfo=chunk_of(own))


if __name__ == "__main__":
    draw_ready(ImageBART.from_pretrained(device="cpu"), Probe())
