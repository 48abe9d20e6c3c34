"""Ranks of whole jobs without the seconds that each takes to import torch: they are forks of one
process that has imported it.

    python forked_ranks.py ADDRESS                      # forks, until its standard input ends
    mpirun -n 3 python forked_ranks.py ADDRESS -m fedgan_mpi …

The second stands for a rank: it hands its files, environment and connection to the launcher to the
first, ends with the fork's status, and takes the fork with it where it is killed itself. Modules of
the project are imported by each fork. ADDRESS: an abstract socket's, which no file has.

Not for jobs that go on after a death (Open MPI's ULFM): among forks they hang.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

_PMI = "PMI_FD"
"""The environment variable by which MPICH's launcher numbers an open file."""
_LONGEST = 2**20


def stand_for_a_rank(address: str, arguments: list[str]) -> int:
    """The exit status of `python *arguments`, run as a fork."""
    files = [0, 1, 2]
    if _PMI in os.environ:
        files.append(int(os.environ[_PMI]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as forks:
        forks.connect("\0" + address)
        cores = sorted(os.sched_getaffinity(0))
        wish = [arguments, dict(os.environ), os.getcwd(), cores, files]
        socket.send_fds(forks, [json.dumps(wish).encode()], files)
        status = int.from_bytes(forks.recv(4), "little")
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(address: str) -> list[str] | None:
    """Returns in each fork, with the arguments that it is to run; in the process itself None, once
    nobody holds the other end of its standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if listener not in ready:
                return None
            rank, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _keep(rank)
            rank.close()


def _keep(rank: socket.socket) -> list[str]:
    """Fork once more and see that neither the fork nor who stands for it outlives the other."""
    wish, files, _, _ = socket.recv_fds(rank, _LONGEST, 8)
    arguments, environment, directory, cores, numbers = json.loads(wish)
    pid = os.fork()
    if pid == 0:
        rank.close()
        # Above all numbers first: one may be that of another which is still to be moved.
        spare = [os.dup2(file, 100 + i) for i, file in enumerate(files)]
        for file, number in zip(spare, numbers, strict=True):
            os.dup2(file, number)
        for file in {*files, *spare} - set(numbers):
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        os.sched_setaffinity(0, cores)
        return arguments
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([rank, ended], [], [])
    if ended in ready:
        rank.send(os.waitpid(pid, 0)[1].to_bytes(4, "little"))
    else:  # the one that stands for it never writes: it is dead
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _run(arguments: list[str]) -> None:
    """As `python *arguments` does: -m MODULE or a file."""
    import runpy

    del sys.path[0]  # this file's directory
    if arguments[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    _, address, *arguments = sys.argv
    if arguments:
        sys.exit(stand_for_a_rank(address, arguments))
    from fedgan_mpi.training.environment import (
        importing,  # before torch is loaded, as in every rank
    )

    with importing():
        import h5py  # noqa: F401
        import matplotlib.figure  # noqa: F401
        import torch  # noqa: F401

    for name in [name for name in sys.modules if name.startswith("fedgan_mpi")]:
        del sys.modules[name]  # each fork imports its own

    wanted = serve(address)
    if wanted is not None:
        _run(wanted)


if __name__ == "__main__":
    main()
