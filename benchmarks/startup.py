"""From the launcher's command to the first round, phase by phase.

    mpirun -n 9 python benchmarks/startup.py

Each phase's seconds are those of the slowest rank; a rank that waits for others counts that too.
`torch` is its import alone, as ranks import it, in a process of its own: what nine of them on two
cores cannot beat is nine halves of it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BORN = time.time() - (  # seconds since the epoch at which this process was started
    float(Path("/proc/uptime").read_text().split()[0])
    - int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100
)
PHASES: list[tuple[str, float]] = [("python", BORN)]
IMPORT = """
import time
from fedgan_mpi.training.environment import importing
start = time.time()
with importing():
    import torch
print(time.time() - start)
"""


def reached(phase: str) -> None:
    PHASES.append((phase, time.time()))


def main() -> None:
    from fedgan_mpi.training.environment import importing  # isort: skip - before numpy and torch are loaded
    from fedgan_mpi.comm.link import Link

    link = Link()
    reached("MPI and ranks")
    from fedgan_mpi.cli.commands import parse
    from fedgan_mpi.cli.parser import Train
    from fedgan_mpi.training.setup import start

    directory = link.from_server(lambda: tempfile.mkdtemp(prefix="fedgan_mpi-startup-"))
    flags = ["--training.rounds=1", "--evaluation.every=0", f"--run.directory={directory}"]
    command = link.from_server(lambda: parse(flags))
    reached("configuration")
    assert isinstance(command, Train)
    with importing():
        state = start(link, command)
        reached("checks and shards, and torch beside them")
        from fedgan_mpi.training.loop import train

    reached("the rest of torch")
    train(link, state)
    reached("networks, a round, scores, report")

    import numpy as np

    times = [end - begin for (_, begin), (_, end) in itertools.pairwise(PHASES)]
    everyone = np.zeros((link.size, len(times)))
    everyone[link.rank] = times
    slowest = link.sum(everyone.ravel()).reshape(everyone.shape).max(0)
    if link.is_server:
        shutil.rmtree(directory)
        alone = [sys.executable, "-c", IMPORT]
        torch_alone = float(subprocess.run(alone, capture_output=True, text=True).stdout)
        names = [name for name, _ in PHASES[1:]]
        seconds = dict(zip(names, [round(float(s), 2) for s in slowest], strict=True))
        about = {"ranks": link.size, "cores": link.cores_here, "mpi": link.library()}
        print(
            json.dumps(
                {"benchmark": "start-up, s", **seconds, "torch": round(torch_alone, 2), **about}
            )
        )


if __name__ == "__main__":
    main()
