"""Memory that this process may use: the machine's, or less if a cgroup or SLURM limits it. And the
memory that it has used."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

_MIB = 2**20


def memory_limit(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """Return the bytes of memory that all processes of this job may use on this machine.

    The least of the physical memory, the limits of this process's cgroup and of its parents (v1 and
    v2), and SLURM's request.

    root, environ: others are for tests.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, *_cgroup_limits(root), *_slurm_limits(environ), physical)


def peak_bytes_host() -> int:
    """Return the largest resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _cgroup_limits(root: Path) -> Iterator[int]:
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # v2
            yield from _limits_up(mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_up(mount / "memory", path, "memory.limit_in_bytes")


def _limits_up(mount: Path, path: str, name: str) -> Iterator[int]:
    """Yield the limits of a group and of those above it. Those outside of a container are not
    visible; its own then is at the mount."""
    directory = mount / path.lstrip("/")
    for group in (directory, *directory.parents):
        with suppress(OSError, ValueError):  # no such group here, or "max"
            yield int((group / name).read_text())
        if group == mount:
            return


def _slurm_limits(environ: Mapping[str, str]) -> Iterator[int]:
    """Yield what the job has requested: SLURM counts in MiB, and 0 means all memory."""
    with suppress(KeyError, ValueError):
        per_node = int(environ["SLURM_MEM_PER_NODE"])
        if per_node > 0:
            yield per_node * _MIB
    with suppress(KeyError, ValueError):
        per_cpu = int(environ["SLURM_MEM_PER_CPU"])
        if per_cpu > 0:
            yield per_cpu * int(environ["SLURM_CPUS_ON_NODE"]) * _MIB
