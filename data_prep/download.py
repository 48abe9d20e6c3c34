"""Downloads data sets through torchvision. No other module of this package uses the network."""

from __future__ import annotations

from pathlib import Path

from data_prep.sources.base import Source
from fedgan_mpi.errors import UserError


def download(source: type[Source], directory: Path) -> None:
    """Download a data set's original files to a directory, in torchvision's layout.

    Keeps files that already exist. Raises UserError if torchvision does not offer the data set or
    the download fails.
    """
    if source.torchvision is None:
        raise UserError(f"{source.name} cannot be downloaded; docs/howto/data.md names its origin")
    import torchvision  # type: ignore[import-untyped]  # slow to import

    try:
        getattr(torchvision.datasets, source.torchvision)(str(directory), download=True)
    except Exception as error:  # network, server and archive errors have no common type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source.name} cannot be downloaded to {directory}: {reason}") from None
