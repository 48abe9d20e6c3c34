"""What a process sets before numpy and torch are loaded."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from fedgan_mpi.training.environment import importing

LARGE = 40 * 2**20  # more than what glibc learns to keep by itself
SMALL = 2**20  # and what it keeps unless one setting stands without the other

FAULTS = """
import resource
import {module}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * {nbytes}
before = faults()
for _ in range(10):
    b"x" * {nbytes}
print(faults() - before)
"""


def page_faults(module: str, nbytes: int = LARGE, **settings: str) -> int:
    """Of ten steps that need as much memory and free it."""
    told = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]
    environment = {**{k: v for k, v in os.environ.items() if k not in told}, **settings}
    command = [sys.executable, "-c", FAULTS.format(module=module, nbytes=nbytes)]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is glibc's own")
def test_memory_that_a_step_has_freed_serves_the_next_one():
    pages = LARGE // os.sysconf("SC_PAGESIZE")
    assert page_faults("os") > 9 * pages  # as it is by default
    assert page_faults("fedgan_mpi.training.environment") < pages / 10
    assert page_faults("fedgan_mpi.training.environment", nbytes=SMALL) < pages / 10
    assert page_faults("os", nbytes=SMALL, MALLOC_TRIM_THRESHOLD_=str(2**30)) > 2000
    assert page_faults("fedgan_mpi.training.environment", MALLOC_TRIM_THRESHOLD_="0") > 9 * pages


def test_what_is_made_while_importing_is_never_searched_for_cycles():
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    stays, frozen = [], gc.get_freeze_count()
    try:
        with pytest.raises(ImportError), importing():
            with importing():
                pass
            assert not gc.isenabled()
            stays.append(Cycle())
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > frozen
        later = Cycle()
        assert is_searched(later) and not is_searched(stays[0])
    finally:
        gc.unfreeze()
    assert is_searched(stays[0])


def is_searched(it: object) -> bool:
    return any(one is it for one in gc.get_objects())
