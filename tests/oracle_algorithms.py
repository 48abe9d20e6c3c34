"""The other algorithms as plain loops over K devices in one process.

Written from their definitions: a network and a torch optimizer for each device, state dictionaries
instead of a flat vector, losses spelled out. Only the random draws are the package's.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import nn

from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.random_streams import Purpose, numpy_stream, torch_stream

CLASSES = 3


def bce(target):
    return lambda x: nn.functional.binary_cross_entropy_with_logits(
        x, torch.full_like(x, target), reduction="none"
    )


LOSSES = {
    # D on real, D on fakes, G
    "nonsaturating": (bce(1.0), bce(0.0), bce(1.0)),
    "saturating": (bce(1.0), bce(0.0), lambda x: -bce(0.0)(x)),
    "lsgan": (lambda x: (x - 1) ** 2 / 2, lambda x: x**2 / 2, lambda x: (x - 1) ** 2 / 2),
    "hinge": (
        lambda x: torch.maximum(1 - x, torch.zeros_like(x)),
        lambda x: torch.maximum(1 + x, torch.zeros_like(x)),
        lambda x: -x,
    ),
    "wgan-gp": (lambda x: -x, lambda x: x, lambda x: -x),
}


def call(network, data, classes):
    return network(data) if classes is None else network(data, classes)


class Player:
    """Whoever trains: networks, their optimizers, and a stream of noise."""

    def __init__(self, G, D, config: Config, index: int, shard: Shard | None, pooled, nz) -> None:
        self.config, self.training, self.index, self.nz = config, config.training, index, nz
        self.G, self.D = copy.deepcopy(G), copy.deepcopy(D)
        self.real_loss, self.fake_loss, self.g_loss = LOSSES[config.training.loss]
        self.noise = torch_stream(config.run.seed, Purpose.FAKE, index)
        self.pooled = pooled if config.model.conditional else None
        self.shard = shard
        if shard is not None:
            size, seed = config.training.batch_size, config.run.seed
            self.batches = Batches(shard, batch_size=size, seed=seed, device=index)
        self.forget()

    def forget(self) -> None:
        t = self.training
        if t.optimizer == "sgd":
            self.opt_g = torch.optim.SGD(self.G.parameters(), t.generator_lr)
            self.opt_d = torch.optim.SGD(self.D.parameters(), t.discriminator_lr)
        else:
            self.opt_g = torch.optim.Adam(self.G.parameters(), t.generator_lr, t.betas)
            self.opt_d = torch.optim.Adam(self.D.parameters(), t.discriminator_lr, t.betas)

    def draw_noise(self, count):
        z = torch.randn(count, self.nz, generator=self.noise, dtype=torch.float64)
        if self.pooled is None:
            return z, None
        weights = torch.tensor(self.pooled, dtype=torch.float64)
        drawn = torch.multinomial(weights / weights.sum(), count, True, generator=self.noise)
        return z, torch.eye(CLASSES, dtype=torch.float64)[drawn]

    def draw_real(self):
        where = self.batches.next()
        images = torch.from_numpy(self.shard.images[where]).double() / 127.5 - 1
        if self.pooled is None:
            return images, None
        return images, torch.eye(CLASSES, dtype=torch.float64)[self.shard.labels[where]]

    def d_loss(self, real, fake):
        loss = self.real_loss(call(self.D, *real)).mean()
        loss = loss + self.fake_loss(call(self.D, *fake)).mean()
        if self.training.loss == "wgan-gp":
            shape = (self.batches.size, 1, 1, 1)
            mix = torch.rand(shape, generator=self.noise, dtype=torch.float64)
            n = min(len(real[0]), len(fake[0]))
            x = (mix[:n] * real[0][:n] + (1 - mix[:n]) * fake[0][:n]).requires_grad_(True)
            logits = call(self.D, x, None if real[1] is None else real[1][:n])
            slope = torch.autograd.grad(logits.sum(), x, create_graph=True)[0]
            length = slope.pow(2).sum((1, 2, 3)).sqrt()
            loss = loss + self.training.gradient_penalty * ((length - 1) ** 2).mean()
        return loss

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def d_step(self, real, fake):
        self.step(self.opt_d, self.d_loss(real, (fake[0].detach(), fake[1])))

    def g_step(self, z, classes):
        self.step(self.opt_g, self.g_loss(call(self.D, call(self.G, z, classes), classes)).mean())


def world(G, D, shards, config, nz):
    """(server, {device: player}, histograms)"""
    histograms = {k: np.bincount(s.labels, minlength=CLASSES) for k, s in shards.items()}
    pooled = sum(histograms.values())
    server = Player(G, D, config, 0, None, pooled, nz)
    return (
        server,
        {k: Player(G, D, config, k, s, pooled, nz) for k, s in shards.items()},
        histograms,
    )


def load(network, state, *, but_statistics):
    own = network.state_dict()
    keep = lambda name: "num_batches" in name or (but_statistics and "running" in name)  # noqa: E731
    network.load_state_dict({n: own[n] if keep(n) else v for n, v in state.items()})


def weighted(states, weights):
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def fedgan(G, D, shards, config, rounds, shares, nz):
    """shares: (t, {device: player}) -> {device: share}, asked after the local steps."""
    server, players, _ = world(G, D, shards, config, nz)
    local = config.algorithm.statistics_rule == "local"
    for t in range(rounds):
        present = shares(t, None)
        for k in present:
            player = players[k]
            load(player.G, server.G.state_dict(), but_statistics=local)
            load(player.D, server.D.state_dict(), but_statistics=local)
            if config.algorithm.moments == "reset":
                player.forget()
            steps = config.training.discriminator_steps
            if config.algorithm.preset == "fl_gan":
                steps = math.ceil(config.algorithm.epochs * len(shards[k]) / player.batches.size)
            for _ in range(steps):
                real, z = player.draw_real(), player.draw_noise(player.batches.size)
                fake = call(player.G, *z)
                if config.algorithm.local_update == "alternating":
                    player.d_step(real, (fake, z[1]))
                    player.g_step(*player.draw_noise(player.batches.size))
                else:  # both gradients at the same point
                    d_loss = player.d_loss(real, (fake.detach(), z[1]))
                    g_loss = player.g_loss(call(player.D, fake, z[1])).mean()
                    d = torch.autograd.grad(d_loss, list(player.D.parameters()))
                    g = torch.autograd.grad(g_loss, list(player.G.parameters()))
                    for network, gradient in ((player.D, d), (player.G, g)):
                        for p, value in zip(network.parameters(), gradient, strict=True):
                            p.grad = value
                    player.opt_d.step()
                    player.opt_g.step()
        weights = shares(t, {k: players[k] for k in present})
        for mine, theirs in (("G", "G"), ("D", "D")):
            states = [getattr(players[k], theirs).state_dict() for k in weights]
            mean = weighted(states, list(weights.values()))
            load(getattr(server, mine), mean, but_statistics=local)
    return server.G.state_dict(), server.D.state_dict(), players


def kl_shares(histograms, sign, present):
    """softmax of sign · KL · n_k/n over those present."""
    total = sum(int(h.sum()) for h in histograms.values())
    whole = sum(histograms.values()) / total
    scores = {}
    for k in present:
        p = histograms[k] / histograms[k].sum()
        kl = sum(pc * math.log(pc / qc) for pc, qc in zip(p, whole, strict=True) if pc > 0)
        scores[k] = sign * kl * histograms[k].sum() / total
    top = sum(math.exp(s) for s in scores.values())
    return {k: math.exp(s) / top for k, s in scores.items()}


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Biased MMD with a Gaussian kernel whose 2σ² is twice the median squared distance."""
    points = np.concatenate([x, y])
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    ordered = np.sort(squares, axis=None)
    sigma2 = ordered[(len(ordered) - 1) // 2]  # torch's median is the lower one
    kernel = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * sigma2)).mean()  # noqa: E731
    return math.sqrt(max(0.0, kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def ifl_shares(players):
    """softmax over devices of the distance between real images and generated ones."""
    weights = {}
    for k, player in players.items():
        real, _ = player.draw_real()
        z = player.draw_noise(player.batches.size)
        player.G.eval()
        with torch.no_grad():
            fake = call(player.G, *z)
        player.G.train()
        weights[k] = math.exp(mmd(real.flatten(1).numpy(), fake.flatten(1).numpy()))
    total = sum(weights.values())
    return {k: w / total for k, w in weights.items()}


def mdgan(G, D, shards, config, rounds, participants, nz):
    server, players, _ = world(G, D, shards, config, nz)
    b, k_batches = config.training.batch_size, config.algorithm.fake_batches
    for t in range(rounds):
        present = sorted(participants(t))
        noise = [server.draw_noise(b) for _ in range(k_batches)]
        fakes = [call(server.G, *z) for z in noise]
        gradients = [torch.zeros_like(f) for f in fakes]
        for n, k in enumerate(present, start=1):
            player = players[k]
            if config.algorithm.moments == "reset":
                player.forget()
            for_g, for_d = n % k_batches, (n + 1) % k_batches
            real = player.draw_real()
            for _ in range(config.training.discriminator_steps):
                player.d_step(real, (fakes[for_d], noise[for_d][1]))
            x = fakes[for_g].detach().requires_grad_(True)
            loss = player.g_loss(call(player.D, x, noise[for_g][1])).mean()
            gradients[for_g] += torch.autograd.grad(loss, x)[0] / len(present)
        server.opt_g.zero_grad()
        for fake, gradient in zip(fakes, gradients, strict=True):
            fake.backward(gradient)
        server.opt_g.step()
        every = config.algorithm.epochs
        if every and len(present) > 1:
            images = sum(len(s) for s in shards.values())
            period = max(1, round(every * images / (len(present) * b)))
            if (t + 1) % period == 0:
                from fedgan_mpi.algorithms.mdgan import derangement

                to = derangement(present, numpy_stream(config.run.seed, Purpose.SWAP, t))
                before = {k: copy.deepcopy(players[k].D.state_dict()) for k in present}
                for sender, receiver in to.items():
                    load(players[receiver].D, before[sender], but_statistics=False)
    return server.G.state_dict(), server.D.state_dict(), players


def uagan(G, D, shards, config, rounds, shares, nz):
    server, players, histograms = world(G, D, shards, config, nz)
    for t in range(rounds):
        present = shares(t)
        z, classes = server.draw_noise(config.training.batch_size)
        fake = call(server.G, z, classes)
        logits = []
        for k in present:
            player = players[k]
            real = player.draw_real()
            for _ in range(config.training.discriminator_steps):
                player.d_step(real, (fake, classes))
            player.D.eval()
            logits.append(call(player.D, fake, classes))  # with the graph back to θ
            player.D.train()
        pi = torch.tensor(list(present.values()), dtype=torch.float64)[:, None]
        if classes is not None:
            held = torch.tensor(np.stack([histograms[k] for k in present]), dtype=torch.float64)
            pi = torch.stack([held[:, y] / held[:, y].sum() for y in classes.argmax(1)], dim=1)
        # One graph from the networks' parameters to G's loss: no gradients travel here.
        loss = ua_loss(torch.stack(logits), pi, config.algorithm, server.g_loss)
        gradient = torch.autograd.grad(loss, list(server.G.parameters()))
        for p, value in zip(server.G.parameters(), gradient, strict=True):
            p.grad = value
        server.opt_g.step()
    return server.G.state_dict(), server.D.state_dict(), players


def ua_loss(logits, pi, choices, g_loss):
    if choices.mode == "mean":
        return g_loss(logits).mean()
    if choices.mode == "max":
        return g_loss(torch.amax(logits, 0)).mean()
    D = torch.sigmoid(logits)
    if choices.mode == "softmax":
        weights = torch.exp(choices.sharpness * D.detach())
        return (weights / weights.sum(0) * g_loss(logits)).sum(0).mean()
    odds = (pi * D / (1 - D)).sum(0)  # the paper's own formula; float64 and small networks bear it
    return g_loss(torch.log(odds)).mean()


def dp_fedavg_gan(G, D, shards, config, rounds, participants, nz):
    server, players, _ = world(G, D, shards, config, nz)
    local = config.algorithm.statistics_rule == "local"
    C, z_noise = config.algorithm.clip, config.algorithm.noise
    for t in range(rounds):
        present = sorted(participants(t))
        updates, lengths = [], []
        for k in present:
            player = players[k]
            player.G.load_state_dict(server.G.state_dict())
            load(player.D, server.D.state_dict(), but_statistics=local)
            for _ in range(config.training.discriminator_steps):
                real, z = player.draw_real(), player.draw_noise(player.batches.size)
                player.d_step(real, (call(player.G, *z), z[1]))
            update = nn.utils.parameters_to_vector(player.D.parameters())
            update = update.detach() - nn.utils.parameters_to_vector(server.D.parameters()).detach()
            if update.isfinite().all():
                updates.append(update * min(1.0, C / update.norm().item()))
                lengths.append(update.norm().item())
        mean = sum(updates) / len(present)
        noise = torch.randn(
            len(mean),
            generator=torch_stream(config.run.seed, Purpose.PRIVACY, t),
            dtype=torch.float64,
        )
        phi = nn.utils.parameters_to_vector(server.D.parameters()).detach() + mean
        phi = phi + noise * z_noise * C / len(present)
        nn.utils.vector_to_parameters(phi, server.D.parameters())
        if not local:
            states = [players[k].D.state_dict() for k in present]
            mean = weighted(states, [1 / len(present)] * len(present))
            statistics = {n: v for n, v in mean.items() if "running" in n}
            server.D.load_state_dict({**server.D.state_dict(), **statistics})
        before = copy.deepcopy(server.D.state_dict())  # what G's steps show it leaves no trace
        for _ in range(config.training.server_steps):
            server.g_step(*server.draw_noise(config.training.generator_batch_size))
        server.D.load_state_dict(before)
    return server.G.state_dict(), server.D.state_dict(), players
