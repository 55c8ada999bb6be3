"""The browser demo: sampling, editing, semantic maps and panoramas.

    python app.py                                          the shipped model, http://127.0.0.1:7860
    python app.py --model runs/mine                        a folder, or a Hugging Face Hub id
    python app.py --host 0.0.0.0 --auth anna:secret        for others; never without a password
    python app.py --auth anna:secret --public-host lab.example:8443 --root-path /imagebart
                  --trusted-proxy 127.0.0.1                behind a reverse proxy on this machine

Each tab is a module of `demo`. The endpoints `/sample`, `/inpaint`, `/outpaint`, `/reimagine`,
`/semantic`, `/panorama`, `/chain` and `/draw_again` can be called by programs (see the link "API"
at the foot of the page), so they check all arguments.
"""

import asyncio
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import tyro
from gradio.blocks import BlockContext
from gradio.routes import file_upload_statuses
from starlette.middleware import Middleware

from demo.calls import functions_of
from demo.chain import chain_tab
from demo.change import change_tab
from demo.editor import remembering
from demo.files import private_folder, stored_files, tidy
from demo.paint import semantic_tab
from demo.panorama import panorama_tab
from demo.parts import title
from demo.pictures import EditorSource, example_pictures, with_source
from demo.ready import ready_pictures
from demo.requests import Late, Ranker, sentences
from demo.sample import sample_tab, settings_of_link
from demo.serving import Guard, read_auth, site_of
from demo.style import CSS, SCRIPT, THEME
from demo.worker import MOST_WAITING, Worker
from imagebart import ImageBART
from imagebart.probe import Probe
from imagebart.ranking import CLIP

MOST_SESSIONS = 128
"""Visitors whose state gradio keeps, 240 kB each; the one seen longest ago is forgotten."""
HOLDS_PICTURE = gr.ImageEditor, BlockContext
"""What is a picture of a visitor, or may hold one."""
SECONDS_BETWEEN_TIDIES = 30
SECONDS_BETWEEN_LOOKS = 0.02
"""Of an idle queue for jobs; as often as gradio looks, it takes 8 % of a core."""


@dataclass
class Config:
    """The model and who may access the page."""

    model: str | None = None  # a folder or a Hugging Face Hub id; the shipped one if not given
    clip: Path | None = None  # folder of a CLIP model for ranking; for scenery one is shipped
    host: str = "127.0.0.1"  # address to listen on; addresses beyond this machine need --auth
    port: int | None = None  # default: the first free one from 7860
    device: str | None = None  # "cpu", "cuda" …; default: the best available
    auth: str | None = None  # USER:PASSWORD of visitors
    time_limit: float = 300  # seconds that one request may use the model
    public_host: str | None = None  # NAME or NAME:PORT that visitors see, behind a proxy
    root_path: str = ""  # path below which a proxy serves the page
    trusted_proxy: list[str] = field(default_factory=list)  # proxies whose X-Forwarded-* count


def build(
    worker: Worker,
    model: ImageBART,
    ranker: Ranker | None = None,
    first: list | None = None,
) -> gr.Blocks:
    """The page; `worker` runs the models, `ranker` ranks candidates, `first` are the pictures that
    it shows at first."""
    examples = example_pictures(model)
    with gr.Blocks(title="ImageBART", analytics_enabled=False) as page:
        gr.Markdown(title(model), elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Make", id="sample"):
                samples = sample_tab(worker, model, ranker, first)
                sent = [samples.sent]
            with gr.Tab("Change", id="edit"):
                edited, views = change_tab(worker, model, examples, ranker)
            if "map" in model.conditions:
                with gr.Tab("Paint a map", id="semantic"):
                    sent.append(semantic_tab(worker, model, ranker))
            with gr.Tab("Panorama", id="panorama"):
                sent.append(panorama_tab(worker, model))
            with gr.Tab("Understand", id="chain") as tab:
                chain_tab(worker, model, examples, tab)
        private = {"api_visibility": "private", "show_progress": "hidden"}

        def first_picture() -> tuple[dict, EditorSource]:
            return with_source(examples[0])

        page.load(first_picture, None, edited[:2], queue=False, **private)  # before a visitor's own
        page.load(
            sentences()(partial(settings_of_link, samples.said.inputs)),
            samples.said.inputs["prompt"],  # in whose place the browser sends the address' query
            [*samples.said.inputs.values(), samples.said.fresh],
            js="() => [window.location.search]",
            preprocess=False,
            **private,
        )

        def opened() -> tuple[gr.Tabs, gr.Tabs]:
            return gr.Tabs(selected="edit"), gr.Tabs(selected="picture")

        for button, chosen, inputs in sent:
            put, given = remembering(chosen), [*inputs, *edited[1:]]
            event = button.click(put, given, edited, preprocess=False, **private)
            event.success(opened, None, [tabs, views], queue=False, **private)
    tell_no_editor(page)
    page.queue(max_size=MOST_WAITING, api_open=False)
    queue = page._queue
    queue.sleep_when_free = queue.progress_update_sleep_when_free = SECONDS_BETWEEN_LOOKS
    return page


def tell_no_editor(page: gr.Blocks) -> None:
    """Leave the editors, and what holds them, out of what is told how far an event is.

    Gradio tells all that any event has written to, at every step of every event; before that it
    asks each, and all within it, for its value; and an editor uploads its picture to answer.
    """
    for function in page.fns.values():
        others = [one for one in function.outputs if not isinstance(one, HOLDS_PICTURE)]
        if len(others) < len(function.outputs):
            function.show_progress_on = others


def launch(page: gr.Blocks, worker: Worker, config: Config, **options) -> Any:
    """Serve the page behind `Guard`; `options` as `gr.Blocks.launch`."""
    site = site_of(config.host, config.public_host, config.root_path, config.trusted_proxy)
    functions = functions_of(page)
    kept = frozenset(path for *_, path in stored_files())

    @asynccontextmanager
    async def tidied(_) -> AsyncIterator[None]:
        task = asyncio.create_task(keep_tidy(page, kept))
        yield
        task.cancel()

    guard = Middleware(Guard, worker=worker, site=site, functions=functions, kept=kept)
    return page.launch(
        server_name=config.host,
        server_port=config.port,
        root_path=config.root_path,
        auth=read_auth(config.host, config.auth, config.public_host),
        share=False,
        ssr_mode=False,
        mcp_server=False,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        max_file_size="10mb",
        max_threads=2 * MOST_WAITING,  # waiting jobs hold a place there, so others find one too
        state_session_capacity=MOST_SESSIONS,
        allowed_paths=[],
        _frontend=False,  # else it asks the page once, and gives up if that takes three seconds
        app_kwargs={"middleware": [guard], "lifespan": tidied},
        footer_links=["api"],
        theme=THEME,
        css=CSS,
        js=SCRIPT,
        **options,
    )


async def keep_tidy(page: gr.Blocks, kept: frozenset[str]) -> None:
    """Delete old files of visitors, forget what gradio remembers of those who left, and give free
    memory back.

    It runs in the server's event loop, where nothing joins gradio's queue meanwhile.
    """
    idle: set[str] = set()
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_TIDIES)
        await asyncio.to_thread(tidy, kept)
        idle = forget(page, idle)
        await asyncio.to_thread(give_back)


def forget(page: gr.Blocks, idle: set[str]) -> set[str]:
    """Forget the `idle` sessions and uploads that still are; returns those that are now."""
    queue = page._queue
    for names in page.temp_file_sets:
        names.clear()
    page.app.iterators_to_reset.intersection_update(queue.event_ids_to_events)
    events, messages = queue.pending_event_ids_session, queue.pending_messages_per_session
    over = {
        session
        for session in events.keys() | messages.keys()
        if not queue.event_ids_to_events.keys() & events.get(session, set())
    }
    for session in (over & idle) | (events.keys() - messages.keys()):
        events.pop(session, None)
        messages.pop(session, None)
    signals = file_upload_statuses._signals
    for upload in signals.keys() & idle:
        signals.pop(upload)
        file_upload_statuses.stop_tracking(upload)
    return over | signals.keys()


def give_back() -> None:
    """Free memory goes back to the system: glibc keeps it, in pieces that grow with every call."""
    with suppress(AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def set_environment(host: str) -> None:
    """What gradio and its server read from the environment, and what is written to the log."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "64"  # it keeps a record of every call
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # `Guard` reads what proxies say
    for name in ("no_proxy", "NO_PROXY"):  # the server asks itself whether it has started
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host, "localhost")))
    # visitors are told by `read_words`; the log has none of their words
    warnings.filterwarnings("ignore", category=UserWarning, module="imagebart|demo")


@contextmanager
def ended_cleanly(worker: Worker) -> Iterator[None]:
    """Until SIGTERM or Ctrl-C: then jobs end, files are deleted, and the process exits with 0.

    It does so without the interpreter's own ending, which aborts if a thread is in native code.
    """

    signals = signal.SIGTERM, signal.SIGINT  # gradio would end the page itself at the second

    def leave(*_) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(0)

    for one in signals:
        signal.signal(one, leave)
    try:
        with private_folder():
            try:
                yield
            finally:
                worker.stop()
    except SystemExit:
        sys.stdout.flush()
        os._exit(0)


def main(config: Config) -> None:
    """Serve the page until it is stopped."""
    read_auth(config.host, config.auth, config.public_host)
    site_of(config.host, config.public_host, config.root_path, config.trusted_proxy)
    model = ImageBART.from_pretrained(config.model, device=config.device)
    shipped = config.model is None
    ranker = CLIP(config.clip).to(model.device) if config.clip else None
    worker = Worker(model, ranker, seconds=config.time_limit)
    if shipped and ranker is None:
        ranker = Late(lambda: Probe().to(model.device))
    set_environment(config.host)
    with ended_cleanly(worker):
        first = ready_pictures() if shipped else None
        launch(build(worker, model, ranker, first), worker, config)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
