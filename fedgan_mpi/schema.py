"""Reads JSON files and checks values against schemas. A schema is a msgspec type.

Every file that this program reads may be damaged or hostile. A mistake in it becomes one sentence
that names the key, its value and the right value. Knows no schema itself.
"""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file

T = TypeVar("T")

MAX_INTEGER = 2**53
"""Larger integers are not exact as float64, and overflow 64 bits in products."""
MAX_BYTES = 2**28
"""Size of the largest JSON file that is read."""
_MAX_NUMBER = 1e100  # larger numbers overflow sums and the axes of plots

Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Number = Annotated[float, Meta(ge=-_MAX_NUMBER, le=_MAX_NUMBER)]
"""A finite float or integer."""

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "null",
}
_BOUNDS = {">=": "of at least", "<=": "of at most"}

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxlong = _shorten.maxother = 40
_shorten.maxdict = _shorten.maxlist = 2


class SchemaError(ValueError):
    """A value does not fit its schema. The message is a clause, such as `nz is 0, but must be …`"""


def read_json(path: Path, schema: type[T]) -> T:
    """Read a JSON file that fits a schema.

    Raises UserError with the file and the reason, also for a file that is not a regular one.
    """
    try:
        return check(parse_json(read_bounded(path)), schema)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_bounded(path: Path, *, follow_links: bool = True, most: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises OSError if the file cannot be read, and SchemaError if it is larger.
    """
    content = read_regular_file(path, follow_links=follow_links, nbytes=most + 1)
    if len(content) > most:
        raise SchemaError(f"it has more than {most:,} bytes")
    return content


def parse_json(content: bytes | str, *, allow_nan: bool = False) -> Any:
    """Parse JSON. Raises SchemaError if it is not valid, or too deep for Python.

    allow_nan: accept NaN and Infinity, which Python writes although JSON has none.
    """
    try:
        return json.loads(content, parse_constant=None if allow_nan else _refuse_constant)
    except SchemaError:
        raise
    except (ValueError, RecursionError):
        raise SchemaError("it is not valid JSON") from None


def check(value: Any, schema: type[T]) -> T:
    """Return a value converted to a schema. Raises SchemaError if it does not fit."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise SchemaError(_describe(str(error), value)) from None
    except (UnicodeError, RecursionError):
        raise SchemaError("it has invalid text or is too deep") from None


def shorten(value: Any) -> str:
    """Return a value as Python writes it, in about 40 characters at most."""
    return _shorten.repr(value)


def _refuse_constant(name: str) -> NoReturn:
    raise SchemaError(f"it holds {name}, which JSON does not have")


def _describe(message: str, value: Any) -> str:
    """Rewrite a message of msgspec as a clause with key, value and right values."""
    text, _, path = message.partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text, re.DOTALL):
        return f"{where or 'it'} lacks the key {missing[1]!r}"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        return f"{where or 'it'} has the unknown key {shorten(unknown[1])}"
    found = _find(value, where)
    stated = "" if found is _NOTHING else f" is {shorten(found)}, but"
    expected = re.fullmatch(r"Expected (`[^`]*`)(.*?)(?:, got .*)?", text, re.DOTALL)
    if expected is None:  # such as "Number out of range"
        return f"{where or 'it'} is not valid: {text}"
    words = " or ".join(_WORDS.get(word, word) for word in expected[1].strip("`").split(" | "))
    bound = expected[2]
    for sign, text in _BOUNDS.items():
        bound = bound.replace(sign, text)
    return f"{where or 'it'}{stated} must be {words}{bound}"


_NOTHING = object()


def _find(value: Any, path: str) -> Any:
    """Return the part of a value at a path of msgspec, such as `images[0]`, or _NOTHING."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        try:
            value = value[name] if name else value[int(index)]
        except (LookupError, TypeError, ValueError):
            return _NOTHING
    return value
