"""Parts of the tabs: controls, galleries, an editor, and buttons that run an endpoint."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

import gradio as gr
from gradio.context import LocalContext
from gradio.events import Dependency

from demo.pictures import read_picture
from demo.requests import (
    LONGEST_PROMPT,
    MOST_CANDIDATES,
    MOST_IMAGES,
    OPTIONS,
    STEP,
    Ranker,
    bounds,
    read_int,
    read_real,
    read_text,
    sentences,
    short,
    strength_of,
)
from demo.worker import Work, Worker, alone
from imagebart import ImageBART
from imagebart.choice import FILTERS
from imagebart.conditions import class_count
from imagebart.data import scenery
from imagebart.data.scenery.words import PHRASES, SKY_PHRASES
from imagebart.guidance import checked_guidance
from imagebart.settings import settings_of

Controls = dict[str, gr.components.Component]
"""Names of an endpoint's parameters → their inputs on the page."""

MakeWork = Callable[..., Work]
"""What a job does with an endpoint's inputs, which are given by name."""


class Editor(NamedTuple):
    """What a visitor paints on, and, hidden, what was there when an event last looked, and the
    source of its picture, if it has one.

    Events take `value`: gradio asks whatever one of them took for its value at every step of every
    later event of the page, and an editor uploads all that it shows to answer.
    """

    shown: gr.ImageEditor
    value: gr.ImageEditor
    source: gr.JSON | None = None

    def when(self, listener: Callable[..., Dependency]) -> Dependency:
        """At an event, look: what follows may take `value`, with its source."""
        seen = [self.shown, self.source] if self.source else [self.shown]
        how = {"js": "(shown, source) => ({...shown, source})", "api_visibility": "private"}
        return listener(None, seen, self.value, **how)


SEND = "Send the selected image to Change"
MOST_EXACT = 2**53
"""The largest seed of a field: a browser's numbers are exact up to it."""
NOT_DRAWN_BY = ("command", "model")
"""What settings say beside how the picture was drawn."""
NO_TEXT = "This model takes no text"
NEW_SEED = """(fresh, seed) => {
    // while the status is of a run, the click may be a second one on it, and keeps its seed
    const runs = document.querySelector("#%s [data-testid=status-tracker].minimal:not(.hide)");
    return fresh && !runs ? Math.floor(Math.random() * 2 ** 31) : seed;
}"""
STOPPED = "Stopped."
WHAT_FAILED = """async () => {
    await new Promise(resolve => setTimeout(resolve, 100));  // until the page shows it
    if (document.getElementById("%s").innerText.trim().endsWith("%s")) return "";
    return [...document.querySelectorAll("[data-testid=toast-text]")].at(-1)?.innerText ?? "";
}"""
IDEAS = {  # label of a button: its prompt, in scenery's vocabulary
    "Sunset": "snowy mountains at sunset under scattered clouds",
    "City": "a city by the water at night",
    "Aurora": "a wintry village under northern lights",
    "Desert": "a desert at noon under a cloudless sky",
}
VOCABULARY = (  # places, times, skies, seasons, things: as captions of scenery say them
    tuple(noun for noun, _ in PHRASES.values()),
    tuple(f"at {time}" for time in scenery.TIMES),
    (*(ways[0] for ways in SKY_PHRASES.values()), "under the stars"),
    ("in spring", "in summer", "in autumn"),
    ("with a balloon", "with a flock of birds", "with a boat", "with a cabin", "with a tent"),
)


def knows_scenery(model: ImageBART) -> bool:
    """Whether it takes the words and the classes of scenery."""
    return "text" in model.conditions and tuple(model.names["class"]) == scenery.KINDS


def title(model: ImageBART) -> str:
    """What the page does, and how large pictures and the model are."""
    H, W = model.image_size
    millions = max(1, round(sum(p.numel() for p in model.parameters()) / 1e6))
    things = "landscapes" if knows_scenery(model) else "pictures"
    words = " from your words" if "text" in model.conditions else ""
    return f"""
# ImageBART
Draws {things}{words}, {W}×{H} pixels each, and changes pictures of your own at their full size:
repaints what you mark, or extends them. The model has {millions} million parameters.
"""


def prompt_box(model: ImageBART) -> gr.Textbox:
    """The prompt, which Enter submits."""
    hint = "snowy mountains at night" if "text" in model.conditions else NO_TEXT
    return gr.Textbox("", label="Prompt", placeholder=hint, max_lines=1, max_length=LONGEST_PROMPT)


def words_of(prompt: gr.Textbox) -> None:
    """Buttons that write example prompts, and the words that the model knows."""
    with gr.Row(elem_classes="words"):
        for name, words in IDEAS.items():
            write_words(prompt, name, f"() => {words!r}")
    with gr.Accordion("Words that it knows", open=False):
        for group in VOCABULARY:
            with gr.Row(elem_classes="words"):
                for words in group:
                    write_words(prompt, words, f"text => (text + ' ' + {words!r}).trim()")


def write_words(prompt: gr.Textbox, name: str, js: str) -> None:
    """A button that changes the prompt, in the browser."""
    button = gr.Button(name, size="sm", min_width=20)
    button.click(None, prompt, prompt, js=js, api_visibility="private")


def seed_box() -> tuple[gr.Number, gr.Checkbox]:
    """The seed, and whether each run draws a new one."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, min_width=120)
        fresh = gr.Checkbox(True, label="New seed each time", min_width=120, container=False)
    return seed, fresh


class Panel(NamedTuple):
    """The inputs of every endpoint, whether each run draws a new seed, the buttons that run and
    stop, and the status."""

    inputs: Controls
    fresh: gr.Checkbox
    buttons: tuple[gr.Button, gr.Button]
    line: gr.Markdown


def panel(
    model: ImageBART,
    run: str,
    status: str,
    first: str,
    ranker: Ranker | None = None,
    ideas: bool = False,
    count: int = 1,
    enlarge: bool = True,
) -> Panel:
    """The prompt, what runs it, and below what else can be said; `status` is the status' id, and
    `first` what to do before the click, which it says until then.

    `ideas`: whether there are words to click; `count`: images at a time; `enlarge`: whether results
    may be.
    """
    prompt = prompt_box(model)
    buttons = run_buttons(run)
    line = gr.Markdown(f"{first} click **{run}**.", elem_id=status, min_height=28)
    if ideas and knows_scenery(model):
        words_of(prompt)
    names = [*zip(model.names["class"], model.names["class"], strict=True)]
    classes = class_count(model.conditions)
    names = names or [(str(i), str(i)) for i in range(classes)]
    number = gr.Slider(1, MOST_IMAGES, count, step=1, label="Number of images")
    seed, fresh = seed_box()
    with gr.Accordion("Advanced", open=False):
        kind = gr.Dropdown([("any", ""), *names], label="Class", visible=classes > 0)
        advanced = controls_of_words(model) | controls_of_chance(model)
        advanced["candidates"] = candidates_slider(ranker)
        if enlarge:
            advanced["enlarge"] = slider_of(model, "enlarge")
    inputs = {"prompt": prompt, "num_images": number, "seed": seed, "classes": kind, **advanced}
    return Panel(inputs, fresh, buttons, line)


def values_of_fields(inputs: Controls, said: dict) -> list:
    """A value for each field: what a file or a link says, else its usual one.

    Numbers may be text. ValueError for a value that the field cannot have, as for a request; what
    is neither number, text nor a yes or no is left out.
    """
    values = []
    for name, field in inputs.items():
        value = said.get(name)
        yes_or_no = isinstance(value, bool) == isinstance(field, gr.Checkbox)
        given = isinstance(value, int | float | str) and yes_or_no
        values.append(value_of_field(name, field, value) if given else field.value)
    return values


def value_of_field(
    name: str, field: gr.components.Component, value: float | str | bool
) -> float | str | bool:
    if isinstance(field, gr.Checkbox):
        return value
    if isinstance(field, gr.Slider) and field.step != 1:
        return read_real(value, name, field.minimum, field.maximum)
    if isinstance(field, gr.Slider):
        return read_int(value, name, int(field.minimum), int(field.maximum))
    if isinstance(field, gr.Number):
        return read_int(value, name, 0, MOST_EXACT)
    if isinstance(field, gr.Dropdown):
        _, *known = (one for _, one in field.choices)  # the first is any
        if str(value) in ("", *known):
            return str(value)
        if str(value).isdecimal() and int(value) < len(known):
            return known[int(value)]
        raise ValueError(f"{name} must be one of {len(known)} classes, got {short(value)}")
    return read_text(value, name)


def settings_button(model: ImageBART, inputs: Controls, fresh: gr.Checkbox) -> None:
    """A button that takes the settings of a picture made here."""
    button = gr.UploadButton("Settings from a picture", file_types=[".png"], size="sm")

    @sentences()
    def read(file: dict) -> list:
        return [*settings_from(model, inputs, file), False]

    private = {"api_visibility": "private", "show_progress": "hidden"}
    button.upload(read, button, [*inputs.values(), fresh], preprocess=False, **private)


def settings_from(model: ImageBART, inputs: Controls, file: dict) -> list:
    """A value for each field, as the file of a picture made here says; the visitor is warned of
    what it says that no field can have."""
    found = read_picture(file, settings_of)
    if "seed" not in found:
        raise ValueError("the picture must hold settings, as those made here do")
    if "guidance" in found:
        found["guidance"] = strength_of(model, found["guidance"])
    lost = [name for name in found if name not in (*inputs, *NOT_DRAWN_BY) or found[name] is None]
    if lost:
        gr.Warning(f"Not taken from the picture: {', '.join(lost)}.")
    return values_of_fields(inputs, found)


def controls_of_words(model: ImageBART) -> Controls:
    """Negative prompt and guidance."""
    about = "What the image should not show"
    takes_text = "text" in model.conditions
    conditional = takes_text or "class" in model.conditions
    negative = gr.Textbox(
        "", label="Negative prompt", info=about, max_length=LONGEST_PROMPT, visible=takes_text
    )
    about = "1 is plain conditional sampling; higher values follow the prompt more closely"
    how = {"label": "Guidance", "info": about, "visible": conditional}
    own = checked_guidance(model.guidance, model.T)[-1]
    guidance = gr.Slider(*bounds(model, "guidance"), own, step=0.1, **how)
    return {"negative_prompt": negative, "guidance": guidance}


def controls_of_chance(model: ImageBART) -> Controls:
    """A slider for each option that filters logits."""
    return {name: slider_of(model, name) for name in FILTERS}


def slider_of(model: ImageBART, name: str) -> gr.Slider:
    """A slider for a numeric option of the library's table."""
    row, label = OPTIONS[name], name.replace("_", "-").capitalize()
    step, start = 1 if row.one is int else STEP, row.option.default
    info = sentence(row.option.meaning)
    return gr.Slider(*bounds(model, name), start, step=step, label=label, info=info)


def sentence(meaning: str) -> str:
    return meaning[0].upper() + meaning[1:]


def candidates_slider(ranker: Ranker | None) -> gr.Slider:
    """Number of candidates per image; hidden without a ranker."""
    about = "Candidates per image; those most similar to the prompt are shown"
    how = {"label": "Best of", "info": about, "visible": ranker is not None}
    return gr.Slider(1, MOST_CANDIDATES, 1, step=1, **how)


def results_gallery(value: list | None = None, **options) -> tuple[gr.Gallery, gr.State]:
    """A gallery of results and the index of the selected one."""
    buttons = ["download", "download_all", "fullscreen"]
    gallery = shelf_of(value, buttons=buttons, elem_classes="tiles", **options)
    index = gr.State(0)

    def select(event: gr.SelectData) -> int:
        return event.index

    gallery.select(select, None, index, api_visibility="private", queue=False)
    return gallery, index


def shelf_of(value: list | None = None, **options) -> gr.Gallery:
    """A gallery with lossless images."""
    plain = {"format": "png", "interactive": False, "object_fit": "contain", "show_label": False}
    return gr.Gallery(value, **plain, **options)


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
    event, session = LocalContext.event_id.get() or "", request.session_hash or ""
    if session == event:  # gradio names the session of a caller who has none after the event
        session = ""
    with sentences():
        async for outputs in worker.results(work, request.client.host, session, event):
            yield outputs


def alone_with(steps: Callable[..., Iterator], model: ImageBART, **given) -> MakeWork:
    """Work that runs alone: `steps` of the model, the inputs and what is `given`."""
    return lambda **named: alone(lambda: steps(model, **named, **given))


def job(
    steps: Callable,
    inputs: Controls,
    worker: Worker,
    work: MakeWork,
    line: gr.Markdown,
    name: str | None = None,
) -> dict:
    """Options of the event that calls the endpoint, which programs know by the `name`, by default
    that of `steps`; its progress shows on `line`."""
    return {
        "fn": endpoint(steps, inputs, worker, work),
        "inputs": [*inputs.values()],
        "preprocess": False,  # the endpoint checks its arguments
        "api_name": name or steps.__name__,
        "api_description": described(steps, inputs),
        "concurrency_limit": None,  # the worker has a queue of its own
        "show_progress": "minimal",
        "show_progress_on": line,
    }


def stops(stop: gr.Button, event: Dependency, line: gr.Markdown) -> None:
    """The button ends the event's job at once."""
    private = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    stop.click(lambda: STOPPED, None, line, cancels=[event], **private)


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
    fresh: gr.Checkbox,
    outputs: list,
    selection: gr.State | None = None,
    work: MakeWork | None = None,
    enter: bool = True,
    editor: Editor | None = None,
    **given,
) -> tuple[Dependency, Dependency]:
    """Run calls the endpoint, and so does Enter in the prompt, unless `enter` is False; the worker
    runs its jobs in turn. Stop ends its job at once. With `fresh` checked each run draws a new
    seed.

    The status is the text output, the results are the last gallery, of which `selection` is the
    selected item. `work` is what a job does with the inputs, by default `alone_with` what is
    `given`; `editor` is that of which they have the value. Returns the event before the job, and
    that of the job.
    """
    (line,) = (output for output in outputs if isinstance(output, gr.Markdown))
    run, stop = buttons
    private = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    seed, starts = inputs["seed"], [run.click]
    if enter and "prompt" in inputs:
        starts.append(inputs["prompt"].submit)
    begun = gr.on(starts, None, [fresh, seed], seed, js=NEW_SEED % line.elem_id, **private)
    if editor:
        begun = editor.when(begun.then)
    if selection is None:
        ready = begun.then(lambda: "", None, line, **private)
    else:
        gallery = next(one for one in reversed(outputs) if isinstance(one, gr.Gallery))

        def nothing_yet() -> tuple:
            return "", 0, gr.Gallery(selected_index=None)

        ready = begun.then(nothing_yet, None, [line, selection, gallery], **private)

    work = work or alone_with(steps, model, **given)
    how = job(steps, inputs, worker, work, line)
    event = ready.then(outputs=outputs, **how)  # in turn: results must not be cleared
    # what was wrong stays when its message has faded; a job that is stopped has failed too
    why = WHAT_FAILED % (line.elem_id, STOPPED)
    event.failure(lambda said: said or gr.skip(), line, line, js=why, **private)
    stops(stop, event, line)
    return begun, event
