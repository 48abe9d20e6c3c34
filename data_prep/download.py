"""Fetches a data set through torchvision; the only thing here that ever uses the network."""

from __future__ import annotations

from pathlib import Path

from data_prep.sources.base import Source
from fedgan_mpi.errors import UserError


def download(source: type[Source], directory: Path) -> None:
    """Put the data set's original files into a directory, in torchvision's layout.

    Files that are there already are kept. Raises UserError where torchvision does not offer the
    data set or cannot fetch it.
    """
    if source.torchvision is None:
        raise UserError(f"{source.name} cannot be downloaded; see docs/data.md for where to get it")
    import torchvision  # type: ignore[import-untyped]  # slow, and only needed here

    try:
        getattr(torchvision.datasets, source.torchvision)(str(directory), download=True)
    except Exception as error:  # whatever goes wrong between here and a server far away
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source.name} cannot be downloaded to {directory}: {reason}") from None
