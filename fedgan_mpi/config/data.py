"""Options of the training and held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.paths import set_expanded
from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training and held-out images."""

    shards: str | None = None
    """Directory of shards that data_prep wrote: device_0001.h5 … and shards.json. A relative path
    in a file may also be relative to that file. None: the embedded digits."""
    heldout: str | None = None
    """HDF5 file of real images that no device trains on; the floor of each score needs them. None:
    heldout.h5 in the directory of the shards."""
    devices: int = 8
    """Number of shards of the embedded digits. Ignored if data.shards is given."""
    read: Literal["auto", "memory", "file"] = "auto"
    """Where batches come from. memory: load the shards once. file: read each batch from disk. auto:
    memory if the shards need less than a quarter of it."""

    def __post_init__(self) -> None:
        set_expanded(self, "shards", "heldout")
        require(1 <= self.devices <= 100, "data.devices", self.devices, "from 1 to 100")
