"""All algorithms by the name of `algorithm.name`."""

from __future__ import annotations

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.centralized import Centralized
from fedgan_mpi.algorithms.dp_fedavg_gan import DPFedAvgGAN
from fedgan_mpi.algorithms.fedgan import FedGAN
from fedgan_mpi.algorithms.fegan import FeGAN
from fedgan_mpi.algorithms.mdgan import MDGAN
from fedgan_mpi.algorithms.ren import Ren
from fedgan_mpi.algorithms.uagan import UAGAN

ALGORITHMS: dict[str, type[Algorithm]] = {
    "ren": Ren,
    "fedgan": FedGAN,
    "mdgan": MDGAN,
    "uagan": UAGAN,
    "dp_fedavg_gan": DPFedAvgGAN,
    "fegan": FeGAN,
    "centralized": Centralized,
}
