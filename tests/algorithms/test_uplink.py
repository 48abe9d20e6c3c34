"""The uplink of a rank that hosts all devices, without other ranks."""

from __future__ import annotations

import math

import pytest
import torch
from mpi4py import MPI
from rounds import assert_close
from torch import Tensor
from toys import NZ, toy_config, toy_networks, toy_shards

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.rank import RankState, build_rank_state
from fedgan_mpi.nn.losses import LOSSES

IMAGES = [10, 17, 4]


def random_vector(size: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=stream, dtype=torch.float64)


def make_rank_state(average: str = "gather", non_finite: str = "stop") -> RankState:
    """Return the state of a single rank that hosts three devices."""
    link = Link(MPI.COMM_SELF)
    config = toy_config(
        link={"average": average, "wire_dtype": "float64"}, training={"non_finite": non_finite}
    )
    link.configure(config.link)
    G, D = toy_networks()
    pair = pack_networks(
        G, D, nz=NZ, image_shape=(1, 4, 4), loss=LOSSES[config.training.loss_name], config=config
    )
    return build_rank_state(link, config, pair, toy_shards(IMAGES), IMAGES)


def upload_round(uplink: Uplink, rank_state: RankState, vectors: dict[int, Tensor]) -> Tensor:
    """Add one vector per device with its share, and return the sum over rows as on the server."""
    shares = {1: 0.5, 2: 0.3, 3: 0.2}
    for device in rank_state.devices:
        if device.index in vectors:
            uplink.restore_received()
            uplink.vector.copy_(vectors[device.index])
            uplink.add(device, shares[device.index], LocalMetrics())
    rows, _ = uplink.seal(uplink.vector)
    return rows.sum(0)


@pytest.mark.parametrize("average", ["gather", "reduce"])
def test_the_uplink_sums_weighted_vectors(average):
    rank_state = make_rank_state(average)
    uplink = Uplink(rank_state, rank_state.pair.flat.discriminator)
    vectors = {k: random_vector(len(uplink.vector), k) for k in (1, 2, 3)}
    uplink.begin(0)
    total = upload_round(uplink, rank_state, vectors)
    assert_close(total, 0.5 * vectors[1] + 0.3 * vectors[2] + 0.2 * vectors[3])
    assert len(uplink.rows) == (3 if average == "gather" else 1)


@pytest.mark.parametrize("average", ["gather", "reduce"])
def test_rows_of_absent_devices_are_zero(average):
    """Also if the devices took part in the round before, with infinite numbers."""
    rank_state = make_rank_state(average)
    uplink = Uplink(rank_state, rank_state.pair.flat.discriminator)
    size = len(uplink.vector)
    uplink.begin(0)
    upload_round(uplink, rank_state, {k: torch.full((size,), math.inf) for k in (1, 2, 3)})
    uplink.begin(1)
    vector = random_vector(size)
    assert torch.equal(upload_round(uplink, rank_state, {2: vector}), 0.3 * vector)
    uplink.begin(2)
    assert not upload_round(uplink, rank_state, {}).any()


def test_further_calls_of_begin_keep_the_received_vector():
    rank_state = make_rank_state()
    uplink = Uplink(rank_state, rank_state.pair.flat.discriminator)
    uplink.vector.fill_(1.0)
    uplink.begin(4)
    uplink.vector.fill_(2.0)  # an early start of the local round
    uplink.begin(4)
    uplink.restore_received()
    assert (uplink.vector == 1.0).all()
    uplink.vector.fill_(3.0)
    uplink.begin(5)
    uplink.vector.fill_(4.0)
    uplink.restore_received()
    assert (uplink.vector == 3.0).all()


def test_a_discarded_round_can_begin_again():
    """After a rollback, the round has another received vector and no uploads."""
    rank_state = make_rank_state()
    uplink = Uplink(rank_state, rank_state.pair.flat.discriminator)
    uplink.begin(4)
    uplink.add(rank_state.devices[0], 0.5, LocalMetrics())
    uplink.discard()
    uplink.vector.fill_(7.0)
    uplink.begin(4)
    uplink.vector.fill_(8.0)
    uplink.restore_received()
    assert (uplink.vector == 7.0).all()
    vector = random_vector(len(uplink.vector))
    assert torch.equal(upload_round(uplink, rank_state, {3: vector}), 0.2 * vector)


def test_sends_updates_averages_differences_to_the_received_vector():
    """The server adds the mean difference. Absent devices then count as no change."""
    rank_state = make_rank_state()
    uplink = Uplink(rank_state, rank_state.pair.flat.discriminator, sends_updates=True)
    received = random_vector(len(uplink.vector))
    vectors = {k: random_vector(len(received), k) for k in (1, 3)}
    uplink.vector.copy_(received)
    uplink.begin(0)
    total = upload_round(uplink, rank_state, vectors)
    difference = 0.5 * (vectors[1] - received) + 0.2 * (vectors[3] - received)
    assert_close(total, difference)

    server_vector = received.clone()
    _, into = uplink.seal(server_vector)
    assert into is not server_vector
    into.copy_(total)
    uplink.finish(server_vector)
    assert_close(server_vector, received + difference)


class Affine(UpdateTransform):
    """Maps v to a v + b, on devices and on the server."""

    def __init__(self, vector: Tensor, a: float, b: float) -> None:
        self._vector, self._a, self._b = vector, a, b

    def on_device(self, upload: Upload) -> None:
        upload.vector.mul_(self._a).add_(self._b)

    def on_server(self, t: int) -> None:
        self._vector.mul_(self._a).add_(self._b)


def test_transforms_run_in_order_on_devices_and_on_the_server():
    rank_state = make_rank_state()
    vector = rank_state.pair.flat.discriminator
    uplink = Uplink(rank_state, vector, [Affine(vector, 1.0, 5.0), Affine(vector, 3.0, 0.0)])
    ones = torch.ones_like(vector)
    uplink.begin(0)
    total = upload_round(uplink, rank_state, {1: ones})
    assert_close(total, 0.5 * 18 * ones)  # 3 (1 + 5), not 3 · 1 + 5
    vector.copy_(ones)
    uplink.finish(vector)
    assert_close(vector, 18 * ones)


class DoubleShare(UpdateTransform):
    """Multiplies the share by two."""

    def on_device(self, upload: Upload) -> None:
        upload.share *= 2


@pytest.mark.parametrize("average", ["gather", "reduce"])
def test_shares_are_normalized_if_participants_may_be_skipped(average):
    rank_state = make_rank_state(average, non_finite="skip")
    vectors = {k: random_vector(rank_state.pair.flat.discriminator.numel(), k) for k in (1, 3)}
    expected = (0.5 * vectors[1] + 0.2 * vectors[3]) / 0.7
    for transforms in ([], [DoubleShare()]):
        uplink = Uplink(rank_state, rank_state.pair.flat.discriminator, transforms)
        uplink.begin(0)
        assert_close(upload_round(uplink, rank_state, vectors), expected)
