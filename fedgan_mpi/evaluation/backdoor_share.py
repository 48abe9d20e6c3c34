"""The success of a simulated backdoor: the share of images that show its patch."""

from __future__ import annotations

import numpy as np

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import AttackConfig
from fedgan_mpi.data import Images, white

METRIC = "backdoor_share"
_BRIGHT = 0.75
"""Mean brightness of the corner, as a share of white, from which an image counts."""


class BackdoorShare:
    """Counts a rank's images whose lower right corner is nearly as white as the patch."""

    def __init__(self, config: AttackConfig) -> None:
        self._side = config.patch
        self.images = self.patched = 0

    def accumulate(self, images: Images) -> None:
        """Count images, (N, C, H, W)."""
        corner = images[..., -self._side :, -self._side :].astype(np.float64)
        self.images += len(images)
        self.patched += int((corner.mean((1, 2, 3)) >= _BRIGHT * white(images.dtype)).sum())

    def finish(self, link: Link) -> float:
        """Return the share over all ranks' images. Collective."""
        patched, images = link.sum(np.array([self.patched, self.images], np.float64))
        return float(patched / max(images, 1.0))
