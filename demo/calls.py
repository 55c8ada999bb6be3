"""Calls of the page's functions, read before gradio sees them.

Gradio answers a call that it cannot read with a bare error, and writes what was sent to the log. So
a call says which function it means, and as many values as that takes; all else is left out.

PageFunction     a function of the page
functions_of     all of them
read_call        the function that a request calls, and what gradio is to read of it
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

API = "/gradio_api"
CALL = re.compile(rf"{API}/(?P<way>queue/join|run|api|call/v2|call)(?:/(?P<name>[^/]+))?")
SESSION = re.compile(r"[\w-]{1,64}")
BY_NAME = ("call", "call/v2")
DIRECT = ("run", "api")
"""Ways past gradio's queue."""


@dataclass(frozen=True)
class PageFunction:
    """A function of the page.

    parameters: names of its values; job: whether it is public and runs a model; queued: whether
    gradio's queue is the only way to it; selects: whether it is told which item was selected.
    """

    number: int
    name: str
    parameters: tuple[str, ...]
    count: int
    job: bool
    queued: bool
    selects: bool


def functions_of(page: gr.Blocks) -> tuple[PageFunction, ...]:
    return tuple(
        PageFunction(
            number,
            one.api_name or "",
            tuple(inspect.signature(one.fn).parameters) if one.fn else (),
            len(one.inputs),
            one.api_visibility == "public",
            one.queue is not False,
            one.collects_event_data,
        )
        for number, one in page.fns.items()
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
    if way == "call/v2":
        if unknown := request.keys() - set(function.parameters):
            names = ", ".join(function.parameters)
            raise ValueError(f"{name} takes {names}, got {len(unknown)} others")
        return function, request
    passed = {"data": read_values(function, request.get("data")), **read_session(request)}
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


def read_values(function: PageFunction, values: Any) -> list:
    if not isinstance(values, list) or len(values) != function.count:
        got = f"{len(values)}" if isinstance(values, list) else "no list"
        raise ValueError(f"data must be a list of {function.count} values, got {got}")
    return values


def read_session(request: dict) -> dict:
    session = request.get("session_hash")
    if session is None:
        return {}
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise ValueError("session_hash must be 1 to 64 letters, digits, - or _, got another")
    return {"session_hash": session}


def read_selected(request: dict) -> dict:
    """The selected item of a gallery."""
    event = request.get("event_data")
    index = event.get("index") if isinstance(event, dict) else None
    if type(index) is not int or index < 0:
        raise ValueError("event_data must have the index of an item, got none")
    return {"index": index, "value": None}
