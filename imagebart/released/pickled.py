"""Read a pickle without executing it: the operations that `torch.save` writes, and no others.

A pickle is a program for a stack machine that can call any importable function. Here its operations
are carried out one by one, and the two that leave the machine are given by the caller: what a name
stands for, and what a storage is. Nothing is imported, and nothing of Python's `pickle` runs.

Every operation takes a bounded time: keys are text but for a few, since whole numbers can be chosen
so that a dictionary takes quadratic time, and calls have few arguments.
"""

import pickletools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from imagebart.arguments import shown

OPERATION_LIMIT = 500_000  # a released scale has some 150 000
TEXT_LIMIT = 1000  # characters of a key or a name
KEY_LIMIT = 2000  # keys that are not text: a released scale has one a parameter of its optimiser
ARGUMENT_LIMIT = 16  # of a call

VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UntrustedFileError(ValueError):
    """A file that is not a checkpoint of plain tensors."""


class Inert:
    """Placeholder for an object other than a tensor: built of anything, altered by nothing."""


@dataclass(frozen=True)
class Builder:
    """A function that a pickle may call."""

    build: Callable

    def __call__(self, *arguments) -> object:
        return self.build(*arguments)


def read_pickle(
    data: bytes, find: Callable[[str, str], object], storage: Callable[[object], object]
) -> object:
    """What a pickle builds of containers, numbers, text, `find(module, name)` and `storage(id)`.

    Of what `find` gives only `Builder`s and the class `Inert` are called. Raises UntrustedFileError
    for any other call and operation, and where a limit is exceeded.
    """
    machine = Machine(find, storage)
    try:
        return machine.run(data)
    except UntrustedFileError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = shown(str(error) or type(error).__name__)
        raise UntrustedFileError(f"its pickle is damaged: {reason}") from None


class Machine:
    """A stack, marks in it, and a memo."""

    def __init__(self, find: Callable[[str, str], object], storage: Callable[[object], object]):
        self.find, self.storage = find, storage
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.other_keys = 0

    def run(self, data: bytes) -> object:
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            name = operation.name
            if count > OPERATION_LIMIT:
                raise UntrustedFileError(
                    f"its pickle must have at most {OPERATION_LIMIT} operations"
                )
            if name in LITERALS:
                self.stack.append(argument)
            elif name in VALUES:
                self.stack.append(VALUES[name])
            elif name in TUPLES:
                self.stack.append(tuple(self.take(TUPLES[name])))
            elif name in OPERATIONS:
                OPERATIONS[name](self, argument)
            elif name == "STOP":
                return self.take(1)[0]
            else:
                raise UntrustedFileError(f"its pickle must not use {name}")
        raise UntrustedFileError("its pickle must end with STOP")

    # ── the stack ─────────────────────────────────────────────────────────────────────────────

    def take(self, count: int) -> list:
        """The last `count` objects, which must lie above the last mark."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise UntrustedFileError("its pickle must not take from an empty stack")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def take_to_mark(self) -> list:
        """All objects above the last mark, and the mark."""
        taken = self.take(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def top(self) -> object:
        (last,) = self.take(1)
        self.stack.append(last)
        return last

    # ── what operations do ────────────────────────────────────────────────────────────────────

    def extend(self, values: Sequence) -> None:
        """Values into the list at the top."""
        target = self.top()
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Inert:
            raise UntrustedFileError("its pickle must append to lists")

    def update(self, items: Sequence) -> None:
        """Keys and values, in turn, into the dictionary at the top."""
        target = self.top()
        keys, values = items[::2], items[1::2]
        for key in keys:
            self.require_key(key)
        if type(target) is dict:
            target.update(zip(keys, values, strict=True))
        elif type(target) is not Inert:
            raise UntrustedFileError("its pickle must set the items of dictionaries")

    def require_key(self, key: object) -> None:
        text, number = type(key) is str, type(key) is int and abs(key) < 2**63
        self.other_keys += not text
        if self.other_keys > KEY_LIMIT or not (text or number or key is Inert):
            raise UntrustedFileError(
                f"its pickle must have keys of text, and at most {KEY_LIMIT} that are numbers"
            )
        if type(key) is str and len(key) > TEXT_LIMIT:
            raise UntrustedFileError(
                f"its pickle must have keys of at most {TEXT_LIMIT} characters, got {shown(key)}"
            )

    def call(self) -> None:
        function, arguments = self.take(2)
        if type(arguments) is not tuple or len(arguments) > ARGUMENT_LIMIT:
            raise UntrustedFileError(f"its pickle must call with at most {ARGUMENT_LIMIT} values")
        if function is Inert:
            self.stack.append(Inert())
        elif isinstance(function, Builder):
            self.stack.append(function(*arguments))
        else:
            raise UntrustedFileError("its pickle must call what builds tensors only")

    def alter(self) -> None:
        """The state of an object; only what is inert has one, and it is ignored."""
        self.take(1)
        if type(self.top()) not in (Inert, dict):
            raise UntrustedFileError("its pickle must not alter what it has built")

    def name(self, names: Iterable[str]) -> None:
        module, name = names
        if not isinstance(module, str) or not isinstance(name, str):
            raise UntrustedFileError("its pickle must name things by text")
        self.stack.append(self.find(module, name))

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.top()


OPERATIONS: dict[str, Callable[[Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.take(1),
    "POP_MARK": lambda machine, _: machine.take_to_mark(),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.take_to_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.take_to_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.take_to_mark()),
    "BINPUT": lambda machine, place: machine.remember(place),
    "LONG_BINPUT": lambda machine, place: machine.remember(place),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "GLOBAL": lambda machine, names: machine.name(names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(machine.take(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.alter(),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.storage(machine.take(1)[0])),
}
