"""Rounds in which a detector lowers the shares of devices."""

from __future__ import annotations

import pytest
import torch
from rounds import UNEQUAL, link_of
from toys import through_a_file, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.algorithms.aggregation.detectors import Detector
from fedgan_mpi.comm.link import Link
from fedgan_mpi.training.loop import restore_learned, run_round
from fedgan_mpi.training.state import TrainState

pytestmark = pytest.mark.mpi(min_size=3)

HIGHEST = {"detector": "loss_outliers", "detector_options": {"decay": 0.5, "warmup": 0}}


class Highest(Detector):
    """The highest loss."""

    def outliers(self, t, losses, stream):
        self.losses = losses
        return [max(losses, key=losses.get)]


def run(link, config, rounds, *, start=0, state=None, detector=None):
    """Return the algorithm, its lines and its state after some rounds."""
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    if detector is not None:
        algorithm.detector = detector
    state = state or TrainState()
    lines = [run_round(algorithm, t, state) for t in range(start, start + rounds)]
    return algorithm, lines, state


@pytest.mark.parametrize("average", ["gather", "reduce"])
@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_shares_fall_from_the_next_round_on(comm, name, average):
    """The losses are those of the networks that devices train; the mean of losses shows shares."""
    config = toy_config(algorithm={"name": name}, link={"average": average})
    detector = Highest(decay=0.5)
    algorithm, lines, _ = run(Link(comm), config, 1, detector=detector)
    (found,) = lines[0]["outliers"]
    weights = [0.5 if k == found else 1.0 for k in range(1, 6)]
    assert lines[0]["device_weights"] == weights
    sizes = [n * w for n, w in zip(UNEQUAL, weights, strict=True)]
    shares = algorithm.rank_state.participation.shares(1)
    assert shares == pytest.approx({k: sizes[k - 1] / sum(sizes) for k in range(1, 6)})
    if algorithm.link.is_server:
        losses = detector.losses
        key = "d_loss" if name == "ren" else "g_loss"
        plain = sum(n * losses[k] for k, n in enumerate(UNEQUAL, start=1)) / sum(UNEQUAL)
        if name == "ren":
            assert lines[0][key] == pytest.approx(plain)
        assert losses[found] == max(losses.values()) and sorted(losses) == [1, 2, 3, 4, 5]


def test_a_weight_changes_the_average(comm):
    results = [
        vectors(run(Link(comm), toy_config(), 3, detector=detector)[0])[1]
        for detector in (None, Highest(decay=0.1), Highest(decay=1.0))
    ]
    if comm.rank == 0:
        assert torch.equal(results[0], results[2])
        assert (results[0] - results[1]).abs().max() > 1e-9


@pytest.mark.parametrize("rule", ["mean", "geometric_median"])
@pytest.mark.parametrize("name", ["ren", "fegan"])
def test_a_run_with_a_detector_resumes_bitwise(comm, name, rule):
    config = toy_config(
        algorithm={"name": name},
        aggregation={**HIGHEST, "rule": rule},
        participation={"policy": "random", "count": 4},
    )
    link = Link(comm)
    whole, lines, state = run(link, config, 8)
    half, _, middle = run(link, config, 4)
    middle = TrainState.from_json(middle.to_json(), devices=5)
    assert any(middle.outlier_counts)
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    pairs = zip(half.rank_state.owners, algorithm.rank_state.owners, strict=True)
    for owner, new_owner in pairs:
        new_owner.load_state(through_a_file(owner.state()))
    restore_learned(algorithm, middle)
    again = [run_round(algorithm, t, middle) for t in range(4, 8)]
    keys = ("outliers", "device_weights", "d_loss", "participants")
    assert [[line[key] for key in keys] for line in again] == [
        [line[key] for key in keys] for line in lines[4:]
    ]
    assert middle.outlier_counts == state.outlier_counts
    if link.is_server:
        assert all(map(torch.equal, vectors(algorithm), vectors(whole)))


def test_detection_does_not_depend_on_the_ranks(comm):
    config = toy_config(aggregation=HIGHEST, link={"average": "gather"})
    results = []
    for ranks in range(2, comm.size + 1):
        link = link_of(comm, ranks)
        if link is not None:
            algorithm, lines, state = run(link, config, 6)
            results.append((lines[-1]["device_weights"], state.outlier_counts, vectors(algorithm)))
        comm.barrier()
    if comm.rank == 0:
        for weights, counts, (theta, phi) in results[1:]:
            assert weights == results[0][0] and counts == results[0][1]
            assert torch.equal(theta, results[0][2][0]) and torch.equal(phi, results[0][2][1])
