"""Standard output, and optional results of a run.

Training must not fail because a terminal has closed, a disk is full or a name cannot be displayed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm import tqdm

from fedgan_mpi.errors import UserError

logger = logging.getLogger(__name__)


def printable(text: str, encoding: str | None = None) -> str:
    """Escape the characters that the encoding lacks, such as bytes of names that are not UTF-8."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_line(line: str) -> None:
    """Print a line to standard output, above the progress bar.

    If it cannot be written to, this line and later ones are lost.
    """
    if sys.stdout is None:
        return
    with output_to(sys.stdout):
        tqdm.write(printable(line, sys.stdout.encoding))
        sys.stdout.flush()


CLOSED_PIPE = 141
"""Exit status of a program that is killed by SIGPIPE."""


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End the program silently if the reader of standard output closes it, as `head` does.

    The block prints a command's output. Raises SystemExit with CLOSED_PIPE.
    """
    try:
        try:
            yield
        finally:  # also after --help, which raises SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        with output_to(sys.stdout):
            raise
        raise SystemExit(CLOSED_PIPE) from None


@contextmanager
def output_to(stream: TextIO, on_failure: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Discard this and later output to the stream if the block cannot write to it."""
    try:
        yield
    except BlockingIOError:
        pass  # a pipe that is full at the moment
    except (OSError, ValueError):  # ValueError: it is closed
        # Python exits with status 120 if it cannot flush its standard output.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        on_failure()


@contextmanager
def optional(result: object, log: Callable[[str], None]) -> Iterator[None]:
    """If the block raises, log why there is no such result, and continue.

    result: usually the path of a file.
    """
    try:
        yield
    except Exception as error:
        logger.debug("%s", result, exc_info=True)
        log(f"{result} was not written: {_reason(error, result)}")


def _reason(error: Exception, result: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        known = error.filename in (None, str(result))
        return error.strerror if known else f"{error.filename}: {error.strerror}"
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
