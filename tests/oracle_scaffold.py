"""Oracle of SCAFFOLD (Karimireddy et al. 2020, algorithm 1 with option II) for `ren` and `fedgan`.

Written from the paper: a plain loop over devices with a control variate for each. The server's
control variate is computed anew as the mean over all devices.
"""

from __future__ import annotations

import copy

import torch
from oracle_trainers import call, load, make_trainers, weighted
from torch import nn


def flat(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def gradient_step(network, loss, lr, correction):
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    y, g = flat(network), torch.cat([each.flatten() for each in gradients])
    return y - lr * (g + correction)


def scaffold(G, D, shards, config, rounds, shares, nz, all_shares):
    """Return the states of G and D. shares: t -> {device: share}. all_shares: {device: share} if
    all take part."""
    server, devices, _ = make_trainers(G, D, shards, config, nz)
    training, is_fedgan = config.training, config.algorithm.name == "fedgan"
    names = ("D", "G") if is_fedgan else ("D",)
    rates = {"D": training.discriminator_lr, "G": training.generator_lr}
    c_k = {k: {name: 0.0 * flat(getattr(server, name)) for name in names} for k in shards}

    for t in range(rounds):
        c = {name: sum(all_shares[k] * c_k[k][name] for k in shards) for name in names}
        present = shares(t)
        for k in present:
            device = devices[k]
            load(device.G, server.G.state_dict(), keep_statistics=False)
            load(device.D, server.D.state_dict(), keep_statistics=False)
            x = {name: flat(getattr(server, name)) for name in names}
            for _ in range(training.discriminator_steps):
                real, z = device.draw_real(), device.draw_noise(device.batches.size)
                fake = call(device.G, *z)
                losses = {"D": device.d_loss(real, (fake.detach(), z[1]))}
                if is_fedgan:
                    losses["G"] = device.g_loss(call(device.D, fake, z[1])).mean()
                after = {
                    name: gradient_step(
                        getattr(device, name), losses[name], rates[name],
                        c[name] - c_k[k][name],
                    )
                    for name in names
                }  # fmt: skip
                for name, y in after.items():
                    nn.utils.vector_to_parameters(y, getattr(device, name).parameters())
            for name in names:
                moved = x[name] - flat(getattr(device, name))
                passed = training.discriminator_steps * rates[name]
                c_k[k][name] = c_k[k][name] - c[name] + moved / passed
        for name in names:
            states = [getattr(devices[k], name).state_dict() for k in present]
            load(getattr(server, name), weighted(states, list(present.values())),
                 keep_statistics=False)  # fmt: skip
        if not is_fedgan:
            before = copy.deepcopy(server.D.state_dict())
            for _ in range(training.server_steps):
                server.g_step(*server.draw_noise(training.generator_batch_size))
            server.D.load_state_dict(before)
    return server.G.state_dict(), server.D.state_dict()
