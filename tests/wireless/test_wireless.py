"""The simulated cell and the clock, against formulas written once more from physics and against a
simulation of the channel frame by frame."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.config import (
    AlgorithmConfig,
    Config,
    ModelConfig,
    ParticipationConfig,
    TrainingConfig,
    WirelessConfig,
)
from fedgan_mpi.errors import UserError
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.registry import build, count_parameters
from fedgan_mpi.wireless.cell import Cell, RadioRound, ergodic_rate, macs_per_second
from fedgan_mpi.wireless.clock import Clock, make_clock
from fedgan_mpi.wireless.cost import Plan, payload_sizes
from fedgan_mpi.wireless.macs import Macs, count_macs

STILL = WirelessConfig(fading="none")


def watts(dbm: float) -> float:
    return 1e-3 * 10 ** (dbm / 10)


def rate(distance_m: float, power_dbm: float, hertz: float, fade: float = 1.0) -> float:
    """Shannon, from watts: bits a second."""
    received = watts(power_dbm) * 10 ** (-(128.1 + 37.6 * math.log10(distance_m / 1000)) / 10)
    noise = watts(-174) * hertz
    return hertz * math.log2(1 + received * fade / noise)


# ------------------------------------------------------------ the cell


def test_rates_are_those_of_the_units_that_the_options_name():
    """16-bit |D| of the 64 pixel pair over 1 MHz and 24 dBm: 2.80 s from 100 m, 6.27 s from 500 m;
    the figures were worked out by hand."""
    cell = Cell(STILL, 10)
    for metres, seconds in ((100, 2.80), (250, 4.09), (500, 6.27)):
        cell.distances_m[:] = metres
        cell.path_loss_db[:] = 128.1 + 37.6 * math.log10(metres / 1000)
        rates = cell.up_rates(10)  # 10 MHz over ten
        assert rates == pytest.approx(rate(metres, 24, 1e6), rel=1e-12)
        air = RadioRound(cell=cell, participants=[3], device={3: 0.0}, server=0.0)
        # Alone in the cell it has all of the band; a tenth of it is what the figures are of.
        whole = air.uploads({3: 0.0}, 2_765_568)
        assert whole == pytest.approx(2_765_568 * 16 / rate(metres, 24, 10e6), rel=1e-12)
        assert 2_765_568 * 16 / rates[0] == pytest.approx(seconds, abs=0.005)


def test_places_are_even_in_the_disc_and_the_cells_own():
    cell = Cell(replace(STILL, nearest_m=1e-3), 20_000)
    # As many inside radius R/√2 as outside: half the area.
    assert abs((cell.distances_m < 500 / math.sqrt(2)).mean() - 0.5) < 0.015
    assert cell.distances_m.max() <= 500
    near = Cell(replace(STILL, nearest_m=400), 1000).distances_m
    assert near.min() == 400 and (near == 400).mean() == pytest.approx(0.64, abs=0.05)
    assert (Cell(STILL, 5).distances_m == Cell(STILL, 5).distances_m).all()
    assert (Cell(STILL, 5).distances_m != Cell(replace(STILL, seed=1), 5).distances_m).all()


def test_shadowing_is_a_devices_own_and_fixed():
    plain, shadowed = Cell(STILL, 5000), Cell(replace(STILL, shadowing_db=8), 5000)
    extra = shadowed.path_loss_db - plain.path_loss_db
    assert (shadowed.distances_m == plain.distances_m).all()
    assert abs(extra.mean()) < 0.5 and extra.std() == pytest.approx(8, rel=0.05)


def test_noise_figure_and_noise_density_are_decibels_of_the_same_noise():
    louder = Cell(replace(STILL, noise_figure_db=3, noise_dbm_per_hz=-177), 4)
    assert louder.up_rates(4) == pytest.approx(Cell(STILL, 4).up_rates(4), rel=1e-12)
    assert (Cell(replace(STILL, noise_figure_db=3), 4).up_rates(4) < louder.up_rates(4)).all()


@pytest.mark.parametrize("snr", [1e-3, 0.1, 1.0, 30.0, 1e5])
def test_the_ergodic_rate_is_the_mean_over_the_fading(snr):
    """Invariant 18, by quadrature and by draws."""
    closed = float(ergodic_rate(1e6, np.array([snr]))[0])
    mean, _ = quad(lambda x: math.exp(-x) * math.log2(1 + snr * x), 0, math.inf, epsabs=0)
    assert closed == pytest.approx(1e6 * mean, rel=1e-6)
    power = np.random.default_rng(0).exponential(size=1_000_000)
    assert closed == pytest.approx(1e6 * np.log2(1 + snr * power).mean(), rel=0.01)
    assert closed < 1e6 * math.log2(1 + snr)  # Jensen: fading costs


def test_the_clock_is_a_simulation_of_frames_within_a_percent():
    """Frames of 10 ms, each with its own fading, until all bits are there: uploads beside each
    other, and a multicast that goes at the worst participant's rate in every frame."""
    config, frame, numbers = WirelessConfig(), 0.01, 20_000_000
    cell = Cell(config, 6)
    participants = [1, 3, 4, 6]
    ready = {1: 3.0, 3: 0.5, 4: 0.0, 6: 9.0}
    air = RadioRound(cell=cell, participants=participants, device=ready, server=0.0)
    stream, bits = np.random.default_rng(3), numbers * 16

    def seconds(rates: np.ndarray) -> float:
        sent = np.cumsum(rates * frame)
        last = int(np.searchsorted(sent, bits))
        assert last < len(sent)
        return (last + 1 - (sent[last] - bits) / (rates[last] * frame)) * frame

    def fades() -> np.ndarray:
        return stream.exponential(size=40_000)

    def upload(k: int) -> float:
        metres = cell.distances_m[k - 1]
        return seconds(np.array([rate(metres, 24, 2.5e6, fade) for fade in fades()]))

    slowest = max(ready[k] + upload(k) for k in participants)
    assert air.uploads(ready, numbers) == pytest.approx(slowest, rel=0.01)

    down = np.min(
        [[rate(cell.distances_m[k - 1], 46, 10e6, fade) for fade in fades()] for k in participants],
        axis=0,
    )
    assert air.broadcast(numbers) == pytest.approx(seconds(down), rel=0.01)
    # Not the rate of the worst mean: the worst of a frame may be another.
    worst = max(cell.distances_m[k - 1] for k in participants)
    power = fades()
    alone = seconds(np.array([rate(worst, 46, 10e6, fade) for fade in power]))
    assert air.broadcast(numbers) > 1.01 * alone


def test_tdma_sends_one_after_the_other_on_the_whole_band():
    cell = Cell(replace(STILL, multiplexing="tdma"), 3)
    one, two, three = (16e6 / rate(metres, 24, 10e6) for metres in cell.distances_m)
    ready = {1: 100.0, 2: 0.0, 3: 50.0}
    air = RadioRound(cell=cell, participants=[1, 2, 3], device=ready, server=0.0)
    assert max(one, two, three) < 50
    assert air.uploads(ready, 1_000_000) == pytest.approx(100 + one)
    together = air.uploads(dict.fromkeys(ready, 0.0), 1_000_000)
    assert together == pytest.approx(one + two + three)
    own = [16e6 / rate(metres, 46, 10e6) for metres in cell.distances_m]
    assert list(air.deliveries(1_000_000).values()) == pytest.approx(np.cumsum(own))


def test_unicast_splits_band_and_power():
    cell = Cell(replace(STILL, downlink="unicast"), 4)
    air = RadioRound(cell=cell, participants=[1, 2, 3, 4], device={}, server=0.0)
    quarter = 46 - 10 * math.log10(4)
    own = [16e6 / rate(metres, quarter, 2.5e6) for metres in cell.distances_m]
    assert list(air.deliveries(1_000_000).values()) == pytest.approx(own)
    assert air.broadcast(1_000_000) == pytest.approx(max(own))
    at_once = RadioRound(cell=Cell(STILL, 4), participants=[1, 2, 3, 4], device={}, server=0.0)
    worst = max(cell.distances_m)
    assert at_once.broadcast(1_000_000) == pytest.approx(16e6 / rate(worst, 46, 10e6))


def test_bits_of_a_number_are_an_option():
    ready = {1: 0.0}
    times = [
        RadioRound(
            cell=Cell(replace(STILL, bits_per_parameter=bits), 1),
            participants=[1],
            device=ready,
            server=0.0,
        ).uploads(ready, 1000)
        for bits in (8, 16, 32)
    ]
    assert times == pytest.approx([times[1] / 2, times[1], 2 * times[1]], rel=1e-12)


def test_compute_rates_are_one_for_all_or_one_each():
    assert macs_per_second(WirelessConfig(device_macs_per_second=(3.0,)), 3) == [3.0] * 3
    assert macs_per_second(WirelessConfig(device_macs_per_second=(3.0, 1.0)), 2) == [3.0, 1.0]
    sentence = "device_macs_per_second has 2 numbers, but must have one, or one for each of the 3"
    with pytest.raises(UserError, match=sentence):
        macs_per_second(WirelessConfig(device_macs_per_second=(3.0, 1.0)), 3)


# ------------------------------------------------------------ what a round takes

IMAGES = [100, 300, 20]
SHAPE = (1, 8, 8)
THETA, PHI = 5000, 3000
MACS = Macs(fake=1e6, discriminator_step=6e6, generator_step=5e6, feedback=2e6, descent=2.5e6)
RATES, SERVER = (1e9, 2e9, 4e9), 5e9


def clock(name="ren", *, algorithm=(), training=(), participation=(), **wireless) -> Clock:
    own_steps = name in ("fedgan", "fegan", "mdgan", "uagan")
    steps = {} if own_steps else {"generator_steps": 3}
    config = Config(
        algorithm=AlgorithmConfig(name=name, **dict(algorithm)),
        training=TrainingConfig(
            **{"batch_size": 32, "generator_batch_size": 50, "discriminator_steps": 4, **steps,
               **dict(training)}
        ),
        participation=ParticipationConfig(**dict(participation)),
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
    return Clock(ALGORITHMS[name], Plan(config=config, sizes=sizes, macs=MACS, images=images))


def parts(timed: Clock, present=(1, 2, 3)):
    """Down and up times of n numbers, by the formulas of this file."""
    metres = {k: timed.cell.distances_m[k - 1] for k in present}
    share = len(present)

    def broadcast(numbers):
        return max(16 * numbers / rate(metres[k], 46, 10e6) for k in present)

    def deliver(k, numbers):
        return 16 * numbers / rate(metres[k], 46 - 10 * math.log10(share), 10e6 / share)

    def upload(k, numbers):
        return 16 * numbers / rate(metres[k], 24, 10e6 / share)

    return broadcast, deliver, upload


@pytest.mark.parametrize("present", [(1, 2, 3), (1, 3), (2,), (3,)])
def test_rens_rounds_take_what_the_two_schedules_say(present):
    serial, parallel = clock(), clock(algorithm={"schedule": "parallel"})
    broadcast, _, upload = parts(serial, present)
    batches = {1: 32, 2: 32, 3: 20}
    device = {k: 4 * batches[k] * 7e6 / RATES[k - 1] for k in present}
    branch = max(device[k] + upload(k, PHI) for k in present)
    server, average = 3 * 50 * 5e6 / SERVER, len(present) * PHI / SERVER
    down = broadcast(THETA + PHI)
    assert serial.seconds(0, present) == pytest.approx(down + branch + average + server, rel=1e-12)
    both = down + max(branch, server) + average
    assert parallel.seconds(0, present) == pytest.approx(both, rel=1e-12)
    saved = serial.seconds(0, present) - parallel.seconds(0, present)
    assert saved == pytest.approx(min(branch, server), rel=1e-9)


@pytest.mark.parametrize("server", [1e7, 1e9, 1e10, 1e14])
def test_parallel_saves_the_shorter_branch(server):
    """Invariant 18, at any server speed; nothing where the server costs nothing."""
    steps = {"generator_steps": 3}
    both = [
        clock(algorithm={"schedule": schedule}, training=steps, server_macs_per_second=server)
        for schedule in ("serial", "parallel")
    ]
    serial, parallel = (each.seconds(0, [1, 2, 3]) for each in both)
    assert serial > parallel
    idle = [
        clock(algorithm={"schedule": schedule}, training={"generator_steps": 0})
        for schedule in ("serial", "parallel")
    ]
    assert idle[0].seconds(0, [1, 2]) == idle[1].seconds(0, [1, 2])


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_fedgan_trains_and_sends_both_networks(update):
    timed = clock("fedgan", algorithm={"local_update": update})
    broadcast, _, upload = parts(timed)
    macs = 11e6 if update == "simultaneous" else 12e6  # the latter makes fakes twice
    batches = (32, 32, 20)
    branch = max(
        4 * batches[k - 1] * macs / RATES[k - 1] + upload(k, THETA + PHI) for k in (1, 2, 3)
    )
    expected = broadcast(THETA + PHI) + branch + 3 * (THETA + PHI) / SERVER
    assert timed.seconds(5, [1, 2, 3]) == pytest.approx(expected, rel=1e-12)
    assert clock("fegan").seconds(5, [1, 2, 3]) == clock("fedgan").seconds(5, [1, 2, 3])


def test_fl_gan_takes_whole_epochs():
    options = {"preset": "fl_gan", "epochs": 2}
    timed = clock("fedgan", algorithm=options, training={"discriminator_steps": 1})
    broadcast, _, upload = parts(timed)
    steps, batches = (7, 19, 2), (32, 32, 20)  # ⌈2 · 100/32⌉, ⌈2 · 300/32⌉, 2 · 20/20
    branch = max(
        steps[k] * batches[k] * 11e6 / RATES[k] + upload(k + 1, THETA + PHI) for k in range(3)
    )
    expected = broadcast(THETA + PHI) + branch + 3 * (THETA + PHI) / SERVER
    assert timed.seconds(0, [1, 2, 3]) == pytest.approx(expected, rel=1e-12)


def test_mdgan_takes_its_own_messages_and_now_and_then_a_swap():
    timed = clock("mdgan", algorithm={"fake_batches": 2})
    _, deliver, upload = parts(timed)
    images = 32 * 64  # numbers in a batch
    work = 32 * (4 * 6e6 + 2e6)
    round = 2 * 32 * 3.5e6 / SERVER + max(
        deliver(k, 2 * images) + work / RATES[k - 1] + upload(k, images) for k in (1, 2, 3)
    )
    swap = max(upload(k, PHI) for k in (1, 2, 3)) + max(deliver(k, PHI) for k in (1, 2, 3))
    times = [timed.seconds(t, [1, 2, 3]) for t in range(8)]
    due = [3, 7]  # 420 images, 96 a round
    expected = [round + (swap if t in due else 0.0) for t in range(8)]
    assert times == pytest.approx(expected, rel=1e-12)
    assert clock("mdgan", algorithm={"epochs": 0}).seconds(3, [1, 2, 3]) == times[0]
    assert timed.seconds(3, [2]) < times[3] - swap / 2  # alone, nobody to swap with


def test_uagan_takes_its_own_messages():
    timed = clock("uagan")
    broadcast, _, upload = parts(timed)
    images, work = 32 * 64, 32 * (4 * 6e6 + 2e6)
    branch = max(work / RATES[k - 1] + upload(k, images + 32) for k in (1, 2, 3))
    expected = 32 * 3.5e6 / SERVER + broadcast(images) + branch
    assert timed.seconds(0, [1, 2, 3]) == pytest.approx(expected, rel=1e-12)


def test_dp_takes_as_long_as_serial_and_one_process_only_computes():
    quiet = {"noise": 0.0}
    assert clock("dp_fedavg_gan", algorithm=quiet).seconds(0, [1, 3]) == clock().seconds(0, [1, 3])
    macs = 4 * 32 * 7e6 + 3 * 50 * 5e6
    assert clock("centralized").seconds(0, [1]) == pytest.approx(macs / SERVER, rel=1e-12)


def test_measured_seconds_stand_in_for_counted_ones():
    timed = clock(compute="measured", algorithm={"schedule": "parallel"})
    broadcast, _, upload = parts(timed)
    branch = max(1.0 + upload(1, PHI), 2.0 + upload(2, PHI), 3.0 + upload(3, PHI))
    for server in (0.5, 50.0):
        expected = broadcast(THETA + PHI) + max(branch, server) + 3 * PHI / SERVER
        seconds = timed.seconds(0, [1, 2, 3], ({1: 1.0, 2: 2.0, 3: 3.0}, server))
        assert seconds == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------ multiply-accumulates


def layers(size: int, width: int, channels: int) -> tuple[list[int], list[int]]:
    """Products of each convolution of the DCGAN pair for one image, G's and D's, nz = 100: inputs ×
    outputs × 16 × places of the smaller side, from 4×4 up."""
    maps = [width * 2**n for n in range(size.bit_length() - 4, -1, -1)]  # at 4×4, 8×8, … size/2
    places = [16 * 4**n for n in range(len(maps))]
    pairs = list(zip(maps, [*maps[1:], channels], strict=True))
    inner = [16 * a * b * n for (a, b), n in zip(pairs, places, strict=True)]
    return [16 * 100 * maps[0], *inner], [*inner[::-1], 16 * maps[0]]


@pytest.mark.parametrize(("size", "width", "channels"), [(64, 64, 3), (32, 16, 1)])
def test_multiply_accumulates_are_those_of_the_layers(size, width, channels):
    """A layer costs its products once forward, once for its parameters' gradient and once for its
    input's, if anybody asks for that."""
    shape = (channels, size, size)
    G, D = build(ModelConfig(width=width), shape)
    macs = count_macs(G, D, LOSSES["nonsaturating"], shape, nz=100, classes=0)
    g, d = layers(size, width, channels)
    assert macs.fake == sum(g)
    assert macs.feedback == 2 * sum(d)
    assert macs.descent == 2 * sum(g) - g[0]  # nobody asks for the gradient of noise
    assert macs.discriminator_step == 2 * (3 * sum(d) - d[0])  # nor for that of given images
    assert macs.generator_step == macs.fake + macs.feedback + macs.descent


def test_the_paper_sized_pair_takes_as_many_as_it_is_said_to():
    """An estimate made elsewhere for the 64 pixel pair: 728 million a D step, 522 a G step."""
    shape = (3, 64, 64)
    G, D = build(ModelConfig(width=64), shape)
    assert (count_parameters(G), count_parameters(D)) == (3_576_704, 2_765_568)
    macs = count_macs(G, D, LOSSES["nonsaturating"], shape, nz=100, classes=0)
    assert macs.fake + macs.discriminator_step == pytest.approx(728e6, rel=0.01)
    assert macs.generator_step == pytest.approx(522e6, rel=0.01)


def test_every_architecture_is_timed_without_being_built():
    """Networks that are counted have no memory; residual ones and classes, too."""
    for model in (ModelConfig(architecture="sngan", width=8), ModelConfig(conditional=True)):
        config = Config(model=model, wireless=WirelessConfig(on=True))
        timed = make_clock(config, (3, 32, 32), [100, 200], 10 if model.conditional else 0)
        assert 0 < timed.seconds(0, [2]) < timed.seconds(0, [1, 2])


def test_a_gradient_penalty_costs_and_classes_are_counted():
    shape = (1, 16, 16)
    model = ModelConfig(width=8, discriminator_norm="none", conditional=True)
    G, D = build(model, shape, 10)
    plain, penalty = (
        count_macs(G, D, LOSSES[loss], shape, nz=100, classes=10)
        for loss in ("nonsaturating", "wgan-gp")
    )
    assert penalty.discriminator_step > 1.5 * plain.discriminator_step
    assert penalty.generator_step == plain.generator_step
    before = [parameter.clone() for parameter in D.parameters()]
    assert all((a == b).all() for a, b in zip(before, D.parameters(), strict=True))
