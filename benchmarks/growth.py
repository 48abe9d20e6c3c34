"""Measures how a communication-only round scales with ranks and with the size of the networks.

    python benchmarks/growth.py > growth.jsonl

Runs benchmarks/communication.py on 2 to 33 ranks with the networks for the digits, and on 3 ranks
with 0.1 to 100 million parameters. Each line has the ratio of the link to bare MPI in the same run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import common

COMMUNICATION = Path(__file__).with_name("communication.py")
RANKS = (2, 3, 5, 9, 17, 33)
DIGITS = 134_000
"""Parameters of the networks of the default job."""
MILLIONS = (0.1, 1, 10, 100)
KEYS = ("ranks", "parameters", "link / mpi", "ms", "cpu_ms", "transport", "mpi")


def main() -> None:
    for ranks in RANKS:
        measure(ranks, DIGITS, "--rounds", "10")
    for millions in MILLIONS:
        blocks = "3" if millions > 10 else "7"
        measure(3, round(1e6 * millions), "--rounds", "3", "--blocks", blocks)


def measure(ranks: int, parameters: int, *flags: str) -> None:
    """Run communication.py and print the keys of interest."""
    program = [sys.executable, str(COMMUNICATION), "--gloo", "false"]
    command = common.mpirun(ranks, *program, "--parameters", str(parameters), *flags)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    common.print_json({key: result[key] for key in KEYS})


if __name__ == "__main__":
    main()
