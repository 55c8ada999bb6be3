"""The caller's PyTorch does not change what is computed here, and is left as it was.

A caller may have autocast on, another default dtype or default device, gradients on or off: none of
it reaches a function that is `isolated`. Its tensors are float32 (or what the weights are) and lie
where the model is, as the tokens of a seed need. Random numbers come from generators of their own
(`sampling.generator_of`), so global seeds are neither read nor moved; deterministic algorithms and
the number of threads stay the caller's, since the tokens do not depend on them.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, cast

import torch

from imagebart.notation import Function

AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that autocast knows."""


class Float32:
    """float32 as the process' default type of floating-point tensors while anything is computed
    here: the default belongs to all threads, so the first that comes sets it, and the last that
    leaves gives the caller's back."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                torch.set_default_dtype(self.before)


FLOAT32 = Float32()


@contextmanager
def plain_settings() -> Iterator[None]:
    """No autocast, no inference mode, float32 and the CPU as defaults, in this block; then as
    before."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(FLOAT32)
        yield


def isolated(function: Function) -> Function:
    """The function in inference mode and with plain settings; what it returns is `kept`.

    A generator has them while it computes a step and gives the caller's back at every yield, since
    the next step may be asked for in another thread, or never.
    """
    if not inspect.isgeneratorfunction(inspect.unwrap(function)):

        @wraps(function)
        def alone(*args, **kwargs):
            with plain_settings(), torch.inference_mode():
                result = function(*args, **kwargs)
            return kept(result)

        return cast(Function, alone)

    @wraps(function)
    def steps(*args, **kwargs):
        with closing(function(*args, **kwargs)) as generator:
            while True:
                with plain_settings(), torch.inference_mode():
                    try:
                        step = next(generator)
                    except StopIteration:
                        return
                yield kept(step)

    return cast(Function, steps)


def kept(result: Any) -> Any:
    """The result, with copies of the tensors of inference mode, which autograd could not keep; as
    it is where the caller is in inference mode too, as another isolated function."""
    if torch.is_inference_mode_enabled():
        return result
    if isinstance(result, torch.Tensor):
        return result.clone() if result.is_inference() else result
    if type(result) in (list, tuple):
        return type(result)(map(kept, result))
    if isinstance(result, dict):
        return {name: kept(value) for name, value in result.items()}
    if is_dataclass(result) and not isinstance(result, type):
        parts = {field.name: kept(getattr(result, field.name)) for field in fields(result)}
        return replace(result, **parts)
    return result
