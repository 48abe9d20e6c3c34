"""The steps of accept_gpu.sh, which runs each under a time limit: python accept_gpu.py STEP.

A step writes its verdict, number and limit to $OUT/verdict, and the output of its commands to
$OUT/*.log. `table` prints all results. `count` prints the number of GPUs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import accept_jobs
from accept_commands import (
    OUT,
    PYTHON,
    ROOT,
    Mpi,
    Result,
    Skip,
    any_mpi,
    nvidia_smi,
    open_mpi,
    output_of,
    start,
)

from fedgan_mpi.hardware.gpu import gpu_count

GPU_PY = str(ROOT / "benchmarks" / "gpu.py")
QUICK = ("--blocks", "5", "--repeats", "20")
"""Flags of gpu.py."""


def machine() -> Result:
    """Step 0: versions, and the speeds of copies and launches."""
    import torch

    print("\n".join(nvidia_smi("name,driver_version,compute_mode,memory.total")))
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        return Result(False, "torch cannot use the GPU")
    count = 2**28
    host = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    vector = torch.empty(count, dtype=torch.uint8, device="cuda")
    number = torch.zeros(1, device="cuda")

    def seconds(act: Callable[[], object], repeats: int) -> float:
        for _ in range(2):  # the first turn warms up
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                act()
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    up = count / 1e9 / seconds(lambda: vector.copy_(host, non_blocking=True), 5)
    down = count / 1e9 / seconds(lambda: host.copy_(vector, non_blocking=True), 5)
    launch = 1e6 * seconds(lambda: number.add_(1), 2000)
    name, mode = torch.cuda.get_device_name(), "".join(nvidia_smi("compute_mode"))
    speeds = f"up {up:.1f} GB/s, down {down:.1f} GB/s, launch {launch:.1f} µs"
    return Result(True, f"{name}, compute mode {mode or 'unknown'}, {speeds}")


def pytest(
    log: str, files: str, mpi: Mpi | None = None, *, may_skip: bool, ranks: int = 3
) -> Result:
    """Run the tests with the mark `gpu` in some files of tests/gpu, on several ranks with MPI."""
    paths = [str(path) for path in sorted((ROOT / "tests" / "gpu").glob(files))]
    command = [*(mpi.ranks(ranks) if mpi else PYTHON), "-m", "pytest", "-q", "--color=no"]
    command += ["-m", "gpu", *(["--with-mpi"] if mpi else []), *paths]
    status = start(log, command, mpi.environment if mpi else None).wait()
    return judge_tests(output_of(log), status, may_skip=may_skip)


def judge_tests(output: str, status: int, *, may_skip: bool) -> Result:
    """Read pytest's last line. No test, or a failure on any rank, is a failure."""
    endings = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+) in [\d.]+s", output, re.MULTILINE)
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (\w+)", endings[-1] if endings else "")
    }
    passed = status == 0 and counts.get("passed", 0) > 0
    passed &= may_skip or counts.get("skipped", 0) == 0
    number = endings[-1].strip() if endings else "no summary"
    return Result(passed, number, "0 failed" + ("" if may_skip else ", 0 skipped"))


# ---------------------------------------------------------------- speeds


def gpu_py(log: str, *arguments: str, mpi: Mpi | None = None, ranks: int = 1) -> dict[str, Any]:
    """Run a measurement of gpu.py and return its JSON. Raises RuntimeError if it fails."""
    command = [*(mpi.ranks(ranks) if mpi else PYTHON), GPU_PY, *arguments]
    status = start(log, command, mpi.environment if mpi else None).wait()
    lines = [line for line in output_of(log).splitlines() if line.startswith("{")]
    if status != 0 or not lines:
        raise RuntimeError(f"exit status {status}, see {log}.log")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def steps() -> Result:
    """Step 9: a step by CUDA graph against an eager step and a hand-written loop."""
    return judge_steps(gpu_py("steps-gpu", "step", *QUICK))


def judge_steps(found: dict[str, Any]) -> Result:
    eager, bare = found["graph / eager"]["median"], found["bare / graph"]["median"]
    number = f"graph / eager {eager}, bare / graph {bare}"
    return Result(eager <= 0.6 and bare >= 0.9, number, "0.6, at least 0.9")


def rounds() -> Result:
    """Step 10: a round against its steps alone."""
    return measure_rounds("rounds", any_mpi())


def measure_rounds(log: str, mpi: Mpi) -> Result:
    flags = ("round", "--blocks", "5", "--repeats", "10")
    two = gpu_py(f"{log}-2", *flags, mpi=mpi, ranks=2)["ratio"]["median"]
    five = gpu_py(f"{log}-5", *flags, mpi=mpi, ranks=5)["ratio"]["median"]
    number = f"1+1 {two}, 1+4 {five} of the steps"
    return Result(two <= 1.05, number, "1.05 at 1+1")


def mps() -> Result:
    """Step 11: step 10 under NVIDIA's multi-process service."""
    mpi, directory = any_mpi(), OUT / "mps"
    directory.mkdir(exist_ok=True)
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        mpi.environment[name] = os.environ[name] = str(directory)
    control = "nvidia-cuda-mps-control"
    try:
        subprocess.run([control, "-d"], check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        raise Skip(f"MPS does not start: {error}") from error
    try:
        found = measure_rounds("mps", mpi)
    except RuntimeError as error:
        raise Skip(f"no round under MPS: {error}") from error
    finally:
        # Also after SIGTERM, which `main` turns into an exit.
        subprocess.run([control], input=b"quit -t 1\n", timeout=4)
    return Result(True, found.number)


def routes() -> Result:
    """Step 12: each verb on each route."""
    flags = ("route", "--blocks", "5", "--repeats", "5")
    return judge_routes(gpu_py("routes-5", *flags, mpi=open_mpi(), ranks=5))


def judge_routes(found: dict[str, Any]) -> Result:
    verbs = found["verbs"]
    slower = {name: each["auto / faster"]["median"] for name, each in verbs.items()}
    number = ", ".join(
        f"{name} {each['GB/s']['cuda']} direct, {each['GB/s']['host']} staged, "
        f"auto / faster {slower[name]}"
        for name, each in verbs.items()
    )
    return Result(max(slower.values()) <= 1.1, f"GB/s: {number}", "auto / faster 1.1")


def memory() -> Result:
    """Step 13: memory does not grow with rounds."""
    flags = ("memory", "--size", "16", "--batch", "4", "--steps", "1")
    return judge_memory(gpu_py("memory-2", *flags, mpi=any_mpi(), ranks=2))


def judge_memory(found: dict[str, Any]) -> Result:
    early, late = found["bytes"]["50"], found["bytes"]["500"]
    return Result(early == late, f"round 50 {early}, round 500 {late}", "equal")


# ---------------------------------------------------------------- program

STEPS: dict[str, Callable[[], Result]] = {
    "machine": machine,
    "tests": lambda: pytest("tests-gpu", "test_gpu*.py", may_skip=False),
    "mpich": lambda: pytest("mpich-gpu", "test_mpi_gpu*.py", any_mpi(), may_skip=True),
    "openmpi": lambda: pytest("openmpi-gpu", "test_mpi_gpu*.py", open_mpi(), may_skip=False),
    "no-cuda": accept_jobs.no_cuda,
    "resume": accept_jobs.resume,
    "cpu": accept_jobs.cpu,
    "fallback": lambda: pytest("fallback-gpu", "test_graph_fallback.py", may_skip=True),
    "steps": steps,
    "rounds": rounds,
    "routes": routes,
    "64-pixels": accept_jobs.pixels_64,
    "mps": mps,
    "memory": memory,
}


def table() -> int:
    """Print all results as a table and as JSON. Return 1 if a step failed, otherwise 0."""
    keys = ("number", "name", "seconds", "verdict", "found", "limit")
    lines = (OUT / "results.tsv").read_text().splitlines()
    found = [dict(zip(keys, line.split("\t"), strict=True)) for line in lines]
    print()
    for each in found:
        print("{verdict:4} {number:>2} {name:9} {seconds:>3} s  {found}".format(**each))
    text = json.dumps({"steps": found})
    (OUT / "results.json").write_text(text + "\n")
    print(text)
    return int(any(each["verdict"] == "FAIL" for each in found))


def run(name: str) -> None:
    """Run a step and write its verdict. An error is a failure."""
    try:
        passed, number, limit = STEPS[name]()
        verdict = "PASS" if passed else "FAIL"
    except Skip as reason:
        verdict, number, limit = "SKIP", str(reason), ""
    except RuntimeError as error:
        verdict, number, limit = "FAIL", str(error), ""
    fields = (verdict, " ".join(number.split()), limit)
    (OUT / "verdict").write_text("\t".join(fields))


def main() -> int:
    name = sys.argv[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if name == "table":
        return table()
    if name == "count":
        print(gpu_count())
    else:
        run(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
