"""Crashes of libraries. Tests in tests/jobs send other signals to whole jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("crash", ["SIGSEGV", "SIGBUS", "SIGABRT"])
def test_a_crash_in_a_library_prints_the_python_stack(crash):
    program = f"""
import os, signal
from fedgan_mpi.training import signals

signals.install()

def step_that_crashes():
    os.kill(os.getpid(), signal.{crash})

step_that_crashes()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -getattr(signal, crash)
    assert done.stderr.startswith("Fatal Python error: ")
    assert "in step_that_crashes" in done.stderr


def test_a_program_without_standard_error_takes_signals():
    program = "from fedgan_mpi.training import signals; signals.install()"
    done = subprocess.run([sys.executable, "-c", program], preexec_fn=lambda: os.close(2))
    assert done.returncode == 0


HANGUP = """
import os, signal, sys
from fedgan_mpi.training import signals

if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
signals.install()
if "mpi" in sys.argv:
    from mpi4py import MPI
    signals.reapply()
os.kill(os.getpid(), signal.SIGHUP)
print(signals.requeue_requested(), signals.interrupted(), flush=True)
signals.restore_defaults()
print("ignored", flush=True)
"""


@pytest.mark.parametrize("arguments", [[], ["mpi"], ["nohup"], ["nohup", "mpi"]], ids=str)
def test_a_hangup_asks_for_a_stop_unless_nohup_ignores_it(arguments):
    """MPI libraries may replace the handler: UCX waits for a debugger after SIGHUP."""
    command = [sys.executable, "-c", HANGUP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "nohup" in arguments:
        assert (done.returncode, done.stdout) == (0, "False False\nignored\n"), done.stderr
    else:
        assert (done.returncode, done.stdout) == (-signal.SIGHUP, "True False\n"), done.stderr
