"""Ranks whose launcher is killed. Here the launcher is a Python process with a launcher's name."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.faults.launcher_watch import find_launcher

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")

RANK = """
import os, signal, threading, time
from fedgan_mpi.faults.launcher_watch import find_launcher, watch_launcher
died = threading.Event()
def on_death(sentence):
    print(sentence, flush=True)
    died.set()
watch_launcher(on_death)
watch_launcher(on_death)  # by a second link
print(os.getpid(), find_launcher(), flush=True)
died.wait(30)
"""
LAUNCH = "import subprocess, sys; subprocess.run(sys.argv[1:])"
SHELL = ["sh", "-c", '"$@"; exit 0', "sh"]


def start(directory: Path, *command: str, name: str) -> subprocess.Popen[str]:
    """Start a command as the child of a process with this name."""
    (directory / name).symlink_to(sys.executable)
    return subprocess.Popen(
        [str(directory / name), "-c", LAUNCH, *command], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONHOME": sys.base_prefix},
    )  # fmt: skip


@pytest.mark.parametrize("shell", [[], SHELL], ids=["child", "below a shell"])
@pytest.mark.parametrize("name", ["hydra_pmi_proxy", "prted", "mpiexec"])
def test_a_rank_learns_that_its_launcher_was_killed(tmp_path, name, shell):
    environment = ["env", "-u", "PYTHONHOME"]
    launcher = start(tmp_path, *environment, *shell, sys.executable, "-c", RANK, name=name)
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().endswith(f" ({launcher.pid}, '{name}')\n")
        launcher.send_signal(signal.SIGKILL)
        ready, _, _ = select.select([launcher.stdout], [], [], 20)
        assert ready
        sentence = f"the launcher {name} (process {launcher.pid}) has died, and the job ends\n"
        assert launcher.stdout.read() == sentence


def test_a_process_of_a_shell_has_no_launcher(tmp_path):
    """It must outlive the shell, for example after a logout."""
    command = ["env", "-u", "PYTHONHOME", sys.executable, "-c", RANK]
    with start(tmp_path, *command, name="bash") as shell:
        assert shell.stdout is not None
        rank, found = shell.stdout.readline().split(maxsplit=1)
        assert found == f"{find_launcher()}\n"  # None, unless mpirun has started these tests
        shell.send_signal(signal.SIGKILL)
        ready, _, _ = select.select([shell.stdout], [], [], 1)
        os.kill(int(rank), signal.SIGKILL)
        assert not ready
