"""Runs the oracle of a configured algorithm, and compares a server with its result."""

from __future__ import annotations

import numpy as np
import oracle_algorithms
from rounds import UNEQUAL, assert_close, oracle_shares
from toys import NZ, toy_histogram


def assert_server_equals(algorithm, expected_g, expected_d) -> None:
    """Compare the server's networks with states of the oracle, except for local statistics."""
    if not algorithm.link.is_server:
        return
    pair, is_local = algorithm.rank_state.pair, algorithm.config.statistics_rule == "local"
    for network, expected in ((pair.G, expected_g), (pair.D, expected_d)):
        for key, value in network.state_dict().items():
            if value.is_floating_point() and not (is_local and "running" in key):
                assert_close(value, expected[key])


def fix_layers(config, networks):
    """Exclude the first layers of toy networks from torch's own optimizers."""
    G, D = networks
    for layer in [*D.children()][: config.training.freeze_discriminator]:
        layer.requires_grad_(False)
    return G, D


def run_oracle(config, shards, networks, rounds):
    """Return (state of G, state of D, {device: trainer}) of the configured algorithm."""
    arguments = (*fix_layers(config, networks), shards, config, rounds)
    if config.participation.policy == "balanced":
        shares_of_round = None
        participants = balanced_participants(config, shards)
    else:
        shares_of_round = oracle_shares(config, UNEQUAL)
        participants = lambda t: sorted(shares_of_round(t))  # noqa: E731
    name = config.algorithm.name
    if name in ("fedgan", "fegan", "fess_gda"):
        histograms = {k: np.array(toy_histogram(shard)) for k, shard in shards.items()}

        def shares(t, players):
            if name != "fegan":
                return shares_of_round(t)
            if config.algorithm.preset == "ifl" and players is not None:
                return oracle_algorithms.ifl_shares(players)
            return oracle_algorithms.kl_shares(
                histograms, config.algorithm.kl_sign, participants(t)
            )

        plain_loop = oracle_algorithms.fess_gda if name == "fess_gda" else oracle_algorithms.fedgan
        return plain_loop(*arguments, shares, NZ)
    if name == "mdgan":
        return oracle_algorithms.mdgan(*arguments, participants, NZ)
    if name in ("uagan", "ensemble"):
        plain_loop = getattr(oracle_algorithms, name)
        return plain_loop(*arguments, shares_of_round, NZ)
    return oracle_algorithms.dp_fedavg_gan(*arguments, participants, NZ)


def balanced_participants(config, shards):
    """Return t -> devices, by FeGAN's rule for class-balanced rounds."""
    histograms = {k: toy_histogram(shard) for k, shard in shards.items()}
    queue, images_seen, rounds = list(shards), [0, 0, 0], []
    for _ in range(10):
        chosen: list[int] = []
        for _ in range(config.participation.count):
            free = [k for k in queue if k not in chosen]
            held = [c for c in range(3) if any(histograms[k][c] for k in free)]
            rarest = min(held, key=lambda c: (images_seen[c], c))
            device = next(k for k in free if histograms[k][rarest])
            chosen.append(device)
            images_seen = [a + b for a, b in zip(images_seen, histograms[device], strict=True)]
            queue = [k for k in queue if k != device] + [device]
        rounds.append(sorted(chosen))
    return lambda t: rounds[t]
