"""A 16-bit wire between ranks: what crosses, on every road, and what rounds become."""

from __future__ import annotations

import copy
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import oracle_wire as oracle
import pytest
import torch
from mpi4py import MPI
from rounds import UNEQUAL, assert_close, link_of, oracle_shares
from test_compression import allocated
from torch import nn
from toys import (
    NZ,
    play,
    through_a_file,
    toy_algorithm,
    toy_config,
    toy_networks,
    toy_shards,
    vectors,
)

from fedgan_mpi.algorithms.base import Sizes
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import LinkConfig
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState

pytestmark = pytest.mark.mpi(min_size=3)

DTYPES = list(oracle.ROUNDINGS)
TRANSPORTS = ("mpi", "polling", "shared_memory")


def narrow_config(wire="bfloat16", feedback=False, precision="float64", **changes):
    """A configuration of toys with a 16-bit wire.

    No user may ask for 16 bits beside float64. Here they let ranks equal a plain loop to the last
    digits: in float32 the two would now and then round to different sides.
    """
    link = {"wire_dtype": "float32", **changes.pop("link", {})}
    training = {"precision": "float32", **changes.pop("training", {})}
    config = toy_config(link=link, training=training, **changes)
    config = replace(config, link=replace(config.link, wire_dtype=wire, error_feedback=feedback))
    object.__setattr__(config.training, "precision", precision)
    return config


UP, SUMS = ("Reduce", "Gather", "Alltoallv"), ("Gatherv",)


class Spy:
    """A communicator that notes what its collectives and messages send or receive."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm, self.seen = comm, []

    def __getattr__(self, name):
        act = getattr(self._comm, name)
        if name not in (*UP, *SUMS, "Bcast", "Isend", "Irecv"):
            return act

        def noted(buffer, *rest, **named):
            vector, counts = buffer if name == "Alltoallv" else (buffer, None)
            nbytes = vector.nbytes if counts is None else vector.itemsize * sum(counts[0])
            if not (
                name in (*UP, *SUMS) and self._comm.rank == 0
            ):  # there the server sends nothing
                self.seen.append((name, vector.dtype, nbytes))
            return act(buffer, *rest, **named)

        return noted


# ------------------------------------------------------------ the link


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_verbs_carry_rounded_numbers(comm, transport, dtype):
    link = Link(comm, transport=transport)
    link.configure(LinkConfig(wire_dtype=dtype))
    rounded = lambda x: torch.from_numpy(oracle.ROUNDINGS[dtype](x.numpy()))  # noqa: E731
    stream = torch.Generator().manual_seed(1)
    for _ in range(3):
        down = torch.randn(5000, generator=stream)
        ups = torch.randn(link.size, 2, 5000, generator=stream)
        vector = down.clone() if link.is_server else torch.zeros(5000)
        link.broadcast(vector)
        assert torch.equal(vector, down if link.is_server else rounded(down))
        exact = down.clone() if link.is_server else torch.zeros(5000)
        link.broadcast(exact, traffic="other")  # a generator to be scored is the one exported
        assert torch.equal(exact, down)

        into = torch.full((5000,), 9.0)
        link.average(torch.zeros(2, 5000) if link.is_server else ups[link.rank].clone(), into)
        expected = torch.zeros(5000)
        for row in range(2):
            for rank in range(1, link.size):
                expected += rounded(ups[rank, row])
        assert torch.equal(into, expected if link.is_server else torch.full((5000,), 9.0))

        devices = range(1, link.size)
        here = devices if link.is_server else [link.rank]
        rows = {k: (down + k if link.is_server else torch.zeros(5000)) for k in here}
        link.scatter(rows)
        for k in here:
            assert torch.equal(rows[k], down + k if link.is_server else rounded(down + k))
        rows = {k: (torch.zeros(5000) if link.is_server else ups[k, 0].clone()) for k in here}
        link.gather(rows)
        for k in here:
            assert torch.equal(rows[k], rounded(ups[k, 0]) if link.is_server else ups[k, 0])

        to = {k: k % (link.size - 1) + 1 for k in devices}
        mine = {} if link.is_server else {link.rank: ups[link.rank, 1].clone()}
        link.permute(mine, to)
        for k in mine:
            (sender,) = (s for s, receiver in to.items() if receiver == k)
            assert torch.equal(mine[k], rounded(ups[sender, 1]))


@pytest.mark.parametrize("transport", ["mpi", "polling"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
def test_half_as_many_bytes_cross_and_mpi_adds_none_up(comm, transport, average):
    crossed = {}
    for dtype in ("float32", "bfloat16"):
        link = Link(comm, transport=transport)
        link.configure(LinkConfig(wire_dtype=dtype, average=average))
        spy = link._comm = Spy(link._comm)
        link.broadcast(torch.zeros(1000))
        link.average(torch.zeros(1, 1000), torch.zeros(1000))
        rows = range(1, link.size) if link.is_server else [link.rank]
        link.scatter({k: torch.zeros(1000) for k in rows})
        link.gather({k: torch.zeros(1000) for k in rows})
        if not link.is_server:
            to = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
            link.permute({link.rank: torch.zeros(1000)}, to)
        else:
            link.permute({}, {})
        sums = [(kind, nbytes) for name, kind, nbytes in spy.seen if name in SUMS]
        seen = [one for one in spy.seen if one[0] not in SUMS]
        crossed[dtype] = sum(nbytes for _, _, nbytes in seen)
        counted = (link.bytes_down, link.bytes_up)
        if dtype == "bfloat16":
            assert {kind for _, kind, _ in seen} == {torch.int16}
            assert "Reduce" not in {name for name, _, _ in seen}
            # With more than two devices, each adds up a slice, whose sums are not rounded.
            slices = [1000 * rank // (link.size - 1) for rank in range(link.size)]
            mine = [4 * (slices[r] - slices[r - 1]) for r in [link.rank] if r and link.size > 3]
            assert sums == [(torch.float32, nbytes) for nbytes in mine]
            assert counted == (4000, 6000 if not link.is_server else 4000)
        else:
            assert counted == (8000, 12000 if not link.is_server else 8000)
            reduces = average == "reduce" and not link.is_server
            assert ("Reduce" in {name for name, _, _ in seen}) == reduces
    assert 2 * crossed["bfloat16"] == crossed["float32"] > 0


def test_half_as_many_bytes_cross_in_shared_memory(comm):
    link = Link(comm, transport="shared_memory")
    link.configure(LinkConfig(wire_dtype="float16"))
    link.broadcast(torch.zeros(1000))
    link.average(torch.zeros(1, 500), torch.zeros(500))
    boxes, crossed = link._mailboxes, []
    down, up = boxes["down"].down, boxes["up"].up
    boxes["down"].down = lambda vector: (crossed.append(vector.nbytes), down(vector))
    boxes["up"].up = lambda vector, take: (crossed.append(vector.nbytes), up(vector, take))
    link.broadcast(torch.zeros(1000))
    link.average(torch.zeros(1, 500), torch.zeros(500))
    assert crossed == [2000, 1000]
    # Nobody has room for what only others write.
    written = {name: [part.size for part in box._data] for name, box in boxes.items()}
    ups = [1000] * (link.size - 1)
    assert written == {"down": [2000, *[0] * len(ups)], "up": [0, *ups]}


# ------------------------------------------------------------ rounds ≡ a plain loop

CASES = {
    "ren": {},
    "ren parallel": {"algorithm": {"schedule": "parallel"}},
    "ren two in turn": {"participation": {"policy": "round_robin", "count": 2}},
    "fedgan": {"algorithm": {"name": "fedgan"}},
    "mdgan": {"algorithm": {"name": "mdgan"}},
    "uagan": {"algorithm": {"name": "uagan"}},
    "uagan max": {"algorithm": {"name": "uagan", "mode": "max"}},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feedback", [False, True], ids=["plain", "feedback"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_a_plain_loop_over_devices(comm, case, feedback, dtype):
    """Five devices of unequal shards on however many ranks there are."""
    changes = copy.deepcopy(CASES[case])
    keeps_d = changes.get("algorithm", {}).get("name") in ("mdgan", "uagan")
    if keeps_d and (feedback or dtype == "float16"):
        with pytest.raises(Exception, match=r"link\.(error_feedback|wire_dtype)"):
            narrow_config(dtype, feedback, **changes)
        return
    config = narrow_config(dtype, feedback, **changes)
    shards, link, rounds = toy_shards(UNEQUAL), Link(comm), 6
    algorithm = toy_algorithm(link, config, shards)
    play(algorithm, rounds)
    loop = getattr(oracle, config.algorithm.name)
    arguments = (*toy_networks(), shards, config, rounds, oracle_shares(config, UNEQUAL), NZ)
    server, players = loop(*arguments)
    pair = algorithm.rank_state.pair
    if link.is_server:
        for network, expected in ((pair.G, server.G), (pair.D, server.D)):
            for name, value in network.state_dict().items():
                if value.is_floating_point():
                    assert_close(value, expected.state_dict()[name])
    if keeps_d:
        for device in algorithm.rank_state.devices:
            pair.flat.whole_discriminator.copy_(device.own[0])
            for name, value in pair.D.state_dict().items():
                if value.is_floating_point():
                    assert_close(value, players[device.index].D.state_dict()[name])


@pytest.mark.parametrize("case", CASES)
def test_wires_differ(comm, case):
    """16 bits that changed nothing would be tested by nothing."""
    name = CASES[case].get("algorithm", {}).get("name", "ren")
    configs = [narrow_config("bfloat16", **copy.deepcopy(CASES[case])), toy_config(**CASES[case])]
    if name in ("ren", "fedgan"):
        configs.append(narrow_config("float16", **copy.deepcopy(CASES[case])))
        configs.append(narrow_config("bfloat16", True, **copy.deepcopy(CASES[case])))
    link, results = Link(comm), []
    for config in configs:
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        play(algorithm, 4)
        results.append(torch.cat(vectors(algorithm)))
    if link.is_server:
        for n, one in enumerate(results):
            for other in results[:n]:
                assert (one - other).abs().max() > 1e-6


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_the_servers_own_networks_stay_as_they_are(comm, schedule):
    """A downlink rounds what leaves, not the server's θ and φ; nor those of a round without
    steps."""
    link = Link(comm)
    config = narrow_config(precision="float32", algorithm={"schedule": schedule})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8]))
    theta, phi = vectors(algorithm)
    link.broadcast(algorithm.flat.gan)
    after = vectors(algorithm)
    rounded = oracle.to_bfloat16(theta.numpy())
    expected = theta if link.is_server else torch.from_numpy(rounded)
    assert torch.equal(after[0], expected) and not np.array_equal(rounded, theta.numpy())
    assert torch.equal(after[1], phi) == link.is_server


# ------------------------------------------------------------ absence, overflow, resume, bytes


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_absent_device_with_nan_sends_zeros(comm, transport, feedback):
    link = Link(comm, transport=transport)
    config = narrow_config(
        feedback=feedback, participation={"policy": "round_robin", "count": 2}, precision="float32"
    )
    algorithm = toy_algorithm(link, config, toy_shards([8] * 4))
    for device in algorithm.rank_state.devices:
        if device.index in (3, 4):
            device.optimizer.first.fill_(math.nan)
            if device.residual is not None:
                device.residual.fill_(math.nan)
    if link.rank == 3:
        algorithm.flat.vector.fill_(math.nan)
    play(algorithm, 1)
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()
    for device in algorithm.rank_state.devices:
        row = algorithm.uplink.rows[algorithm.uplink._row_of[device.index]]
        assert (device.index in (1, 2)) == bool(row.any())
    with pytest.raises(AgreedError):  # and now they take part: it must show
        play(algorithm, 1, start=1)


def test_an_absent_devices_residual_waits(comm):
    link = Link(comm)
    config = narrow_config(feedback=True, participation={"policy": "round_robin", "count": 1})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8, 8]))
    before = {d.index: d.residual.clone() for d in algorithm.rank_state.devices}
    play(algorithm, 1)  # device 1
    for device in algorithm.rank_state.devices:
        assert torch.equal(device.residual, before[device.index]) == (device.index != 1)


@pytest.mark.parametrize("non_finite", ["stop", "skip"])
def test_what_float16_cannot_carry_stops_the_run_or_skips_the_device(comm, non_finite):
    """Device 1's φ outgrows 65504, which is finite in float32."""
    link = Link(comm)
    config = narrow_config("float16", precision="float32", training={"non_finite": non_finite})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8, 8]))
    for device in algorithm.rank_state.devices:
        if device.index == 1:
            train = device.train_discriminator

            def outgrow(t, train=train):
                loss = train(t)
                algorithm.flat.phi.data[3] = 3e5
                return loss

            device.train_discriminator = outgrow
    if non_finite == "stop":
        with pytest.raises(AgreedError, match="round 1"):
            play(algorithm, 1)
        return
    (line,) = play(algorithm, 1)
    assert line["skipped"] == [1]
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()
    # bfloat16 has the range of float32 and carries it.
    wide = narrow_config("bfloat16", precision="float32", training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, wide, toy_shards([8, 8, 8]))
    assert "skipped" not in play(algorithm, 1)[0]


@pytest.mark.parametrize("name", ["ren", "fedgan", "fegan"])
def test_a_resumed_run_with_feedback_is_the_uninterrupted_one_bitwise(comm, name):
    link = Link(comm)
    config = narrow_config(
        feedback=True,
        precision="float32",
        algorithm={"name": name},
        participation={"policy": "random", "count": 3},
    )

    def resumed(forget: bool):
        before = toy_algorithm(link, config, toy_shards(UNEQUAL))
        play(before, 4)
        after = toy_algorithm(link, config, toy_shards(UNEQUAL))
        players = zip(before.rank_state.owners, after.rank_state.owners, strict=True)
        for player, fresh in players:
            fresh.load_state(through_a_file(player.state()))
            assert fresh.residual.any() or getattr(player, "index", 0) not in seen
            if forget:
                fresh.residual.zero_()
        play(after, 4, start=4)
        return vectors(after)

    whole = toy_algorithm(link, config, toy_shards(UNEQUAL))
    participation = whole.rank_state.participation
    seen = {0, *(k for t in range(4) for k in participation.participants(t))}
    play(whole, 8)
    again, forgetful = resumed(forget=False), resumed(forget=True)
    if link.is_server:
        for ours, theirs in zip(vectors(whole), again, strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(vectors(whole)[1], forgetful[1])


@pytest.mark.parametrize("feedback", [False, True])
def test_the_same_bits_for_any_number_of_ranks_on_every_road(comm, feedback):
    """Rounded rows are added device by device, also where `reduce` was asked for."""
    config = narrow_config(feedback=feedback, precision="float32")
    results = []
    for ranks in range(2, comm.size + 1):
        for transport in TRANSPORTS:
            link = link_of(comm, ranks, transport=transport)
            if link is not None:
                algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
                play(algorithm, 4)
                results.append(torch.cat(vectors(algorithm)))
            comm.barrier()
    if comm.rank == 0:
        assert len(results) == 3 * (comm.size - 1)
        assert all(torch.equal(one, results[0]) for one in results[1:])


@pytest.mark.parametrize("name", ["ren", "fedgan", "mdgan", "uagan", "dp_fedavg_gan", "fegan"])
def test_bytes_are_half_those_of_float32_to_the_byte(comm, name):
    link = Link(comm)
    lines = {}
    for wire in ("float32", "bfloat16"):
        config = narrow_config(wire, precision="float32", algorithm={"name": name})
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        progress = TrainState()
        lines[wire] = [run_round(algorithm, t, progress) for t in range(5)]
        flat = algorithm.flat
    sizes = Sizes(theta=flat.theta.numel(), phi=flat.phi.numel(), fakes=4 * 16, batch=4)
    for t, (wide, narrow) in enumerate(zip(lines["float32"], lines["bfloat16"], strict=True)):
        payload = algorithm.payload_of_round(t, sizes)
        assert narrow["bytes_down"] == 2 * payload.down * len(UNEQUAL)
        assert narrow["bytes_up"] == 2 * payload.up * len(UNEQUAL)
        for key in wide:
            if key.startswith("bytes"):
                assert wide[key] == 2 * narrow[key], key


def test_rounding_cannot_lengthen_a_clipped_update(comm):
    """dp_fedavg_gan: ε holds for updates of at most C, as the server receives them."""
    link = Link(comm)
    config = narrow_config(
        precision="float32",
        algorithm={"name": "dp_fedavg_gan", "clip": 0.002, "noise": 0.0},
    )
    algorithm = toy_algorithm(link, config, toy_shards([8] * link.device_ranks))
    received = []
    average = link.average

    def watch(rows, into):
        received.append(rows.clone())
        average(rows, into)

    link.average = watch
    play(algorithm, 5)
    for rows in received:
        arrived = torch.from_numpy(oracle.to_bfloat16(rows.numpy())).double()
        longest = 0.002 / link.device_ranks
        assert arrived.norm() <= longest
        assert link.is_server or arrived.norm() > 0.98 * longest


def taken(act) -> int:
    """Bytes of torch's arrays that are new while it acts, in all, or of numpy's, at their peak."""
    by_torch = allocated(act)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    act()
    by_numpy = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return max(by_torch, by_numpy)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("average", ["reduce", "gather"])
def test_a_rounds_traffic_allocates_nothing_once_warm(comm, transport, dtype, average):
    """Downlink, uplink with its shares, average: vectors of 800 kB, and nothing of that order is
    new."""
    link = Link(comm, transport=transport)
    networks = (nn.Linear(1, 100_000, bias=False), nn.Linear(200_000, 1, bias=False))
    config = narrow_config(
        dtype, dtype != "float32", precision="float32", link={"average": average}
    )
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL), networks=networks)
    flat, uplink = algorithm.flat, algorithm.uplink

    def act():
        link.broadcast(flat.gan)
        uplink.clear()
        for device, share in algorithm.participants(0):
            uplink.restore()
            device.optimizer.step()
            uplink.add(device, share)
        uplink.finish()
        link.average(uplink.rows, into=flat.discriminator)

    act()
    assert taken(act) < 50_000
    assert taken(lambda: flat.phi.detach().clone()) > 400_000  # the measure measures
    assert taken(lambda: np.ones(100_000)) > 400_000
    link.barrier()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_vectors_change_places_whole(comm, dtype):
    """Too long to be buffered: what leaves must not be overwritten by what comes."""
    link = Link(comm)
    link.configure(LinkConfig(wire_dtype=dtype))
    to = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
    mine = {} if link.is_server else {link.rank: torch.full((4_000_000,), float(link.rank))}
    for turn in range(1, 4):
        link.permute(mine, to)
        for k, vector in mine.items():
            expected = (k - turn - 1) % (link.size - 1) + 1
            assert (vector == expected).all()
