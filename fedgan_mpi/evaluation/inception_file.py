"""Verifies the weight file of FID's Inception network by its hash, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The hash of weights-inception-2015-12-05-6726825d.pth, on which comparable FIDs rely."""


def read_weights(path: Path, *, sha256: str = SHA256) -> bytes:
    """Return the file's content. Raises UserError if it is unreadable or has another hash."""
    try:
        content = read_regular_file(path)
    except OSError as error:
        raise UserError(
            f"evaluation.inception_weights: {path} cannot be read: {error.strerror}"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"evaluation.inception_weights: {path} has SHA-256 {found}, but must be "
            f"weights-inception-2015-12-05-6726825d.pth with {sha256}"
        )
    return content
