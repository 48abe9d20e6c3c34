"""Runs a job and observes its processes from outside: processor seconds and memory.

Knows the protocol of observe.py. Knows nothing of the programs that it runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

_INTERVAL = 0.05  # seconds between samples of processor time
_SCAN = 0.5  # seconds between searches for new processes
_CHILD_SUBREAPER = 36  # prctl: orphans of a job become children of this process


@dataclass
class Observation:
    """What was seen of one job."""

    begin: float
    """Start of the command, seconds since the epoch."""
    end: float
    ends: list[float]
    """End of each round, seconds since the epoch."""
    bytes_down: int
    """Of one round, over all devices."""
    bytes_up: int
    times: list[float] = field(repr=False)
    """Of the samples."""
    cpu: list[float] = field(repr=False)
    """Processor seconds of all processes of the job so far."""
    peak_mib: float
    """Largest sum over processes of proportional set sizes; 0 if not measured."""

    def cpu_at(self, when: float) -> float:
        """Return the processor seconds until a time, interpolated."""
        return float(np.interp(when, self.times, self.cpu))


def run(
    command: Sequence[str], job: Mapping[str, Any], directory: Path, *, timeout: float, memory: bool
) -> Observation:
    """Run a job to its end in a new directory and observe it.

    memory: also sample memory, which takes processor time from the job.

    Raises RuntimeError with the end of the output if the job fails or takes longer than `timeout`
    seconds.
    """
    directory.mkdir(parents=True)
    events, log = directory / "events", directory / "log"
    events.touch()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PEERS_EVENTS": str(events),
        "PEERS_JOB": json.dumps(job),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}",
    }
    watcher = _Watcher(memory)
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)
    with open(log, "wb") as output:
        begin = time.time()
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    watcher.start()
    try:
        status: int | str = process.wait(timeout)
    except subprocess.TimeoutExpired:
        status = f"a timeout of {timeout:g} s"
    end = time.time()
    watcher.stop()
    watcher.end_processes()
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 0)
    lines = [line.split() for line in events.read_text().splitlines()]
    ends = [float(line[2]) for line in lines if line[0] == "round"]
    sizes = [(int(line[1]), int(line[2])) for line in lines if line[0] == "bytes"]
    # A peer may fail while it shuts down, after its last round. It may also lose devices and go on.
    if len(ends) < job["rounds"] or len(sizes) != 2 * job["devices"]:
        tail = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{tail}")
    return Observation(
        begin=begin,
        end=end,
        ends=ends,
        bytes_down=sum(down for down, _ in sizes) // 2,
        bytes_up=sum(up for _, up in sizes) // 2,
        times=watcher.times,
        cpu=watcher.cpu,
        peak_mib=watcher.peak / 2**20,
    )


class _Watcher(threading.Thread):
    """Samples the descendants that this process gets after the watcher is made."""

    def __init__(self, memory: bool) -> None:
        super().__init__(daemon=True)
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0
        self._memory, self._stopped = memory, threading.Event()
        self._others = set(_descendants())
        self._seconds: dict[int, float] = {}  # a process that has ended keeps its last value

    def run(self) -> None:
        next_scan = 0.0
        while not self._stopped.wait(_INTERVAL):
            now = time.time()
            if now >= next_scan:
                next_scan = now + _SCAN
                pids = self._of_job()
                for pid in pids:
                    self._seconds.setdefault(pid, 0.0)
                if self._memory:
                    self.peak = max(self.peak, sum(map(_proportional_set_size, pids)))
            for pid in self._seconds:
                self._seconds[pid] = max(self._seconds[pid], _cpu_seconds(pid))
            self.times.append(now)
            self.cpu.append(sum(self._seconds.values()))

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def end_processes(self) -> None:
        """End what the job has left, so that it does not disturb the next one."""
        while left := self._of_job():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):  # a child of a child
                    os.waitpid(pid, 0)
            time.sleep(0.05)

    def _of_job(self) -> list[int]:
        return [pid for pid in _descendants() if pid not in self._others]


def _descendants() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process; 0 if it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # its clock, as clock_getcpuclockid(3) gives it
    except OSError:
        return 0.0


def _proportional_set_size(pid: int) -> int:
    """Return the bytes of a process, shared pages divided by their users; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
