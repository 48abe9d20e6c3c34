"""The papers, one file each."""

from __future__ import annotations

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.centralized import Centralized
from fedgan_mpi.algorithms.ren import Ren

ALGORITHMS: dict[str, type[Algorithm]] = {"ren": Ren, "centralized": Centralized}
