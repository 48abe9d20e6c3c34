"""Oracle of `algorithm.staleness`: a plain loop over devices whose uploads arrive by a clock.

Written from the definition and without code of the package, except for the random streams and the
positions of the devices.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from oracle_trainers import call, load, make_trainers
from shannon import rate

BITS = 16


@dataclass
class Air:
    """Times in a cell without fading. compute: seconds of device 1, 2, … ; server: of a round."""

    distances_m: list[float]
    compute: list[float]
    server: float
    numbers_down: int
    numbers_up: int
    server_rate: float

    def broadcast(self, devices):
        return max(
            BITS * self.numbers_down / rate(self.distances_m[k - 1], 46, 10e6) for k in devices
        )

    def upload(self, k, together):
        return BITS * self.numbers_up / rate(self.distances_m[k - 1], 24, 10e6 / together)

    def average(self, count):
        return count * self.numbers_up / self.server_rate


def stale_ren(G, D, shards, config, rounds, choose, nz, air):
    """choose: (t, idle devices) -> devices that start. Returns the states of G and D, and for each
    round {device: rounds that its upload was late} and its duration."""
    server, devices, _ = make_trainers(G, D, shards, config, nz)
    staleness, is_parallel = config.algorithm.staleness, config.algorithm.schedule == "parallel"
    local = config.algorithm.statistics_rule == "local"
    parameters = {name for name, _ in D.named_parameters()}
    now, flights, history = 0.0, {}, []

    def server_steps():
        before = copy.deepcopy(server.D.state_dict())
        for _ in range(config.training.generator_steps):
            server.g_step(*server.draw_noise(config.training.generator_batch_size))
        server.D.load_state_dict(before)

    for t in range(rounds):
        chosen = choose(t, [k for k in shards if k not in flights])
        received = now + air.broadcast(chosen)
        base, together = copy.deepcopy(server.D.state_dict()), len(chosen) + len(flights)
        frozen = copy.deepcopy(server.G)
        for k in chosen:
            device = devices[k]
            load(device.D, base, keep_statistics=local)
            for _ in range(config.training.discriminator_steps):
                real, z = device.draw_real(), device.draw_noise(device.batches.size)
                device.d_step(real, (device.augmented(call(frozen, *z)), z[1]))
            arrival = received + air.compute[k - 1] + air.upload(k, together)
            flights[k] = (arrival, t, copy.deepcopy(device.D.state_dict()), base)
        if is_parallel:
            server_steps()
        arrivals = sorted(arrival for arrival, *_ in flights.values())
        end = arrivals[math.ceil(len(flights) / 2) - 1]
        for arrival, started, *_ in flights.values():
            if t - started >= staleness:
                end = max(end, arrival)
        if is_parallel:
            end = max(end, received + air.server)
        images = sum(len(shards[k]) for k in flights)
        new = copy.deepcopy(server.D.state_dict())
        late = {}
        for k in sorted(flights):
            arrival, started, sent, received_then = flights[k]
            if arrival <= end:
                late[k] = t - started
                share = len(shards[k]) / images
                for name, value in sent.items():
                    if name in parameters:
                        new[name] += share * (value - received_then[name])
                    elif value.is_floating_point():
                        new[name] += share * (value - server.D.state_dict()[name])
        flights = {k: flight for k, flight in flights.items() if k not in late}
        load(server.D, new, keep_statistics=local)
        if not is_parallel:
            server_steps()
        end += air.average(len(late)) + (0.0 if is_parallel else air.server)
        history.append((late, end - now))
        now = end
    return server.G.state_dict(), server.D.state_dict(), history


def toy_air(cell, config, macs, images, theta, phi) -> Air:
    """macs: per image, as the package counts them."""
    training, wireless = config.training, config.wireless
    step = training.discriminator_steps * (macs.generator_forward + macs.discriminator_step)
    rates = wireless.device_macs_per_second
    return Air(
        distances_m=[float(d) for d in cell.distances_m],
        compute=[
            min(training.batch_size, n) * step / each for n, each in zip(images, rates, strict=True)
        ],
        server=training.generator_steps
        * training.generator_batch_size
        * macs.generator_step
        / wireless.server_macs_per_second,
        numbers_down=theta + phi,
        numbers_up=phi,
        server_rate=wireless.server_macs_per_second,
    )


def as_vector(state, like: torch.nn.Module) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name, _ in like.named_parameters()])
