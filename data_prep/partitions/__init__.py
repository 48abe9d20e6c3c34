"""Partitions: rules that assign each training image to one device.

A partition is deterministic in its seed. `fedgan_mpi.plugins` lists the built-in ones and finds a
user's own, a subclass of `Partition`.
"""

from __future__ import annotations

from data_prep.partitions.attribute import Attribute
from data_prep.partitions.base import Partition
from data_prep.partitions.by_file import ByFile
from data_prep.partitions.classes import Classes, Shards
from data_prep.partitions.dirichlet import Dirichlet, Quantity
from data_prep.partitions.iid import Iid

__all__ = [
    "Attribute",
    "ByFile",
    "Classes",
    "Dirichlet",
    "Iid",
    "Partition",
    "Quantity",
    "Shards",
]
