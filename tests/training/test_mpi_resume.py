"""Training that continues from the checkpointed states of its devices and its server."""

from __future__ import annotations

import pytest
import torch
from rounds import FEDERATED, UNEQUAL
from toys import play, through_a_file, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config

pytestmark = pytest.mark.mpi(min_size=3)

ROUNDS, CHECKPOINT = 6, 3
SECONDS = ("", "_downlink", "_local", "_uplink", "_server", "_of_device")
MEASURED = {"peak_bytes_host", *(f"seconds{each}" for each in SECONDS)}


def train_and_resume(link: Link, config: Config, resumed_config: Config):
    """Train without interruption, and again with a checkpoint in the middle.

    Returns the metrics of the rounds after the checkpoint, without measured ones, and the server's
    vectors, of the uninterrupted and of the resumed run.
    """
    uninterrupted = toy_algorithm(link, config, toy_shards(UNEQUAL))
    lines = play(uninterrupted, ROUNDS)
    interrupted = toy_algorithm(link, config, toy_shards(UNEQUAL))
    play(interrupted, CHECKPOINT)
    resumed = toy_algorithm(link, resumed_config, toy_shards(UNEQUAL))
    owners = zip(interrupted.rank_state.owners, resumed.rank_state.owners, strict=True)
    for owner, new_owner in owners:
        new_owner.load_state(through_a_file(owner.state()))
    images_seen = lines[CHECKPOINT - 1]["images_seen"]
    resumed_lines = play(resumed, ROUNDS - CHECKPOINT, start=CHECKPOINT, images_seen=images_seen)
    return [
        (
            [{key: line[key] for key in line if key not in MEASURED} for line in each],
            vectors(algorithm) if link.is_server else (),
        )
        for algorithm, each in ((uninterrupted, lines[CHECKPOINT:]), (resumed, resumed_lines))
    ]


def assert_equal(expected, actual) -> None:
    assert actual[0] == expected[0]
    assert all(map(torch.equal, actual[1], expected[1]))


TRAININGS = {
    "plain": {},
    "augmented": {"augment": ("flip", "color", "cutout")},
    "regularized": {"regularizer": "r1", "regularizer_interval": 3},
    "lecam": {"regularizer": "lecam", "regularizer_weight": 2.0},
    "frozen": {"freeze_discriminator": 1},
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS.keys())
@pytest.mark.parametrize("name", FEDERATED)
def test_a_resumed_run_is_the_uninterrupted_one_bitwise(comm, name, training):
    link = Link(comm)
    config = toy_config(
        algorithm={"name": name},
        participation={"policy": "random", "count": 3},
        training=training,
    )
    assert_equal(*train_and_resume(link, config, config))


UPDATES = {
    "server adam": {"aggregation": {"server_optimizer": "adam"}},
    "median and momentum": {
        "aggregation": {
            "rule": "median", "server_optimizer": "sgd", "server_options": {"momentum": 0.9}
        }
    },
    "attack": {"attack": {"devices": (1, 3), "kind": "noise", "strength": 0.01}},
    "proximal": {"algorithm": {"proximal": 2.0}},
    "control variates": {
        "algorithm": {"control_variates": True},
        "training": {"optimizer": "sgd", "discriminator_lr": 0.1},
    },
    "top_k": {"aggregation": {"compression": "top_k", "compression_options": {"share": 0.1}}},
    "qsgd and median": {"aggregation": {"rule": "median", "compression": "qsgd"}},
}  # fmt: skip


@pytest.mark.parametrize("changes", UPDATES.values(), ids=UPDATES.keys())
@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_a_run_with_changed_updates_resumes_bitwise(comm, name, changes):
    algorithm = {"name": name, **changes.get("algorithm", {})}
    participation = {"policy": "random", "count": 4}
    config = toy_config(**{**changes, "algorithm": algorithm}, participation=participation)
    assert_equal(*train_and_resume(Link(comm), config, config))


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_a_run_with_uploads_in_flight_resumes_bitwise(comm, schedule):
    """Device 1 is so slow that its upload waits on the server when the checkpoint is written."""
    config = toy_config(
        algorithm={"schedule": schedule, "staleness": 4},
        participation={"policy": "random", "count": 4},
        wireless={"on": True, "device_macs_per_second": (1e5, 1e7, 1e7, 5e6, 1e7)},
    )
    link = Link(comm)
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    assert algorithm.timeline.busy(CHECKPOINT)
    assert_equal(*train_and_resume(link, config, config))


@pytest.mark.parametrize("transport", ["mpi", "shared_memory"])
@pytest.mark.parametrize("name", FEDERATED)
@pytest.mark.parametrize("overlap", [True, False], ids=["on-off", "off-on"])
def test_a_run_resumes_bitwise_with_another_value_of_overlap(comm, overlap, name, transport):
    """A checkpoint contains no part of an early start or of a prefetch."""
    config, resumed_config = (
        toy_config(
            algorithm={"name": name},
            participation={"policy": "random", "count": 3},
            training={"overlap": value, "augment": ("translation",)},
        )
        for value in (overlap, not overlap)
    )
    link = Link(comm, transport=transport)
    assert_equal(*train_and_resume(link, config, resumed_config))
