"""Reads pickles of plain values and uint8 arrays without Python's unpickler.

An unpickler calls what a file names, sets attributes of objects, and reserves memory for sizes that
a file declares. This interpreter knows dicts, lists, tuples, texts, bytes, numbers and one kind of
array, whose bytes must be in the file. Protocols 0 to 5.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ROLES = {
    **{f"{module} _reconstruct": "array" for module in _MULTIARRAY},
    **{f"{module} _frombuffer": "buffer" for module in _NUMERIC},
    "numpy ndarray": "type of arrays",
    "numpy dtype": "dtype",
    # Python 3 writes bytes so in protocols 0 to 2.
    "_codecs encode": "encode",
    "__builtin__ bytes": "empty bytes",
}
"""The globals of pickles with arrays, under their old and new numpy modules."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
        "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    )
)  # fmt: skip
"""Opcodes that push their argument."""
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_MARK = object()


@dataclass(frozen=True)
class _Global:
    """A name in the file. Nothing is imported."""

    role: str


@dataclass
class _Array:
    """An array of a pickle, before its content is known."""

    values: NDArray[np.uint8] | None = None


@dataclass
class _Interpreter:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    encoded: int = 0
    """Bytes that `_codecs.encode` has made."""

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _VALUES:
                self.stack.append(argument)
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                index: Any = len(self.memo) if name == "MEMOIZE" else argument
                self.memo[index] = self.stack[-1]
            elif name not in _IGNORED:
                self.step(name, argument)
            if self.encoded > len(content):  # the same text again and again
                raise ValueError("it makes more bytes than it has")
        if len(self.stack) != 1:
            raise ValueError("it does not hold one value")
        return _finished(self.stack[0])

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode that changes more than the top of the stack."""
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}[name])
        elif name == "APPEND":
            self._extend([stack.pop()])
        elif name == "APPENDS":
            self._extend(self._pop_to_mark())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._update([key, value])
        elif name == "SETITEMS":
            self._update(self._pop_to_mark())
        elif name == "LIST":
            stack.append(self._pop_to_mark())
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            length = int(name[-1])
            stack[-length:] = [tuple(stack[-length:])]
        elif name == "DICT":
            pairs = self._pop_to_mark()
            stack.append({})
            self._update(pairs)
        elif name == "GLOBAL":
            stack.append(_find(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_find(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
            self.encoded += len(stack[-1]) if isinstance(stack[-1], bytes) else 0
        elif name == "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        else:
            raise ValueError(f"it uses the opcode {name}, which plain values do not need")

    def _pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise ValueError("a mark is missing")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("it appends to a value that is not a list")
        self.stack[-1] += items

    def _update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise ValueError("it sets items of a value that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise ValueError(f"a key is a {type(key).__name__}")
            self.stack[-1][key] = value


def read_pickle(content: bytes) -> Any:
    """Return the value in a pickle. Strings of Python 2 become texts with one character a byte.

    Raises ValueError if the pickle is damaged or holds anything but plain values and uint8 arrays.
    """
    try:
        return _Interpreter().run(content)
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from None


def _find(name: str) -> _Global:
    if name not in _ROLES:
        shown = name.replace(" ", ".")[:80]
        raise ValueError(f"it refers to {shown!s}, which is not allowed")
    return _Global(_ROLES[name])


def _call(function: Any, arguments: Any) -> Any:
    """Return what a known function makes of its arguments."""
    role = function.role if isinstance(function, _Global) else None
    if role == "encode" and type(arguments[0]) is str and arguments[1] in ("latin1", "latin-1"):
        return arguments[0].encode("latin1")
    if role == "empty bytes" and arguments == ():
        return b""
    if role == "dtype":
        if arguments[0] not in ("u1", "|u1"):
            raise ValueError(f"it holds an array of {str(arguments[0])[:20]}, not of uint8")
        return _Global("uint8")
    if role == "array":
        return _Array()
    if role == "buffer":
        raw, dtype, shape, order = arguments
        return _Array(_make_array(raw, dtype, shape, order == "F"))
    raise ValueError("it calls something that is not a function of numpy")


def _fill(target: Any, state: Any) -> None:
    """Give an array its content. The state of a dtype says nothing new about uint8."""
    if isinstance(target, _Array) and target.values is None:
        _, shape, dtype, is_fortran, raw = state
        if isinstance(raw, str):  # of Python 2
            raw = raw.encode("latin1")
        target.values = _make_array(raw, dtype, shape, bool(is_fortran))
    elif not (isinstance(target, _Global) and target.role == "uint8"):
        raise ValueError("it sets the state of a value that is not an array")


def _make_array(raw: Any, dtype: Any, shape: Any, is_fortran: bool) -> NDArray[np.uint8]:
    """Return an array over bytes that are in the file."""
    if not isinstance(raw, bytes | bytearray):
        raise ValueError("the content of an array is not bytes")
    if not (isinstance(dtype, _Global) and dtype.role == "uint8"):
        raise ValueError("it holds an array that is not of uint8")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("the shape of an array is invalid")
    if math.prod(shape) != len(raw):
        raise ValueError(f"an array of shape {tuple(shape)} has {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _finished(value: Any) -> Any:
    """Return a dict, or another value, with arrays in the place of their stubs."""
    if isinstance(value, dict):
        return {key: _finished_item(item) for key, item in value.items()}
    return _finished_item(value)


def _finished_item(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.values is None:
            raise ValueError("an array has no content")
        return value.values
    return value
