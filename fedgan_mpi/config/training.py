"""Rounds, steps and optimizers; and what computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Rounds, steps and optimizers."""

    rounds: int = 600
    """Communication rounds T."""
    discriminator_steps: int = 1
    """Local steps on D per participant and round, n_d; on both networks for fedgan and fegan."""
    generator_steps: int | None = None
    """Server steps on G per round, n_g. None: 3. To be left out where the algorithm says how many:
    one a round for mdgan and uagan, one with each step on D for fedgan and fegan."""
    batch_size: int = 32
    """Images per local step; a device with fewer uses all it has."""
    generator_batch_size: int = 64
    """Fakes per server step; mdgan and uagan send batches of batch_size."""
    generator_lr: float = 2e-4
    """Learning rate of G."""
    discriminator_lr: float = 2e-4
    """Learning rate of D."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay rates of Adam's moments."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or plain gradient descent."""
    loss: Literal["nonsaturating", "saturating", "lsgan", "hinge", "wgan-gp"] = "nonsaturating"
    """The players' losses: G's -log D(G(z)), or the paper's minimax log(1 - D(G(z))); least
    squares, hinge, or Wasserstein with a gradient penalty."""
    gradient_penalty: float = 10.0
    """wgan-gp: weight λ of the penalty."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A device whose loss or update is not finite: the run stops after that round, or the device
    counts as absent in it. dp_fedavg_gan skips in any case."""
    precision: Literal["float32", "float64"] = "float32"
    """Type of parameters and arithmetic; float64 for studies of exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What computes. auto: the GPU of the rank's place on its node where torch sees one, else the
    CPU."""

    autocast: Literal["off", "bfloat16"] = "off"
    """Type that networks are computed in while they train; parameters, losses and moments keep
    training.precision. bfloat16 is for GPUs, and for CPUs with avx512_bf16 or AMX."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """Order of kernels and feature maps in memory. channels_last suits tensor cores and bfloat16;
    parameters then lie so in the vector that travels."""
    tf32: bool = True
    """On a GPU, let tensor cores round the factors of float32 products to 10 bits."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """On a GPU, record optimizer steps once and replay them (CUDA graphs). auto: where that is
    possible; on: or else the run ends."""
    pin: bool = True
    """Where ranks outnumber the cores of their one machine, give each a core to compute on, so that
    none idles. False where other programs share these cores."""

    @property
    def server_steps(self) -> int:
        """n_g: `generator_steps`, with None resolved."""
        return 3 if self.generator_steps is None else self.generator_steps

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "training.rounds", self.rounds, "at least 1")
        for key in ("discriminator_steps", "generator_steps"):
            steps = getattr(self, key)
            require(steps is None or steps >= 0, f"training.{key}", steps, "at least 0")
        penalty = self.gradient_penalty
        require(0 <= penalty < math.inf, "training.gradient_penalty", penalty, "at least 0")
        for key in ("batch_size", "generator_batch_size"):
            size = getattr(self, key)
            require(1 <= size < 2**31, f"training.{key}", size, "from 1 to 2^31 - 1")
        for key in ("generator_lr", "discriminator_lr"):
            rate = getattr(self, key)
            require(0 < rate <= 1e30, f"training.{key}", rate, "above 0 and at most 1e30")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        require(in_range, "training.betas", list(self.betas), "two numbers from 0 to below 1")
