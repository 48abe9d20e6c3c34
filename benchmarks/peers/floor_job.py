"""FedGAN in torch.distributed: what an expert writes by hand. Start it with torchrun.

No server: every rank is a device, and one all-reduce gives all of them the weighted average.
"""

from __future__ import annotations

import observe
import torch
import torch.distributed as dist
from plain_gan import JOB, Gan, batches_of, train
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def main() -> None:
    dist.init_process_group("gloo")
    rank, devices = dist.get_rank(), dist.get_world_size()
    gan = Gan()
    tensors = [*gan.parameters(), *(b for b in gan.buffers() if b.is_floating_point())]
    images = torch.tensor(float(len(batches_of(rank + 1).shard)))
    total = images.clone()
    dist.all_reduce(total)
    weight = float(images / total)
    for t in range(JOB["rounds"]):
        train(gan, rank + 1, t)
        with torch.no_grad():
            vector = parameters_to_vector(tensors).mul_(weight)
            dist.all_reduce(vector)
            vector_to_parameters(vector, tensors)
        if t in (0, JOB["rounds"] - 1):
            # A ring sends each number twice, less 1/K of it.
            sent = vector.nbytes * (devices - 1) // devices
            observe.message(down=sent, up=sent)
        if rank == 0:
            observe.round_end(gan)
    dist.barrier()  # no rank closes its connections while others still receive
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
