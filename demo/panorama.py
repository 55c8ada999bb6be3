"""The tab Panorama: sample a wide image from one prompt or several."""

import time
from collections.abc import Iterator

import gradio as gr

from demo.parts import (
    NO_TEXT,
    connect,
    controls_of_chance,
    controls_of_words,
    run_buttons,
    seed_box,
)
from demo.pictures import Throttle, chosen_for_editor, stored
from demo.requests import LONGEST_PROMPT, read_flag, read_int, read_request, read_text, status
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.data.images import to_pil
from imagebart.editing.panorama import decode_wide, panorama_steps

MOST_WIDTH = 4096


def panorama(
    model: ImageBART,
    prompts="",
    width=0,
    seed=0,
    wrap=False,
    exact=False,
    **options,
) -> Iterator[tuple]:
    """Sample a wide image window by window: (status, image so far).

    prompts: one per line, from left to right; width in pixels, at least the model's, 0 is six times
    that; wrap: the right end continues at the left end, for widths of whole tokens; exact: one
    window per token, slow.
    """
    width = read_int(width, "width", 0, MOST_WIDTH) or 6 * model.image_size[1]
    wrap, exact = read_flag(wrap, "wrap"), read_flag(exact, "exact")
    lines = [one for one in read_text(prompts, "prompts").splitlines() if one.strip()] or [""]
    requests = [read_request(model, line, 1, seed, **options) for line in lines]
    options, remark = requests[0][1], "".join(dict.fromkeys(remark for *_, remark in requests))
    if options.pop("prompt", None):
        options["prompts"] = lines

    began, throttle, shown = time.perf_counter(), Throttle(), None
    how = {"mode": "exact" if exact else "fast", "wrap": wrap, **options}
    about = {"command": "panorama", "width": width, **how, "prompt": lines[0]}
    for step in panorama_steps(model, width, **how):
        if throttle.due(step.done):
            with throttle.drawing():
                picture = decode_wide(model, step.tokens, wrap)[:, :, :, :width]
                shown = stored(to_pil(picture)[0], about)
        yield status(step, options["seed"], 1, began, remark), shown


def wide_for_editor(picture: dict | None) -> tuple[dict, str]:
    """The panorama, for the editor."""
    return chosen_for_editor([{"image": picture}] if picture else None, 0)


def panorama_tab(worker: Worker, model: ImageBART) -> tuple:
    """The page; returns (button, function, inputs) of what is sent to Change."""
    _, W = model.image_size
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            hint = "a desert at noon\na city at night" if "text" in model.conditions else NO_TEXT
            about = "One per line, from left to right"
            plain = {"label": "Prompts", "placeholder": hint, "info": about, "lines": 3}
            prompts = gr.Textbox("", max_length=LONGEST_PROMPT, **plain)
        with gr.Column(scale=2, min_width=300):
            width = gr.Slider(W, MOST_WIDTH, 6 * W, step=model.vqgan.f, label="Width in pixels")
            seed, fresh = seed_box()
        with gr.Column(scale=2, min_width=300), gr.Accordion("Advanced", open=False):
            advanced = controls_of_words(model) | controls_of_chance(model)
            wrap = gr.Checkbox(label="Wrap around", info="The right end continues at the left end")
            about = "A window for every token, as in the paper: many times slower"
            exact = gr.Checkbox(label="Exact", info=about)
    buttons = run_buttons("Draw")
    line = gr.Markdown(elem_id="panorama-status", min_height=28)
    plain = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
    picture = gr.Image(label="Panorama", height="auto", elem_id="panorama", **plain)
    send = gr.Button("Send the panorama to Change")
    inputs = {"prompts": prompts, "width": width, "seed": seed, **advanced}
    inputs |= {"wrap": wrap, "exact": exact}
    connect(worker, model, panorama, buttons, inputs, fresh, [line, picture])
    return send, wide_for_editor, [picture]
