"""Settings of the C library and of the garbage collector before numpy and torch are imported."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from fedgan_mpi.training.environment import importing

LARGE = 40 * 2**20  # above the largest block that glibc learns to keep by default
SMALL = 2**20  # below it, but kept only if both thresholds are set

COUNT_PAGE_FAULTS = """
import resource
import {module}
def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * {nbytes}
before = page_faults()
for _ in range(10):
    b"x" * {nbytes}
print(page_faults() - before)
"""


def page_faults(module: str, nbytes: int = LARGE, **settings: str) -> int:
    """Return the page faults of ten steps that allocate and free a block, after an import."""
    is_set = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]
    environment = {**{k: v for k, v in os.environ.items() if k not in is_set}, **settings}
    command = [sys.executable, "-c", COUNT_PAGE_FAULTS.format(module=module, nbytes=nbytes)]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_reused_by_the_next_step():
    pages = LARGE // os.sysconf("SC_PAGESIZE")
    assert page_faults("os") > 9 * pages  # the default
    assert page_faults("fedgan_mpi.training.environment") < pages / 10
    assert page_faults("fedgan_mpi.training.environment", nbytes=SMALL) < pages / 10
    assert page_faults("os", nbytes=SMALL, MALLOC_TRIM_THRESHOLD_=str(2**30)) > 2000
    assert page_faults("fedgan_mpi.training.environment", MALLOC_TRIM_THRESHOLD_="0") > 9 * pages


class Cycle:
    """An object that only the garbage collector can free."""

    def __init__(self) -> None:
        self.itself = self


def is_tracked(it: object) -> bool:
    """Whether the garbage collector examines an object."""
    return any(each is it for each in gc.get_objects())


def test_imported_objects_are_excluded_from_garbage_collection():
    imported, frozen_before = [], gc.get_freeze_count()
    try:
        with pytest.raises(ImportError), importing():
            with importing():
                pass
            assert not gc.isenabled()
            imported.append(Cycle())
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > frozen_before
        later = Cycle()
        assert is_tracked(later) and not is_tracked(imported[0])
    finally:
        gc.unfreeze()
    assert is_tracked(imported[0])
