"""The browser demo: sampling, editing, semantic maps and panoramas.

    python app.py                                          the shipped model, http://127.0.0.1:7860
    python app.py --model runs/mine                        a folder, or a Hugging Face Hub id
    python app.py --host 0.0.0.0 --auth anna:secret        for others; never without a password

Each tab is a module of `demo`. The endpoints `/sample`, `/inpaint`, `/outpaint`, `/semantic`,
`/panorama` and `/chain` can be called by programs (see the link "API" at the foot of the page), so
they check all arguments.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import tyro
from starlette.middleware import Middleware

from demo.chain import chain_tab
from demo.edit import edit_tab
from demo.paint import semantic_tab
from demo.panorama import panorama_tab
from demo.pictures import chosen_for_editor, example_pictures
from demo.sample import sample_tab
from demo.serving import Guard, is_this_machine, read_auth
from demo.style import CSS, THEME, TITLE
from imagebart import ImageBART
from imagebart.folders import SHIPPED_SEMANTIC
from imagebart.probe import Probe
from imagebart.ranking import CLIP


@dataclass
class Config:
    """The model and who may access the page."""

    model: str | None = None  # a folder or a Hugging Face Hub id; the shipped models if not given
    clip: Path | None = None  # folder of a CLIP model for ranking; for scenery one is shipped
    host: str = "127.0.0.1"  # address to listen on; addresses beyond this machine need --auth
    port: int | None = None  # default: the first free one from 7860
    device: str | None = None  # "cpu", "cuda" …; default: the best available
    auth: str | None = None  # USER:PASSWORD of visitors


def build(
    model: ImageBART, painter: ImageBART | None = None, ranker: CLIP | None = None
) -> gr.Blocks:
    """The page; `painter` is the model of semantic maps, `ranker` ranks candidates."""
    examples = example_pictures(model)
    with gr.Blocks(title="ImageBART", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Sample", id="sample"):
                samples = sample_tab(model, ranker)
            with gr.Tab("Edit", id="edit"):
                edits = edit_tab(model, examples, ranker)
            if painter is not None:
                with gr.Tab("Paint a map", id="semantic"):
                    semantic_tab(painter, ranker)
            with gr.Tab("Panorama", id="panorama"):
                panorama_tab(model)
            with gr.Tab("Chain", id="chain"):
                chain_tab(model, examples)
        samples.send.click(
            lambda results, i: (chosen_for_editor(results, i), gr.Tabs(selected="edit")),
            [samples.gallery, samples.index],
            [edits.editor, tabs],
            preprocess=False,
            api_visibility="private",
            show_progress="hidden",
        )
    return page.queue(max_size=64)


def launch(page: gr.Blocks, config: Config, **options) -> Any:
    """Serve the page behind `Guard`; `options` as `gr.Blocks.launch`."""
    hosts = ("127.0.0.1", "localhost", "::1", config.host) if is_this_machine(config.host) else ()
    return page.launch(
        server_name=config.host,
        server_port=config.port,
        auth=read_auth(config.host, config.auth),
        share=False,
        ssr_mode=False,
        mcp_server=False,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        max_file_size="10mb",
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)]},
        footer_links=["api"],
        theme=THEME,
        css=CSS,
        **options,
    )


@contextmanager
def private_files() -> Iterator[None]:
    """Visitors' images are kept in a folder readable by this user only, deleted at the end."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves the block below
    with tempfile.TemporaryDirectory(prefix="imagebart-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield


def main(config: Config) -> None:
    read_auth(config.host, config.auth)
    model = ImageBART.from_pretrained(config.model, device=config.device)
    shipped = config.model is None
    painter = model if "map" in model.conditions else None
    if shipped:
        painter = ImageBART.from_pretrained(SHIPPED_SEMANTIC, device=config.device)
    ranker = CLIP(config.clip) if config.clip else Probe() if shipped else None
    if ranker is not None:
        ranker.to(model.device)
    with private_files():
        launch(build(model, painter, ranker), config)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
