"""The local steps alone: a process on each core takes a device's steps, without communication.

Start it with torchrun, with one process for each core.
"""

from __future__ import annotations

import os

import observe
from plain_gan import JOB, Gan, train


def main() -> None:
    gan, rank = Gan(), int(os.environ["RANK"])
    for t in range(JOB["rounds"]):
        train(gan, rank + 1, t)
        if t in (0, JOB["rounds"] - 1):
            observe.message(down=0, up=0)
        if rank == 0:
            observe.round_end()


if __name__ == "__main__":
    main()
