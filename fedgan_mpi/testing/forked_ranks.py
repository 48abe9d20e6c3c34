"""Starts the ranks of a job by fork, so that they do not spend seconds on the import of torch.

    python forked_ranks.py ADDRESS                             # the fork server
    mpirun -n 3 python forked_ranks.py ADDRESS -m fedgan_mpi … # a job of three ranks

The server imports torch and ends when its standard input closes. ADDRESS is the name of an abstract
Unix socket. In the job, each process is a proxy: it sends its files, environment and launcher
connection to the server and exits with the status of the fork. If proxy or fork is killed, the
other one ends, too. Each fork imports the package anew.

Limit: forks hang in jobs that survive a dead rank (Open MPI's ULFM).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

_PMI = "PMI_FD"
"""Environment variable in which MPICH's launcher passes the number of an open file."""
_MAX_REQUEST = 2**20  # bytes


def run_as_fork(address: str, arguments: list[str]) -> int:
    """Run `python *arguments` in a fork of the server and return its exit status."""
    files = [0, 1, 2]
    if _PMI in os.environ:
        files.append(int(os.environ[_PMI]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect("\0" + address)
        cores = sorted(os.sched_getaffinity(0))
        request = [arguments, dict(os.environ), os.getcwd(), cores, files]
        socket.send_fds(server, [json.dumps(request).encode()], files)
        status = int.from_bytes(server.recv(4), "little")
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(address: str) -> list[str] | None:
    """Fork once per request. Return the program's arguments in each fork.

    Returns None in the server itself, once its standard input is closed.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors need no wait
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if listener not in ready:
                return None
            proxy, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _supervise(proxy)
            proxy.close()


def _supervise(proxy: socket.socket) -> list[str]:
    """Fork the rank and return its arguments there. The caller supervises and never returns.

    The supervisor passes the rank's status to the proxy, and kills the rank if the proxy dies.
    """
    request, files, _, _ = socket.recv_fds(proxy, _MAX_REQUEST, 8)
    arguments, environment, directory, cores, numbers = json.loads(request)
    pid = os.fork()
    if pid == 0:
        proxy.close()
        # Move files to high numbers first: a target number may belong to another received file.
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
    ready, _, _ = select.select([proxy.fileno(), ended], [], [])
    if ended in ready:
        proxy.send(os.waitpid(pid, 0)[1].to_bytes(4, "little"))
    else:  # the proxy never writes again, so its end of the socket is closed
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _run_program(arguments: list[str]) -> None:
    """Run `-m MODULE …` or `FILE …` as `python` does."""
    import runpy

    del sys.path[0]  # the directory of this file
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
        sys.exit(run_as_fork(address, arguments))
    # Before torch, as in every rank: it sets variables that numpy and torch read.
    from fedgan_mpi.training.environment import importing

    with importing():
        import h5py  # noqa: F401
        import matplotlib.figure  # noqa: F401
        import torch  # noqa: F401

    for name in [name for name in sys.modules if name.startswith("fedgan_mpi")]:
        del sys.modules[name]

    program = serve(address)
    if program is not None:
        _run_program(program)


if __name__ == "__main__":
    main()
