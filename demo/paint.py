"""The tab Paint a map: sample images for a painted semantic map."""

import html
import time
from collections.abc import Iterator, Sequence
from functools import partial

import gradio as gr
from PIL import Image

from demo.editor import brush_slider, image_editor
from demo.parts import SEND, Editor, connect, panel, results_gallery, shelf_of
from demo.pictures import (
    EXAMPLES,
    chosen_for_editor,
    for_editor,
    labelled,
    ranked_images,
    read_picture,
    stored,
)
from demo.requests import (
    Ranker,
    finished,
    picked,
    read_candidates,
    read_enlarge,
    read_layers,
    read_request,
    settings_of_each,
    status,
)
from demo.worker import Worker
from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.data.maps import OPEN, kind_colours, paint_kinds, read_kinds

CHOOSE_KIND = """
const kinds = [...element.querySelectorAll('.legend button')];
const buttons = where => [...document.querySelectorAll(`#painting ${where}`)];
const colours = () => buttons('menu.swatch button.color');

async function paletteOpened() {
  for (let i = 0; i < 50 && !colours().length; i++) {
    if (i % 10 === 0) buttons('.half-container.right button')[0]?.click();
    await new Promise(done => setTimeout(done, 20));
  }
}

async function choose(i) {
  buttons('.half-container:not(.right) button').at(-2)?.click();  // the brush, not the eraser
  await paletteOpened();
  colours()[i]?.click();
}

kinds.forEach((kind, i) => kind.addEventListener('click', () => choose(i)));
document.addEventListener('click', event => setTimeout(() => {
  colours().forEach((colour, i) => {
    colour.title = kinds[i].textContent;
    colour.setAttribute('aria-label', kinds[i].textContent);
  });
  const chosen = colours().indexOf(event.target);
  if (chosen < 0) return;
  kinds.forEach((kind, i) => kind.setAttribute('aria-pressed', i === chosen));
  document.dispatchEvent(new MouseEvent('mousedown'));  // closes the palette, before a stroke would
}), true);
"""
"""The legend chooses the colour of the brush, by the palette of the editor, which names its colours
and closes when one is chosen."""

SAME_KIND = "() => document.querySelector('.legend [aria-pressed=true]').click()"


def semantic(
    model: ImageBART,
    editor,
    prompt="",
    num_images=1,
    seed=0,
    candidates=1,
    enlarge=1,
    *,
    ranker: Ranker | None = None,
    **options,
) -> Iterator[tuple]:
    """Sample images for a semantic map: (the map as read, status, images), after every scale.

    editor: {"background": image, "layers": [image], "composite": null}, painted in the colours of
    the kinds, at most 8 layers; pixels that are white or of another colour are unlabelled. Other
    arguments as in `sample`.
    """
    count, options, remark = read_request(model, prompt, num_images, seed, **options)
    candidates, score = read_candidates(candidates, count, ranker, prompt)
    larger = {"enlarge": read_enlarge(model, enlarge, count)}
    colours = kind_colours(model.names["map"])
    kinds = read_kinds(read_painting(editor, model.image_size), colours)
    if (kinds < 0).all():
        raise ValueError("nothing is painted yet: paint the map in the colours of the kinds")
    began, shown = time.perf_counter(), stored(paint_kinds(kinds, colours))
    if score is not None:
        draw = partial(model.sample, semantic_map=kinds)
        ranking = "semantic", larger, draw, count, candidates, score, options
        for chosen, line, images in ranked_images(*ranking):
            options = chosen
            yield shown, line, images
        remark += f" The best of {count * candidates}."
        yield shown, finished(options["seed"], count, began, remark), images
        return
    about = settings_of_each("semantic", options | larger, count)
    for step in model.sample_steps(count, semantic_map=kinds, **options):
        images = labelled(model.decode(step.tokens), about)
        yield shown, status(step, options["seed"], count, began, remark), images


def read_painting(editor: dict | None, size: tuple[int, int]) -> Image.Image:
    """Layers over background, at the model's size (H, W)."""
    if not editor or not editor.get("background"):
        raise ValueError("there is no map yet: paint one, or take an example")
    H, W = size
    flat = partial(Image.Image.resize, size=(W, H), resample=Image.Resampling.NEAREST)
    layers, painting = read_layers(editor), flat(read_picture(editor["background"]))
    for file in layers:
        layer = flat(read_picture(file, lambda image: image.convert("RGBA")))
        painting.paste(layer, mask=layer.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    return painting


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def semantic_tab(worker: Worker, model: ImageBART, ranker: Ranker | None) -> tuple:
    """The page; returns (button, function, inputs) of what is sent to Change."""
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            editor = map_editor(model)
        with gr.Column(scale=2, min_width=300):
            said = panel(
                model, "Draw the landscape", "semantic-status", "Paint a map, then", ranker
            )
            inputs = {"editor": editor.value, **said.inputs}
            gallery, index = results_gallery(label="Results", elem_id="painted")
            send = gr.Button(SEND)
    with gr.Accordion("How it works: the map as it was read", open=False):
        plain = {"format": "png", "interactive": False, "height": 250, "buttons": []}
        shown = gr.Image(label="The map as it was read", elem_id="read", **plain)
    how = said.buttons, inputs, said.fresh, [shown, said.line, gallery], index
    connect(worker, model, semantic, *how, editor=editor, ranker=ranker)
    return send, chosen_for_editor, [gallery, index]


def map_editor(model: ImageBART) -> Editor:
    """The editor, with its legend and example maps."""
    H, W = model.image_size
    maps = example_maps(model) if tuple(model.names["map"]) == scenery.LABELS else []
    codes = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in kind_colours(model.names["map"]).tolist()]
    blank = Image.new("RGB", (W, H), OPEN)
    editor = image_editor(W, H, "Paint what is where", codes, "painting", blank)
    private = {"api_visibility": "private", "show_progress": "hidden"}
    changed = brush_slider(editor, min(H, W), codes)
    changed.then(None, None, None, js=SAME_KIND, **private)  # a new brush has the first colour
    gr.HTML(legend(model.names["map"], codes), js_on_load=CHOOSE_KIND)
    clear = gr.Button("Start from a blank map", size="sm")
    gr.Markdown("Or from one of these:", visible=bool(maps))
    plain = {"allow_preview": False, "buttons": [], "visible": bool(maps)}
    shelf = shelf_of(maps, elem_id="maps", elem_classes="shelf", **plain)

    def pick(event: gr.SelectData) -> dict:
        return for_editor(stored(picked(maps, event)))

    shelf.select(pick, None, editor.shown, **private)
    clear.click(lambda: for_editor(stored(blank)), None, editor.shown, **private)
    return editor


def example_maps(model: ImageBART) -> list[Image.Image]:
    """Maps of scenery's test split."""
    size = model.image_size
    scenes = [scenery.render(scenery.scene_seed("test", i), *size) for i in range(EXAMPLES)]
    return [paint_kinds(scene.semantic_map, scenery.PALETTE) for scene in scenes]


def legend(names: Sequence[str], codes: list[str]) -> str:
    """A button for each kind, which `CHOOSE_KIND` makes choose its colour; the first is chosen."""
    button = '<button type="button" aria-pressed="{}"><i style="background: {}"></i>{}</button>'
    each = (
        button.format(str(i == 0).lower(), code, html.escape(name))
        for i, (name, code) in enumerate(zip(names, codes, strict=True))
    )
    return f'<div class="legend" role="group" aria-label="Brush">{"".join(each)}</div>'
