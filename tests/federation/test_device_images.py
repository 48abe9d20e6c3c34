"""Batches of a shard's images, from the shard or from a resident copy."""

from __future__ import annotations

import numpy as np
import torch
from toys import toy_shards

from fedgan_mpi.federation.device_images import Images


def test_resident_images_equal_images_read_from_the_shard():
    shard = toy_shards([20])[1]
    like = torch.zeros(0, dtype=torch.float64)
    resident, from_shard = Images(shard, like, resident=True), Images(shard, like)
    assert from_shard.resident is None  # the shard is in the CPU's memory
    assert resident.resident.dtype == torch.uint8
    for indices in (np.array([3, 1, 3, 19]), np.arange(20)[::-1].copy()):
        expected = torch.from_numpy(shard.images[indices].astype(np.float64) * (2 / 255) - 1)
        for images in (resident, from_shard):
            torch.testing.assert_close(images.batch(indices), expected, rtol=0, atol=1e-15)
