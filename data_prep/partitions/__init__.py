"""Partitions: rules that assign each training image to one device. PARTITIONS is the registry.

A partition is deterministic in its seed. A new one subclasses `Partition` and joins PARTITIONS.
"""

from __future__ import annotations

from data_prep.partitions.attribute import Attribute
from data_prep.partitions.base import Partition
from data_prep.partitions.by_file import ByFile
from data_prep.partitions.classes import Classes, Shards
from data_prep.partitions.dirichlet import Dirichlet, Quantity
from data_prep.partitions.iid import Iid

__all__ = [
    "PARTITIONS",
    "Attribute",
    "ByFile",
    "Classes",
    "Dirichlet",
    "Iid",
    "Partition",
    "Quantity",
    "Shards",
]

PARTITIONS: dict[str, type[Partition]] = {
    partition.name: partition
    for partition in (Iid, Dirichlet, Classes, Shards, Quantity, Attribute, ByFile)
}
