"""The memory limit: cgroups of both versions, SLURM, and what follows for reading shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedgan_mpi.hardware.memory import memory_limit

GIB = 2**30
PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_root(root: Path, membership: str, limits: dict[str, str]) -> Path:
    """Write /proc/self/cgroup and files of limits below another root."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
V1 = "11:cpuset:/\n9:cpu,memory:/slurm/uid_1/job_7/step_0\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        # The job's limit is two groups above the process's own, which has none.
        (
            V2,
            {
                "system.slice/slurmstepd.scope/job_7/memory.max": f"{GIB}\n",
                "system.slice/slurmstepd.scope/job_7/step_0/user/task_0/memory.max": "max\n",
                "system.slice/slurmstepd.scope/memory.max": f"{2 * GIB}\n",
            },
            GIB,
        ),
        # In a container, the group's directories are not visible, and its limit is at the mount.
        (V2, {"memory.max": f"{GIB // 2}\n"}, GIB // 2),
        (V1, {"memory/slurm/uid_1/job_7/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        # "no limit" of version 1
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, PHYSICAL),
        # A limit of another group, and of version 1 for a process of version 2.
        (V2, {"system.slice/other/memory.max": "1000\n"}, PHYSICAL),
        (V2, {"memory/memory.limit_in_bytes": "1000\n"}, PHYSICAL),
        (V2, {"memory.max": "max\n"}, PHYSICAL),
    ],
)
def test_cgroups(tmp_path, membership, limits, expected):
    assert memory_limit(make_root(tmp_path, membership, limits), {}) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "512"}, GIB // 2),
        ({"SLURM_MEM_PER_NODE": "0"}, PHYSICAL),  # --mem=0: all memory of the node
        ({"SLURM_MEM_PER_CPU": "128", "SLURM_CPUS_ON_NODE": "4"}, GIB // 2),
        ({"SLURM_MEM_PER_CPU": "128"}, PHYSICAL),
        ({"SLURM_MEM_PER_NODE": "many"}, PHYSICAL),
    ],
)
def test_slurm(tmp_path, environ, expected):
    assert memory_limit(tmp_path, environ) == expected
    limits = {"memory.max": f"{GIB // 4}\n"}
    assert memory_limit(make_root(tmp_path, V2, limits), environ) == GIB // 4
