"""What a round must be, on the smallest networks and in float64: each test is a sentence of the
method."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracle
import pytest
import torch
from rounds import UNEQUAL, assert_close, link_of, make_first, oracle_shares, trained
from torch import nn
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.algorithms.ren import Ren
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.data import Shard
from fedgan_mpi.nn.losses import Loss

pytestmark = pytest.mark.mpi(min_size=3)

# ------------------------------------------------------------ the oracle: ranks ≡ a plain loop


OPTIONS = {
    "as it comes": {},
    "sgd": {"training": {"optimizer": "sgd", "discriminator_lr": 0.05, "generator_lr": 0.05}},
    "saturating": {"training": {"loss": "saturating"}},
    "reset moments": {"algorithm": {"moments": "reset"}},
    "local statistics": {"algorithm": {"batchnorm": "local"}},
    "shares by batch": {"algorithm": {"shares": "batch"}},
    "uniform shares": {"algorithm": {"shares": "uniform"}},
    "three server steps": {"training": {"generator_steps": 3}},
    "two in turn": {"participation": {"policy": "round_robin", "count": 2}},
    "two at random": {"participation": {"policy": "random", "count": 2}},
    "gather": {"link": {"average": "gather"}},
}


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_ranks_equal_a_plain_loop_over_devices(comm, schedule, options):
    """Also hosted: five devices of unequal shards on however many ranks there are."""
    options = {**options, "algorithm": {**options.get("algorithm", {}), "schedule": schedule}}
    config = toy_config(**options)
    shards = toy_shards(UNEQUAL)
    link = Link(comm)
    algorithm = toy_algorithm(link, config, shards)
    G, D = toy_networks()
    rounds = 4
    play(algorithm, rounds)
    expected_g, expected_d, local = oracle.ren(
        G, D, shards, config, rounds, oracle_shares(config, UNEQUAL), NZ
    )
    if link.is_server:
        pair = algorithm.rank_state.pair
        for network, expected in ((pair.G, expected_g), (pair.D, expected_d)):
            for name, value in network.state_dict().items():
                if value.is_floating_point() and not (
                    config.algorithm.statistics_rule == "local" and "running" in name
                ):
                    assert_close(value, expected[name])

    if config.algorithm.statistics_rule == "local":
        for device in algorithm.rank_state.devices:
            norm = local[device.index].norm
            assert_close(device.local.own[0], torch.cat([norm.running_mean, norm.running_var]))


# ------------------------------------------------------------ invariants


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_device_in_the_serial_schedule_is_centralized_training(comm, optimizer):
    """Bitwise: one device, serial ≡ one process. Parallel is not."""
    link = link_of(comm, 2)
    if link is None:
        return
    shards = toy_shards([13])
    training = {"optimizer": optimizer, "generator_steps": 2}
    serial = toy_config(training=training)
    central = toy_config(training=training, algorithm={"name": "centralized"})
    parallel = toy_config(training=training, algorithm={"schedule": "parallel"})
    results = [trained(link, config, shards, 5) for config in (serial, central, parallel)]
    if link.is_server:
        (theta, phi), (theta_central, phi_central), (theta_parallel, phi_parallel) = results
        assert torch.equal(theta, theta_central) and torch.equal(phi, phi_central)
        assert not torch.equal(theta, theta_parallel)
        assert not torch.equal(phi, phi_parallel)


def test_statistics_of_the_discriminator_equal_centralized_training_too(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    shards = toy_shards([13])
    kept = []
    for name in ("ren", "centralized"):
        algorithm = toy_algorithm(link, toy_config(algorithm={"name": name}), shards)
        play(algorithm, 3)
        kept.append(algorithm.flat.statistics_of_discriminator.clone())
    if link.is_server:
        assert torch.equal(*kept)


def union_step(G, D, shards, config):
    """One plain gradient step of D on the devices' batches laid together, each with its own
    noise."""
    from fedgan_mpi.data import Batches
    from fedgan_mpi.random_streams import Purpose, torch_stream

    size, seed = config.training.batch_size, config.run.seed
    batches = {k: Batches(s, batch_size=size, seed=seed, device=k) for k, s in shards.items()}
    real = torch.cat([torch.from_numpy(b.draw()).double() / 127.5 - 1 for b in batches.values()])
    z = torch.cat(
        [
            torch.randn(b.size, NZ, generator=torch_stream(seed, Purpose.FAKE, k), dtype=real.dtype)
            for k, b in batches.items()
        ]
    )
    bce = nn.functional.binary_cross_entropy_with_logits
    logits, fake = D(real), D(G(z).detach())
    loss = bce(logits, torch.ones_like(logits)) + bce(fake, torch.zeros_like(fake))
    gradients = torch.autograd.grad(loss, list(D.parameters()))
    lr = config.training.discriminator_lr
    return torch.cat(
        [(p - lr * g).detach().flatten() for p, g in zip(D.parameters(), gradients, strict=True)]
    )


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"training": {"optimizer": "adam"}}, False),
        ({"training": {"discriminator_steps": 2}}, False),
        ({"algorithm": {"shares": "uniform"}}, False),
        ({"batchnorm": True}, False),
    ],
    ids=["sgd", "adam", "two steps", "wrong shares", "batchnorm"],
)
def test_one_averaged_gradient_step_is_a_step_on_the_union_batch(comm, change, equal):
    """Shares by batch size, n_d = 1, no BatchNorm; and not otherwise."""
    link = Link(comm)
    batchnorm = change.pop("batchnorm", False)
    training = {
        "optimizer": "sgd",
        "discriminator_lr": 0.1,
        "discriminator_steps": 1,
        "generator_steps": 0,
        "batch_size": 8,
        **change.get("training", {}),
    }
    config = toy_config(
        training=training, algorithm={"shares": "batch", **change.get("algorithm", {})}
    )
    shards = toy_shards([9, 3, 5])
    result = trained(link, config, shards, 1, batchnorm=batchnorm)
    if link.is_server:
        expected = union_step(*toy_networks(batchnorm), shards, config)
        difference = (result[1] - expected).abs().max().item()
        assert (difference < 1e-14) == equal, difference
        assert equal or difference > 1e-6


@pytest.mark.parametrize(
    "algorithm",
    [{"schedule": "serial"}, {"schedule": "parallel"}, {"name": "fedgan"}],
    ids=["serial", "parallel", "fedgan"],
)
def test_identical_devices_equal_one_device(comm, algorithm):
    """Same shards, streams and moments: averaging is the identity."""
    link = Link(comm)
    config = toy_config(algorithm=algorithm)
    shards = toy_shards([11] * link.device_ranks, same=True)
    company = toy_algorithm(link, config, shards)
    for device in company.rank_state.devices:
        make_first(device, shards[1])
    play(company, 4)
    alone = link_of(comm, 2)
    single = None
    if alone is not None:
        single = trained(alone, config, toy_shards([11], same=True), 4)
    if link.is_server:
        for actual, expected in zip(vectors(company), single, strict=True):
            assert_close(actual, expected)
    # And not with streams of their own.
    other = trained(link, config, shards, 4)
    if link.is_server:
        assert not torch.allclose(other[1], single[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_a_corrupt_upload_reaches_the_generator_at_once_only_in_serial(comm, schedule):
    """Staleness: θ_{t+1} depends on round t's uploads under serial, and not under parallel."""
    link = Link(comm)
    config = toy_config(algorithm={"schedule": schedule})
    shards = toy_shards([8] * link.device_ranks)
    honest = toy_algorithm(link, config, shards)
    corrupt = toy_algorithm(link, config, shards)
    play(honest, 2)
    play(corrupt, 2)
    play(honest, 1, start=2)
    uploads = corrupt.uplink.add

    def corrupted(device, share, metrics):
        corrupt.flat.phi.data.add_(1.0)
        uploads(device, share, metrics)

    corrupt.uplink.add = corrupted
    play(corrupt, 1, start=2)
    if link.is_server:
        (theta, phi), (theta_corrupt, phi_corrupt) = vectors(honest), vectors(corrupt)
        assert not torch.equal(phi, phi_corrupt)
        assert torch.equal(theta, theta_corrupt) == (schedule == "parallel")
    corrupt.uplink.add = uploads
    play(honest, 1, start=3)
    play(corrupt, 1, start=3)
    if link.is_server:
        assert not torch.equal(vectors(honest)[0], vectors(corrupt)[0])


class Scalar(nn.Module):
    """A network of one number: G gives it as an image, D multiplies an image by it."""

    def __init__(self, value: float, image: bool) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.image = image

    def forward(self, x):
        if self.image:
            return self.value.expand(len(x), 1, 4, 4)
        return self.value * x[:, 0, 0, 0]


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_bilinear_game(comm, schedule):
    """f = φθ, D ascends, G descends: parallel spirals out by √(1+η²) a round; serial stays on an
    ellipse."""
    link = link_of(comm, 2)
    if link is None:
        return
    eta = 0.2
    game = Loss(
        real=lambda logits: 0 * logits,
        fake=lambda logits: -logits,
        generator=lambda logits: logits,
    )
    config = toy_config(
        algorithm={"schedule": schedule},
        training={
            "optimizer": "sgd",
            "generator_lr": eta,
            "discriminator_lr": eta,
            "discriminator_steps": 1,
        },
    )
    networks = (Scalar(1.0, image=True), Scalar(0.5, image=False))
    algorithm = toy_algorithm(link, config, toy_shards([8]), networks=networks, loss=game)

    def size_and_ellipse():
        theta, phi = (vector.item() for vector in vectors(algorithm))
        return math.hypot(theta, phi), theta**2 + phi**2 + eta * phi * theta

    before, ellipse_before = size_and_ellipse()
    for t in range(50):
        play(algorithm, 1, start=t)
        after, ellipse = size_and_ellipse()
        if link.is_server and schedule == "parallel":
            assert after / before == pytest.approx(math.sqrt(1 + eta**2), rel=1e-13)
        if link.is_server and schedule == "serial":
            assert ellipse == pytest.approx(ellipse_before, rel=1e-12)
        before = after


def test_schedules_differ_only_in_the_generator(comm):
    """n_g = 0: the same φ's. n_d = 0: the same θ's. φ_1 is the same in any case, θ_1 is not."""
    link = Link(comm)
    shards = toy_shards([8] * link.device_ranks)

    def both(rounds, **training):
        configs = [
            toy_config(algorithm={"schedule": schedule}, training=training)
            for schedule in ("serial", "parallel")
        ]
        return [trained(link, config, shards, rounds) for config in configs]

    no_g, no_d, first, second = (
        both(3, generator_steps=0),
        both(3, discriminator_steps=0),
        both(1),
        both(2),
    )
    if link.is_server:
        assert torch.equal(no_g[0][1], no_g[1][1])
        assert_close(no_d[0][0], no_d[1][0])  # a mean of equal φ's rounds
        assert torch.equal(first[0][1], first[1][1])
        assert not torch.equal(first[0][0], first[1][0])
        assert not torch.equal(second[0][1], second[1][1])


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_gather_is_bitwise_the_same_for_any_number_of_ranks(comm, schedule):
    """Float32, five devices on 2, 3, … ranks, on every road."""
    config = toy_config(
        algorithm={"schedule": schedule},
        link={"average": "gather", "wire_dtype": "float32"},
        training={"precision": "float32"},
    )
    shards = toy_shards(UNEQUAL)
    results = []
    for ranks in range(2, comm.size + 1):
        for transport in ("mpi", "polling", "shared_memory"):
            link = link_of(comm, ranks, transport=transport)
            if link is not None:
                algorithm = toy_algorithm(link, config, shards)
                stats = play(algorithm, 4)
                losses = [(line["d_loss"], line["g_loss"]) for line in stats]
                results.append((*vectors(algorithm), losses))
            comm.barrier()
    if comm.rank == 0:
        theta, phi, losses = results[0]
        assert len(results) == 3 * (comm.size - 1)
        for other_theta, other_phi, other_losses in results[1:]:
            assert torch.equal(theta, other_theta) and torch.equal(phi, other_phi)
            assert losses == other_losses


def test_an_absent_devices_data_cannot_change_the_round(comm):
    """Device 3 is absent: its shard may be anything, its state stays where it was."""
    link = Link(comm)
    config = toy_config(participation={"policy": "round_robin", "count": 2})
    shards = toy_shards([8, 8, 8, 8])
    poisoned = {**shards, 3: Shard(**{**vars(shards[3]), "images": 255 - shards[3].images})}
    honest = trained(link, config, shards, 1)
    other = trained(link, config, poisoned, 1)
    later = trained(link, config, shards, 2)
    later_other = trained(link, config, poisoned, 2)
    if link.is_server:
        assert torch.equal(honest[1], other[1]) and torch.equal(honest[0], other[0])
        assert not torch.equal(later[1], later_other[1])  # device 3 takes part in round 1


def test_an_absent_device_with_nan_cannot_reach_the_average(comm):
    """Its moments, statistics and the vector left on its rank may be NaN: zeros travel, not 0 ×
    NaN."""
    link = Link(comm)
    config = toy_config(participation={"policy": "round_robin", "count": 2})
    shards = toy_shards([8] * 4)
    algorithm = toy_algorithm(link, config, shards)
    for device in algorithm.rank_state.devices:
        if device.index in (3, 4):
            device.optimizer.first.fill_(math.nan)
    if link.rank == 3:  # hosts device 3, and with four ranks nothing else
        algorithm.flat.vector.fill_(math.nan)
    play(algorithm, 1)
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()
    with pytest.raises(AgreedError):  # and now they take part: it must show
        play(algorithm, 1, start=1)


def test_an_absent_device_keeps_streams_and_moments(comm):
    link = Link(comm)
    config = toy_config(participation={"policy": "round_robin", "count": 1})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8, 8]))
    before = {d.index: copy.deepcopy(d.state()) for d in algorithm.rank_state.devices}
    play(algorithm, 1)  # device 1
    for device in algorithm.rank_state.devices:
        state, old = device.state(), before[device.index]
        same = (
            state["drawn"] == old["drawn"]
            and torch.equal(state["noise_stream"], old["noise_stream"])
            and all(
                np.array_equal(state["moments"][0][name], old["moments"][0][name])
                for name in old["moments"][0]
            )
        )
        assert same == (device.index != 1)


@pytest.mark.parametrize("batchnorm", ["average", "local"])
@pytest.mark.parametrize("moments", ["persistent", "averaged"])
def test_bytes_equal_the_formulas(comm, batchnorm, moments):
    """Down q(|G|+|D|), up q|D| for each participant; statistics and averaged moments counted
    apart."""
    link = Link(comm)
    config = toy_config(
        algorithm={"batchnorm": batchnorm, "moments": moments},
        participation={"policy": "round_robin", "count": 3},
    )
    line = play(toy_algorithm(link, config, toy_shards(UNEQUAL)), 1)[0]
    G, D = toy_networks()
    theta = sum(p.numel() for p in G.parameters())
    phi = sum(p.numel() for p in D.parameters())
    assert line["bytes_down"] == 3 * 8 * (theta + phi)
    assert line["bytes_up"] == 3 * 8 * phi
    statistics_g, statistics_d = (2 * 16, 2 * 8) if batchnorm == "average" else (0, 0)
    moments_d = 2 * phi if moments == "averaged" else 0
    assert line["bytes_down_other"] == 3 * 8 * (statistics_g + statistics_d + moments_d)
    assert line["bytes_up_other"] == 3 * 8 * (statistics_d + moments_d)


def test_averaged_moments_of_one_device_equal_persistent_ones(comm):
    link = link_of(comm, 2)
    if link is None:
        return
    results = [
        trained(link, toy_config(algorithm={"moments": moments}), toy_shards([9]), 4)
        for moments in ("persistent", "averaged", "reset")
    ]
    if link.is_server:
        persistent, averaged, reset = results
        assert torch.equal(persistent[1], averaged[1])
        assert not torch.equal(persistent[1], reset[1])


def test_averaged_moments_are_the_mean_of_the_devices(comm):
    """One round from zero: the server's moments are Σ share · (what each device's own Adam would
    have)."""
    link = Link(comm)
    shards = toy_shards([6, 9])
    averaged = toy_algorithm(link, toy_config(algorithm={"moments": "averaged"}), shards)
    own = toy_algorithm(link, toy_config(), shards)
    play(averaged, 1)
    play(own, 1)
    weighted = torch.zeros_like(averaged.flat.moments_of_discriminator)
    for device in own.rank_state.devices:
        state = device.optimizer.state()
        share = {1: 6 / 15, 2: 9 / 15}[device.index]
        weighted += share * torch.cat([state["first"], state["second"]])
    total = link.sum(weighted.numpy())
    if link.is_server:
        assert_close(averaged.flat.moments_of_discriminator, torch.from_numpy(total))


def test_averaged_variance_misses_the_variance_between_devices_and_recalibrate_adds_it(comm):
    """BatchNorm's running variance against that of one pass over the union of equal batches."""
    link = Link(comm)
    devices, batch, momentum = 3, 50, 0.1
    shards = toy_shards([batch] * devices)
    for k, shard in shards.items():
        shard.images[:] = shard.images // 4 + 50 * k  # devices with different means
    found = {}
    for choice in ("average", "recalibrate"):
        config = toy_config(
            training={"batch_size": batch, "discriminator_steps": 1, "generator_steps": 0},
            algorithm={"batchnorm": choice},
        )
        algorithm = toy_algorithm(link, config, shards, networks=(ToyEcho(), OnePass()))
        play(algorithm, 1)
        found[choice] = algorithm.flat.statistics_of_discriminator.chunk(2)[1].clone()
    if link.is_server:
        pixels = [
            torch.from_numpy(s.images).double().flatten(1) / 127.5 - 1 for s in shards.values()
        ]
        means = torch.stack([p.mean(0) for p in pixels])
        variances = torch.stack([p.var(0) for p in pixels]).mean(
            0
        )  # unbiased, as BatchNorm keeps it
        between = means.var(0, correction=0)
        # Both passes, real and fake, see the same images here, so the running mean moves twice.
        moved = 1 - (1 - momentum) ** 2
        assert_close(found["average"], (1 - moved) + moved * variances)
        assert_close(found["recalibrate"], (1 - moved) + moved * (variances + between))
        assert between.min() > 0.01


class OnePass(nn.Module):
    """A discriminator that is BatchNorm on pixels; in a test it sees real images in both passes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16).double()
        self.seen: torch.Tensor | None = None

    def forward(self, images):
        if images.shape[1] == 1:  # real
            self.seen = images.flatten(1)
        assert self.seen is not None
        return self.norm(self.seen).sum(1)


class ToyEcho(nn.Module):
    """A generator whose fakes only say that they are fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z):
        return torch.zeros(len(z), 2, 4, 4, dtype=z.dtype)


def test_integer_counters_are_never_averaged(comm):
    link = Link(comm)
    algorithm = toy_algorithm(link, toy_config(training={"rounds": 2}), toy_shards([8, 8]))
    assert isinstance(algorithm, Ren)
    play(algorithm, 2)
    counter = algorithm.rank_state.pair.D.norm.num_batches_tracked
    assert counter.dtype == torch.int64
    expected = 2 * 1 if link.is_server else 2 * 2 * 2 * len(algorithm.rank_state.devices)
    assert counter.item() == expected


def test_same_seed_gives_the_same_losses(comm):
    link = Link(comm)
    runs = [play(toy_algorithm(link, toy_config(), toy_shards(UNEQUAL)), 3) for _ in range(2)]
    other = play(toy_algorithm(link, toy_config(run={"seed": 1}), toy_shards(UNEQUAL)), 3)
    losses = [[(line["d_loss"], line["g_loss"]) for line in run] for run in [*runs, other]]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    everyone = link.sum(np.array([losses[0][0][0]]))
    assert everyone[0] == pytest.approx(link.size * losses[0][0][0])
