"""Oracles of the other algorithms: plain loops over K devices in one process.

Written from the definitions and without code of the package. Only the random streams are shared.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from oracle_trainers import call, load, make_trainers, weighted
from torch import nn

from fedgan_mpi.random_streams import Purpose, numpy_stream, torch_stream


def fedgan(G, D, shards, config, rounds, shares, nz, server_step=lambda name, before, mean: mean):
    """shares: (t, None) -> participants before the local steps; (t, {device: trainer}) -> shares
    after them. server_step: ((G or D, parameter's name), its value before, mean) -> its value."""
    server, devices, _ = make_trainers(G, D, shards, config, nz)
    local = config.algorithm.statistics_rule == "local"
    for t in range(rounds):
        present = shares(t, None)
        for k in present:
            device = devices[k]
            load(device.G, server.G.state_dict(), keep_statistics=local)
            load(device.D, server.D.state_dict(), keep_statistics=local)
            device.remember_received()
            if config.algorithm.moments == "reset":
                device.reset_optimizers()
            steps = config.training.discriminator_steps
            if config.algorithm.preset == "fl_gan":
                steps = math.ceil(config.algorithm.epochs * len(shards[k]) / device.batches.size)
            for _ in range(steps):
                real, z = device.draw_real(), device.draw_noise(device.batches.size)
                fake = device.augmented(call(device.G, *z))
                if config.algorithm.local_update == "alternating":
                    device.d_step(real, (fake, z[1]))
                    device.g_step(*device.draw_noise(device.batches.size))
                else:  # both gradients at the same point
                    d_loss = device.d_loss(real, (fake.detach(), z[1]))
                    g_loss = device.g_loss(call(device.D, fake, z[1])).mean()
                    g_loss = g_loss + device.proximal(device.G)
                    for network, loss in ((device.D, d_loss), (device.G, g_loss)):
                        trained = [p for p in network.parameters() if p.requires_grad]
                        gradient = torch.autograd.grad(loss, trained, retain_graph=True)
                        for p, value in zip(trained, gradient, strict=True):
                            p.grad = value
                    device.opt_d.step()
                    device.opt_g.step()
        weights = shares(t, {k: devices[k] for k in present})
        for name in ("G", "D"):
            states = [getattr(devices[k], name).state_dict() for k in weights]
            mean = weighted(states, list(weights.values()))
            for key, before in getattr(server, name).named_parameters():
                mean[key] = server_step((name, key), before.detach().clone(), mean[key])
            load(getattr(server, name), mean, keep_statistics=local)
    return server.G.state_dict(), server.D.state_dict(), devices


def fess_gda(G, D, shards, config, rounds, shares, nz):
    """Algorithm 1 of Shen et al. 2024, with x = θ and y = φ."""
    z = {key: parameter.detach().clone() for key, parameter in G.named_parameters()}
    p, beta = config.algorithm.smoothing, config.algorithm.smoothing_rate
    steps, lr_local = config.training.discriminator_steps, config.training.generator_lr
    lr_global = config.aggregation.server_options.get("rate", 1.0)

    def server_step(name, before, mean):
        after = before + lr_global * (mean - before)
        if name[0] == "G":
            key = name[1]
            after = after - lr_local * lr_global * steps * p * (before - z[key])
            z[key] = z[key] + beta * (after - z[key])
        return after

    return fedgan(G, D, shards, config, rounds, shares, nz, server_step)


def kl_shares(histograms, sign, present):
    """Return the softmax of sign · KL · n_k/n over the participants."""
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
    """Return the biased MMD. In its Gaussian kernel, 2σ² is twice the median squared distance."""
    points = np.concatenate([x, y])
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    ordered = np.sort(squares, axis=None)
    sigma2 = ordered[(len(ordered) - 1) // 2]  # as torch: the lower median
    kernel = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * sigma2)).mean()  # noqa: E731
    return math.sqrt(max(0.0, kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def ifl_shares(devices):
    """Return the softmax over devices of the distance between real and generated images."""
    weights = {}
    for k, device in devices.items():
        real, _ = device.draw_real()
        z = device.draw_noise(device.batches.size)
        device.G.eval()
        with torch.no_grad():
            fake = call(device.G, *z)
        device.G.train()
        weights[k] = math.exp(mmd(real.flatten(1).numpy(), fake.flatten(1).numpy()))
    total = sum(weights.values())
    return {k: w / total for k, w in weights.items()}


def mdgan(G, D, shards, config, rounds, participants, nz):
    server, devices, _ = make_trainers(G, D, shards, config, nz)
    b, k_batches = config.training.batch_size, config.algorithm.fake_batches
    for t in range(rounds):
        present = sorted(participants(t))
        noise = [server.draw_noise(b) for _ in range(k_batches)]
        fakes = [call(server.G, *z) for z in noise]
        gradients = [torch.zeros_like(f) for f in fakes]
        for n, k in enumerate(present, start=1):
            device = devices[k]
            if config.algorithm.moments == "reset":
                device.reset_optimizers()
            for_g, for_d = n % k_batches, (n + 1) % k_batches
            real, labels = device.draw_original()
            for _ in range(config.training.discriminator_steps):
                batch = (device.augmented(real), labels)
                device.d_step(batch, (device.augmented(fakes[for_d]), noise[for_d][1]))
            x = fakes[for_g].detach().requires_grad_(True)
            loss = device.g_loss(call(device.D, device.augmented(x), noise[for_g][1])).mean()
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
                before = {k: copy.deepcopy(devices[k].D.state_dict()) for k in present}
                for sender, receiver in to.items():
                    load(devices[receiver].D, before[sender], keep_statistics=False)
    return server.G.state_dict(), server.D.state_dict(), devices


def uagan(G, D, shards, config, rounds, shares, nz):
    server, devices, histograms = make_trainers(G, D, shards, config, nz)
    for t in range(rounds):
        present = shares(t)
        z, classes = server.draw_noise(config.training.batch_size)
        fake = call(server.G, z, classes)
        logits = []
        for k in present:
            device = devices[k]
            real, labels = device.draw_original()
            for _ in range(config.training.discriminator_steps):
                device.d_step((device.augmented(real), labels), (device.augmented(fake), classes))
            device.D.eval()
            logits.append(
                call(device.D, device.augmented(fake), classes)
            )  # keeps the graph back to θ
            device.D.train()
        pi = torch.tensor(list(present.values()), dtype=torch.float64)[:, None]
        if classes is not None:
            held = torch.tensor(np.stack([histograms[k] for k in present]), dtype=torch.float64)
            pi = torch.stack([held[:, y] / held[:, y].sum() for y in classes.argmax(1)], dim=1)
        # One graph from the loss of G back to its parameters. The package sends gradients instead.
        loss = ua_loss(torch.stack(logits), pi, config.algorithm, server.g_loss)
        gradient = torch.autograd.grad(loss, list(server.G.parameters()))
        for p, value in zip(server.G.parameters(), gradient, strict=True):
            p.grad = value
        server.opt_g.step()
    return server.G.state_dict(), server.D.state_dict(), devices


def ensemble(G, D, shards, config, rounds, shares, nz):
    """shares: (t) -> participants. The last upload of every device judges G's images."""
    server, devices, histograms = make_trainers(G, D, shards, config, nz)
    uploads = {k: copy.deepcopy(D).eval() for k in shards}
    sizes = {k: 1 if config.algorithm.share_rule == "uniform" else len(shards[k]) for k in shards}

    def server_steps():
        for _ in range(config.training.server_steps):
            z, classes = server.draw_noise(config.training.generator_batch_size)
            fake = server.augmented(call(server.G, z, classes))
            pi = torch.tensor(list(sizes.values()), dtype=torch.float64)[:, None]
            pi = pi / pi.sum()
            if classes is not None:
                held = torch.tensor(np.stack(list(histograms.values())), dtype=torch.float64)
                pi = torch.stack([held[:, y] / held[:, y].sum() for y in classes.argmax(1)], dim=1)
            logits = torch.stack([call(uploads[k], fake, classes) for k in shards])
            loss = ua_loss(logits, pi, config.algorithm, server.g_loss)  # one graph through all D's
            gradient = torch.autograd.grad(loss, list(server.G.parameters()))
            for p, value in zip(server.G.parameters(), gradient, strict=True):
                p.grad = value
            server.opt_g.step()

    for t in range(rounds):
        received = copy.deepcopy(server.G)
        if config.algorithm.schedule == "parallel":
            server_steps()
        for k in shares(t):
            device = devices[k]
            if config.algorithm.moments == "reset":
                device.reset_optimizers()
            for _ in range(config.training.discriminator_steps):
                real, z = device.draw_real(), device.draw_noise(device.batches.size)
                device.d_step(real, (device.augmented(call(received, *z)), z[1]))
            uploads[k].load_state_dict(device.D.state_dict())
        if config.algorithm.schedule == "serial":
            server_steps()
    return server.G.state_dict(), server.D.state_dict(), devices


def ua_loss(logits, pi, choices, g_loss):
    if choices.mode == "mean":
        return g_loss(logits).mean()
    if choices.mode == "max":
        return g_loss(torch.amax(logits, 0)).mean()
    D = torch.sigmoid(logits)
    if choices.mode == "softmax":
        weights = torch.exp(choices.sharpness * D.detach())
        return (weights / weights.sum(0) * g_loss(logits)).sum(0).mean()
    odds = (pi * D / (1 - D)).sum(0)  # the paper's formula, stable enough in float64
    return g_loss(torch.log(odds)).mean()


def dp_fedavg_gan(G, D, shards, config, rounds, participants, nz):
    server, devices, _ = make_trainers(G, D, shards, config, nz)
    local = config.algorithm.statistics_rule == "local"
    C, z_noise = config.algorithm.clip, config.algorithm.noise
    for t in range(rounds):
        present = sorted(participants(t))
        updates, lengths = [], []
        for k in present:
            device = devices[k]
            device.G.load_state_dict(server.G.state_dict())
            load(device.D, server.D.state_dict(), keep_statistics=local)
            device.remember_received()
            for _ in range(config.training.discriminator_steps):
                real, z = device.draw_real(), device.draw_noise(device.batches.size)
                device.d_step(real, (device.augmented(call(device.G, *z)), z[1]))
            update = nn.utils.parameters_to_vector(device.D.parameters())
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
            states = [devices[k].D.state_dict() for k in present]
            mean = weighted(states, [1 / len(present)] * len(present))
            statistics = {n: v for n, v in mean.items() if "running" in n}
            server.D.load_state_dict({**server.D.state_dict(), **statistics})
        before = copy.deepcopy(server.D.state_dict())  # G's steps must not change D's statistics
        for _ in range(config.training.server_steps):
            server.g_step(*server.draw_noise(config.training.generator_batch_size))
        server.D.load_state_dict(before)
    return server.G.state_dict(), server.D.state_dict(), devices
