"""Jobs give the same bits on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgan_mpi.plugins.built_in import BUILT_IN
from fedgan_mpi.testing.jobs import SMALL, run_job
from fedgan_mpi.testing.runs import generator_bytes, losses

pytestmark = [pytest.mark.jobs, pytest.mark.slow]


def test_the_default_job_is_equal_on_two_and_nine_ranks(tmp_path):
    """Eight devices on eight ranks, and on one."""
    flags = ("--training.rounds", "3", "--checkpoint.every", "0", *SMALL, "--link.average=gather")
    for ranks, name in ((9, "nine"), (2, "two")):
        done = run_job(ranks, "--run.name", name, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    nine, two = (tmp_path / "runs" / name for name in ("nine", "two"))
    assert losses(nine) == losses(two)
    assert generator_bytes(nine) == generator_bytes(two)


def test_every_algorithm_is_equal_on_two_and_nine_ranks(tmp_path):
    """Eight devices, of which three take part in a round."""
    script = tmp_path / "rounds.py"
    script.write_text(EVERY_ALGORITHM.format(tests=str(Path(__file__).parents[1])))
    hashes = []
    for ranks in (2, 9):
        done = run_job(ranks, cwd=tmp_path, program=(str(script),))
        assert done.returncode == 0, done.stderr
        hashes.append(done.stdout)
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0].splitlines())) == len(BUILT_IN["algorithms"])


EVERY_ALGORITHM = """
import hashlib, sys
sys.path.insert(0, "{tests}")
from toys import play, toy_algorithm, toy_config, toy_shards
from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.comm.link import Link

link = Link()
for name in ALGORITHMS:
    some = {{}} if name == "centralized" else {{"policy": "round_robin", "count": 3}}
    config = toy_config(
        algorithm={{"name": name}},
        link={{"average": "gather", "wire_dtype": "float32"}},
        training={{"precision": "float32"}},
        participation=some,
    )
    algorithm = toy_algorithm(link, config, toy_shards([10, 17, 4, 12, 9, 8, 8, 11]))
    play(algorithm, 8)
    if link.is_server:
        bits = algorithm.flat.vector.numpy().tobytes()
        print(name, hashlib.sha256(bits).hexdigest(), flush=True)
"""
