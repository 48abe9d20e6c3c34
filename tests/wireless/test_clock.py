"""Durations of whole rounds, algorithm by algorithm, against formulas written out here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from shannon import rate

from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.config import (
    AggregationConfig,
    AlgorithmConfig,
    Config,
    ModelConfig,
    ParticipationConfig,
    TrainingConfig,
    WirelessConfig,
)
from fedgan_mpi.errors import UserError
from fedgan_mpi.wireless.clock import Clock, make_clock
from fedgan_mpi.wireless.cost import CostModel, macs_per_second, payload_sizes
from fedgan_mpi.wireless.macs import Macs

IMAGES = [100, 300, 20]
SHAPE = (1, 8, 8)
THETA, PHI = 5000, 3000
MACS = Macs(
    generator_forward=1e6,
    discriminator_step=6e6,
    generator_step=5e6,
    feedback=2e6,
    generator_backward=2.5e6,
)
RATES, SERVER = (1e9, 2e9, 4e9), 5e9


def make(
    name="ren", *, algorithm=(), training=(), participation=(), aggregation=(), **wireless
) -> Clock:
    fixed_steps = name in ("fedgan", "fegan", "fess_gda", "mdgan", "uagan")
    steps = {} if fixed_steps else {"generator_steps": 3}
    config = Config(
        algorithm=AlgorithmConfig(name=name, **dict(algorithm)),
        training=TrainingConfig(
            **{"batch_size": 32, "generator_batch_size": 50, "discriminator_steps": 4, **steps,
               **dict(training)}
        ),
        participation=ParticipationConfig(**dict(participation)),
        aggregation=AggregationConfig(**dict(aggregation)),
        wireless=WirelessConfig(
            **{"device_macs_per_second": RATES, "server_macs_per_second": SERVER,
               "fading": "none", **wireless}
        ),
    )  # fmt: skip
    images = [sum(IMAGES)] if name == "centralized" else IMAGES
    if name == "centralized":
        wireless = replace(config.wireless, device_macs_per_second=(1e9,))
        config = replace(config, wireless=wireless)
    sizes = payload_sizes(config, SHAPE, THETA, PHI)
    return Clock(ALGORITHMS[name], CostModel(config=config, sizes=sizes, macs=MACS, images=images))


def transfers(clock: Clock, present=(1, 2, 3)):
    """Return functions for the seconds of a broadcast, a unicast delivery and an upload."""
    distances_m = {k: clock.cell.distances_m[k - 1] for k in present}
    count = len(present)

    def broadcast(numbers):
        return max(16 * numbers / rate(distances_m[k], 46, 10e6) for k in present)

    def deliver(k, numbers):
        return 16 * numbers / rate(distances_m[k], 46 - 10 * math.log10(count), 10e6 / count)

    def upload(k, numbers):
        return 16 * numbers / rate(distances_m[k], 24, 10e6 / count)

    return broadcast, deliver, upload


@pytest.mark.parametrize("present", [(1, 2, 3), (1, 3), (2,), (3,)])
def test_ren_takes_the_sum_or_the_longer_branch_by_schedule(present):
    serial, parallel = make(), make(algorithm={"schedule": "parallel"})
    broadcast, _, upload = transfers(serial, present)
    batches = {1: 32, 2: 32, 3: 20}
    device = {k: 4 * batches[k] * 7e6 / RATES[k - 1] for k in present}
    branch = max(device[k] + upload(k, PHI) for k in present)
    server, average = 3 * 50 * 5e6 / SERVER, len(present) * PHI / SERVER
    down = broadcast(THETA + PHI)
    assert serial.seconds(0, present) == pytest.approx(down + branch + average + server, rel=1e-12)
    expected = down + max(branch, server) + average
    assert parallel.seconds(0, present) == pytest.approx(expected, rel=1e-12)
    saved = serial.seconds(0, present) - parallel.seconds(0, present)
    assert saved == pytest.approx(min(branch, server), rel=1e-9)


@pytest.mark.parametrize("server", [1e7, 1e9, 1e10, 1e14])
def test_parallel_saves_the_shorter_branch(server):
    """Parallel is faster at any server speed, and equal if the server takes no steps."""
    steps = {"generator_steps": 3}
    serial, parallel = (
        make(
            algorithm={"schedule": schedule}, training=steps, server_macs_per_second=server
        ).seconds(0, [1, 2, 3])
        for schedule in ("serial", "parallel")
    )
    assert serial > parallel
    idle = [
        make(algorithm={"schedule": schedule}, training={"generator_steps": 0})
        for schedule in ("serial", "parallel")
    ]
    assert idle[0].seconds(0, [1, 2]) == idle[1].seconds(0, [1, 2])


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_fedgan_trains_and_sends_both_networks(update):
    clock = make("fedgan", algorithm={"local_update": update})
    broadcast, _, upload = transfers(clock)
    macs = 11e6 if update == "simultaneous" else 12e6  # an alternating step makes fakes twice
    batches = (32, 32, 20)
    branch = max(
        4 * batches[k - 1] * macs / RATES[k - 1] + upload(k, THETA + PHI) for k in (1, 2, 3)
    )
    expected = broadcast(THETA + PHI) + branch + 3 * (THETA + PHI) / SERVER
    assert clock.seconds(5, [1, 2, 3]) == pytest.approx(expected, rel=1e-12)
    for name in ("fegan", "fess_gda"):
        assert make(name).seconds(5, [1, 2, 3]) == make("fedgan").seconds(5, [1, 2, 3])


def test_fl_gan_takes_whole_epochs():
    options = {"preset": "fl_gan", "epochs": 2}
    clock = make("fedgan", algorithm=options, training={"discriminator_steps": 1})
    broadcast, _, upload = transfers(clock)
    steps, batches = (7, 19, 2), (32, 32, 20)  # ⌈2 · 100/32⌉, ⌈2 · 300/32⌉, 2 · 20/20
    branch = max(
        steps[k] * batches[k] * 11e6 / RATES[k] + upload(k + 1, THETA + PHI) for k in range(3)
    )
    expected = broadcast(THETA + PHI) + branch + 3 * (THETA + PHI) / SERVER
    assert clock.seconds(0, [1, 2, 3]) == pytest.approx(expected, rel=1e-12)


def test_mdgan_sends_fakes_and_gradients_and_sometimes_swaps():
    clock = make("mdgan", algorithm={"fake_batches": 2})
    _, deliver, upload = transfers(clock)
    images = 32 * 64  # numbers in a batch
    macs = 32 * (4 * 6e6 + 2e6)
    round = 2 * 32 * 3.5e6 / SERVER + max(
        deliver(k, 2 * images) + macs / RATES[k - 1] + upload(k, images) for k in (1, 2, 3)
    )
    swap = max(upload(k, PHI) for k in (1, 2, 3)) + max(deliver(k, PHI) for k in (1, 2, 3))
    times = [clock.seconds(t, [1, 2, 3]) for t in range(8)]
    due = [3, 7]  # 420 images, 96 per round
    expected = [round + (swap if t in due else 0.0) for t in range(8)]
    assert times == pytest.approx(expected, rel=1e-12)
    assert make("mdgan", algorithm={"epochs": 0}).seconds(3, [1, 2, 3]) == times[0]
    assert clock.seconds(3, [2]) < times[3] - swap / 2  # a single participant does not swap


def test_uagan_sends_fakes_logits_and_gradients():
    clock = make("uagan")
    broadcast, _, upload = transfers(clock)
    images, macs = 32 * 64, 32 * (4 * 6e6 + 2e6)
    branch = max(macs / RATES[k - 1] + upload(k, images + 32) for k in (1, 2, 3))
    expected = 32 * 3.5e6 / SERVER + broadcast(images) + branch
    assert clock.seconds(0, [1, 2, 3]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("present", [(1, 2, 3), (2,)])
def test_ensemble_sends_the_generator_down_and_discriminators_up(present):
    """The server's steps pass all devices' discriminators, also if few of them take part."""
    serial = make("ensemble")
    parallel = make("ensemble", algorithm={"schedule": "parallel"})
    broadcast, _, upload = transfers(serial, present)
    batches = {1: 32, 2: 32, 3: 20}
    branch = max(4 * batches[k] * 7e6 / RATES[k - 1] + upload(k, PHI) for k in present)
    server = 3 * 50 * (1e6 + 2.5e6 + 3 * 2e6) / SERVER
    expected = broadcast(THETA) + branch + server
    assert serial.seconds(0, present) == pytest.approx(expected, rel=1e-12)
    expected = broadcast(THETA) + max(branch, server)
    assert parallel.seconds(0, present) == pytest.approx(expected, rel=1e-12)


def test_dp_fedavg_gan_takes_as_long_as_ren_serial():
    clock = make("dp_fedavg_gan", algorithm={"noise": 0.0})
    assert clock.seconds(0, [1, 3]) == make().seconds(0, [1, 3])


@pytest.mark.parametrize("name", ["ren", "fedgan"])
@pytest.mark.parametrize(
    ("compression", "bits"),
    [
        ({"compression": "top_k"}, lambda numbers: round(0.01 * numbers) * (32 + 16)),
        ({"compression": "qsgd"}, lambda numbers: 8 * numbers + math.ceil(numbers / 512) * 16),
    ],
    ids=["top_k", "qsgd"],
)
def test_compressed_uploads_take_less_time(name, compression, bits):
    """The rest of the round takes as long as without compression. A number has 16 bits."""
    plain, clock = make(name), make(name, aggregation=compression)
    numbers = PHI if name == "ren" else THETA + PHI
    for k in (1, 2, 3):
        _, _, upload = transfers(plain, (k,))
        saved = upload(k, numbers) * (1 - bits(numbers) / (16 * numbers))
        expected = plain.seconds(0, [k]) - saved
        assert clock.seconds(0, [k]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_control_variates_double_the_transfers_of_averaged_networks(name):
    sgd = {"optimizer": "sgd"}
    plain = make(name, training=sgd)
    clock = make(name, training=sgd, algorithm={"control_variates": True})
    numbers = PHI if name == "ren" else THETA + PHI
    broadcast, _, upload = transfers(plain, (2,))
    more = broadcast(numbers) + upload(2, numbers) + numbers / SERVER
    assert clock.seconds(0, [2]) == pytest.approx(plain.seconds(0, [2]) + more, rel=1e-12)


def test_centralized_computes_and_sends_nothing():
    macs = 4 * 32 * 7e6 + 3 * 50 * 5e6
    assert make("centralized").seconds(0, [1]) == pytest.approx(macs / SERVER, rel=1e-12)


def test_measured_compute_times_replace_counted_ones():
    clock = make(compute="measured", algorithm={"schedule": "parallel"})
    broadcast, _, upload = transfers(clock)
    branch = max(1.0 + upload(1, PHI), 2.0 + upload(2, PHI), 3.0 + upload(3, PHI))
    for server in (0.5, 50.0):
        expected = broadcast(THETA + PHI) + max(branch, server) + 3 * PHI / SERVER
        seconds = clock.seconds(0, [1, 2, 3], ({1: 1.0, 2: 2.0, 3: 3.0}, server))
        assert seconds == pytest.approx(expected, rel=1e-12)


def test_every_architecture_is_timed_without_memory_for_its_networks():
    for model in (ModelConfig(architecture="sngan", width=8), ModelConfig(conditional=True)):
        config = Config(model=model, wireless=WirelessConfig(on=True))
        classes = 10 if model.conditional else 0
        clock = make_clock(config, ALGORITHMS["ren"], (3, 32, 32), [100, 200], classes)
        assert 0 < clock.seconds(0, [2]) < clock.seconds(0, [1, 2])


def test_compute_rates_are_one_for_all_or_one_per_device():
    assert macs_per_second(WirelessConfig(device_macs_per_second=(3.0,)), 3) == [3.0] * 3
    assert macs_per_second(WirelessConfig(device_macs_per_second=(3.0, 1.0)), 2) == [3.0, 1.0]
    sentence = "device_macs_per_second has 2 values, but must have one, or one for each of the 3"
    with pytest.raises(UserError, match=sentence):
        macs_per_second(WirelessConfig(device_macs_per_second=(3.0, 1.0)), 3)
