"""A simulated backdoor: a patch on the training images of attacking devices (Jin and Li 2022,
arXiv:2207.00762)."""

from __future__ import annotations

from torch import Tensor

from fedgan_mpi.config import AttackConfig


class Backdoor:
    """Pastes a white square into the lower right corner of an attacking device's images."""

    def __init__(self, config: AttackConfig, device: int) -> None:
        self._side, self._opacity = config.patch, config.strength
        attacks = config.kind == "backdoor" and device in config.devices
        self._first_round = config.from_round - 1 if attacks else None

    def paste(self, images: Tensor, t: int) -> Tensor:
        """Return the images of round t, (B, C, H, W) in [-1, 1]; they are changed in place."""
        if self._first_round is not None and t >= self._first_round:
            corner = images[..., -self._side :, -self._side :]
            corner.mul_(1 - self._opacity).add_(self._opacity)  # white is 1
        return images
