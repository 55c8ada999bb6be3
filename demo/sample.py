"""The tab Make: sample images and show the chain."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
from gradio.events import Dependency
from PIL import Image

from demo.parts import (
    SEND,
    Controls,
    Panel,
    connect,
    panel,
    results_gallery,
    settings_button,
    settings_from,
    shelf_of,
    values_of_fields,
)
from demo.pictures import chosen_for_editor, labelled, opened_path, ranked_images
from demo.requests import (
    Ranker,
    caption,
    picked,
    read_candidates,
    read_enlarge,
    read_request,
    sentences,
    settings_of_each,
    status,
)
from demo.worker import MOST_TOGETHER, Work, Worker, alone
from imagebart import ImageBART
from imagebart.choice import FILTERS
from imagebart.sampling import Step

IMAGES = 4
"""Drawn at once unless the visitor says otherwise."""
MOST_REMEMBERED = 32
"""Pictures of a visit."""
EACH = ("seed", "prompt", "negative_prompt", "classes")
"""Options that an image of a batch has for itself."""


def sample(
    model: ImageBART,
    prompt="",
    num_images=1,
    seed=0,
    candidates=1,
    enlarge=1,
    *,
    ranker: Ranker | None = None,
    **options,
) -> Iterator[tuple]:
    """Sample images: (the first image's chain, status, images), after every scale.

    Image i has the seed `seed` + i; seed 0 to 2^63 - 1, as text where numbers are not exact.
    classes: a name or a number, empty for any; guidance up to 20, null is the model's own.
    candidates: so many are drawn for each image, 64 at most in all, and those shown that look most
    like the prompt, the best first. enlarge: times larger, resampled. Other numbers as the
    library's options of these names.
    """
    began = time.perf_counter()
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    enlarge, best_images = read_enlarge(model, enlarge, count), []
    if score is not None:
        ranking = "sample", {"enlarge": enlarge}, model.sample, count, candidates, score, options
        for chosen, line, best_images in ranked_images(*ranking):
            options = chosen
            yield [], line, best_images
        remark += f" The best of {count * candidates}."
    for [outputs] in draw_together(model, [SampleRequest(count, options, remark, began, enlarge)]):
        if best_images and isinstance(outputs, tuple):  # they stay while their chain is shown
            outputs = (*outputs[:2], best_images)
        yield outputs


# ── requests of several visitors as one batch ─────────────────────────────────────────────────


@dataclass
class SampleRequest:
    """A request as read; `chain` is what has been shown of it."""

    count: int
    options: dict
    remark: str
    began: float
    enlarge: int = 1
    chain: list = field(default_factory=list)

    def shown(self, model: ImageBART, step: Step, pictures: list[Image.Image]) -> tuple:
        """Its outputs after a step, of the pictures that are its own."""
        settings = self.options | {"enlarge": self.enlarge}
        images = labelled(pictures, settings_of_each("sample", settings, self.count))
        self.chain = [*self.chain, (images[0][0], caption(model, step.t))]
        line = status(step, self.options["seed"], self.count, self.began, self.remark)
        return self.chain, line, images


def sampling_work(model: ImageBART, ranker: Ranker | None, **given) -> Work:
    """The work of a call of `sample`: it may run with others that have the same numbers."""
    if type(given["candidates"]) is not int or given["candidates"] != 1:
        return alone(lambda: sample(model, ranker=ranker, **given))
    numbers = {name: given[name] for name in (*FILTERS, "guidance")}
    count = given["num_images"]
    size = max(1, count) if isinstance(count, int) else MOST_TOGETHER
    return Work(partial(sample_each, model), given, ("sample", repr(numbers)), size)


def sample_each(model: ImageBART, given: list[dict]) -> Iterator[list]:
    """What `sample` yields for each of several calls that differ in words and seeds.

    Calls whose arguments are wrong first get their error, then None.
    """
    read = [read_or_error(model, one) for one in given]
    yield [one if isinstance(one, Exception) else None for one in read]
    right = [one for one in read if isinstance(one, SampleRequest)]
    for outputs in draw_together(model, right) if right else ():
        rest = iter(outputs)
        yield [next(rest) if isinstance(one, SampleRequest) else None for one in read]


def read_or_error(model: ImageBART, given: dict) -> SampleRequest | Exception:
    """A request, or why it is none: whatever it is, others in its batch are drawn."""
    others = ("candidates", "enlarge")
    words = {name: value for name, value in given.items() if name not in others}
    try:
        count, options, remark = read_request(model, **words)
        enlarge = read_enlarge(model, given["enlarge"], count)
        return SampleRequest(count, options, remark, time.perf_counter(), enlarge)
    except Exception as error:
        return error


def draw_together(
    model: ImageBART, requests: list[SampleRequest]
) -> Iterator[list[tuple | Exception]]:
    """The outputs of each request after every scale; their numbers are the first one's."""
    each = {name: per_image(requests, name) for name in EACH if name in requests[0].options}
    count = sum(one.count for one in requests)
    for step in model.sample_steps(count, **requests[0].options | each):
        pictures = iter(model.decode(step.tokens))
        yield [shown_or_error(model, one, step, [*islice(pictures, one.count)]) for one in requests]


def shown_or_error(
    model: ImageBART, request: SampleRequest, step: Step, pictures: list[Image.Image]
) -> tuple | Exception:
    """The outputs of a request, or what ends it alone: others in its batch are drawn."""
    try:
        return request.shown(model, step, pictures)
    except Exception as error:
        return error


def per_image(requests: list[SampleRequest], name: str) -> list:
    """One value for each image of all requests."""
    values: list = []
    for one in requests:
        value = one.options[name]
        if name == "seed" and isinstance(value, int):
            value = [value + i for i in range(one.count)]
        values += value if isinstance(value, list) else [value] * one.count
    return values


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def sample_tab(
    worker: Worker, model: ImageBART, ranker: Ranker | None, first: list | None = None
) -> SimpleNamespace:
    """The page, which shows the pictures `first` at first; returns what the other tabs connect
    to."""
    with gr.Row(elem_id="make", elem_classes="takes-files"):
        with gr.Column(scale=2, min_width=300):
            said = panel(
                model, "Sample", "sample-status", "To begin,", ranker, ideas=True, count=IMAGES
            )
            with gr.Row():
                settings_button(model, said.inputs, said.fresh)
                link_button(said)
        with gr.Column(scale=3, min_width=320):
            plain = {"label": "Images", "elem_id": "samples", "columns": 2}
            gallery, index = results_gallery(first, **plain)
            send = gr.Button(SEND)
    with gr.Accordion("This visit", open=False):
        gr.Markdown("Your pictures of the last hour. Click one to get it and its settings back.")
        plain = {"allow_preview": False, "buttons": [], "elem_classes": "shelf"}
        visit = shelf_of(label="This visit", elem_id="visit", **plain)
    with gr.Accordion("How it works: the first image, scale by scale", open=False):
        chain = shelf_of(
            label="Chain", allow_preview=False, buttons=[], elem_id="chain", elem_classes="shelf"
        )
    work = partial(sampling_work, model, ranker)
    how = said.buttons, said.inputs, said.fresh, [chain, said.line, gallery], index, work
    _, ended = connect(worker, model, sample, *how)
    remember_visit(ended, model, said, gallery, index, visit)
    sent = send, chosen_for_editor, [gallery, index]
    return SimpleNamespace(sent=sent, said=said)


def remember_visit(
    ended: Dependency,
    model: ImageBART,
    said: Panel,
    gallery: gr.Gallery,
    index: gr.State,
    visit: gr.Gallery,
) -> None:
    """`visit` has the results of every run that has `ended`, the latest first; one that is clicked
    comes back, with its settings."""
    seen, private = gr.State([]), {"api_visibility": "private", "show_progress": "hidden"}

    @sentences()
    def add(results: list | None, before: list) -> tuple[list, list]:
        new = [(opened_path(one["image"]), one["caption"]) for one in results or []]
        kept = [*new, *(one for one in before if Path(one[0]).exists())][:MOST_REMEMBERED]
        return kept, kept

    @sentences()
    def again(event: gr.SelectData, before: list) -> list:
        path, seed = picked(before, event)
        return [*settings_from(model, said.inputs, {"path": path}), False, [(path, seed)], 0]

    ended.success(add, [gallery, seen], [seen, visit], preprocess=False, queue=False, **private)
    back = [*said.inputs.values(), said.fresh, gallery, index]
    visit.select(again, seen, back, **private)


LINK = """(...values) => {
  const usual = USUAL, query = new URLSearchParams();
  NAMES.forEach((name, i) => {
    const plain = values[i] === null || values[i] === "" || values[i] === usual[i];
    if (!plain || name === "seed") query.set(name, values[i]);
  });
  const link = `${location.origin}${location.pathname}?${query}`;
  history.replaceState(null, "", link);
  navigator.clipboard?.writeText(link).catch(() => {});
  return "The address of this page now has these settings.";
}"""
LONGEST_LINK, MOST_IN_LINK = 8000, 32
"""Characters, and settings."""


def link_button(said: Panel) -> None:
    """A button that writes the settings into the page's address, and copies it."""
    button = gr.Button("Link to these settings", size="sm")
    names, usual = [*said.inputs], [one.value for one in said.inputs.values()]
    js = LINK.replace("NAMES", json.dumps(names)).replace("USUAL", json.dumps(usual))
    button.click(None, [*said.inputs.values()], said.line, js=js, api_visibility="private")


def settings_of_link(inputs: Controls, query: str) -> list:
    """The fields' values, and whether to draw new seeds, by the query of the page's address.

    Nothing changes without one. ValueError for values that a request may not have.
    """
    if not isinstance(query, str) or len(query) > LONGEST_LINK:
        raise ValueError(f"a link must have at most {LONGEST_LINK} characters")
    said = dict(parse_qsl(query.removeprefix("?"), max_num_fields=MOST_IN_LINK))
    if not said.keys() & inputs.keys():
        return [gr.skip()] * (len(inputs) + 1)
    return [*values_of_fields(inputs, said), "seed" not in said]
