"""Crashes of libraries. Tests in tests/jobs send other signals to whole jobs."""

from __future__ import annotations

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
