"""Whether MPI accepts GPU memory: claims of fake libraries, and what contradicts them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mpi4py import MPI

from fedgan_mpi.comm.gpu import support
from fedgan_mpi.comm.gpu.support import _opal_cuda_is_on, is_gpu_aware, query_support
from fedgan_mpi.comm.gpu.trial import allocator_warning
from fedgan_mpi.hardware.gpu import Gpus

OPEN_MPI_4 = "Open MPI v4.1.6, package: Debian, ident: 4.1.6"
OPEN_MPI_5 = "Open MPI v5.0.10, package: Open MPI, ident: 5.0.10"


def library(claims: bool | None, opal: int | None = None) -> Any:
    """A library with this answer. claims: None: it has no such function. opal: value of Open MPI's
    variable; None: it has none."""
    functions = SimpleNamespace()
    if claims is not None:
        functions.MPIX_Query_cuda_support = lambda: int(claims)

    def get_index(name: bytes, index: Any) -> int:
        index._obj.value = 7
        return 0 if name == b"opal_cuda_support" and opal is not None else 1

    def read(handle: Any, value: Any) -> int:
        ctypes.memmove(ctypes.addressof(value._obj), bytes([opal or 0]), 1)
        return 0

    functions.MPI_T_init_thread = lambda required, provided: 0
    functions.MPI_T_cvar_get_index = get_index
    functions.MPI_T_cvar_handle_alloc = lambda index, of, handle, count: int(index.value != 7)
    functions.MPI_T_cvar_read = read
    return functions


UCX, UCX_CUDA = "/opt/ompi/mca_pml_ucx.so", "/opt/ucx/libuct_cuda.so.0"


@pytest.mark.parametrize(
    ("libraries", "others", "version", "expected"),
    [
        ({"libmpi.so.40": library(True, opal=1)}, [], OPEN_MPI_4, True),
        # Compiled with CUDA, but switched off: conda-forge, or OMPI_MCA_opal_cuda_support=0.
        ({"libmpi.so.40": library(True, opal=0)}, [], OPEN_MPI_4, False),
        ({"libmpi.so.40": library(True, opal=None)}, [], OPEN_MPI_4, False),
        ({"libmpi.so.40": library(False, opal=1)}, [], OPEN_MPI_4, False),
        # UCX moves the messages, and its CUDA module is missing.
        ({"libmpi.so.40": library(True, opal=1)}, [UCX], OPEN_MPI_4, False),
        ({"libmpi.so.40": library(True, opal=1)}, [UCX, UCX_CUDA], OPEN_MPI_4, True),
        ({"libmpi.so.40": library(True)}, [UCX], OPEN_MPI_5, False),
        ({"libmpi.so.40": library(True)}, [], OPEN_MPI_5, True),
        ({"libmpi.so.12": library(True)}, [], "MPICH Version: 4.2", True),
        # The first library has no such function, the second claims support.
        (
            {"libmpi_mpifh.so.40": library(None), "libmpi.so.40": library(True, opal=1)},
            [], OPEN_MPI_4, True,
        ),
        ({"libmpi.so.40": library(None)}, [], OPEN_MPI_5, False),
        ({}, [UCX_CUDA], OPEN_MPI_5, False),
        ({"libmpi.so.40": None}, [], OPEN_MPI_5, False),
    ],
)  # fmt: skip
def test_claims_and_contradictions(tmp_path, libraries, others, version, expected):
    paths = {f"/opt/ompi/{name}": functions for name, functions in libraries.items()}
    lines = [
        f"7f0000000000-7f0000001000 r-xp 00000000 08:01 {n} {path}"
        for n, path in enumerate([*paths, *others])
    ]
    maps = tmp_path / "maps"
    maps.write_text("\n".join(["7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0 [stack]", *lines]))

    def load(path: str) -> Any:
        if paths[path] is None:
            raise OSError("deleted")
        return paths[path]

    assert query_support("cuda", maps, load, version) is expected
    assert query_support("rocm", maps, load, version) is False


def test_without_a_list_of_libraries_there_is_no_claim(tmp_path):
    assert not query_support("cuda", tmp_path / "maps")


def test_the_loaded_library_can_be_asked():
    """No crash, whatever the library; those of this test have no CUDA."""
    assert not query_support("cuda") and not query_support("rocm")
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split()[-1] for line in maps if "/libmpi" in line}
    assert paths and MPI.Get_library_version()
    for path in sorted(paths):
        assert not _opal_cuda_is_on(ctypes.CDLL(path))


UCX_ROCM = "/opt/ucx/libuct_rocm.so.0"


@pytest.mark.parametrize(
    ("function", "others", "version", "expected"),
    [
        ("MPIX_Query_rocm_support", [], OPEN_MPI_5, True),
        ("MPIX_Query_hip_support", [], "MPICH Version: 4.2", True),
        ("MPIX_Query_cuda_support", [], OPEN_MPI_5, False),
        ("MPIX_Query_rocm_support", [UCX], OPEN_MPI_5, False),
        ("MPIX_Query_rocm_support", [UCX, UCX_CUDA], OPEN_MPI_5, False),
        ("MPIX_Query_rocm_support", [UCX, UCX_ROCM], OPEN_MPI_5, True),
    ],
)
def test_claims_for_gpus_of_amd(tmp_path, function, others, version, expected):
    maps, path = tmp_path / "maps", "/opt/ompi/libmpi.so.40"
    maps.write_text("\n".join(f"7f00-7f10 r-xp 0 08:01 1 {each}" for each in [path, *others]))
    functions = SimpleNamespace(**{function: lambda: 1})
    assert query_support("rocm", maps, lambda path: functions, version) is expected


@pytest.mark.parametrize(
    ("platform", "kinds", "variables", "expected"),
    [
        ("cuda", "mpi,system,cuda:device", {}, True),
        ("rocm", "mpi,system,cuda:device", {}, False),
        ("rocm", "mpi,system,rocm", {}, True),
        ("rocm", None, {"MPICH_GPU_SUPPORT_ENABLED": "1"}, True),
        ("rocm", None, {"MV2_USE_CUDA": "1"}, False),
        ("cuda", None, {"MV2_USE_CUDA": "1"}, True),
        (None, "mpi,system,cuda:device", {"MV2_USE_CUDA": "1"}, False),
    ],
)
def test_claims_count_for_the_platform_of_the_gpus(
    monkeypatch, platform, kinds, variables, expected
):
    for name in ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA", "PSP_CUDA", "MV2_USE_ROCM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(support, "find_gpus", lambda: Gpus(platform, int(platform is not None)))
    info = {} if kinds is None else {"mpi_memory_alloc_kinds": kinds}
    assert is_gpu_aware(SimpleNamespace(Get_info=lambda: info)) is expected


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, None),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "a:1, expandable_segments: True"},
            "PYTORCH_CUDA_ALLOC_CONF",
        ),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:true"}, "PYTORCH_ALLOC_CONF"),
    ],
)
def test_an_allocator_that_mpi_cannot_share_is_named(environment, named):
    warning = allocator_warning(environment)
    assert warning is None if named is None else warning is not None and named in warning
