"""Parts of the tabs: controls, galleries, an editor, and buttons that run an endpoint."""

import inspect
from collections.abc import AsyncIterator, Callable

import gradio as gr
from gradio.context import LocalContext
from PIL import Image

from demo.requests import FILTERS, LONGEST_PROMPT, MOST_IMAGES, STEP, bounds, sentences
from demo.worker import Work, Worker, alone
from imagebart import ImageBART
from imagebart.conditions import class_count
from imagebart.data import scenery
from imagebart.options import EditingOptions, rows
from imagebart.ranking import CLIP

Controls = dict[str, gr.components.Component]
"""Names of an endpoint's parameters → their inputs on the page."""

MakeWork = Callable[..., Work]
"""What a job does with an endpoint's inputs, which are given by name."""

NO_TEXT = "This model takes no text"
IDEAS = {  # label of a button: its prompt, in scenery's vocabulary
    "Sunset": "snowy mountains at sunset under scattered clouds",
    "City": "a city by the water at night",
    "Aurora": "a wintry village under northern lights",
    "Desert": "a desert at noon under a cloudless sky",
}


def controls(model: ImageBART, ideas: dict[str, str] | None = None) -> Controls:
    """The inputs of every endpoint; example prompts if the model knows their words."""
    hint = "snowy mountains at night" if "text" in model.conditions else NO_TEXT
    prompt = gr.Textbox(
        "", label="Prompt", placeholder=hint, max_lines=3, max_length=LONGEST_PROMPT
    )
    if ideas and "text" in model.conditions and tuple(model.names["class"]) == scenery.KINDS:
        with gr.Row(elem_classes="ideas"):
            for name, words in ideas.items():
                button = gr.Button(name, size="sm", min_width=60)
                button.click(None, None, prompt, js=f"() => {words!r}", api_visibility="private")
    names = [*zip(model.names["class"], model.names["class"], strict=True)]
    count = class_count(model.conditions)
    names = names or [(str(i), str(i)) for i in range(count)]
    kind = gr.Dropdown([("any", ""), *names], label="Class", visible=count > 0)
    count = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Number of images")
    dice = gr.Button("Random", size="sm", render=False)
    seed = gr.Number(0, label="Seed", precision=0, buttons=[dice])
    with gr.Accordion("Advanced", open=False):
        advanced = controls_of_words(model) | controls_of_chance(model)
    dice.click(None, None, seed, js="() => Math.floor(Math.random() * 2 ** 31)")
    return {"prompt": prompt, "num_images": count, "seed": seed, "classes": kind, **advanced}


def controls_of_words(model: ImageBART) -> Controls:
    """Negative prompt and guidance."""
    about = "What the image should not show"
    takes_text = "text" in model.conditions
    conditional = takes_text or "class" in model.conditions
    negative = gr.Textbox(
        "", label="Negative prompt", info=about, max_length=LONGEST_PROMPT, visible=takes_text
    )
    about = "1 is conditional sampling, more follows the prompt more closely"
    how = {"label": "Guidance", "info": about, "visible": conditional}
    guidance = gr.Slider(0, 8, model.guidance, step=0.1, **how)
    return {"negative_prompt": negative, "guidance": guidance}


def controls_of_chance(model: ImageBART) -> Controls:
    """A slider for each option that filters logits."""
    return {name: slider_of(model, name) for name in FILTERS}


def slider_of(model: ImageBART, name: str) -> gr.Slider:
    """A slider for a numeric option of the library's table."""
    row, label = rows(EditingOptions)[name], name.replace("_", "-").capitalize()
    step, start = 1 if row.one is int else STEP, row.option.default
    info = row.option.meaning[0].upper() + row.option.meaning[1:]
    return gr.Slider(*bounds(model, name), start, step=step, label=label, info=info)


def candidates_slider(ranker: CLIP | None) -> gr.Slider:
    """Number of candidates per image; hidden without a ranker."""
    about = "Candidates per image; those most similar to the prompt are shown"
    return gr.Slider(1, 16, 1, step=1, label="Best of", info=about, visible=ranker is not None)


def results_gallery(**options) -> tuple[gr.Gallery, gr.State]:
    """A gallery of results and the index of the selected one."""
    gallery = shelf_of(buttons=["download", "download_all", "fullscreen"], **options)
    index = gr.State(0)

    def select(event: gr.SelectData) -> int:
        return event.index

    gallery.select(select, None, index, api_visibility="private", queue=False)
    return gallery, index


def shelf_of(value: list | None = None, **options) -> gr.Gallery:
    """A gallery with lossless images."""
    plain = {"format": "png", "interactive": False, "object_fit": "contain", "show_label": False}
    return gr.Gallery(value, **plain, **options)


def image_editor(
    W: int, H: int, label: str, colours: list[str], elem_id: str, start: Image.Image | None = None
) -> gr.ImageEditor:
    """An editor for painting in given colours, sized for W×H images."""
    radius = max(2, W // 16)
    return gr.ImageEditor(
        start,
        label=label,
        format="png",  # the default is lossy
        sources=["clipboard"],  # its own upload takes minutes to prepare a photograph
        transforms=(),
        layers=False,
        height=460,
        brush=gr.Brush(radius, colors=colours, color_mode="fixed"),
        eraser=gr.Eraser(radius),
        canvas_size=(W, H),
        fixed_canvas=False,
        buttons=[],
        elem_id=elem_id,
    )


def run_buttons(label: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        run = gr.Button(label, variant="primary", scale=3, min_width=140)
        stop = gr.Button("Stop", scale=1, min_width=80)
    return run, stop


def endpoint(steps: Callable, inputs: Controls, worker: Worker, work: MakeWork) -> Callable:
    """An endpoint named as `steps`: the `work` of its inputs, by name, run by the worker."""

    async def run(*values):
        async for outputs in in_turn(worker, work(**dict(zip(inputs, values, strict=True)))):
            yield outputs

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=one.value) for name, one in inputs.items()]
    run.__name__, run.__signature__ = steps.__name__, inspect.Signature(parameters)
    return run


async def in_turn(worker: Worker, work: Work) -> AsyncIterator:
    """The outputs of work for the visitor who is being answered, errors as sentences."""
    request = LocalContext.request.get()
    visitor = request.client.host, request.session_hash or "", LocalContext.event_id.get() or ""
    with sentences():
        async for outputs in worker.results(work, *visitor):
            yield outputs


def described(steps: Callable, inputs: Controls) -> str:
    """The description of an endpoint and of its numeric options."""
    lines = [
        f"{name}: {slider.minimum:g} to {slider.maximum:g}. {slider.info or ''}".rstrip()
        for name, slider in inputs.items()
        if isinstance(slider, gr.Slider)
    ]
    return "\n".join([inspect.cleandoc(steps.__doc__), "", *lines])


def connect(
    worker: Worker,
    model: ImageBART,
    steps: Callable,
    buttons: tuple,
    inputs: Controls,
    outputs: list,
    index: gr.State | None = None,
    work: MakeWork | None = None,
    **given,
) -> None:
    """Run calls the endpoint, whose jobs the worker runs in turn; Stop ends its job at once.

    The status is the text output; `index` is the selected item of the gallery; `work` is what a
    job does with the inputs, by default `steps` of the model, the inputs and what is `given`.
    """
    (line,) = (output for output in outputs if isinstance(output, gr.Markdown))
    run, stop = buttons

    def work_of(**named) -> Work:
        return alone(lambda: steps(model, **named, **given))

    event = run.click(
        endpoint(steps, inputs, worker, work or work_of),
        [*inputs.values()],
        outputs,
        preprocess=False,  # the endpoint checks its arguments
        api_name=steps.__name__,
        api_description=described(steps, inputs),
        concurrency_limit=None,  # the worker has a queue of its own
        show_progress="minimal",
        show_progress_on=line,
    )
    if index is not None:
        run.click(lambda: 0, None, index, api_visibility="private", queue=False)
    stop.click(
        lambda: "Stopped.", None, line, cancels=[event], api_visibility="private", queue=False
    )
