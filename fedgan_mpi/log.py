"""Logging: messages with rank and host, on standard error and optionally in one file per rank.

Every package logs to its own logger below "fedgan_mpi". The progress bar and the lines that a
command prints as its result do not pass through here.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

_LAST_STREAM = 2  # standard error
ROOT = "fedgan_mpi"
"""Parent of all loggers of this program; `py.warnings` gets the same handlers."""


def prepare_streams() -> None:
    """Make printing safe: no text raises an error, and no file is overwritten.

    Characters that the output's encoding lacks are escaped. A file that the program opens would
    otherwise take the number of a closed standard stream, and get what is printed to it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # in a forked process it may have been another kind of file
                stream.reconfigure(errors="backslashreplace")
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= _LAST_STREAM:
        descriptor = os.dup(descriptor)
    os.close(descriptor)


class _LogFile(logging.FileHandler):
    """A log file. If it cannot be written, for example on a full disk, this is logged once."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not self._failed:
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            print(f"{self.baseFilename} cannot be written: {reason}", file=sys.stderr)


def start(rank: int, level: str = "info", per_rank: str | None = None) -> None:
    """Send messages of at least `level` to standard error, and to per_rank/rank_NNNN.log.

    Warnings of libraries take the same way. A second call replaces the handlers of the first.
    """
    where = f"[rank {rank} on {platform.node()}]"
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter(f"{where} %(message)s"))
    handlers: list[logging.Handler] = [console]
    if per_rank is not None:
        Path(per_rank).mkdir(parents=True, exist_ok=True)
        file = _LogFile(Path(per_rank) / f"rank_{rank:04d}.log", encoding="utf-8")
        file.setFormatter(
            logging.Formatter(f"%(asctime)s {where} %(levelname)s %(name)s: %(message)s")
        )
        handlers.append(file)
    logging.captureWarnings(True)
    for name in (ROOT, "py.warnings"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False
