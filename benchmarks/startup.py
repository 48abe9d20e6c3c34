"""Measures the seconds from the launcher's command to the first round, by phase.

    mpirun -n 9 python benchmarks/startup.py

Each phase is the maximum over ranks, which includes waiting. `torch` is the import of torch alone,
in a separate process. Nine ranks on two cores need at least 4.5 times as long. Prints JSON.
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

# Seconds since the epoch at which this process was started.
PROCESS_START = time.time() - (
    float(Path("/proc/uptime").read_text().split()[0])
    - int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100
)
TIMES: list[tuple[str, float]] = [("start of the process", PROCESS_START)]
IMPORT_TORCH = """
import time
from fedgan_mpi.training.environment import importing
start = time.time()
with importing():
    import torch
print(time.time() - start)
"""


def end_phase(name: str) -> None:
    TIMES.append((name, time.time()))


def main() -> None:
    # Before numpy and torch.
    from fedgan_mpi.training.environment import importing  # isort: skip
    from fedgan_mpi.comm.link import Link

    link = Link()
    end_phase("Python and MPI")
    from fedgan_mpi.cli.commands import parse
    from fedgan_mpi.cli.parser import Train
    from fedgan_mpi.training.setup import prepare_run

    directory = link.from_server(lambda: tempfile.mkdtemp(prefix="fedgan_mpi-startup-"))
    flags = ["--training.rounds=1", "--evaluation.every=0", f"--run.directory={directory}"]
    command = link.from_server(lambda: parse(flags))
    end_phase("configuration")
    assert isinstance(command, Train)
    with importing():
        context = prepare_run(link, command.config)
        end_phase("checks and shards, with the import of torch")
        from fedgan_mpi.training.loop import train_run

    end_phase("other imports")
    train_run(link, context)
    end_phase("networks, one round, scores, report")

    import numpy as np

    seconds = [end - begin for (_, begin), (_, end) in itertools.pairwise(TIMES)]
    of_ranks = np.zeros((link.size, len(seconds)))
    of_ranks[link.rank] = seconds
    slowest = link.sum(of_ranks.ravel()).reshape(of_ranks.shape).max(0)
    if link.is_server:
        shutil.rmtree(directory)
        command_line = [sys.executable, "-c", IMPORT_TORCH]
        torch_seconds = subprocess.run(command_line, capture_output=True, text=True).stdout
        names = [name for name, _ in TIMES[1:]]
        result = {
            "benchmark": "start-up, s",
            **dict(zip(names, [round(float(s), 2) for s in slowest], strict=True)),
            "torch": round(float(torch_seconds), 2),
            "ranks": link.size,
            "cores": link.local_cores,
            "mpi": link.library(),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
