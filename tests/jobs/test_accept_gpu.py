"""benchmarks/accept_gpu.sh without a GPU: its order, limits, verdicts and judgements."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.hardware.gpu import gpu_count

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "accept_gpu.sh"
SECONDS = {
    "0": 10, "1": 60, "3": 60, "4": 60, "5": 15, "6": 30, "7": 30, "2": 15, "9": 45, "10": 60,
    "12": 25, "8": 40, "11": 30, "13": 10,
}  # fmt: skip
"""Step -> its time limit, in the order of steps."""
FAKE_PYTHON = f"""#!/bin/bash
case "$2" in
    count) echo 1 ;;
    table) exec {sys.executable} "$@" ;;
    tests) printf 'FAIL\\t1 failed\\t0 failed' >"$OUT/verdict" ;;
    mpich) echo a traceback; exit 3 ;;
    openmpi) sleep 60 ;;
    *) printf 'PASS\\t1.0\\t2.0' >"$OUT/verdict" ;;
esac
"""
FAKE_TIMEOUT = """#!/bin/bash
echo "$1 $2 $3" >>"$OUT/limits"
exec /usr/bin/timeout -k 5 "$([ "${*: -1}" = openmpi ] && echo 0.2 || echo 20)" "${@:4}"
"""


@pytest.fixture
def fakes(tmp_path):
    """A directory with a `python` that answers for the steps, and a `timeout` that records."""
    for name, text in (("python", FAKE_PYTHON), ("timeout", FAKE_TIMEOUT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def accept(directory: Path, **environment: str) -> tuple[int, list[dict[str, str]]]:
    """Run the script, and return its exit status and the steps in its JSON."""
    path = f"{directory}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "OUT": str(directory / "out"), **environment}
    done = subprocess.run(
        ["bash", SCRIPT], env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])["steps"]


@pytest.mark.skipif(gpu_count() > 0, reason="would run all steps")
def test_without_a_gpu_every_step_is_skipped(tmp_path):
    status, steps = accept(tmp_path)
    assert status == 0
    assert [step["number"] for step in steps] == list(SECONDS)
    assert {(step["verdict"], step["found"]) for step in steps} == {
        ("SKIP", "this machine has no GPU")
    }


def test_a_step_passes_fails_or_runs_out_of_time(fakes):
    status, steps = accept(fakes)
    assert status == 1
    verdicts = {step["name"]: (step["verdict"], step["found"]) for step in steps}
    assert verdicts["machine"] == ("PASS", "1.0")
    assert verdicts["tests"] == ("FAIL", "1 failed")
    log = fakes / "out" / "3-mpich.log"
    assert verdicts["mpich"] == ("FAIL", f"exit status 3, see {log}")
    assert log.read_text() == "a traceback\n"
    assert verdicts["openmpi"] == ("FAIL", "timed out")
    limits = (fakes / "out" / "limits").read_text().splitlines()
    assert limits == [f"-k 5 {seconds}" for seconds in SECONDS.values()]


def test_no_step_begins_late_and_none_ends_after_eight_minutes(fakes):
    status, steps = accept(fakes, SECONDS="421")  # bash counts from here
    assert status == 0
    assert {(step["verdict"], step["found"]) for step in steps} == {
        ("SKIP", "not begun after 420 s")
    }
    assert not (fakes / "out" / "limits").exists()
    accept(fakes, SECONDS="415")
    limits = (fakes / "out" / "limits").read_text().splitlines()
    assert all(415 + int(line.split()[-1]) <= 470 for line in limits)
    assert limits[0] == "-k 5 10" and limits[1] in ("-k 5 55", "-k 5 54")


# ------------------------------------------------------------ judgements


@pytest.fixture
def steps(monkeypatch):
    """The module with the steps."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accept_gpu

    return accept_gpu


@pytest.mark.parametrize(
    ("output", "status", "passed_if_strict", "passed_if_may_skip"),
    [
        ("25 passed, 9 deselected in 3.21s", 0, True, True),
        ("24 passed, 12 skipped in 60.02s (0:01:00)", 0, False, True),
        ("36 skipped in 2.00s", 0, False, False),
        ("1 failed, 24 passed in 3.21s", 1, False, False),
        ("25 passed in 3.21s", 1, False, False),  # another rank failed
        ("Fatal Python error: Segmentation fault", 139, False, False),
    ],
)
def test_tests_must_pass_and_not_be_skipped(
    steps, output, status, passed_if_strict, passed_if_may_skip
):
    for may_skip, passed in ((False, passed_if_strict), (True, passed_if_may_skip)):
        result = steps.judge_tests(f"....\n{output}\n", status, may_skip=may_skip)
        assert result.passed == passed, result


def test_each_step_runs_its_own_test_files(steps, monkeypatch):
    commands: list[list[str]] = []
    mpi = steps.Mpi("mpirun", {})
    monkeypatch.setattr(steps, "start", lambda log, command, environment: commands.append(command))
    for name in ("any_mpi", "open_mpi"):
        monkeypatch.setattr(steps, name, lambda: mpi)
    found = {}
    for name in ("tests", "fallback", "mpich", "openmpi"):
        with pytest.raises(AttributeError):  # the fake starts nothing, so there is no status
            steps.STEPS[name]()
        found[name] = {Path(part).name for part in commands[-1] if part.endswith(".py")}
        assert ("--with-mpi" in commands[-1]) == (name in ("mpich", "openmpi"))
    files = {path.name for path in (BENCHMARKS.parent / "tests" / "gpu").glob("test_*.py")}
    assert found["tests"] | found["fallback"] | found["mpich"] == files
    assert found["mpich"] == found["openmpi"] == {f for f in files if f.startswith("test_mpi_")}
    assert found["fallback"] == {"test_graph_fallback.py"}  # it may spoil CUDA for other tests
    assert not found["tests"] & (found["fallback"] | found["mpich"])


def test_speeds_have_limits(steps):
    def of_steps(eager, bare):
        found = {"graph / eager": {"median": eager}, "bare / graph": {"median": bare}}
        return steps.judge_steps(found).passed

    assert of_steps(0.6, 0.9)
    assert not of_steps(0.61, 0.9) and not of_steps(0.6, 0.89)

    def of_routes(*ratios):
        verbs = {
            str(n): {"GB/s": {"cuda": 9, "host": 5}, "auto / faster": {"median": ratio}}
            for n, ratio in enumerate(ratios)
        }
        return steps.judge_routes({"verbs": verbs}).passed

    assert of_routes(1.0, 1.1) and not of_routes(1.0, 1.2)

    def of_memory(pinned):
        early = {"allocated": 5, "pinned": 7}
        return steps.judge_memory({"bytes": {"50": early, "500": {**early, "pinned": pinned}}})

    assert of_memory(7).passed and not of_memory(8).passed


def test_losses_of_two_runs_are_compared_round_by_round(steps):
    def difference(other):
        one = [(1, 1.0, 2.0), (2, 1.5, -2.0)]
        return steps.accept_jobs.largest_difference(one, other, rounds=2)

    assert difference([(1, 1.0, 2.0), (2, 1.5, -2.0)]) == 0
    assert difference([(1, 1.0, 2.0), (2, 1.5, -2.0 - 1e-7)]) == pytest.approx(5e-8)
    assert difference([(1, 1.0, 2.0), (2, math.nan, -2.0)]) == math.inf
    assert difference([(1, 1.0, 2.0)]) == math.inf
    assert difference([(1, 1.0, 2.0), (3, 1.5, -2.0)]) == math.inf
    assert difference([]) == math.inf
