"""The file of the usual FID's Inception network, read without torch: a mistake is told before the
first round."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of weights-inception-2015-12-05-6726825d.pth, the file behind every comparable FID."""


def read_weights(path: Path, *, sha256: str = SHA256) -> bytes:
    """The file's content. Raises UserError where it cannot be read, or has another hash."""
    try:
        content = read_whole(path)
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
