"""Pickles, as far as they hold plain data: a stack machine of some forty instructions that runs no one else's code.

A pickle is a program, and Python's own unpickler calls whatever function it names. Here a name stands for a function
only if the caller has put it into `calls`, and everything else is refused. The instructions are those of `pickletools`
in the standard library, which takes a pickle apart without running it.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpy.errors import UserError

Calls = Mapping[str, Callable[..., Any]]
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Instructions that push their own argument.
_VALUES = {
    *("INT", "LONG", "FLOAT", "UNICODE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MARK = object()
_DAMAGE = (
    *(ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, RecursionError, MemoryError),
    DeprecationWarning,
)


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: a word, never the thing itself."""

    name: str


class _RefusedError(Exception):
    pass


def read_pickle(data: bytes, path: Path, calls: Calls, names: frozenset[str], persistent: Callable[[Any], Any]) -> Any:
    """The object in a pickle: numbers, texts, tuples, lists and dicts, and what `calls` and `persistent` make.

    `calls`: what a name stands for where it is called; `names`: what may be named besides, as a `Name`; `persistent`
    gets the description of an object that lies outside the pickle. Raises UserError, in one line, for a pickle that
    names anything else or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # pickletools accepts text with invalid escapes
            return _run(data, calls, names, persistent)
    except _RefusedError as refused:
        raise UserError(
            f"{path} asks for {refused}: only tensors and plain containers are read from a pickle, for it can run any"
            " code"
        ) from refused
    except _DAMAGE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is damaged: its pickle cannot be read ({reason})") from error


def _run(data: bytes, calls: Calls, names: frozenset[str], persistent: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = next((i for i in reversed(range(len(stack))) if stack[i] is _MARK), None)
        if at is None:
            raise ValueError("what began nowhere ends")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def named(name: str) -> Name:
        if name not in calls and name not in names:
            raise _RefusedError(name[:100])
        return Name(name)

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[opcode.name])
            case name if name in _VALUES:
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                values = [stack.pop() for _ in range(size)]
                stack.append(tuple(reversed(values)))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "LIST":
                stack.append(since_mark())
            case "DICT":
                stack.append(_updated({}, since_mark()))
            case "APPEND":
                value = stack.pop()
                _of_type(stack[-1], list).append(value)
            case "APPENDS":
                values = since_mark()
                _of_type(stack[-1], list).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _updated(stack[-1], [key, value])
            case "SETITEMS":
                values = since_mark()
                _updated(stack[-1], values)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "POP":
                stack.pop()
            case "GLOBAL":
                stack.append(named(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = _of_type(stack.pop(), str), _of_type(stack.pop(), str)
                stack.append(named(f"{module}.{attribute}"))
            case "REDUCE":
                arguments, function = _of_type(stack.pop(), tuple), _of_type(stack.pop(), Name)
                if function.name not in calls:
                    raise _RefusedError(f"a call of {function.name[:100]}")
                stack.append(calls[function.name](*arguments))
            case "BUILD":  # attributes of an ordered dict: what PyTorch notes there, no reader needs
                stack.pop()
                _of_type(stack[-1], dict)
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case "STOP":
                [result] = stack
                return result
            case other:
                raise _RefusedError(f"the instruction {other}")
    raise ValueError("it does not end")


def _of_type(value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"{type(value).__name__} where a {wanted.__name__} belongs")
    return value


def _updated(table: Any, items: list[Any]) -> dict[Any, Any]:
    """`table` with the keys and values in `items`; keys are texts and numbers, which take no time to hash."""
    _of_type(table, dict)
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float):
            raise TypeError(f"a {type(key).__name__} as a key")
        table[key] = value
    return table


def dict_of_pairs(pairs: Any = ()) -> dict[Any, Any]:
    """Builds a dict, its keys checked, from the arguments with which a pickle calls `dict` and similar types."""
    return _updated({}, [value for pair in pairs for value in pair])
