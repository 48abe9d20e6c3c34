"""Makes a virtual environment for each peer, and the command that starts each contender.

A peer's environment has the peer and what it requires. All other packages, torch above all, are
those of the Python that runs this benchmark, so that contenders differ in nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

FLOWER, FEDML = "1.42.0", "0.9.6"
_HERE = Path(__file__).parent
_BIN = Path(sys.executable).parent


def prepare(parent: Path, flower: str, fedml: str) -> None:
    """Make the environments that do not exist yet."""
    # FedML imports pkg_resources, which later versions of setuptools lack.
    _make(parent / "fedml", [f"fedml=={fedml}", "setuptools<80"])
    # mpi4py looks for MPI's library in the environment itself.
    _install(parent / "fedml", ["--ignore-installed", "mpich"])
    _make(parent / "flower", [f"flwr[simulation]=={flower}"])


def command(who: str, devices: int, parent: Path, out: Path) -> list[str]:
    """Return the command of a contender's job.

    parent: of the environments. out: directory for the runs of fedgan_mpi.
    """
    mpirun = [str(_BIN / "mpirun"), "-n", str(devices + 1)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    python = {peer: str(parent / peer / "bin" / "python") for peer in ("flower", "fedml")}
    return {
        "ours": [*mpirun, sys.executable, _job("ours"), str(out / "runs")],
        "link": [*mpirun, sys.executable, _job("link")],
        "floor": [*torchrun, f"--nproc-per-node={devices}", _job("floor")],
        "steps": [*torchrun, f"--nproc-per-node={devices}", _job("steps")],
        "flower": [python["flower"], "-c", "import flower_job; flower_job.run()"],
        "fedml": [*mpirun, python["fedml"], _job("fedml")],
    }[who]


def _job(who: str) -> str:
    return str(_HERE / f"{who}_job.py")


def _make(directory: Path, packages: Sequence[str]) -> None:
    if not (directory / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shared = directory / "lib" / version / "site-packages" / "shared.pth"
        shared.write_text(sysconfig.get_path("purelib") + "\n")
    _install(directory, packages)


def _install(directory: Path, packages: Sequence[str]) -> None:
    done = directory / ".installed"
    wanted = " ".join(packages)
    if done.exists() and wanted in done.read_text().splitlines():
        return
    subprocess.run([str(directory / "bin" / "pip"), "install", "--quiet", *packages], check=True)
    with open(done, "a") as file:
        file.write(wanted + "\n")
