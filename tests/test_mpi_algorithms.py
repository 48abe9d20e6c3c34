"""What the other algorithms' rounds must be: ranks equal a plain loop over devices, and the
sentences of their papers."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import oracle_algorithms as oracle
import pytest
import torch
from test_mpi_rounds import UNEQUAL, assert_close, link_of, make_first, oracle_shares, trained
from torch import nn
from toys import (
    NZ,
    conditional_networks,
    play,
    through_a_file,
    toy_algorithm,
    toy_config,
    toy_histogram,
    toy_networks,
    toy_shards,
    vectors,
)

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Sizes
from fedgan_mpi.algorithms.fegan import kl_weights, mean_discrepancy
from fedgan_mpi.algorithms.mdgan import derangement
from fedgan_mpi.algorithms.uagan import odds, softmax_weights
from fedgan_mpi.cluster.link import AgreedError, Link
from fedgan_mpi.learning.steps import Batch, feedback, logits_and_slopes
from fedgan_mpi.shards import Shard

pytestmark = pytest.mark.mpi(min_size=3)

FEDERATED = [name for name in ALGORITHMS if name != "centralized"]

# ------------------------------------------------------------ the oracle: ranks ≡ a plain loop

OPTIONS = {
    "fedgan": {},
    "fedgan sgd": {"training": {"optimizer": "sgd", "discriminator_lr": 0.1, "generator_lr": 0.1}},
    "fedgan alternating": {"algorithm": {"local_update": "alternating"}},
    "fedgan local": {"algorithm": {"batchnorm": "local"}},
    "fedgan reset": {"algorithm": {"moments": "reset"}},
    "fedgan fl_gan": {
        "algorithm": {"preset": "fl_gan", "epochs": 2},
        "training": {"discriminator_steps": 1},
    },
    "fedgan two in turn": {"participation": {"policy": "round_robin", "count": 2}},
    "fedgan lsgan": {"training": {"loss": "lsgan"}},
    "fedgan conditional": {"model": {"conditional": True}},
    "fedgan wgan-gp": {"training": {"loss": "wgan-gp"}},
    "fedgan wgan-gp alternating": {
        "training": {"loss": "wgan-gp"},
        "algorithm": {"local_update": "alternating"},
    },
    "fegan": {},
    "fegan up": {"algorithm": {"kl_sign": 1}},
    "fegan balanced": {"participation": {"policy": "balanced", "count": 2}},
    "fegan ifl": {"algorithm": {"preset": "ifl"}},
    "fegan ifl gather": {"algorithm": {"preset": "ifl"}, "link": {"average": "gather"}},
    "mdgan": {},
    "mdgan one batch": {"algorithm": {"fake_batches": 1}},
    "mdgan three batches": {"algorithm": {"fake_batches": 3}},
    "mdgan no swap": {"algorithm": {"epochs": 0}},
    "mdgan reset": {"algorithm": {"moments": "reset"}},
    "mdgan three in turn": {"participation": {"policy": "round_robin", "count": 3}},
    "mdgan hinge": {"training": {"loss": "hinge"}},
    "mdgan conditional": {"model": {"conditional": True}},
    "uagan": {},
    "uagan mean": {"algorithm": {"mode": "mean"}},
    "uagan max": {"algorithm": {"mode": "max"}},
    "uagan softmax": {"algorithm": {"mode": "softmax", "sharpness": 3.0}},
    "uagan uniform": {"algorithm": {"shares": "uniform"}},
    "uagan saturating": {"training": {"loss": "saturating"}},
    "uagan hinge": {"training": {"loss": "hinge"}, "algorithm": {"mode": "max"}},
    "uagan two at random": {"participation": {"policy": "random", "count": 2}},
    "uagan conditional": {"model": {"conditional": True}},
    "uagan wgan-gp": {"training": {"loss": "wgan-gp"}, "algorithm": {"mode": "mean"}},
    "dp_fedavg_gan": {"algorithm": {"clip": 0.002}},
    "dp_fedavg_gan loud": {"algorithm": {"clip": 0.01, "noise": 3.0}},
    "dp_fedavg_gan average": {"algorithm": {"clip": 0.001, "noise": 0.0, "batchnorm": "average"}},
    "dp_fedavg_gan two in turn": {"participation": {"policy": "round_robin", "count": 2}},
    "dp_fedavg_gan conditional": {"model": {"conditional": True}},
}


def configured(case: str):
    """(config, networks of toys) of a case; wgan-gp and classes go without BatchNorm."""
    name, changes = case.split()[0], copy.deepcopy(OPTIONS[case])
    changes["algorithm"] = {"name": name, **changes.get("algorithm", {})}
    if changes.get("training", {}).get("loss") == "wgan-gp":
        changes["model"] = {"discriminator_norm": "none"}
    conditional = changes.get("model", {}).get("conditional", False)
    batchnorm = "model" not in changes
    return toy_config(**changes), (lambda: conditional_networks()) if conditional else (
        lambda: toy_networks(batchnorm)
    )


def balanced_shares(config, shards):
    """FeGAN's balanced rounds, written once more: t -> devices."""
    histograms = {k: toy_histogram(s) for k, s in shards.items()}
    waiting, seen, rounds = list(shards), [0, 0, 0], []
    for _ in range(10):
        chosen: list[int] = []
        for _ in range(config.participation.count):
            free = [k for k in waiting if k not in chosen]
            held = [c for c in range(3) if any(histograms[k][c] for k in free)]
            rare = min(held, key=lambda c: (seen[c], c))
            pick = next(k for k in free if histograms[k][rare])
            chosen.append(pick)
            seen = [a + b for a, b in zip(seen, histograms[pick], strict=True)]
            waiting = [k for k in waiting if k != pick] + [pick]
        rounds.append(sorted(chosen))
    return lambda t: rounds[t]


@pytest.mark.parametrize("case", OPTIONS)
def test_ranks_equal_a_plain_loop_over_devices(comm, case):
    config, networks = configured(case)
    shards = toy_shards(UNEQUAL)
    link = Link(comm)
    algorithm = toy_algorithm(link, config, shards, networks=networks())
    rounds = 6  # mdgan swaps after five, or two
    play(algorithm, rounds)

    G, D = networks()
    name = config.algorithm.name
    if config.participation.policy == "balanced":
        present = balanced_shares(config, shards)
    else:
        of_round = oracle_shares(config, UNEQUAL)
        present = lambda t: sorted(of_round(t))  # noqa: E731
    arguments = (G, D, shards, config, rounds)
    if name in ("fedgan", "fegan"):
        histograms = {k: np.array(toy_histogram(s)) for k, s in shards.items()}

        def shares(t, players):
            if name == "fedgan":
                return of_round(t)
            if config.algorithm.preset == "ifl" and players is not None:
                return oracle.ifl_shares(players)
            return oracle.kl_shares(histograms, config.algorithm.kl_sign, present(t))

        expected = oracle.fedgan(*arguments, shares, NZ)
    elif name == "mdgan":
        expected = oracle.mdgan(*arguments, present, NZ)
    elif name == "uagan":
        expected = oracle.uagan(*arguments, of_round, NZ)
    else:
        expected = oracle.dp_fedavg_gan(*arguments, present, NZ)
    expected_g, expected_d, players = expected

    pair = algorithm.node.pair
    if link.is_server:
        for network, states in ((pair.G, expected_g), (pair.D, expected_d)):
            for key, value in network.state_dict().items():
                local = config.algorithm.statistics_rule == "local" and "running" in key
                if value.is_floating_point() and not local:
                    assert_close(value, states[key])
    if config.algorithm.method.devices_keep_discriminator:
        for device in algorithm.node.devices:
            flat, own = pair.flat, device.own[0]
            flat.whole_discriminator.copy_(own)
            for key, value in pair.D.state_dict().items():
                if value.is_floating_point():
                    assert_close(value, players[device.index].D.state_dict()[key])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fedgan", "fedgan alternating"),
        ("fedgan", "fedgan reset"),
        ("fedgan", "fedgan fl_gan"),
        ("fegan", "fegan up"),
        ("fegan", "fegan ifl"),
        ("mdgan", "mdgan no swap"),
        ("mdgan", "mdgan three batches"),
        ("uagan", "uagan mean"),
        ("uagan mean", "uagan max"),
        ("uagan mean", "uagan softmax"),
        ("uagan", "uagan uniform"),
        ("dp_fedavg_gan", "dp_fedavg_gan loud"),
    ],
)
def test_an_option_changes_the_generator(comm, one, other):
    """Options that changed nothing would be tested by nothing."""
    link = Link(comm)
    results = []
    for case in (one, other):
        config, networks = configured(case)
        results.append(trained(link, config, toy_shards(UNEQUAL), 7, networks=networks()))
    if link.is_server:
        assert (results[0][0] - results[1][0]).abs().max() > 1e-9


# ------------------------------------------------------------ every algorithm alike


@pytest.mark.parametrize("name", FEDERATED)
def test_gather_is_bitwise_the_same_for_any_number_of_ranks(comm, name):
    """Float32, five devices on 2, 3, … ranks, on every road, some absent."""
    changes = (
        {"algorithm": {"name": name}}
        if name != "fegan"
        else {"algorithm": {"name": name, "preset": "ifl"}}
    )
    config = toy_config(
        **changes,
        link={"average": "gather", "wire_dtype": "float32"},
        training={"precision": "float32"},
        participation={"policy": "round_robin", "count": 3},
    )
    results = []
    for ranks in range(2, comm.size + 1):
        for road in ("mpi", "naps", "mailbox"):
            link = link_of(comm, ranks, road=road)
            if link is not None:
                algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
                losses = [(line["d_loss"], line["g_loss"]) for line in play(algorithm, 6)]
                results.append((*vectors(algorithm), losses))
            comm.barrier()
    if comm.rank == 0:
        assert len(results) == 3 * (comm.size - 1)
        for theta, phi, losses in results[1:]:
            assert torch.equal(theta, results[0][0]) and torch.equal(phi, results[0][1])
            assert losses == results[0][2]


@pytest.mark.parametrize("name", FEDERATED)
def test_a_resumed_run_is_the_uninterrupted_one_bitwise(comm, name):
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, participation={"policy": "random", "count": 3})
    whole = toy_algorithm(link, config, toy_shards(UNEQUAL))
    lines = play(whole, 6)
    before = toy_algorithm(link, config, toy_shards(UNEQUAL))
    play(before, 3)
    resumed = toy_algorithm(link, config, toy_shards(UNEQUAL))
    for player, fresh in zip(
        [before.server, *before.node.devices], [resumed.server, *resumed.node.devices], strict=True
    ):
        if player is not None:
            fresh.load_state(through_a_file(player.state()))
    again = play(resumed, 3, start=3, images_seen=lines[2]["images_seen"])
    for line, expected in zip(again, lines[3:], strict=True):
        measured = {key for key in line if "seconds" in key}
        assert {k: line[k] for k in line.keys() - measured} == {
            k: expected[k] for k in line.keys() - measured
        }
    if link.is_server:
        for ours, theirs in zip(vectors(whole), vectors(resumed), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FEDERATED)
def test_an_absent_device_has_no_part_in_the_round(comm, name):
    """Its data may be anything, its moments and own D NaN; and its state stays where it was."""
    link = Link(comm)
    config = toy_config(
        algorithm={"name": name}, participation={"policy": "round_robin", "count": 2}
    )
    shards = toy_shards([8, 8, 8, 8])
    images = 255 - shards[3].images
    poisoned = {**shards, 3: Shard(**{**vars(shards[3]), "images": images})}
    honest = toy_algorithm(link, config, shards)
    other = toy_algorithm(link, config, poisoned)
    for device in other.node.devices:
        if device.index in (3, 4):
            for optimizer in device._optimizers():
                optimizer.first.fill_(math.nan)
            for own in device.own:
                own.fill_(math.nan)
    before = {d.index: copy.deepcopy(d.state()) for d in honest.node.devices}
    lines = [play(algorithm, 1)[0] for algorithm in (honest, other)]
    assert lines[0]["d_loss"] == lines[1]["d_loss"] and lines[0]["g_loss"] == lines[1]["g_loss"]
    if link.is_server:
        for ours, theirs in zip(vectors(honest), vectors(other), strict=True):
            assert torch.equal(ours, theirs)
    for device in honest.node.devices:
        state, old = device.state(), before[device.index]
        moved = state["drawn"] != old["drawn"]
        moved |= not torch.equal(state["noise_stream"], old["noise_stream"])
        for mine, theirs in zip(state["moments"], old["moments"], strict=True):
            moved |= not torch.equal(mine["first"], theirs["first"])
        assert moved == (device.index in (1, 2))
    # In the next round they take part, and it shows: their updates are refused, and nobody is left.
    play(honest, 1, start=1)
    with pytest.raises(AgreedError, match=r"not finite|is nan|no device's update is finite"):
        play(other, 1, start=1)


def break_device(algorithm, index):
    for device in algorithm.node.devices:
        if device.index == index:
            device.optimizer.first.fill_(math.nan)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "ren"},
        {"name": "ren", "schedule": "parallel", "batchnorm": "recalibrate"},
        {"name": "ren", "batchnorm": "local"},
        {"name": "fedgan"},
        {"name": "fegan"},
        {"name": "fegan", "preset": "ifl"},
        {"name": "mdgan", "fake_batches": 1, "epochs": 0},
        {"name": "uagan"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_skipped_device_is_an_absent_one(comm, settings):
    """Two rounds in which what device 2 computes is NaN, against two in which nobody asked it."""
    link = Link(comm)
    config = toy_config(algorithm=settings, training={"non_finite": "skip"})
    shards = toy_shards(UNEQUAL)
    broken, without = (toy_algorithm(link, config, shards) for _ in range(2))
    everyone = broken.node.participation.participants(0)
    without.node.participation.participants = lambda t: [k for k in everyone if k != 2]
    break_device(broken, 2)
    before = {device.index: copy.deepcopy(device.own) for device in broken.node.devices}
    for line, expected in zip(play(broken, 2), play(without, 2), strict=True):
        assert line["skipped"] == [2] and "skipped" not in expected
        assert line["participants"] == everyone
        for key in ("d_loss", "g_loss"):
            assert line[key] == pytest.approx(expected[key], rel=1e-9)
    if link.is_server:
        for ours, theirs in zip(vectors(broken), vectors(without), strict=True):
            assert_close(ours, theirs)
    for device in broken.node.devices:
        if device.index == 2:
            assert device.optimizer.first.isnan().all()  # as it was
            assert all(map(torch.equal, device.own, before[2]))
        else:
            assert device.optimizer.first.isfinite().all()


@pytest.mark.parametrize("name", FEDERATED)
def test_a_device_that_is_skipped_once_comes_back(comm, name):
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    for device in algorithm.node.devices:
        if device.index == 2:
            take, moments = device.real_batch, copy.deepcopy(device.optimizer.state())
            device.real_batch = lambda take=take: Batch(take().data * math.inf, None)
    first = play(algorithm, 1)[0]
    assert first["skipped"] == [2]
    for device in algorithm.node.devices:
        if device.index == 2:
            assert torch.equal(device.optimizer.second, moments["second"])
            device.real_batch = take
            device.forget()  # it may have looked at an infinite batch already
    assert "skipped" not in play(algorithm, 1, start=1)[0]
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()


@pytest.mark.parametrize("name", FEDERATED)
def test_skip_without_a_cause_changes_no_bit(comm, name):
    link = Link(comm)
    runs = []
    for choice in ("stop", "skip"):
        config = toy_config(algorithm={"name": name}, training={"non_finite": choice})
        runs.append(trained(link, config, toy_shards(UNEQUAL), 2))
    if link.is_server:
        assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("name", FEDERATED)
def test_what_is_not_finite_stops_all_ranks_after_the_same_round(comm, name):
    link = Link(comm)
    algorithm = toy_algorithm(link, toy_config(algorithm={"name": name}), toy_shards([8, 8, 8, 8]))
    play(algorithm, 1)
    for device in algorithm.node.devices:
        device.optimizer.first.fill_(math.nan)
    with pytest.raises(AgreedError, match=r"in round 2; start anew|after round 2; start anew"):
        play(algorithm, 1, start=1)
    link.barrier()  # all are here


def test_the_servers_own_failure_stops_in_any_case(comm):
    link = Link(comm)
    config = toy_config(training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    if link.is_server:
        algorithm.server.optimizer.first.fill_(math.nan)
    with pytest.raises(AgreedError, match=r"parameters are not finite after round 1|g_loss of the"):
        play(algorithm, 1)


@pytest.mark.parametrize("name", FEDERATED)
def test_bytes_equal_the_formulas(comm, name):
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, participation={"policy": "random", "count": 3})
    lines = play(toy_algorithm(link, config, toy_shards(UNEQUAL)), 6)
    G, D = toy_networks()
    theta, phi = (sum(p.numel() for p in network.parameters()) for network in (G, D))
    b, d, q, N = 4, 16, 8, 3
    down, up = {
        "ren": (theta + phi, phi),
        "dp_fedavg_gan": (theta + phi, phi),
        "fedgan": (theta + phi, theta + phi),
        "fegan": (theta + phi, theta + phi),
        "mdgan": (2 * b * d, b * d),
        "uagan": (b * d, b * (d + 1)),
    }[name]
    swaps = 0
    for line in lines:
        assert line["bytes_down"] == q * down * N
        swapped = name == "mdgan" and line["bytes_up"] != q * up * N
        swaps += swapped
        assert line["bytes_up"] == q * (up + phi * swapped) * N
        statistics_g, statistics_d = 2 * 16, 2 * 8
        more = {"ren": (statistics_g + statistics_d, statistics_d)}
        more["fedgan"] = more["fegan"] = (statistics_g + statistics_d,) * 2
        more["mdgan"] = (0, statistics_d * swapped)
        more_down, more_up = more.get(name, (0, 0))
        assert line["bytes_down_other"] == q * more_down * N
        assert line["bytes_up_other"] == q * more_up * N
    # 52 images, 12 a round: every fourth round D's have seen all.
    assert swaps == (1 if name == "mdgan" else 0)


def test_uplink_of_fedgan_is_greater_by_the_generator(comm):
    """1 + |G|/|D|, for the 64 px pair 2.2933."""
    sizes = Sizes(theta=3_576_704, phi=2_765_568, fakes=64 * 12288, batch=64)
    payloads = {name: ALGORITHMS[name].payload(sizes) for name in ALGORITHMS}
    ratio = payloads["fedgan"].up / payloads["ren"].up
    assert ratio == pytest.approx(1 + 3_576_704 / 2_765_568) and round(ratio, 4) == 2.2933
    assert payloads["fedgan"].down == payloads["ren"].down
    assert (payloads["mdgan"].down, payloads["mdgan"].up) == (2 * 64 * 12288, 64 * 12288)


# ------------------------------------------------------------ fedgan


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"algorithm": {"local_update": "alternating"}}, False),
        ({"training": {"optimizer": "adam"}}, False),
        ({"training": {"discriminator_steps": 2}}, False),
        ({"algorithm": {"shares": "uniform"}}, False),
    ],
    ids=["sgd", "alternating", "adam", "two steps", "wrong shares"],
)
def test_one_averaged_step_is_a_simultaneous_step_on_the_union_batch(comm, change, equal):
    """n = 1, SGD, shares by batch size, no BatchNorm; and not otherwise."""
    link = Link(comm)
    config = toy_config(
        algorithm={"name": "fedgan", "shares": "batch", **change.get("algorithm", {})},
        training={
            "optimizer": "sgd",
            "discriminator_lr": 0.1,
            "generator_lr": 0.1,
            "discriminator_steps": 1,
            "batch_size": 8,
            **change.get("training", {}),
        },
    )
    shards = toy_shards([9, 3, 5])
    result = trained(link, config, shards, 1, batchnorm=False)
    if not link.is_server:
        return
    G, D = toy_networks(batchnorm=False)
    players = [oracle.Player(G, D, config, k, s, None, NZ) for k, s in shards.items()]
    real = torch.cat([p.draw_real()[0] for p in players])
    z = torch.cat([p.draw_noise(p.batches.size)[0] for p in players])
    bce = nn.functional.binary_cross_entropy_with_logits
    fake = G(z)
    ones, zeros = torch.ones(len(real)).double(), torch.zeros(len(real)).double()
    d_loss = bce(D(real), ones) + bce(D(fake.detach()), zeros)
    d = torch.autograd.grad(d_loss, list(D.parameters()))
    g = torch.autograd.grad(bce(D(fake), ones), list(G.parameters()))
    gaps = []
    for vector, network, gradient in ((result[0], G, g), (result[1], D, d)):
        expected = [p - 0.1 * v for p, v in zip(network.parameters(), gradient, strict=True)]
        gaps.append((vector - torch.cat([e.flatten() for e in expected])).abs().max().item())
    assert (max(gaps) < 1e-14) == equal, gaps
    assert equal or max(gaps) > 1e-6


def test_identical_devices_equal_one_device(comm):
    link = Link(comm)
    config = toy_config(algorithm={"name": "fedgan"})
    shards = toy_shards([11] * link.device_ranks, same=True)
    algorithm = toy_algorithm(link, config, shards)
    for device in algorithm.node.devices:
        make_first(device, shards[1])
    play(algorithm, 4)
    alone = link_of(comm, 2)
    single = None
    if alone is not None:
        single = trained(alone, config, toy_shards([11], same=True), 4)
    other = trained(link, config, shards, 4)  # with streams of their own
    if link.is_server:
        for actual, expected in zip(vectors(algorithm), single, strict=True):
            assert_close(actual, expected)
        assert not torch.allclose(other[1], single[1], rtol=1e-6, atol=0)


def test_averaged_moments_of_one_device_equal_persistent_ones(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    results = [
        trained(
            link, toy_config(algorithm={"name": "fedgan", "moments": moments}), toy_shards([9]), 4
        )
        for moments in ("persistent", "averaged", "reset")
    ]
    if link.is_server:
        persistent, averaged, reset = results
        assert torch.equal(persistent[0], averaged[0]) and torch.equal(persistent[1], averaged[1])
        assert not torch.equal(persistent[0], reset[0])


def test_recalibrate_keeps_the_variance_between_devices_in_both_networks(comm):
    """Against the definition: mean of variances plus variance of means / a, from local runs."""
    link = Link(comm)
    shards = toy_shards([8, 8, 8])
    steps = 2
    algorithm_options = {"name": "fedgan", "shares": "uniform"}
    local = toy_config(algorithm={**algorithm_options, "batchnorm": "local"})
    own = toy_algorithm(link, local, shards)
    play(own, 1)
    found = {}
    for choice in ("average", "recalibrate"):
        config = toy_config(algorithm={**algorithm_options, "batchnorm": choice})
        algorithm = toy_algorithm(link, config, shards)
        play(algorithm, 1)
        flat = algorithm.flat
        found[choice] = [
            flat.statistics_of_generator.chunk(2)[1].clone(),
            flat.statistics_of_discriminator.chunk(2)[1].clone(),
        ]
    for place, size, passes in ((1, 16, steps), (0, 8, 3 * steps)):  # own: of D, then of G
        kept = np.zeros((3, 2 * size))
        for device in own.node.devices:
            kept[device.index - 1] = device.own[place].numpy()
        kept = torch.from_numpy(link.sum(kept.ravel()).reshape(kept.shape))
        means, variances = kept[:, :size], kept[:, size:]
        a = 1 - 0.9**passes
        network = 1 - place
        if link.is_server:
            between = means.var(0, correction=0)
            assert_close(found["average"][network], variances.mean(0))
            assert_close(found["recalibrate"][network], variances.mean(0) + between / a)
            assert between.max() > 1e-6


# ------------------------------------------------------------ mdgan


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_swap_leaves_no_discriminator_where_it_was(comm, count):
    devices = list(range(3, 3 + count))
    stream = np.random.default_rng(0)
    for _ in range(50):
        to = derangement(devices, stream)
        assert sorted(to) == sorted(to.values()) == devices
        assert all(k != receiver for k, receiver in to.items())
    if count == 2:
        assert to == {3: 4, 4: 3}


def test_all_derangements_are_equally_likely(comm):
    """Chi-square over the nine of four devices."""
    if comm.rank > 0:
        return
    stream, tries = np.random.default_rng(1), 9000
    drawn = [tuple(derangement([1, 2, 3, 4], stream).values()) for _ in range(tries)]
    all_of_them = [
        p
        for p in itertools.permutations([1, 2, 3, 4])
        if all(a != b for a, b in zip(p, [1, 2, 3, 4], strict=True))
    ]
    counts = np.array([drawn.count(p) for p in all_of_them])
    assert counts.sum() == tries and len(counts) == 9
    assert ((counts - tries / 9) ** 2 / (tries / 9)).sum() < 26.1  # 99.9 % of chi-square(8)


@pytest.mark.parametrize("road", ["mpi", "naps", "mailbox"])
def test_permute_moves_every_vector_once(comm, road):
    link = Link(comm, road=road)
    devices = 7
    mine = [k for k in range(1, devices + 1) if not link.is_server and link.rank_of(k) == link.rank]
    vectors_here = {k: torch.full((1000,), float(k)) for k in mine}
    to = {k: k % devices + 1 for k in range(1, devices + 1)}
    link.permute(vectors_here, to)
    for k, vector in vectors_here.items():
        assert (vector == (k - 2) % devices + 1).all()


@pytest.mark.parametrize("road", ["mpi", "naps", "mailbox"])
def test_scatter_and_gather_reach_the_device(comm, road):
    link = Link(comm, road=road)
    present = [1, 3, 4, 6]
    mine = present if link.is_server else [k for k in present if link.rank_of(k) == link.rank]
    rows = {k: torch.zeros(70_000, dtype=torch.float64) for k in mine}
    if link.is_server:
        for k, row in rows.items():
            row.fill_(k)
    link.scatter(rows)
    for k, row in rows.items():
        assert (row == k).all()
        row.mul_(10)
    if link.is_server:
        for row in rows.values():
            row.zero_()
    link.gather(rows)
    assert all((row == 10 * k).all() for k, row in rows.items())
    assert link.bytes_down == link.bytes_up == (70_000 * 8 if mine else 0)


def test_one_device_swaps_with_nobody(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    config = toy_config(algorithm={"name": "mdgan"})
    lines = play(toy_algorithm(link, config, toy_shards([8])), 4)
    assert len({line["bytes_up"] for line in lines}) == 1


# ------------------------------------------------------------ uagan


def test_odds_of_optimal_discriminators_are_those_of_the_mixture(comm):
    """D_k = p_k/(p_k + q) gives p/(p + q), p = Σ π_k p_k; an average of D's does not."""
    x = np.linspace(-4, 4, 81)
    pi = np.array([0.2, 0.5, 0.3])
    p = np.exp(-((x - np.array([[-2], [0.5], [3]])) ** 2) / 2) / math.sqrt(2 * math.pi)
    q = np.exp(-(x**2) / 8) / math.sqrt(8 * math.pi)
    logits = torch.from_numpy(np.log(p / q))
    D = torch.sigmoid(odds(logits, torch.from_numpy(pi)[:, None].log())).numpy()
    mixture = pi @ p
    assert np.abs(D - mixture / (mixture + q)).max() < 1e-12
    assert np.abs(pi @ (p / (p + q)) - mixture / (mixture + q)).max() > 0.1


def test_odds_lie_between_the_logits_and_do_not_overflow(comm):
    stream = torch.Generator().manual_seed(0)
    logits = 300 * torch.randn(5, 100, generator=stream, dtype=torch.float64)
    pi = torch.rand(5, 1, generator=stream, dtype=torch.float64)
    log_pi = (pi / pi.sum()).log()
    value = odds(logits, log_pi)
    assert value.isfinite().all()
    assert (value <= logits.amax(0) + 1e-9).all() and (value >= logits.amin(0) - 1e-9).all()
    assert (value >= (logits + log_pi).amax(0) - 1e-9).all()


def test_softmax_weights_run_from_mean_to_max(comm):
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    assert_close(softmax_weights(logits, 0.0), torch.full((2, 2), 0.5, dtype=torch.float64))
    sharp = softmax_weights(logits, 1e4)
    assert_close(sharp, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))


def test_equal_discriminators_give_every_algorithm_the_same_generator_gradient(comm):
    """All modes of uagan, mdgan's feedback, and a plain step through D."""
    config = toy_config(algorithm={"name": "uagan"})
    algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL), batchnorm=False)
    G, D = toy_networks(batchnorm=False)
    loss = algorithm.node.pair.loss
    z = torch.randn(6, NZ, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss.generator(D(G(z))).mean().backward()
    plain = torch.cat([p.grad.flatten() for p in G.parameters()])

    def through(gradient):
        G.zero_grad()
        G(z).backward(gradient)
        return torch.cat([p.grad.flatten() for p in G.parameters()])

    fake = Batch(G(z).detach())
    _, gradient = feedback(D, loss, fake)
    assert_close(through(gradient), plain)
    logits, slopes = logits_and_slopes(D, fake)
    pi = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)[:, None].log()
    for mode in ("mean", "max", "softmax", "odds"):
        algorithm.config = toy_config(algorithm={"name": "uagan", "mode": mode}).algorithm
        table = logits.repeat(5, 1).requires_grad_()
        (weights,) = torch.autograd.grad(algorithm.generator_loss(table, pi), table)
        mixed = (weights[..., None, None, None] * slopes).sum(0)
        assert_close(through(mixed), plain)


# ------------------------------------------------------------ dp_fedavg_gan


@pytest.mark.parametrize("moments", ["persistent", "reset"])
def test_without_clipping_and_noise_it_is_the_papers_serial_schedule(comm, moments):
    link = Link(comm)
    off = {"name": "dp_fedavg_gan", "clip": 0.0, "noise": 0.0, "batchnorm": "average"}
    shards = toy_shards(UNEQUAL)
    private = toy_config(algorithm={**off, "moments": moments})
    serial = toy_config(algorithm={"shares": "uniform", "moments": moments})
    by_data = toy_config(algorithm={"moments": moments})
    clipped = toy_config(algorithm={**off, "clip": 1e-3, "moments": moments})
    results = [trained(link, config, shards, 4) for config in (private, serial, by_data, clipped)]
    if link.is_server:
        for ours, theirs in zip(results[0], results[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
        assert (results[0][1] - results[2][1]).abs().max() > 1e-6
        assert (results[0][1] - results[3][1]).abs().max() > 1e-6


def test_no_update_is_longer_than_the_clip(comm):
    link = Link(comm)
    clip = 1e-3
    config = toy_config(
        algorithm={"name": "dp_fedavg_gan", "clip": clip, "noise": 0.0},
        participation={"policy": "round_robin", "count": 1},
    )
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    before = vectors(algorithm)[1]
    for t in range(5):
        play(algorithm, 1, start=t)
        after = vectors(algorithm)[1]
        if link.is_server:  # a mean of one
            assert (after - before).norm().item() == pytest.approx(clip, rel=1e-9)
        before = after


def test_noise_is_as_loud_as_it_says(comm):
    """z C / N on D, and nothing on G in that round's average."""
    link = Link(comm)
    results = []
    clip, noise, count = 0.5, 2.0, 3
    for z in (0.0, noise):
        config = toy_config(
            algorithm={"name": "dp_fedavg_gan", "clip": clip, "noise": z, "batchnorm": "local"},
            training={"generator_steps": 0},
            participation={"policy": "round_robin", "count": count},
        )
        results.append(trained(link, config, toy_shards(UNEQUAL), 1))
    if link.is_server:
        difference = results[1][1] - results[0][1]
        assert torch.equal(results[0][0], results[1][0])
        expected = noise * clip / count
        bound = 4 / math.sqrt(2 * len(difference))
        assert difference.std().item() == pytest.approx(expected, rel=bound)
        assert abs(difference.mean().item()) < 4 * expected / math.sqrt(len(difference))


def test_a_device_with_a_broken_update_counts_as_absent(comm):
    """The others' sum is still divided by N, and the run goes on."""
    link = Link(comm)
    config = toy_config(algorithm={"name": "dp_fedavg_gan", "clip": 0.0, "noise": 0.0})
    shards = toy_shards([8, 8, 8, 8])
    broken = toy_algorithm(link, config, shards)
    whole = toy_algorithm(link, config, shards)
    start = vectors(whole)[1]
    for device in broken.node.devices:
        if device.index == 2:
            device.optimizer.first.fill_(math.nan)
    line = play(broken, 1)[0]
    assert math.isfinite(line["d_loss"])
    updates = np.zeros((4, len(start)))
    for device in whole.node.devices:
        whole.flat.phi.data.copy_(start)
        device.train_discriminator(0)
        updates[device.index - 1] = vectors(whole)[1].numpy() - start.numpy()
    updates = link.sum(updates.ravel()).reshape(updates.shape)
    if link.is_server:
        expected = start.numpy() + (updates[0] + updates[2] + updates[3]) / 4
        assert_close(vectors(broken)[1], torch.from_numpy(expected))
    assert play(broken, 1, start=1)[0]["d_loss"] is not None
    if link.is_server:
        assert broken.flat.vector.isfinite().all()


# ------------------------------------------------------------ fegan


def test_equal_histograms_give_equal_shares(comm):
    for sign in (-1, 1):
        weights = kl_weights([[4, 2, 2], [8, 4, 4], [400, 200, 200]], sign)
        assert weights == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)


def test_shares_follow_the_divergence_and_its_sign(comm):
    histograms = [[10, 10, 10], [30, 0, 0], [0, 20, 20]]
    down, up = kl_weights(histograms, -1), kl_weights(histograms, 1)
    assert np.argmax(down) == 0 and np.argmin(down) == 1
    assert np.argmax(up) == 1 and np.argmin(up) == 0
    moved = kl_weights([histograms[2], histograms[0], histograms[1]], -1)
    assert moved == pytest.approx([down[2], down[0], down[1]])
    shares = oracle.kl_shares({k: np.array(h) for k, h in enumerate(histograms)}, -1, [0, 1, 2])
    assert list(shares.values()) == pytest.approx([w / sum(down) for w in down])


def test_discrepancy_of_equal_samples_is_nothing_and_of_far_ones_much(comm):
    stream = torch.Generator().manual_seed(0)
    one = torch.randn(40, 16, generator=stream, dtype=torch.float64)
    other = torch.randn(30, 16, generator=stream, dtype=torch.float64)
    assert mean_discrepancy(one, one) < 1e-7
    assert mean_discrepancy(one, other) < 0.3 < mean_discrepancy(one, other + 2)
    assert mean_discrepancy(one, other) == pytest.approx(oracle.mmd(one.numpy(), other.numpy()))


def test_balanced_rounds_visit_devices_of_one_class_each_in_turn(comm):
    """Distinct single classes and equal counts: every device once per K picks."""
    from fedgan_mpi.cluster.participation import Participation
    from fedgan_mpi.config import ParticipationConfig

    def make(histograms, count):
        return Participation(
            ParticipationConfig(policy="balanced", count=count),
            images=[sum(h) for h in histograms],
            batch_sizes=[1] * len(histograms),
            shares="uniform",
            seed=0,
            histograms=histograms,
        )

    single = make((7 * np.eye(6, dtype=int)).tolist(), 2)
    picks = [k for t in range(6) for k in single.participants(t)]
    assert sorted(picks[:6]) == sorted(picks[6:]) == [1, 2, 3, 4, 5, 6]
    # Any round may be asked first, as after a resume.
    assert make((7 * np.eye(6, dtype=int)).tolist(), 2).participants(4) == single.participants(4)

    # Four devices hold class 0, one holds class 1: it is asked in every round.
    skewed = make([[10, 0]] * 4 + [[0, 10]], 2)
    seen = np.zeros(2)
    for t in range(8):
        chosen = skewed.participants(t)
        assert len(set(chosen)) == 2 and 5 in chosen
        for k in chosen:
            seen += np.array([0, 10]) if k == 5 else np.array([10, 0])
    assert abs(seen[0] - seen[1]) <= 10
