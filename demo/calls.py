"""Calls of the page's functions, read before gradio sees them.

Gradio answers a call that it cannot read with a bare error, and writes what was sent to the log. So
a call says which function it means, and as many values as that takes; all else is left out.

PageFunction     a function of the page
functions_of     all of them
read_call        the function that a request calls, and what gradio is to read of it
read_ending      what gradio is to read of a request that ends a job
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import BaseModel, ValidationError

API = "/gradio_api"
CALL = re.compile(rf"{API}/(?P<way>queue/join|run|api|call/v2|call)(?:/(?P<name>[^/]+))?")
NAME = re.compile(r"[\w-]{1,64}")
BY_NAME = ("call", "call/v2")
DIRECT = ("run", "api")
"""Ways past gradio's queue."""


@dataclass(frozen=True)
class PageFunction:
    """A function of the page.

    parameters: names of its values; forms: what gradio reads each as, None for anything; job:
    whether it is public and runs a model; queued: whether gradio's queue is the only way to it;
    selects: whether it is told which item was selected; states: how many of the values, the last
    ones, are kept by the server: who calls by name leaves them out.
    """

    number: int
    name: str
    parameters: tuple[str, ...]
    forms: tuple[type[BaseModel] | None, ...]
    job: bool
    queued: bool
    selects: bool
    states: int = 0


def functions_of(page: gr.Blocks) -> tuple[PageFunction, ...]:
    return tuple(
        PageFunction(
            number,
            one.api_name or "",
            tuple(inspect.signature(one.fn).parameters),
            tuple(getattr(block, "data_model", None) for block in one.inputs),
            one.api_visibility == "public",
            one.queue is not False,
            one.collects_event_data,
            sum(block.stateful for block in one.inputs),
        )
        for number, one in page.fns.items()
        if one.fn is not None  # others run in the browser
    )


def read_call(
    functions: Sequence[PageFunction], path: str, request: dict
) -> tuple[PageFunction, dict]:
    """(function, the request as it is passed on) of a call.

    Raises LookupError if there is no such function that way, ValueError for wrong values.
    """
    found = CALL.fullmatch(path)
    way, name = (found["way"], found["name"]) if found else ("", None)
    number = None if way in BY_NAME else request.get("fn_index")
    function = find_function(functions, number, name)
    if (way in BY_NAME and not function.job) or (way in DIRECT and function.queued):
        raise LookupError
    taken = len(function.forms) - (function.states if way in BY_NAME else 0)
    parameters, forms = function.parameters[:taken], function.forms[:taken]
    if way == "call/v2":
        if unknown := request.keys() - set(parameters):
            raise ValueError(f"{name} takes {', '.join(parameters)}, got {len(unknown)} others")
        for name, form in zip(parameters, forms, strict=True):
            check_form(form, request.get(name))
        return function, request
    passed = {"data": read_values(forms, request.get("data")), **read_session(request)}
    if way not in BY_NAME:
        trigger = request.get("trigger_id")
        passed["fn_index"] = function.number
        passed["trigger_id"] = trigger if type(trigger) is int else None
        passed["event_data"] = read_selected(request) if function.selects else None
    return function, passed


def find_function(functions: Sequence[PageFunction], number: Any, name: str | None) -> PageFunction:
    """By its number if one is given, else by its name."""
    for one in functions:
        if one.name == name if number is None else type(number) is int and one.number == number:
            return one
    raise LookupError


def read_values(forms: Sequence[type[BaseModel] | None], values: Any) -> list:
    count = len(forms)
    if not isinstance(values, list) or len(values) != count:
        got = f"{len(values)}" if isinstance(values, list) else "no list"
        raise ValueError(f"data must be a list of {count} values, got {got}")
    for form, value in zip(forms, values, strict=True):
        check_form(form, value)
    return values


def check_form(form: type[BaseModel] | None, value: Any) -> None:
    """ValueError for a file, or several, that gradio will not read."""
    try:
        if form is not None and value is not None:
            form.model_validate(value, context={"validate_meta": True})
    except ValidationError:
        raise ValueError(
            'a file must be {"path": where it was uploaded, "meta": {"_type": "gradio.FileData"}} '
            "in the form of its input, got another"
        ) from None


def read_session(request: dict) -> dict:
    """The session, if one is said."""
    found = request.get("session_hash") is not None
    return {"session_hash": read_name(request, "session_hash")} if found else {}


def read_name(request: dict, key: str) -> str:
    """The name that gradio has given to a session or a job."""
    name = request.get(key)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{key} must be 1 to 64 letters, digits, - or _, got another")
    return name


def read_ending(request: dict) -> dict:
    """The job that a visitor stops; gradio's older clients say its name only."""
    number = request.get("fn_index", 0)
    if type(number) is not int:
        raise ValueError("fn_index must be a whole number, got another")
    event = {"event_id": read_name(request, "event_id"), "fn_index": number}
    return event | read_session(request)


def read_selected(request: dict) -> dict:
    """The selected item of a gallery."""
    event = request.get("event_data")
    index = event.get("index") if isinstance(event, dict) else None
    if type(index) is not int or index < 0:
        raise ValueError("event_data must have the index of an item, got none")
    return {"index": index, "value": None}
