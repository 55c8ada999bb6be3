"""Requests of visitors: arguments are checked; status messages."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from math import isclose
from typing import Any, Protocol

import gradio as gr

from imagebart import ImageBART
from imagebart.arguments import as_int
from imagebart.choice import FILTERS
from imagebart.conditions import class_count
from imagebart.editing.inpainting import each_image
from imagebart.guidance import checked_guidance, class_of_seed, encode_condition
from imagebart.options import InpaintOptions, OutputOptions, ReimaginingOptions, rows
from imagebart.ranking import Draw, Ranked, Score, best_so_far

MOST_IMAGES = 16
MOST_CANDIDATES = 64
"""For all images of a request together."""
MOST_PIXELS = 2**24
"""Of an input image, and of all images of a request: for example four of 2048×2048."""
MOST_LAYERS = 8
LONGEST_PROMPT = 1000
SLIDER_LIMITS = {"temperature": 5, "guidance": 20, "passes": 16, "context": 4, "feather": 16}
"""Of numbers without a bound in the library."""
STEP = 0.05
"""Step of a slider for real numbers."""
OPTIONS = rows(InpaintOptions) | rows(ReimaginingOptions) | rows(OutputOptions)
"""The rows of all options that the page has."""
MARGINS, MOST_MARGIN = ("left", "right", "top", "bottom"), 1024
"""Sides at which a picture grows, and by how many pixels at most."""
MOST_OVERLAP = 512
"""Pixels of an image that are drawn anew where it grows."""
CHUNK = 4
"""Maximum number of candidates between two status messages."""
HOOK = threading.Lock()
"""Of whoever hears warnings."""


def read_int(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in [low, high]; text is read too, as JSON numbers are exact to 2^53 only."""
    if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
        with suppress(ValueError):
            value = int(value)
    return as_int(value, name, low, high)


def read_real(value: Any, name: str, low: float, high: float) -> float:
    """A number in [low, high]; text is read too."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return real(value, name, low, high)


def real(value: Any, name: str, low: float, high: float) -> float:
    """A number in [low, high]."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        raise ValueError(f"{name} must be a number from {low} to {high}, got {short(value)}")
    return float(value)


def read_flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {short(value)}")
    return value


def read_text(value: Any, name: str) -> str:
    """A prompt, "" for None."""
    if not isinstance(value, str | None) or len(value or "") > LONGEST_PROMPT:
        most = f"text of at most {LONGEST_PROMPT} characters"
        raise ValueError(f"{name} must be {most}, got {short(value)}")
    return value or ""


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def bounds(model: ImageBART, name: str) -> tuple[float, float]:
    """The bounds of a numeric option for visitors, inclusive."""
    option = OPTIONS[name].option
    lowest = option.least + STEP if option.exclusive else option.least
    return lowest, {"top_k": model.K, **SLIDER_LIMITS}.get(name, option.most)


def read_number(model: ImageBART, name: str, value: Any) -> float:
    """A numeric option; ValueError if it is out of bounds."""
    row, (_, most) = OPTIONS[name], bounds(model, name)
    read = read_int if row.one is int else real
    value = read(value, name, row.option.least, most)
    row.check(value, name)
    return value


def read_request(
    model: ImageBART, prompt: str, num_images: Any, seed: Any, **options
) -> tuple[int, dict, str]:
    """(number of images, options of sampling, a remark); ValueError for invalid arguments."""
    count = read_int(num_images, "num_images", 1, MOST_IMAGES)
    seed = read_int(seed, "seed", 0, 2**63 - count)  # image i has the seed seed + i
    words = {name: value for name, value in options.items() if name not in FILTERS}
    chance = {name: read_number(model, name, options[name]) for name in FILTERS if name in options}
    what, remark = read_words(model, seed, count, prompt, **words)
    return count, {"seed": seed} | chance | what, remark


def read_words(
    model: ImageBART,
    seed: int,
    count: int,
    prompt: str = "",
    classes: Any = "",
    negative_prompt: str = "",
    guidance: Any = None,
    called: str = "prompt",
) -> tuple[dict, str]:
    """(conditions as options of sampling, a remark on what the model does not take); the prompt is
    `called` so in messages."""
    texts = {"prompt": prompt, "negative_prompt": negative_prompt}
    read_text(prompt, called)
    read_text(negative_prompt, "negative_prompt")
    options, remarks = {}, []
    if "text" in model.conditions:
        options |= texts
    elif any((text or "").strip() for text in texts.values()):
        remarks.append("This model takes no text: the prompt was not used.")
    if "class" in model.conditions or classes not in ("", None):
        options["classes"] = read_classes(model, classes, seed, count)
    if guidance is not None:
        options["guidance"] = along_own(model, read_number(model, "guidance", guidance))
    with own_warnings() as said:
        encode_condition(model, count, called={"prompt": called}, **options)
    remarks += [f"{message[:200]}." for message in said]
    return options, "".join(f" {remark}" for remark in dict.fromkeys(remarks))


def along_own(model: ImageBART, strength: float) -> float | list[float]:
    """Guidance by one number, that of t = T; where the model's own differs by scale, along it:

        g_t = 1 + (own_t - 1) · (strength - 1) / (own_T - 1),    not below 0

    so that 1 is plain conditional sampling, and own_T what the model takes if nobody says.
    """
    own = checked_guidance(model.guidance, model.T)
    if len({*own}) == 1 or own[-1] == 1:
        return strength
    times = (strength - 1) / (own[-1] - 1)
    return [max(0.0, 1 + (each - 1) * times) for each in own]


def strength_of(model: ImageBART, guidance: Any) -> float | None:
    """The number from which `along_own` makes this guidance, of one or of all scales; None if there
    is none."""
    with suppress(ValueError, TypeError):
        given = checked_guidance(guidance, model.T)
        along = checked_guidance(along_own(model, given[-1]), model.T)
        if all(map(isclose, given, along)):
            return given[-1]
    return None


@contextmanager
def own_warnings() -> Iterator[list[str]]:
    """What this thread is warned of by the library, not by the interpreter, in these lines.

    Python keeps one hook for all threads: it is one visitor's at a time, and what a sampling thread
    says meanwhile of another visitor's words is nobody's.
    """
    said: list[str] = []
    thread = threading.get_ident()

    def hear(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if threading.get_ident() == thread and issubclass(category, UserWarning):
            said.append(str(message))

    with HOOK, warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = hear
        yield said


def read_classes(model: ImageBART, name: Any, seed: int, count: int) -> list | None:
    """One class for all images; without a name none, or one by each seed if the model needs one."""
    known = class_count(model.conditions)
    if name in ("", None):
        any_class = model.condition_dropout
        return None if any_class else [class_of_seed(model, seed + i) for i in range(count)]
    number = isinstance(name, int) or (isinstance(name, str) and name.isdecimal())
    number = number and name not in model.names["class"]
    return [read_int(name, "classes", 0, known - 1) if number else name] * count


def picked(items: Sequence, event: gr.SelectData) -> Any:
    """The item of a gallery that a visitor selected."""
    with sentences():
        return items[read_int(event.index, "index", 0, len(items) - 1)]


# ── limits ────────────────────────────────────────────────────────────────────────────────────


def check_pixels(count: int, width: int, height: int) -> None:
    """ValueError if so many images of this size exceed the limit of a request."""
    if count * width * height > MOST_PIXELS:
        raise ValueError(
            f"all pictures together must have at most {MOST_PIXELS // 10**6} million pixels, "
            f"got {count} of {width}×{height}"
        )


def read_enlarge(model: ImageBART, value: Any, count: int) -> int:
    """How many times larger `count` samples become; ValueError if they are too large together."""
    times = int(read_number(model, "enlarge", value))
    H, W = model.image_size
    check_pixels(count, W * times, H * times)
    return times


def read_overlap(value: Any, size: tuple[int, int]) -> int:
    """Pixels of an image of this size that are drawn anew at the sides that grow."""
    return read_int(value, "overlap", 0, most_overlap(size))


def most_overlap(size: Sequence[int]) -> int:
    return min(MOST_OVERLAP, min(size) // 4)


def at_once(width: int, height: int) -> int:
    """Number of candidates of this size drawn together: fewer if they are large."""
    return max(1, min(CHUNK, MOST_PIXELS // (width * height)))


def read_layers(editor: dict) -> list[dict]:
    """The files of the layers over an image."""
    layers = editor.get("layers") or []
    if len(layers) > MOST_LAYERS:
        raise ValueError(f"there must be at most {MOST_LAYERS} layers, got {len(layers)}")
    return layers


# ── the best of many ──────────────────────────────────────────────────────────────────────────


class Ranker(Protocol):
    """What ranks candidates: a `CLIP`, or `Late`."""

    def likeness(self, prompt: str) -> Score:
        """How much pictures look like the prompt."""


class Late:
    """A ranker that is loaded when it first ranks: that takes seconds, and few visitors rank."""

    def __init__(self, load: Callable[[], Ranker]):
        self.load = cache(load)

    def likeness(self, prompt: str) -> Score:
        return self.load().likeness(prompt)


def read_candidates(
    candidates, count: int, ranker: Ranker | None, prompt: str
) -> tuple[int, Score | None]:
    """(candidates for each of `count` images, their score); ValueError without a ranker or for too
    many."""
    candidates = read_int(candidates, "candidates", 1, MOST_CANDIDATES)
    if candidates == 1:
        return 1, None
    if count * candidates > MOST_CANDIDATES:
        raise ValueError(
            f"candidates must be at most {MOST_CANDIDATES} for all images together, "
            f"got {candidates} for each of {count}"
        )
    if ranker is None:
        raise ValueError("candidates must be 1 for this model: start the app with --clip to rank")
    if not (prompt or "").strip():
        raise ValueError('candidates ("Best of") must be 1 without a prompt to compare with')
    return candidates, ranker.likeness(prompt)


def options_of_best(options: dict, best: Sequence[Ranked]) -> dict:
    """The options that draw the best again: their seeds, and the class that they share."""
    return of_one_class(options, len(best)) | {"seed": [one.seed for one in best]}


def of_one_class(options: dict, count: int) -> dict:
    """The options for `count` images; if each had its own class, with the first one's."""
    classes = options.get("classes")
    return options | {"classes": classes[:1] * count} if classes else options


def ranked(
    draw: Draw, count: int, candidates: int, score: Score, options: dict, chunk: int = CHUNK
) -> Iterator[tuple[list[Ranked], str]]:
    """(the best so far, a status), chunk by chunk, of `candidates` for each image."""
    total = count * candidates
    read_int(options["seed"], "seed", 0, 2**63 - total)

    def drawn(n: int, seed: list[int]) -> list:
        return draw(n, **of_one_class(options, n) | {"seed": seed})

    found = best_so_far(drawn, count, total, score, seed=options["seed"], chunk=chunk)
    for i, best in enumerate(found, 1):
        yield best, f"{min(i * chunk, total)} of {total} candidates drawn …"


# ── messages ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def sentences() -> Iterator[None]:
    """Errors reach the visitor as one sentence, never as a traceback."""
    try:
        yield
    except gr.Error:
        raise
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:  # gradio writes the traceback to the log
        raise gr.Error("internal error, see the server's log") from error


def settings_of_each(command: str, options: dict, count: int) -> list[dict]:
    """What is written into the file of each image: the options that differ from their defaults."""
    usual = {name: row.option.default for name, row in OPTIONS.items()}
    usual |= dict.fromkeys((*MARGINS, "overlap"), 0)
    return [
        {"command": command, "seed": own.pop("seed")}
        | {name: value for name, value in own.items() if value not in ("", usual[name])}
        for own in each_image(options, count)
    ]


def caption(model: ImageBART, t: int) -> str:
    return f"t = {t}, noise" if t == model.T else f"t = {t}, image" if t == 1 else f"t = {t}"


def status(step, seed: int | list[int], count: int, began: float, remark: str) -> str:
    if step.done < 1:
        return progress(step.done, began)
    return finished(seed, count, began, remark)


def progress(done: float, began: float) -> str:
    """How far a job is, and how long it will go on at this pace."""
    if not done:
        return "Drawing …"
    left = (time.perf_counter() - began) * (1 - done) / done
    return f"Drawing: {done:.0%}, {in_words(left)} left …"


def in_words(seconds: float) -> str:
    """About how long that is: seconds, from 90 on minutes."""
    number, unit = (seconds, "second") if seconds < 90 else (seconds / 60, "minute")
    number = max(1, round(number))
    return f"about {number} {unit}{'s' * (number > 1)}"


def finished(seed: int | list[int], count: int, began: float, remark: str) -> str:
    if isinstance(seed, list):
        seeds = f"Seed{'s' * (count > 1)} {', '.join(map(str, seed))}"
    else:
        seeds = f"Seed {seed}" if count == 1 else f"Seeds {seed} to {seed + count - 1}"
    return f"{seeds}, {time.perf_counter() - began:.1f} s.{remark}"
