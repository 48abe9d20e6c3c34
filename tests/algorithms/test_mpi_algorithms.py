"""What every algorithm's rounds must be: ranks equal a plain loop over devices, on any number of
ranks, resumed, and to the byte."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle_algorithms as oracle
import pytest
import torch
from rounds import FEDERATED, UNEQUAL, assert_close, link_of, oracle_shares, trained
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

from fedgan_mpi.algorithms.base import Sizes
from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.data import Shard

pytestmark = pytest.mark.mpi(min_size=3)

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

    pair = algorithm.rank_state.pair
    if link.is_server:
        for network, states in ((pair.G, expected_g), (pair.D, expected_d)):
            for key, value in network.state_dict().items():
                local = config.algorithm.statistics_rule == "local" and "running" in key
                if value.is_floating_point() and not local:
                    assert_close(value, states[key])
    if config.algorithm.traits.devices_keep_discriminator:
        for device in algorithm.rank_state.devices:
            flat, own = pair.flat, device.local.own[0]
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
        for transport in ("mpi", "polling", "shared_memory"):
            link = link_of(comm, ranks, transport=transport)
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
        [before.server, *before.rank_state.devices],
        [resumed.server, *resumed.rank_state.devices],
        strict=True,
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
    for device in other.rank_state.devices:
        if device.index in (3, 4):
            for optimizer in device.local.optimizers:
                optimizer.first.fill_(math.nan)
            for own in device.local.own:
                own.fill_(math.nan)
    before = {d.index: copy.deepcopy(d.state()) for d in honest.rank_state.devices}
    lines = [play(algorithm, 1)[0] for algorithm in (honest, other)]
    assert lines[0]["d_loss"] == lines[1]["d_loss"] and lines[0]["g_loss"] == lines[1]["g_loss"]
    if link.is_server:
        for ours, theirs in zip(vectors(honest), vectors(other), strict=True):
            assert torch.equal(ours, theirs)
    for device in honest.rank_state.devices:
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


def test_balanced_rounds_visit_devices_of_one_class_each_in_turn(comm):
    """Distinct single classes and equal counts: every device once per K picks."""
    from fedgan_mpi.config import ParticipationConfig
    from fedgan_mpi.federation.participation import Participation

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
