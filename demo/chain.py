"""The tab Understand: x_t of an image for every t, bits per token of each scale, and what the model
draws of every x_t."""

import time
from collections.abc import Iterator

import gradio as gr
import torch
from einops import rearrange
from PIL import Image

from demo.parts import Controls, alone_with, job, run_buttons, shelf_of, stops
from demo.pictures import NO_IMAGE, read_picture, stored
from demo.requests import picked, progress, read_int, sentences
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.data.images import fit
from imagebart.notation import Grid
from imagebart.sampling import Request, reverse_steps

ABOUT = """
The model sees a picture as a grid of tokens. A fixed process replaces them by random ones, level by
level, until nothing is left of the picture; what the model has learned is to undo each level.
"""
ADDED = """
#### What each scale adds
The picture, drawn again from each of the levels above: what a level still says of it stays, the
rest is the model's.
"""


def chain_levels(model: ImageBART, image, t=2, seed=0) -> Iterator[tuple]:
    """The forward process of an image: (x_t decoded, status, all levels decoded).

    t: 1 (the image) to T (noise); seed: 0 to 2^63 - 1, of the noise, which is the same for all t.
    """
    t, seed = read_int(t, "t", 1, model.T), read_int(seed, "seed", 0, 2**63 - 1)
    x_1 = uploaded_tokens(model, image)
    levels = [noisy(model, x_1, level, seed) for level in range(1, model.T + 1)]
    shown = [stored(picture) for picture in model.decode(torch.cat(levels))]
    kept = [(x_t == x_1).float().mean().item() for x_t in levels]
    names = [f"t = {level}: {part:.0%} kept" for level, part in enumerate(kept, 1)]
    of_all, bits = f"of the {x_1[0].numel()} tokens are the image's.", bits_line(model, x_1, seed)
    lines = [f"At t = {level}, {part:.0%} {of_all} {bits}" for level, part in enumerate(kept, 1)]
    seen = list(zip(shown, lines, strict=True))
    yield *seen[t - 1], list(zip(shown, names, strict=True)), seen


@sentences()
def at_level(seen: list[tuple[str, str]], t) -> tuple:
    """(the picture of a level, its status) once all levels are there."""
    return seen[read_int(t, "t", 1, len(seen)) - 1] if seen else (gr.skip(), gr.skip())


def draw_again(model: ImageBART, image, seed=0) -> Iterator[tuple]:
    """The image drawn again from every level of its forward process: (status, pictures), after
    each.

    seed: 0 to 2^63 - 1, of the noise, as in `chain`, and of what is drawn.
    """
    seed = read_int(seed, "seed", 0, 2**63 - 1)
    x_1, pictures = uploaded_tokens(model, image), []
    request, began = Request.of(model, 1, {"seed": seed}), time.perf_counter()
    for t in range(1, model.T + 1):
        tokens = x_1
        x_t = noisy(model, rearrange(x_1, "b h w -> b (h w)"), t, seed)
        for step in reverse_steps(model, request, x_t, t):
            tokens = step.tokens
        (picture,) = model.decode(tokens)
        pictures = [*pictures, (stored(picture), f"from t = {t}")]
        done = t * (t - 1) / (model.T * (model.T - 1))  # of the scales of all chains
        yield progress(done, began) if done < 1 else "", pictures


def uploaded_tokens(model: ImageBART, image: dict | None) -> Grid:
    """x_1 of an uploaded image, cropped to the model's shape."""
    if not image:
        raise ValueError(NO_IMAGE)
    return model.encode(fit(read_picture(image), model.image_size))


def noisy(model: ImageBART, x_1: torch.Tensor, t: int, seed: int) -> torch.Tensor:
    """x_t ~ q(x_t | x_1) with the same noise for every t.   [eq. 6]"""
    generator = torch.Generator().manual_seed(seed)
    return model.diffusion.q_sample_marginal(x_1.cpu(), t, generator).to(x_1.device)


def bits_line(model: ImageBART, x_1: torch.Tensor, seed: int) -> str:
    """Bits per token of each scale, the terms of the bound, as a sentence.   [eq. 2]"""
    if not samples_freely(model):
        return ""
    bits = model.bits_per_token_of(x_1, seed=seed)
    terms = ", ".join(f"{value.item():.2f} at t = {t}" for t, value in bits.items())
    return f"The bound on -log2 p is {sum(bits.values()).item():.2f} bits per token: {terms}."


def chain_tab(worker: Worker, model: ImageBART, examples: list[Image.Image], tab: gr.Tab) -> None:
    """The page; it has a picture once the `tab` is opened."""
    gr.Markdown(ABOUT)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = picture_input(examples)
            about = f"1 is the picture, in {model.T} nothing is left of it; called t in the paper"
            t = gr.Slider(1, model.T, 2, step=1, label="Level", info=about, elem_id="level")
            seed = gr.Number(0, label="Seed of the noise", precision=0, info="Then press Enter")
        with gr.Column(scale=3, min_width=320):
            plain = {"format": "png", "interactive": False, "height": 460, "buttons": []}
            shown = gr.Image(label="The picture at this level", elem_id="noisy", **plain)
            line = gr.Markdown(elem_id="chain-status", min_height=28)
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    gr.Markdown("#### All levels")
    levels = shelf_of(label="Levels", elem_id="levels", **plain)

    def first(image: dict | None) -> str | dict:
        return gr.skip() if image else stored(examples[0])

    private = {"api_visibility": "private", "show_progress": "hidden"}
    tab.select(first, image, image, preprocess=False, queue=False, **private)
    inputs, seen = {"image": image, "t": t, "seed": seed}, gr.State([])
    gr.on(
        [image.change, seed.submit],
        outputs=[shown, line, levels, seen],
        trigger_mode="always_last",
        **job(chain_levels, inputs, worker, alone_with(chain_levels, model), line, name="chain"),
    )
    moved = {"fn": at_level, "inputs": [seen, t], "outputs": [shown, line]}
    how = {"trigger_mode": "always_last", "preprocess": False, "queue": False, **private}
    gr.on([t.change, seen.change], **moved, **how)
    if samples_freely(model):
        added_by_scales(worker, model, {"image": image, "seed": seed})


def added_by_scales(worker: Worker, model: ImageBART, inputs: Controls) -> None:
    """What the model draws of every level."""
    gr.Markdown(ADDED)
    again, stop = run_buttons("Draw again from every level")
    line = gr.Markdown(elem_id="redrawn-status", min_height=28)
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    drawn = shelf_of(label="Drawn again", elem_id="redrawn", **plain)
    how = job(draw_again, inputs, worker, alone_with(draw_again, model), line)
    event = again.click(outputs=[line, drawn], **how)
    stops(stop, event, line)
    private = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    # another picture: what was drawn again is not of it
    inputs["image"].change(lambda: ("", []), None, [line, drawn], cancels=[event], **private)


def samples_freely(model: ImageBART) -> bool:
    """Whether it takes no condition, or can do without."""
    return not model.conditions or model.condition_dropout


def picture_input(examples: list[Image.Image]) -> gr.Image:
    """An image input with examples."""
    plain = {"format": "png", "type": "filepath", "sources": ["upload", "clipboard"]}
    image = gr.Image(label="Picture", height=300, elem_id="forget", **plain)
    plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
    shelf = shelf_of(examples, elem_id="starts", **plain)

    def pick(event: gr.SelectData) -> str:
        return stored(picked(examples, event))

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shelf.select(pick, None, image, queue=False, **private)
    return image
