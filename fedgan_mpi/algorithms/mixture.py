"""Several discriminators as one: G's loss against all of them, and its gradient.

Sources: `odds`, Zhang et al. 2021 (arXiv:2102.04655); `max` and `softmax`, Yonetani et al. 2019
(arXiv:1905.09684).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedgan_mpi.config import AlgorithmConfig
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.steps import Batch


def loss_and_gradient(
    rank_state: RankState,
    fakes: Batch,
    shares: Mapping[int, float],
    judgements: Mapping[int, tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Return G's mean loss on fakes, and its gradient with respect to them, (b, C, H, W).

    shares: device -> π_k; they sum to 1.
    judgements: device -> its D's logits (b,), and the gradient of each with respect to its image.
    """
    logits = torch.stack([judgements[k][0] for k in shares]).requires_grad_()
    config, loss = rank_state.config.algorithm, rank_state.pair.loss
    value = generator_loss(config, loss, logits, log_shares(rank_state, shares, fakes))
    (weights,) = torch.autograd.grad(value, logits)
    gradient = torch.zeros_like(fakes.data)
    for weight, k in zip(weights, shares, strict=True):
        gradient.addcmul_(weight[:, None, None, None], judgements[k][1].view_as(gradient))
    return value.detach(), gradient


def generator_loss(
    config: AlgorithmConfig, loss: Loss, logits: Tensor, log_shares: Tensor
) -> Tensor:
    """Return G's mean loss on one batch, from the logits (N, b) of N discriminators."""
    if config.mode == "mean":
        return loss.generator(logits).mean()
    if config.mode == "max":
        return loss.generator(logits.max(0).values).mean()
    if config.mode == "softmax":
        weights = softmax_weights(logits, config.sharpness)
        return (weights * loss.generator(logits)).sum(0).mean()
    return loss.generator(odds(logits, log_shares)).mean()


def log_shares(rank_state: RankState, shares: Mapping[int, float], batch: Batch) -> Tensor:
    """Return log π_k, (N, 1); for conditional networks (N, b), by the class of each fake."""
    like = rank_state.pair.flat.vector
    pi = torch.tensor(list(shares.values()), dtype=like.dtype, device=like.device)[:, None]
    if batch.classes is None:
        return pi.log()
    histograms = rank_state.participation.histograms
    held = torch.tensor([histograms[k - 1] for k in shares], dtype=like.dtype).to(like.device)
    by_class = held @ batch.classes.T
    total = by_class.sum(0)
    # A class that none of these devices holds is judged by all, with their shares.
    return torch.where(total > 0, by_class / total.clamp(min=1), pi).log()


def odds(logits: Tensor, log_shares: Tensor) -> Tensor:
    """Return the logits (b,) of the D whose odds are Σ_k π_k D_k/(1 - D_k).

    logits: (N, b). Source: Zhang et al. 2021, equation 4, in a form that cannot overflow.
    """
    return torch.logsumexp(log_shares + logits, dim=0)


def softmax_weights(logits: Tensor, sharpness: float) -> Tensor:
    """Return softmax_k(λ D_k), (N, b), as constants for the step on G.

    Source: Yonetani et al. 2019 (F2A). Their λ is trained, ours is an option.
    """
    return torch.softmax(sharpness * logits.sigmoid(), dim=0).detach()
