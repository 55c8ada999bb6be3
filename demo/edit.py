"""Endpoints of the tab Change: inpaint a mask, outpaint beyond the borders, or reimagine the whole
picture."""

import time
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from demo.pictures import (
    Throttle,
    growing,
    labelled,
    picture_of,
    ranked_images,
    read_editor,
    stored,
    token_map,
)
from demo.requests import (
    MARGINS,
    MOST_MARGIN,
    Ranker,
    at_once,
    caption,
    check_pixels,
    finished,
    progress,
    read_candidates,
    read_flag,
    read_int,
    read_number,
    read_overlap,
    read_request,
    read_words,
    real,
    settings_of_each,
    status,
)
from imagebart import ImageBART
from imagebart.data.images import fit, to_rgb
from imagebart.editing.inpainting import (
    MASK_OPTIONS,
    MaskedImage,
    each_image,
    grown_size,
    outpaint_steps,
    window_steps,
)
from imagebart.editing.pasting import Box
from imagebart.editing.process import refined_steps
from imagebart.editing.reimagining import reimagine_steps

EVERY_STEP = 2**21
"""Results of at most so many pixels are stored after every step, others every few seconds."""


def inpaint(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    passes=0,
    context=0,
    feather=0,
    invert_mask=False,
    candidates=1,
    *,
    ranker: Ranker | None = None,
    **options,
) -> Iterator[tuple]:
    """Inpaint a mask: (its tokens, the first result after each step, status, images), after every
    scale and pass; large images every few seconds. A mask across a wide image is painted window
    after window, and shown after each.

    editor: {"background": image, "layers": [mask], "composite": null}; a mask has the image's size,
    is opaque where to repaint, or white if nothing in it is transparent; layers count together, at
    most 8, and 16 million pixels in all results together. invert_mask: repaint all else. passes:
    how often the finest scale is noised and denoised again, until no token changes. Results have
    the image's colour profile and, outside the mask, its transparency. Other arguments as in
    `sample`.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    given = {"passes": passes, "context": context, "feather": feather}
    how = {name: read_number(model, name, value) for name, value in given.items()}
    how["invert_mask"] = read_flag(invert_mask, "invert_mask")
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    image, mask = read_editor(editor)
    check_pixels(count, *image.size)
    of_mask = {name: how[name] for name in MASK_OPTIONS}
    edit = masked(model, image, mask, **of_mask)
    first, *others = boxes = edit.boxes()
    seen = MaskedImage(model, image, mask, box=first, **of_mask) if others else edit

    began, shown, strip = time.perf_counter(), stored(token_map(seen)), []
    before, best_images = stored(image), []
    if score is not None:
        draw = partial(model.inpaint, image, mask, process="refined", **how)
        few = at_once(*image.size)
        ranking = "edit", how, draw, count, candidates, score, options, few
        for chosen, line, best_images in ranked_images(*ranking):
            options = chosen
            yield shown, [], line, best_images, before
        remark += f" The best of {count * candidates}."
    about = settings_of_each("edit", options | how, count)
    if others:
        drawn = in_windows(edit, boxes, count, how["passes"], options, about, remark)
        for strip, line, now in drawn:
            yield shown, strip, line, best_images or now, before
        return
    throttle, small = Throttle(), count * image.width * image.height <= EVERY_STEP
    steps = refined_steps(model, edit.x_1(), edit.masked, count, passes=how["passes"], **options)
    for i, step in enumerate(steps, 1 - model.T):
        if throttle.due(step.done) or small:
            with throttle.drawing():
                drawn = [edit.pictures(one)[0] for one in edit.results(step.tokens)]
                now = labelled(drawn, about)
            name = f"pass {i}" if i > 0 else caption(model, step.t)
            strip = [*strip, (now[0][0], name)]
            images = best_images or now  # the best stay while their chain is shown
        if step.done == 1 and i < how["passes"]:
            remark += f" Converged after {i} passes."
        yield shown, strip, status(step, options["seed"], count, began, remark), images, before


def in_windows(
    edit: MaskedImage,
    boxes: list[Box],
    count: int,
    passes: int,
    options: dict,
    about: list[dict],
    remark: str,
) -> Iterator[tuple[list, str, list]]:
    """Inpaint a mask that no crop holds: (the first result after each window, status, images),
    after every window."""
    began, steps, strip = time.perf_counter(), partial(refined_steps, passes=passes), []

    def painted(own: dict) -> Iterator[tuple[Image.Image, float]]:
        for one, part in window_steps(edit, boxes, steps, **own):
            yield edit.pictures(one)[0], part

    for line, images in one_after_another(map(painted, each_image(options, count)), about, began):
        if len(images) == 1:
            name = f"window {len(strip) + 1} of {len(boxes)}"
            strip = [*strip, (images[0][0], name)]
        yield strip, line, images
    yield strip, finished(options["seed"], count, began, remark), images


def one_after_another(
    growths: Iterable[Iterator[tuple[Image.Image, float]]], about: list[dict], began: float
) -> Iterator[tuple[str, list]]:
    """(status, images) as one image after the other grows; `about` are the settings of each."""
    images = []
    for i, steps in enumerate(growths):
        for grown, part in growing(steps, about[i]):
            yield progress((i + part) / len(about), began), [*images, grown]
        images.append(grown)


def outpaint(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    passes=0,
    feather=0,
    candidates=1,
    left=0,
    right=0,
    top=0,
    bottom=0,
    overlap=0,
    *,
    ranker: Ranker | None = None,
    **options,
) -> Iterator[tuple]:
    """Outpaint beyond the borders: (status, images), after every window.

    left, right, top, bottom: pixels to add, 0 to 1024 each; overlap: pixels of the image that are
    drawn anew at the sides that grow, at most 512 and a quarter of its shorter side; at most 16
    million pixels in all images drawn together, candidates included. Other arguments as in
    `inpaint`, whose mask is ignored.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    given = dict(zip(MARGINS, (left, right, top, bottom), strict=True))
    margins = {name: read_int(value, name, 0, MOST_MARGIN) for name, value in given.items()}
    given = {"passes": passes, "feather": feather}
    how = {name: read_number(model, name, value) for name, value in given.items()}
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    image = picture_of(editor)
    overlap = read_overlap(overlap, image.size)
    if not any(margins.values()):
        raise ValueError("there is nothing to add yet: left, right, top and bottom are 0")
    check_pixels(count * candidates, *grown_size(model, image, margins)[::-1])

    how |= {"process": "refined", "overlap": overlap, **margins}
    settings = {name: value for name, value in how.items() if name != "process"}
    began, images = time.perf_counter(), []
    if score is not None:
        draw = partial(model.outpaint, image, **how)
        ranking = "edit", settings, draw, count, candidates, score, options, 1
        for chosen, line, images in ranked_images(*ranking):
            options = chosen
            yield line, images
        remark += f" The best of {count * candidates}."
        yield finished(options["seed"], count, began, remark), images
        return
    about = settings_of_each("edit", options | settings, count)
    growths = (outpaint_steps(model, image, **how, **own) for own in each_image(options, count))
    for line, images in one_after_another(growths, about, began):
        yield line, images
    yield finished(options["seed"], count, began, remark), images


def reimagine(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    source_prompt="",
    strength=1.0,
    **options,
) -> Iterator[tuple]:
    """The whole image under other words: (status, images), after every scale.

    prompt: what it is to show; source_prompt: what it shows. Masks are ignored. Other arguments as
    in `inpaint`.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    picture, unread = read_words(
        model, options["seed"], count, source_prompt, called="source_prompt"
    )
    remark += unread
    options |= {"source_prompt": picture["prompt"], "strength": real(strength, "strength", 0, 1)}
    del options["negative_prompt"]  # it is guided away from the words of the image
    image = fit(to_rgb(picture_of(editor)), model.image_size)

    began, about = time.perf_counter(), settings_of_each("reimagine", options, count)
    before = stored(image)
    for step in reimagine_steps(model, model.encode(image), count, **options):
        images = labelled(model.decode(step.tokens), about)
        yield status(step, options["seed"], count, began, remark), images, before


def masked(model: ImageBART, image: Image.Image, mask: np.ndarray, **how) -> MaskedImage:
    """The image with its mask; ValueError for an empty one."""
    edit = MaskedImage(model, image, mask, **how)
    if not edit.marked.any():
        raise ValueError("the mask is empty: paint over what should be repainted")
    return edit
