"""Whole jobs of algorithms that a job must treat otherwise than the default one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from whole_jobs import SMALL, copy_without_last_checkpoint, generator, lines, losses, run

CLASSES_AND_SWAPS = [
    "--algorithm.name=mdgan",
    "--model.conditional=true",
    "--participation.policy=balanced",
    "--participation.count=3",
    "--training.batch_size=192",  # a swap every other round
    "--checkpoint.every=3",
    *SMALL,
]


def test_a_conditional_run_with_swaps_resumes_bitwise_on_other_ranks(tmp_path):
    """Own discriminators, their swaps, balanced rounds and classes come back."""
    done = run(4, "--run.name", "a", "--training.rounds", "6", *CLASSES_AND_SWAPS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, cut = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    copy_without_last_checkpoint(whole, cut)
    done = run(3, "--resume", "runs/b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(whole) == losses(cut) and len(losses(cut)) == 6
    assert generator(whole) == generator(cut)
    rounds = [line for line in lines(whole) if "seconds" in line]
    assert len({line["bytes_up"] for line in rounds}) == 2  # with a swap, and without

    from fedgan_mpi.run.export import load

    trained = load(whole)
    sevens = trained(9, label=7, seed=1)
    assert not np.array_equal(sevens, trained(9, label=1, seed=1))
    assert np.array_equal(sevens, trained(9, label=7, seed=1))
    with pytest.raises(Exception, match="label is 10, but must be from 0 to 9"):
        trained(1, label=10)


def test_a_private_run_tells_what_it_spends(tmp_path):
    options = ["--algorithm.name=dp_fedavg_gan", "--algorithm.noise=2", "--algorithm.clip=0.01"]
    done = run(
        3, "--run.name", "a", "--training.rounds", "2", *options, *SMALL[:4],
        "--evaluation.every", "1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spent = [line["epsilon"] for line in lines(tmp_path / "runs" / "a") if "epsilon" in line]
    assert spent == sorted(spent) and spent[0] == 0 and spent[-1] > spent[3] > 0
    assert f"after 2 rounds ε = {spent[-1]:.4g} for a device" in done.stdout

    done = run(3, *options, "--algorithm.epsilon_budget=1", *SMALL, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("algorithm.epsilon_budget is 1, but 600 rounds") == 1
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["a"]  # nothing was written


def test_every_algorithm_has_the_same_bits_on_two_and_nine_ranks(tmp_path):
    """Eight devices; three take part."""
    script = tmp_path / "rounds.py"
    script.write_text(EVERY_ALGORITHM.format(tests=str(Path(__file__).parent)))
    hashes = []
    for ranks in (2, 9):
        done = run(ranks, cwd=tmp_path, program=(str(script),))
        assert done.returncode == 0, done.stderr
        hashes.append(done.stdout)
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0].splitlines())) == 7


EVERY_ALGORITHM = """
import hashlib, sys
sys.path.insert(0, "{tests}")
from toys import play, toy_algorithm, toy_config, toy_shards
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.cluster.link import Link

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
