"""What a job tells the observer: the end of each round, the size of its messages, generators.

The job appends lines to the file $PEERS_EVENTS. Times are seconds since the epoch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from plain_gan import JOB, image_shape

from fedgan_mpi.run.generator_file import write_generator

if TYPE_CHECKING:
    from plain_gan import Gan

_path = Path(os.environ["PEERS_EVENTS"])
_ended = 0


def message(down: int, up: int) -> None:
    """Record the bytes to and from one device, in the first and in the last round.

    The observer refuses a job in which a device is missing: a peer may go on without it.
    """
    _write(f"bytes {down} {up}")


def round_end(gan: Gan | None = None) -> int:
    """Record the end of a round on the server, and export its generator if the job asks for it.

    Returns the number of rounds that have ended.
    """
    global _ended
    _ended += 1
    _write(f"round {_ended} {time.time()}")
    every = JOB["export_every"]
    if gan is not None and every and _ended % every == 0:
        about = {
            "architecture": gan.model.architecture,
            "options": {"width": gan.model.width},
            "image_shape": image_shape(),
            "nz": gan.model.nz,
            "width": gan.model.width,
            "class_shares": None,
        }
        write_generator(_path.parent, f"round_{_ended:06d}", gan["G"], about)
    return _ended


def _write(line: str) -> None:
    with open(_path, "a") as file:
        file.write(line + "\n")
