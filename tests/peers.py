"""Processes with a peer monitor, for tests of the handshake and of failure detection."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time

from fedgan_mpi.faults.handshake import Endpoint
from fedgan_mpi.faults.peer_monitor import PeerMonitor

HOSTS = ["a", "a", "b", "b", "c"]
"""Host names of five ranks."""

REMOTE_RANK = """
import pickle, sys
from fedgan_mpi.faults.handshake import connect
from fedgan_mpi.faults.peer_monitor import PeerMonitor
endpoint = pickle.loads(bytes.fromhex(sys.argv[1]))
monitor = PeerMonitor(connect(endpoint, int(sys.argv[2])), [], [])
command = input()
if command == "close":
    monitor.close()
    input()
elif command:
    monitor.sign_off(ends_job=command == "end job")
"""

SERVER = """
import pickle, resource, sys
from fedgan_mpi.faults.handshake import Listener
from fedgan_mpi.faults.peer_monitor import PeerMonitor
ranks, soft, hard = map(int, sys.argv[1:])
hard = hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
listener = Listener(range(1, ranks + 1))
print(pickle.dumps(listener.endpoint).hex(), flush=True)
monitor = PeerMonitor(listener.accept(), [], [])
command = input()
if command:
    monitor.sign_off(ends_job=command == "end job")
"""


def start_server(
    ranks: int, file_limit: int = 40, hard_limit: int = 0
) -> tuple[subprocess.Popen[str], Endpoint]:
    """Start a server that accepts `ranks` remote ranks. It ends after a command on its input.

    Commands: "sign off", "end job", or an empty line for an end without announcement. file_limit,
    hard_limit: soft and hard limit on open files; 0 leaves the hard limit as it is.
    """
    process = _start(SERVER, str(ranks), str(file_limit), str(hard_limit))
    assert process.stdout is not None
    return process, pickle.loads(bytes.fromhex(process.stdout.readline()))


def start_remote_rank(endpoint: Endpoint, rank: int) -> subprocess.Popen[str]:
    """Start a rank that connects to `endpoint`. Commands as for the server, and "close"."""
    return _start(REMOTE_RANK, pickle.dumps(endpoint).hex(), str(rank))


def wait_for_dead(monitor: PeerMonitor, seconds: float = 1.0) -> list[int]:
    """Poll a monitor for some time and return the dead ranks."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        monitor.dead()
        time.sleep(0.02)
    return monitor.dead()


def _start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
