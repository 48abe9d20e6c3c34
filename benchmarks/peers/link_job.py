"""The messages of a FedGAN round in fedgan_mpi alone: its link, without the program around it.

Rounds have no steps, no metrics and no record. Start it with mpirun.
"""

from __future__ import annotations

import observe
import torch
from plain_gan import JOB, Gan

from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.flat_parameters import FlatParameters


def main() -> None:
    torch.set_num_threads(1)
    link, gan = Link(), Gan()
    vector = FlatParameters(gan["G"], gan["D"]).gan
    uplink = link.rows(1, vector)
    for t in range(JOB["rounds"]):
        link.broadcast(vector)
        if not link.is_server:
            torch.mul(vector, 1 / JOB["devices"], out=uplink[0])
        link.reduce(uplink, into=vector)
        if link.is_server:
            observe.round_end()
        elif t in (0, JOB["rounds"] - 1):
            observe.message(down=vector.nbytes, up=vector.nbytes)
    link.barrier()


if __name__ == "__main__":
    main()
