"""The tab Sample: sample images and show the chain."""

import time
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr

from demo.parts import (
    IDEAS,
    candidates_slider,
    connect,
    controls,
    results_gallery,
    run_buttons,
    shelf_of,
)
from demo.pictures import stored
from demo.requests import caption, of_one_class, ranked, read_candidates, read_request, status
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.ranking import CLIP


def sample(
    model: ImageBART,
    prompt="",
    num_images=1,
    seed=0,
    candidates=1,
    *,
    ranker: CLIP | None = None,
    **options,
) -> Iterator[tuple]:
    """Sample images: (the first image's chain, status, images), after every scale.

    Image i has the seed `seed` + i; seed 0 to 2^63 - 1, as text where numbers are not exact.
    classes: a name or a number, empty for any; guidance up to 20, null is the model's own.
    candidates: so many are drawn for each image, 64 at most in all, and those shown that look most
    like the prompt, the best first. Other numbers as the library's options of these names.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    began, chain = time.perf_counter(), []
    if score is not None:
        for best, line in ranked(model.sample, count, candidates, score, options):
            yield [], line, [stored(one.image) for one in best]
        options = of_one_class(options, count) | {"seed": [one.seed for one in best]}
        remark += f" The best of {count * candidates}."
    for step in model.sample_steps(count, **options):
        images = [stored(image) for image in model.decode(step.tokens)]
        chain.append((images[0], caption(model, step.t)))
        yield chain, status(step, options["seed"], count, began, remark), images


def sample_tab(worker: Worker, model: ImageBART, ranker: CLIP | None) -> SimpleNamespace:
    """The page; returns what the other tabs connect to."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            inputs = controls(model, IDEAS) | {"candidates": candidates_slider(ranker)}
            buttons = run_buttons("Sample")
            line = gr.Markdown(elem_id="sample-status", min_height=28)
        with gr.Column(scale=3, min_width=320):
            gallery, index = results_gallery(
                label="Images", elem_id="samples", elem_classes="tiles", columns=2
            )
            send = gr.Button("Send the selected image to Edit")
    gr.Markdown("#### How the first image formed")
    chain = shelf_of(
        label="Chain", allow_preview=False, buttons=[], elem_id="chain", elem_classes="shelf"
    )
    connect(worker, model, sample, buttons, inputs, [chain, line, gallery], index, ranker=ranker)
    return SimpleNamespace(send=send, gallery=gallery, index=index)
