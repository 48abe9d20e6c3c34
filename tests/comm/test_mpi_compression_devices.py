"""Devices with a 16-bit wire: absence, overflow, and error feedback after a resume."""

from __future__ import annotations

import math

import pytest
import torch
from lossy_toys import lossy_config
from rounds import UNEQUAL
from toys import play, through_a_file, toy_algorithm, toy_shards, vectors

from fedgan_mpi.comm.link import AgreedError, Link

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_an_absent_device_with_nan_sends_zeros(comm, transport, feedback):
    link = Link(comm, transport=transport)
    config = lossy_config(
        feedback=feedback, participation={"policy": "round_robin", "count": 2}, precision="float32"
    )
    algorithm = toy_algorithm(link, config, toy_shards([8] * 4))
    for device in algorithm.rank_state.devices:
        if device.index in (3, 4):
            device.local.optimizers[0].first.fill_(math.nan)
            if device.residual is not None:
                device.residual.fill_(math.nan)
    if link.rank == 3:
        algorithm.flat.vector.fill_(math.nan)
    play(algorithm, 1)
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()
    for row, device in enumerate(algorithm.rank_state.devices):
        assert (device.index in (1, 2)) == bool(algorithm.uplink.rows[row].any())
    with pytest.raises(AgreedError):  # the NaNs show as soon as the devices take part
        play(algorithm, 1, start=1)


def test_the_residual_of_an_absent_device_does_not_change(comm):
    link = Link(comm)
    config = lossy_config(feedback=True, participation={"policy": "round_robin", "count": 1})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8, 8]))
    before = {d.index: d.residual.clone() for d in algorithm.rank_state.devices}
    play(algorithm, 1)  # only device 1 takes part
    for device in algorithm.rank_state.devices:
        assert torch.equal(device.residual, before[device.index]) == (device.index != 1)


def train_to_overflow(algorithm) -> None:
    """Make device 1 train a weight of 3e5: beyond the range of float16, but not of float32."""
    for device in algorithm.rank_state.devices:
        if device.index == 1:
            train = device.train_discriminator

            def overflow(t, train=train):
                loss = train(t)
                algorithm.flat.phi.data[3] = 3e5
                return loss

            device.train_discriminator = overflow


@pytest.mark.parametrize("non_finite", ["stop", "skip"])
def test_float16_overflow_stops_the_run_or_skips_the_device(comm, non_finite):
    link = Link(comm)
    config = lossy_config("float16", precision="float32", training={"non_finite": non_finite})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8, 8]))
    train_to_overflow(algorithm)
    if non_finite == "stop":
        with pytest.raises(AgreedError, match="round 1"):
            play(algorithm, 1)
        return
    (line,) = play(algorithm, 1)
    assert line["skipped"] == [1]
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()


def test_bfloat16_represents_values_beyond_float16(comm):
    config = lossy_config("bfloat16", precision="float32", training={"non_finite": "skip"})
    algorithm = toy_algorithm(Link(comm), config, toy_shards([8, 8, 8]))
    train_to_overflow(algorithm)
    assert "skipped" not in play(algorithm, 1)[0]


@pytest.mark.parametrize("name", ["ren", "fedgan", "fegan"])
def test_a_resumed_run_with_feedback_equals_an_uninterrupted_one_bitwise(comm, name):
    link = Link(comm)
    config = lossy_config(
        feedback=True,
        precision="float32",
        algorithm={"name": name},
        participation={"policy": "random", "count": 3},
    )

    def resume(*, with_residuals: bool):
        before = toy_algorithm(link, config, toy_shards(UNEQUAL))
        play(before, 4)
        after = toy_algorithm(link, config, toy_shards(UNEQUAL))
        pairs = zip(before.rank_state.owners, after.rank_state.owners, strict=True)
        for owner, resumed in pairs:
            resumed.load_state(through_a_file(owner.state()))
            assert resumed.residual.any() or getattr(owner, "index", 0) not in participated
            if not with_residuals:
                resumed.residual.zero_()
        play(after, 4, start=4)
        return vectors(after)

    uninterrupted = toy_algorithm(link, config, toy_shards(UNEQUAL))
    participation = uninterrupted.rank_state.participation
    participated = {0, *(k for t in range(4) for k in participation.participants(t))}
    play(uninterrupted, 8)
    resumed, without_residuals = resume(with_residuals=True), resume(with_residuals=False)
    if link.is_server:
        for expected, actual in zip(vectors(uninterrupted), resumed, strict=True):
            assert torch.equal(expected, actual)
        assert not torch.equal(vectors(uninterrupted)[1], without_residuals[1])
