"""A device's images on its torch device: resident as integers, or read batch by batch from the
shard."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi.data import Shard, white


class Images:
    """Batches of one shard, scaled to [-1, 1]."""

    def __init__(self, shard: Shard, like: Tensor, *, resident: bool = False) -> None:
        """like: batches get its dtype and torch device. resident: keep the shard there."""
        self.shard, self.dtype, self.torch_device = shard, like.dtype, like.device
        self._step = 2 / white(shard.images.dtype)
        self.resident: Tensor | None = None
        """The whole shard, uint8 or uint16 (N, C, H, W); None if not resident."""
        if resident:
            self.resident = torch.from_numpy(np.asarray(shard.images[...])).to(like.device)

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the images at these indices, (B, C, H, W) in [-1, 1]."""
        if self.resident is None:
            pixels = to_device(torch.from_numpy(self.shard.take(indices)), self.torch_device)
        else:
            chosen = to_device(torch.from_numpy(indices), self.torch_device)
            pixels = _select(self.resident, chosen)
        return pixels.to(self.dtype).mul_(self._step).sub_(1)


def _select(images: Tensor, indices: Tensor) -> Tensor:
    """Return the images at these indices."""
    if images.dtype == torch.uint16:  # torch has few kernels for it, and int16 has the same bits
        return images.view(torch.int16).index_select(0, indices).view(torch.uint16)
    return images.index_select(0, indices)


def to_device(tensor: Tensor, torch_device: torch.device) -> Tensor:
    """Move a tensor to a torch device; to a GPU asynchronously, through pinned memory."""
    if torch_device.type != "cuda" or tensor.is_cuda:
        return tensor.to(torch_device)
    return tensor.pin_memory().to(torch_device, non_blocking=True)
