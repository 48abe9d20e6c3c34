"""Oracle of the paper's algorithm: a plain loop over K devices in one process.

Written from the paper and without code of the package: one network and one optimizer per device,
state dictionaries instead of a flat vector, losses by cross-entropy. Only the random streams are
shared.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.random_streams import Purpose, torch_stream


def _optimizer(network: nn.Module, config: Config, lr: float) -> torch.optim.Optimizer:
    if config.training.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=lr)
    return torch.optim.Adam(network.parameters(), lr=lr, betas=config.training.betas)


def _bce(target: float, logits: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, torch.full_like(logits, target))


def _is_statistic(name: str) -> bool:
    return "running" in name


def ren(
    G: nn.Module,
    D: nn.Module,
    shards: dict[int, Shard],
    config: Config,
    rounds: int,
    participants,
    nz: int,
    compress=None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[int, nn.Module]]:
    """Return (state of G, state of D, {device: local D}) after `rounds` rounds of the schedule.

    participants: t -> {device: share}. compress: (device, update of the parameters, flat) -> update
    that arrives.
    """
    training, choices, seed = config.training, config.algorithm, config.run.seed
    G, D = copy.deepcopy(G), copy.deepcopy(D)
    optimizer_g = _optimizer(G, config, training.generator_lr)
    noise_g = torch_stream(seed, Purpose.FAKE, 0)
    local = {k: copy.deepcopy(D) for k in shards}
    optimizers = {k: _optimizer(local[k], config, training.discriminator_lr) for k in shards}
    batches = {
        k: Batches(shard, batch_size=training.batch_size, seed=seed, device=k)
        for k, shard in shards.items()
    }
    noise = {k: torch_stream(seed, Purpose.FAKE, k) for k in shards}

    def server_steps() -> None:
        frozen_D = copy.deepcopy(D)  # G's steps must not change D's statistics
        for _ in range(training.generator_steps):
            z = torch.randn(
                training.generator_batch_size, nz, generator=noise_g, dtype=torch.float64
            )
            logits = frozen_D(G(z))
            nonsaturating = training.loss == "nonsaturating"
            loss = _bce(1.0, logits) if nonsaturating else -_bce(0.0, logits)
            optimizer_g.zero_grad()
            loss.backward()
            optimizer_g.step()

    def set_rates(t: int) -> None:
        """Warm-up, then linear decay to 0 after the last round."""
        w, T = training.warmup_rounds, training.rounds
        factor = min(1.0, (t + 1) / w if w else 1.0)
        if training.lr_schedule == "linear" and t >= w:
            factor = (T - t) / (T - w)
        for optimizer, lr in (
            (optimizer_g, training.generator_lr),
            *((each, training.discriminator_lr) for each in optimizers.values()),
        ):
            optimizer.param_groups[0]["lr"] = factor * lr

    for t in range(rounds):
        set_rates(t)
        uploads = {}
        for k, share in participants(t).items():
            received = D.state_dict()
            if choices.statistics_rule == "local":
                own = local[k].state_dict()
                received = {n: own[n] if _is_statistic(n) else v for n, v in received.items()}
            local[k].load_state_dict(received)
            if choices.moments == "reset":
                optimizers[k] = _optimizer(local[k], config, training.discriminator_lr)
            frozen_G = copy.deepcopy(G)
            for _ in range(training.discriminator_steps):
                real = torch.from_numpy(batches[k].draw()).double() / 127.5 - 1
                z = torch.randn(len(real), nz, generator=noise[k], dtype=torch.float64)
                fake = frozen_G(z).detach()
                loss = _bce(1.0, local[k](real)) + _bce(0.0, local[k](fake))
                optimizers[k].zero_grad()
                loss.backward()
                optimizers[k].step()
            upload = copy.deepcopy(local[k])
            if compress is not None:
                before, after = (
                    nn.utils.parameters_to_vector(network.parameters()).detach()
                    for network in (D, upload)
                )
                arrived = before + compress(k, after - before)
                nn.utils.vector_to_parameters(arrived, upload.parameters())
            uploads[k] = (share, upload.state_dict())

        if choices.schedule == "parallel":
            server_steps()
        mean = copy.deepcopy(D.state_dict())
        for name, value in mean.items():
            travels = value.is_floating_point()
            if choices.statistics_rule == "local" and _is_statistic(name):
                travels = False
            if travels and uploads:
                mean[name] = sum(share * state[name] for share, state in uploads.values())
        D.load_state_dict(mean)
        if choices.schedule == "serial":
            server_steps()
    return G.state_dict(), D.state_dict(), local
