"""Downloads data sets through torchvision. No other module of this package uses the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgan_mpi.errors import UserError


def download(source: Any, directory: Path) -> None:
    """Download a data set's original files to a directory, in torchvision's layout.

    source: the data set's class, whose attribute `torchvision` names torchvision's. Keeps files
    that already exist. Raises UserError if torchvision does not offer the data set or the download
    fails.
    """
    name = getattr(source, "name", source.__name__)
    dataset = getattr(source, "torchvision", None)
    if dataset is None:
        raise UserError(f"{name} cannot be downloaded; docs/howto/data.md names its origin")
    import torchvision  # type: ignore[import-untyped]  # slow to import

    try:
        getattr(torchvision.datasets, dataset)(str(directory), download=True)
    except Exception as error:  # network, server and archive errors have no common type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be downloaded to {directory}: {reason}") from None
