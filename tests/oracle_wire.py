"""Oracle of the lossy wire: plain loops over K devices in one process.

Every message is rounded at the step at which the method's description sends it. Error feedback
keeps one dictionary of residuals per sender.
"""

from __future__ import annotations

import copy

import torch
from oracle_algorithms import ua_loss
from oracle_trainers import call, load, make_trainers
from rounding import ROUNDINGS

from fedgan_mpi.config import Config
from fedgan_mpi.random_streams import Purpose, numpy_stream


class Sender:
    """Rounds the messages of one sender. Adds earlier rounding errors if error feedback is on."""

    def __init__(self, config: Config) -> None:
        self.round, self.feedback = ROUNDINGS[config.link.wire_dtype], config.link.error_feedback
        self.residual: dict[str, torch.Tensor] = {}

    def send(self, message: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a state dictionary as received; entries other than floating-point are omitted."""
        received = {}
        for name, value in message.items():
            if not value.is_floating_point():
                continue
            exact = value + self.residual.get(name, 0.0) if self.feedback else value
            received[name] = self.send_tensor(exact)
            self.residual[name] = exact - received[name]
        return received

    def send_tensor(self, value: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.round(value.detach().numpy())).to(value.dtype)


def load_received(network, received) -> None:
    network.load_state_dict({**network.state_dict(), **received})


def scaled(state, share):
    return {n: share * v for n, v in copy.deepcopy(state).items() if v.is_floating_point()}


def ren(G, D, shards, config, rounds, shares, nz):
    """shares: t -> {device: share}. Also the schedule of dp_fedavg_gan without clipping."""
    server, players, _ = make_trainers(G, D, shards, config, nz)
    down, up = {"G": Sender(config), "D": Sender(config)}, {k: Sender(config) for k in shards}

    def server_steps():
        # The generator's steps must not change D's BatchNorm statistics.
        before = copy.deepcopy(server.D.state_dict())
        for _ in range(config.training.generator_steps):
            server.g_step(*server.draw_noise(config.training.generator_batch_size))
        server.D.load_state_dict(before)

    for t in range(rounds):
        theta, phi = (down[n].send(getattr(server, n).state_dict()) for n in ("G", "D"))
        sent = []
        for k, share in shares(t).items():
            player = players[k]
            load_received(player.G, theta)
            load_received(player.D, phi)
            for _ in range(config.training.discriminator_steps):
                real, z = player.draw_real(), player.draw_noise(player.batches.size)
                fake = call(copy.deepcopy(player.G), *z).detach()
                player.d_step(real, (fake, z[1]))
            sent.append(up[k].send(scaled(player.D.state_dict(), share)))
        if config.algorithm.schedule == "parallel":
            server_steps()
        load_received(server.D, {name: sum(one[name] for one in sent) for name in sent[0]})
        if config.algorithm.schedule == "serial":
            server_steps()
    return server, players


def fedgan(G, D, shards, config, rounds, shares, nz):
    server, players, _ = make_trainers(G, D, shards, config, nz)
    names = ("G", "D")
    down = {n: Sender(config) for n in names}
    up = {(k, n): Sender(config) for k in shards for n in names}
    for t in range(rounds):
        received = {n: down[n].send(getattr(server, n).state_dict()) for n in names}
        sent = {n: [] for n in names}
        for k, share in shares(t).items():
            player = players[k]
            for n in names:
                load_received(getattr(player, n), received[n])
            for _ in range(config.training.discriminator_steps):
                real, z = player.draw_real(), player.draw_noise(player.batches.size)
                fake = call(player.G, *z)
                d_loss = player.d_loss(real, (fake.detach(), z[1]))
                g_loss = player.g_loss(call(player.D, fake, z[1])).mean()
                gradients = {
                    "D": torch.autograd.grad(d_loss, list(player.D.parameters())),
                    "G": torch.autograd.grad(g_loss, list(player.G.parameters())),
                }
                for n, optimizer in (("D", player.opt_d), ("G", player.opt_g)):
                    for p, g in zip(getattr(player, n).parameters(), gradients[n], strict=True):
                        p.grad = g
                    optimizer.step()
            for n in names:
                state = getattr(player, n).state_dict()
                sent[n].append(up[k, n].send(scaled(state, share)))
        for n in names:
            mean = {name: sum(one[name] for one in sent[n]) for name in sent[n][0]}
            load_received(getattr(server, n), mean)
    return server, players


def mdgan(G, D, shards, config, rounds, shares, nz):
    server, players, _ = make_trainers(G, D, shards, config, nz)
    sender, batches = Sender(config), config.algorithm.fake_batches
    for t in range(rounds):
        present = sorted(shares(t))
        noise = [server.draw_noise(config.training.batch_size) for _ in range(batches)]
        fakes = [call(server.G, *z) for z in noise]
        gradients = [torch.zeros_like(f) for f in fakes]
        for n, k in enumerate(present, start=1):
            player, for_g, for_d = players[k], n % batches, (n + 1) % batches
            real = player.draw_real()
            for _ in range(config.training.discriminator_steps):
                player.d_step(real, (sender.send_tensor(fakes[for_d]), noise[for_d][1]))
            x = sender.send_tensor(fakes[for_g]).requires_grad_(True)
            loss = player.g_loss(call(player.D, x, noise[for_g][1])).mean()
            gradients[for_g] += sender.send_tensor(torch.autograd.grad(loss, x)[0]) / len(present)
        server.opt_g.zero_grad()
        for fake, gradient in zip(fakes, gradients, strict=True):
            fake.backward(gradient)
        server.opt_g.step()
        images = sum(len(s) for s in shards.values())
        period = max(1, round(images / (len(present) * config.training.batch_size)))
        if (t + 1) % period == 0:
            from fedgan_mpi.algorithms.mdgan import derangement

            to = derangement(present, numpy_stream(config.run.seed, Purpose.SWAP, t))
            states = {k: copy.deepcopy(players[k].D.state_dict()) for k in present}
            for source, receiver in to.items():
                moved = {
                    n: sender.send_tensor(v) if v.is_floating_point() else v
                    for n, v in states[source].items()
                }
                load(players[receiver].D, moved, keep_statistics=False)
    return server, players


def uagan(G, D, shards, config, rounds, shares, nz):
    server, players, _ = make_trainers(G, D, shards, config, nz)
    sender = Sender(config)
    for t in range(rounds):
        present = shares(t)
        z, classes = server.draw_noise(config.training.batch_size)
        fake = call(server.G, z, classes)
        received_fakes = sender.send_tensor(fake)
        logits, input_gradients = [], []
        for k in present:
            player = players[k]
            real = player.draw_real()
            for _ in range(config.training.discriminator_steps):
                player.d_step(real, (received_fakes, classes))
            player.D.eval()
            x = received_fakes.clone().requires_grad_(True)
            answer = call(player.D, x, classes)
            input_gradients.append(sender.send_tensor(torch.autograd.grad(answer.sum(), x)[0]))
            logits.append(sender.send_tensor(answer))
            player.D.train()
        pi = torch.tensor(list(present.values()), dtype=torch.float64)[:, None]
        received_logits = torch.stack(logits).requires_grad_(True)
        loss = ua_loss(received_logits, pi, config.algorithm, server.g_loss)
        (weights,) = torch.autograd.grad(loss, received_logits)
        pairs = zip(weights, input_gradients, strict=True)
        gradient = sum(w[:, None, None, None] * slope for w, slope in pairs)
        server.opt_g.zero_grad()
        fake.backward(gradient)
        server.opt_g.step()
    return server, players


def ensemble(G, D, shards, config, rounds, shares, nz):
    """All devices take part."""
    server, players, _ = make_trainers(G, D, shards, config, nz)
    sender = Sender(config)
    uploads = {k: copy.deepcopy(D).eval() for k in shards}
    for t in range(rounds):
        theta = sender.send(server.G.state_dict())
        for k in shares(t):
            player = players[k]
            load_received(player.G, theta)
            for _ in range(config.training.discriminator_steps):
                real, z = player.draw_real(), player.draw_noise(player.batches.size)
                player.d_step(real, (call(copy.deepcopy(player.G), *z).detach(), z[1]))
            load_received(uploads[k], sender.send(player.D.state_dict()))
        pi = torch.tensor(list(shares(t).values()), dtype=torch.float64)[:, None]
        for _ in range(config.training.generator_steps):
            fake = call(server.G, *server.draw_noise(config.training.generator_batch_size))
            logits = torch.stack([each(fake) for each in uploads.values()])
            server.step(server.opt_g, ua_loss(logits, pi, config.algorithm, server.g_loss))
    return server, players
