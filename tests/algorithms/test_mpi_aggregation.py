"""Uplinks of several ranks and the link's average."""

from __future__ import annotations

import math

import pytest
import torch
from rounds import UNEQUAL, assert_close
from torch import Tensor
from toys import toy_algorithm, toy_config, toy_shards

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

SHARES = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.25, 5: 0.15}


class Ranks:
    """One rank of a world with five devices, which upload given vectors in place of training."""

    def __init__(self, comm, transforms=(), *, average="gather", transport=None, **options) -> None:
        self.link = Link(comm, transport=transport)
        config = toy_config(
            link={"average": average, "wire_dtype": "float64"},
            training={"non_finite": options.pop("non_finite", "stop")},
            aggregation=options.pop("aggregation", {}),
            attack=options.pop("attack", {}),
        )
        algorithm = toy_algorithm(self.link, config, toy_shards(UNEQUAL))
        self.rank_state, self.vector = algorithm.rank_state, algorithm.flat.discriminator
        self.uplink = make_uplink(self.rank_state, self.vector, transforms, **options)

    def random(self, k: int) -> Tensor:
        """Return the vector of device k; index 0 is the server."""
        stream = torch.Generator().manual_seed(k)
        return torch.randn(len(self.vector), generator=stream, dtype=self.vector.dtype)

    def round(self, t: int, uploads: dict[int, Tensor]) -> Tensor:
        """Run round t and return the new vector, the same on every rank."""
        self.link.broadcast(self.vector)
        self.uplink.begin(t)
        for device in self.rank_state.devices:
            if device.index in uploads:
                self.uplink.restore_received()
                self.vector.copy_(uploads[device.index])
                self.uplink.add(device, SHARES[device.index], LocalMetrics())
        self.link.average(self.uplink, into=self.vector)
        self.link.broadcast(self.vector)
        return self.vector.clone()


@pytest.mark.parametrize("average", ["gather", "reduce"])
@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_the_average_is_the_weighted_sum_of_the_participants(comm, average, transport):
    """Numbers that absent devices sent in an earlier round do not count."""
    ranks = Ranks(comm, average=average, transport=transport)
    uploads = {k: ranks.random(k) for k in SHARES}
    expected = sum(share * uploads[k] for k, share in SHARES.items())
    assert_close(ranks.round(0, uploads), expected)
    infinite = {k: torch.full_like(uploads[k], math.inf) for k in SHARES}
    assert ranks.round(1, infinite).isinf().all()
    assert_close(ranks.round(2, {2: uploads[2]}), 0.3 * uploads[2])
    assert not ranks.round(3, {}).any()


@pytest.mark.parametrize("average", ["gather", "reduce"])
def test_shares_of_skipped_devices_are_distributed_over_all_ranks(comm, average):
    ranks = Ranks(comm, average=average, non_finite="skip")
    uploads = {k: ranks.random(k) for k in (1, 3, 4)}
    total = SHARES[1] + SHARES[3] + SHARES[4]
    expected = sum(SHARES[k] / total * vector for k, vector in uploads.items())
    assert_close(ranks.round(0, uploads), expected)


def norm_bound(rows, before):
    """The toy shards have UNEQUAL images, which are the shares."""
    norms = [float((row - before).norm()) for row in rows]
    scales = [min(1.0, sorted(norms)[len(norms) // 2] / norm) for norm in norms]
    shares = [images / sum(UNEQUAL) for images in UNEQUAL]
    return before + sum(
        share * scale * (row - before)
        for share, scale, row in zip(shares, scales, rows, strict=True)
    )


RULES = {
    "median": lambda rows, before: rows.quantile(0.5, dim=0),
    "trimmed_mean": lambda rows, before: (rows.sum(0) - rows.amax(0) - rows.amin(0)) / 3,
    "norm_bound": norm_bound,
}


@pytest.mark.parametrize("transport", ["mpi", "shared_memory"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_combines_the_vectors_of_all_ranks(comm, rule, transport):
    """Also where hosted devices, and numbers of an earlier round, share a rank."""
    ranks = Ranks(comm, aggregation={"rule": rule}, transport=transport)
    uploads = {k: ranks.random(k) for k in SHARES}
    for t in range(2):
        ranks.link.broadcast(ranks.vector)
        before = ranks.vector.clone()
        expected = RULES[rule](torch.stack([uploads[k] for k in SHARES]), before)
        assert_close(ranks.round(t, uploads), expected)
        uploads = {k: 2 * vector - 1 for k, vector in uploads.items()}
    before = ranks.vector.clone()
    assert torch.equal(ranks.round(2, {}), before)  # without uploads, the server's vector stays


def test_a_rule_of_three_needs_three_uploads(comm):
    ranks = Ranks(comm, aggregation={"rule": "trimmed_mean"})
    before = ranks.round(0, {k: ranks.random(k) for k in SHARES})
    assert torch.equal(ranks.round(1, {k: ranks.random(k) for k in (2, 5)}), before)
    three = {k: ranks.random(k) for k in (1, 2, 5)}
    assert_close(ranks.round(2, three), torch.stack(list(three.values())).median(0).values)


@pytest.mark.parametrize("average", ["gather", "reduce"])
@pytest.mark.parametrize("rule", ["mean", "median"])
@pytest.mark.parametrize("sends_updates", [False, True])
def test_the_server_optimizer_steps_by_the_average_update(comm, average, rule, sends_updates):
    """FedAvgM in a plain loop; BatchNorm statistics stay averages."""
    aggregation = {
        "rule": rule,
        "server_optimizer": "sgd",
        "server_options": {"rate": 0.5, "momentum": 0.9},
    }
    if rule == "median" and sends_updates:
        return  # rules get vectors
    options = {"sends_updates": True} if sends_updates else {}
    ranks = Ranks(comm, average=average, aggregation=aggregation, **options)
    start = ranks.rank_state.pair.flat.phi.storage_offset() - ranks.vector.storage_offset()
    phi = slice(start, start + ranks.rank_state.pair.flat.phi.numel())
    momentum = torch.zeros_like(ranks.vector[phi])
    for t in range(3):
        ranks.link.broadcast(ranks.vector)
        before = ranks.vector.clone()
        uploads = {k: ranks.random(10 * t + k) for k in SHARES}
        average_vector = sum(share * uploads[k] for k, share in SHARES.items())
        if rule == "median":
            average_vector = torch.stack(list(uploads.values())).median(0).values
        momentum = 0.9 * momentum + average_vector[phi] - before[phi]
        expected = average_vector.clone()
        expected[phi] = before[phi] + 0.5 * momentum
        assert_close(ranks.round(t, uploads), expected)


ATTACKS = {
    "sign_flip": lambda sent, received: received - 2.0 * (sent - received),
    "stale": lambda sent, received: received,
}


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("sends_updates", [False, True])
def test_attackers_replace_their_update(comm, kind, sends_updates):
    """From their first round on; statistics and other devices stay honest."""
    strength = {"strength": 2.0} if kind == "sign_flip" else {}
    attack = {"devices": (2, 5), "kind": kind, "from_round": 2, **strength}
    options = {"sends_updates": True} if sends_updates else {}
    ranks = Ranks(comm, attack=attack, **options)
    start = ranks.rank_state.pair.flat.phi.storage_offset() - ranks.vector.storage_offset()
    phi = slice(start, start + ranks.rank_state.pair.flat.phi.numel())
    for t in range(2):
        ranks.link.broadcast(ranks.vector)
        before = ranks.vector.clone()
        uploads = {k: ranks.random(10 * t + k) for k in SHARES}
        expected = torch.zeros_like(before)
        for k, share in SHARES.items():
            sent = uploads[k].clone()
            if t == 1 and k in (2, 5):
                sent[phi] = ATTACKS[kind](uploads[k], before)[phi]
            expected += share * sent
        assert_close(ranks.round(t, uploads), expected)


@pytest.mark.parametrize("kind", ["noise", "label_free"])
def test_noisy_attackers_have_the_stated_strength(comm, kind):
    """The numbers depend on the device and the round, not on the ranks."""
    sent = {}
    for seed_of in range(2):
        attack = {"devices": (1,), "kind": kind, "strength": 3.0}
        ranks = Ranks(comm, attack=attack)
        start = ranks.rank_state.pair.flat.phi.storage_offset() - ranks.vector.storage_offset()
        phi = slice(start, start + ranks.rank_state.pair.flat.phi.numel())
        ranks.link.broadcast(ranks.vector)
        before = ranks.vector.clone()
        upload = ranks.random(1)
        sent[seed_of] = ranks.round(0, {1: upload})[phi] / SHARES[1]
        scale = before[phi].square().mean().sqrt()
        centre = upload[phi] if kind == "noise" else torch.zeros_like(upload[phi])
        deviation = 3.0 if kind == "noise" else 3.0 * float(scale)
        assert (sent[seed_of] - centre).std() == pytest.approx(deviation, rel=0.2)
    assert torch.equal(sent[0], sent[1])


class Record(UpdateTransform):
    """Records its calls, and adds 1 to the server's vector."""

    def __init__(self) -> None:
        self.devices: list[int] = []
        self.server_rounds: list[int] = []
        self.vector: Tensor | None = None

    def on_device(self, upload: Upload) -> None:
        self.devices.append(upload.device.index)

    def on_server(self, t: int) -> None:
        self.server_rounds.append(t)
        assert self.vector is not None
        self.vector.add_(1.0)


@pytest.mark.parametrize("average", ["gather", "reduce"])
def test_updates_are_averaged_and_transforms_run_once(comm, average):
    """v + Σ w_k (v_k - v) on the server, where absent devices count as no change."""
    record = Record()
    ranks = Ranks(comm, [record], average=average, sends_updates=True)
    record.vector = ranks.vector
    if ranks.link.is_server:
        ranks.vector.copy_(ranks.random(0))
    uploads = {k: ranks.random(k) for k in (2, 5)}
    before = ranks.random(0)
    expected = before + 0.3 * (uploads[2] - before) + 0.15 * (uploads[5] - before) + 1.0
    assert_close(ranks.round(7, uploads), expected)
    hosted = [device.index for device in ranks.rank_state.devices]
    assert record.devices == [k for k in hosted if k in uploads]
    assert record.server_rounds == ([7] if ranks.link.is_server else [])
