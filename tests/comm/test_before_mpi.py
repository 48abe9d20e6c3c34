"""What is set and loaded before MPI starts."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys

import pytest

from fedgan_mpi.comm.before_mpi import load_gtl

ENABLED = {"MPICH_GPU_SUPPORT_ENABLED": "1"}


def loader(*present: str):
    """Return a function that loads these libraries, and the list of its calls."""
    calls: list[tuple[str, int]] = []

    def load(path: str, mode: int) -> object:
        calls.append((path, mode))
        if path not in present:
            raise OSError("not found")
        return object()

    return load, calls


@pytest.mark.parametrize(
    ("root", "present"),
    [
        (None, "libmpi_gtl_cuda.so"),
        (None, "libmpi_gtl_hsa.so"),
        ("/opt/cray", "/opt/cray/gtl/lib/libmpi_gtl_hsa.so"),
    ],
)
def test_the_library_of_this_gpu_is_loaded_for_all_symbols(root, present, caplog):
    load, calls = loader(present)
    load_gtl({**ENABLED, **({"CRAY_MPICH_ROOTDIR": root} if root else {})}, load)
    assert calls[-1] == (present, ctypes.RTLD_GLOBAL)
    assert not caplog.records


def test_nothing_is_loaded_unless_the_support_is_on(caplog):
    load, calls = loader("libmpi_gtl_cuda.so")
    for environment in ({}, {"MPICH_GPU_SUPPORT_ENABLED": "0"}):
        load_gtl(environment, load)
    assert not calls and not caplog.records


def test_a_missing_library_is_named(caplog):
    load, _ = loader()
    with caplog.at_level(logging.WARNING):
        load_gtl(ENABLED, load)
    (record,) = caplog.records
    assert "MPICH_GPU_SUPPORT_ENABLED" in record.getMessage()
    assert "libmpi_gtl_cuda.so" in record.getMessage()


def test_settings_precede_the_start_of_mpi():
    """MPI reads its variables when it starts, which the import of mpi4py.MPI does."""
    script = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mpi4py.MPI':\n"
        "            print(os.environ.get('MPIR_CVAR_ENABLE_HEAVY_YIELD'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import fedgan_mpi.comm.link\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1"
