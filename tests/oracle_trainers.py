"""Parts of the oracles: losses, and one device or the server with torch's own optimizers.

Written from the definitions and without code of the package. Only the random streams are shared.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from oracle_augment import NUMBERS, augment
from torch import nn

from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.random_streams import Purpose, torch_stream

CLASSES = 3


def bce(target):
    """Return the cross-entropy of logits with a constant target, per image."""
    return lambda x: nn.functional.binary_cross_entropy_with_logits(
        x, torch.full_like(x, target), reduction="none"
    )


LOSSES = {
    # D on real images, D on fakes, G.
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
    """Call a network with one-hot classes, or without if they are None."""
    return network(data) if classes is None else network(data, classes)


class Trainer:
    """One device, or the server with index 0: its networks, optimizers and noise stream."""

    def __init__(self, G, D, config: Config, index: int, shard: Shard | None, pooled, nz) -> None:
        self.config, self.training, self.index, self.nz = config, config.training, index, nz
        self.G, self.D = copy.deepcopy(G), copy.deepcopy(D)
        self.real_loss, self.fake_loss, self.g_loss = LOSSES[config.training.loss_name]
        self.noise = torch_stream(config.run.seed, Purpose.FAKE, index)
        self.augment_stream = torch_stream(config.run.seed, Purpose.AUGMENT, index)
        self.pooled = pooled if config.model.conditional else None
        self.shard = shard
        self.steps_taken, self.mean_real, self.mean_fake = 0, 0.0, 0.0
        if shard is not None:
            size, seed = config.training.batch_size, config.run.seed
            self.batches = Batches(shard, batch_size=size, seed=seed, device=index)
        self.reset_optimizers()

    def reset_optimizers(self) -> None:
        t = self.training
        if t.optimizer == "sgd":
            self.opt_g = torch.optim.SGD(self.G.parameters(), t.generator_lr)
            self.opt_d = torch.optim.SGD(self.D.parameters(), t.discriminator_lr)
        else:
            self.opt_g = torch.optim.Adam(self.G.parameters(), t.generator_lr, t.betas)
            self.opt_d = torch.optim.Adam(self.D.parameters(), t.discriminator_lr, t.betas)

    def remember_received(self):
        """Keep the parameters from which FedProx measures."""
        copies = ([p.detach().clone() for p in net.parameters()] for net in (self.G, self.D))
        self.received_g, self.received_d = copies

    def proximal(self, network):
        mu, received = self.config.algorithm.proximal, None
        if mu == 0:
            return 0.0
        received = self.received_g if network is self.G else self.received_d
        pairs = zip(network.parameters(), received, strict=True)
        return mu / 2 * sum(((p - before) ** 2).sum() for p, before in pairs)

    def draw_noise(self, count):
        z = torch.randn(count, self.nz, generator=self.noise, dtype=torch.float64)
        if self.pooled is None:
            return z, None
        weights = torch.tensor(self.pooled, dtype=torch.float64)
        classes = torch.multinomial(weights / weights.sum(), count, True, generator=self.noise)
        return z, torch.eye(CLASSES, dtype=torch.float64)[classes]

    def augmented(self, images, stream=None):
        """Return images after `training.augment`, if it is on."""
        names = self.training.augment
        if not names:
            return images
        count = sum(NUMBERS[name] for name in names)
        stream = stream or self.augment_stream
        numbers = torch.rand(len(images), count, generator=stream, dtype=torch.float64)
        return augment(images, names, numbers)

    def draw_real(self):
        """Return the next images, augmented by numbers that follow from their position."""
        path = (Purpose.AUGMENT_REAL, self.index, self.batches.drawn)
        images, classes = self.draw_original()
        # The same numbers each time, so that penalties see the original images.
        self.change = lambda x: self.augmented(x, torch_stream(self.config.run.seed, *path))
        self.original = images
        return self.change(images), classes

    def draw_original(self):
        indices = self.batches.next()
        images = torch.from_numpy(self.shard.images[indices]).double() / 127.5 - 1
        if self.pooled is None:
            return images, None
        return images, torch.eye(CLASSES, dtype=torch.float64)[self.shard.labels[indices]]

    def d_loss(self, real, fake):
        logits_real, logits_fake = call(self.D, *real), call(self.D, *fake)
        factor = 0.1 if self.config.algorithm.preset == "ua_gan" else 1.0
        loss = factor * self.real_loss(logits_real).mean()
        loss = loss + factor * self.fake_loss(logits_fake).mean()
        loss = loss + self.regularization(real, logits_real, logits_fake) + self.wgan(real, fake)
        return loss + self.proximal(self.D)

    def regularization(self, real, logits_real, logits_fake):
        """R1, the zero-centered penalty, and LeCam, from their papers."""
        kind, weight = self.training.regularizer, self.training.regularizer_weight
        if self.config.algorithm.preset == "ua_gan":
            kind, weight = "zero_centered", 10.0
        number, self.steps_taken = self.steps_taken, self.steps_taken + 1
        if kind == "lecam":
            zero = torch.zeros((), dtype=torch.float64)
            self.mean_real = 0.99 * self.mean_real + 0.01 * float(logits_real.mean())
            real_term = torch.maximum(logits_real - self.mean_fake, zero) ** 2
            self.mean_fake = 0.99 * self.mean_fake + 0.01 * float(logits_fake.mean())
            fake_term = torch.maximum(self.mean_real - logits_fake, zero) ** 2
            return weight * (real_term.mean() + fake_term.mean())
        interval = self.training.regularizer_interval
        if kind == "none" or number % interval:
            return 0.0
        x = (self.original if self.training.augment else real[0]).clone().requires_grad_(True)
        changed = self.change(x) if self.training.augment else x
        logits = call(self.D, changed, real[1])
        gradient = torch.autograd.grad(logits.sum(), x, create_graph=True)[0]
        squares = (gradient**2).sum((1, 2, 3)).mean()
        return interval * weight * (squares / 2 if kind == "r1" else squares)

    def wgan(self, real, fake):
        loss = 0.0
        if self.training.loss == "wgan-gp":
            shape = (self.batches.size, 1, 1, 1)
            eps = torch.rand(shape, generator=self.noise, dtype=torch.float64)
            n = min(len(real[0]), len(fake[0]))
            x = (eps[:n] * real[0][:n] + (1 - eps[:n]) * fake[0][:n]).requires_grad_(True)
            logits = call(self.D, x, None if real[1] is None else real[1][:n])
            gradient = torch.autograd.grad(logits.sum(), x, create_graph=True)[0]
            norm = gradient.pow(2).sum((1, 2, 3)).sqrt()
            loss = loss + self.training.gradient_penalty * ((norm - 1) ** 2).mean()
        return loss

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def d_step(self, real, fake):
        self.step(self.opt_d, self.d_loss(real, (fake[0].detach(), fake[1])))

    def g_step(self, z, classes):
        fake = self.augmented(call(self.G, z, classes))
        loss = self.g_loss(call(self.D, fake, classes)).mean()
        self.step(self.opt_g, loss + (self.proximal(self.G) if self.index else 0.0))


def make_trainers(G, D, shards, config, nz):
    """Return (server, {device: trainer}, {device: class histogram})."""
    histograms = {k: np.bincount(s.labels, minlength=CLASSES) for k, s in shards.items()}
    pooled = sum(histograms.values())
    server = Trainer(G, D, config, 0, None, pooled, nz)
    return (
        server,
        {k: Trainer(G, D, config, k, s, pooled, nz) for k, s in shards.items()},
        histograms,
    )


def load(network, state, *, keep_statistics):
    """Load a state, without counters and, on request, without BatchNorm statistics."""
    own = network.state_dict()
    keep = lambda name: "num_batches" in name or (keep_statistics and "running" in name)  # noqa: E731
    network.load_state_dict({n: own[n] if keep(n) else v for n, v in state.items()})


def weighted(states, weights):
    """Return the weighted sum of state dictionaries."""
    return {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
