"""FedGAN in FedML's MPI simulation: its managers and aggregator, with a trainer of our networks.

FedML's communication loop and its average are unchanged. Start it with mpirun.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from typing import Any

import fedml
import observe
import torch
from fedml.core.alg_frame.client_trainer import ClientTrainer
from fedml.simulation.mpi.fedgan.FedGanAPI import FedML_FedGan_distributed
from plain_gan import JOB, Gan, batches_of, train


class GanTrainer(ClientTrainer):
    """FedML's interface to a pair of networks. On the server its id is -1."""

    def __init__(self, gan: Gan, args: Namespace) -> None:
        super().__init__(gan, args)
        self.gan = gan

    def get_model_params(self) -> dict[str, Any]:
        return {"netg": self.gan["G"].state_dict(), "netd": self.gan["D"].state_dict()}

    def set_model_params(self, model_parameters: dict[str, Any]) -> None:
        self.gan["G"].load_state_dict(model_parameters["netg"])
        self.gan["D"].load_state_dict(model_parameters["netd"])
        if self.id == -1:  # the server has averaged
            observe.round_end(self.gan)

    def train(self, train_data: int, device: Any, args: Namespace) -> None:
        if args.round_idx in (0, JOB["rounds"] - 1):
            size = len(pickle.dumps(self.get_model_params()))
            observe.message(down=size, up=size)
        train(self.gan, train_data, args.round_idx)


def main() -> None:
    args = fedml.init(
        Namespace(
            training_type="simulation",
            backend="MPI",
            using_mlops=False,
            enable_wandb=False,
            random_seed=JOB["seed"],
            run_id="0",
            dataset="own",
            client_num_in_total=JOB["devices"],
            client_num_per_round=JOB["devices"],
            comm_round=JOB["rounds"],
            client_id_list="[]",
        )
    )
    torch.set_num_threads(1)
    devices = range(1, JOB["devices"] + 1)
    indices = {k - 1: k for k in devices}  # the "data" of a client: the number of its shard
    sizes = {k - 1: len(batches_of(k).shard) for k in devices}
    dataset = [sum(sizes.values()), 0, None, None, sizes, indices, indices, 0]
    gan = Gan()
    networks, trainer = (gan["G"], gan["D"]), GanTrainer(gan, args)
    world = args.comm.Get_size()
    FedML_FedGan_distributed(
        args, args.process_id, world, torch.device("cpu"), args.comm, networks, dataset, trainer
    )


if __name__ == "__main__":
    main()
