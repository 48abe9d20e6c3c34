"""A device's images where its networks compute: as uint8 in a GPU's memory where they fit, else
batch by batch from the shard."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi.data import Shard

ROOM = 0.25  # share of a GPU's free memory that a shard may take


class Images:
    """Batches of one shard, as networks take them."""

    def __init__(self, shard: Shard, like: Tensor, *, resident: bool | None = None) -> None:
        """like: whose type and place batches have. resident: keep all of them there; None: on a
        GPU that has room."""
        self.shard, self.dtype, self.torch_device = shard, like.dtype, like.device
        if resident is None:
            resident = self._fit()
        self.resident: Tensor | None = None
        """uint8 (N, C, H, W)."""
        if resident:
            self.resident = torch.from_numpy(np.asarray(shard.images[...])).to(like.device)

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """(B, C, H, W) in [-1, 1]."""
        if self.resident is None:
            pixels = to_device(torch.from_numpy(self.shard.take(indices)), self.torch_device)
        else:
            chosen = to_device(torch.from_numpy(indices), self.torch_device)
            pixels = self.resident.index_select(0, chosen)
        return pixels.to(self.dtype).mul_(2 / 255).sub_(1)

    def _fit(self) -> bool:
        in_memory = isinstance(self.shard.images, np.ndarray)
        if self.torch_device.type != "cuda" or not in_memory:
            return False
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        return math.prod(self.shard.images.shape) <= ROOM * free


def to_device(tensor: Tensor, torch_device: torch.device) -> Tensor:
    """The tensor there; a GPU fetches it without anybody waiting."""
    if torch_device.type != "cuda" or tensor.is_cuda:
        return tensor.to(torch_device)
    return tensor.pin_memory().to(torch_device, non_blocking=True)
