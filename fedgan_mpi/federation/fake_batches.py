"""Batches of fakes that the server sends to devices, for algorithms whose G stays on the server."""

from __future__ import annotations

import math

import torch

from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.nn.steps import Batch


class FakeBatches:
    """Batches of fakes in one vector: images and, for conditional networks, their class numbers."""

    def __init__(self, pair: NetworkPair, *, batches: int, size: int) -> None:
        """size: images per batch."""
        self._pair = pair
        images = batches * size * math.prod(pair.image_shape)
        classes = 0 if pair.class_shares is None else batches * size
        like = pair.flat.vector
        self.vector = torch.zeros(images + classes, dtype=like.dtype, device=like.device)
        images_of, classes_of = self.vector.split([images, classes])
        self._images = images_of.view(batches, size, *pair.image_shape)
        self._classes = classes_of.view(batches, -1) if classes else None

    def put(self, place: int, fakes: Batch) -> None:
        """Copy a batch of images (size, C, H, W) to a place among `batches`."""
        self._images[place].copy_(fakes.data.detach())
        if self._classes is not None and fakes.classes is not None:
            self._classes[place].copy_(fakes.classes.argmax(1))

    def batch(self, place: int) -> Batch:
        """Return the batch at a place, images (size, C, H, W); they are not copied."""
        if self._classes is None:
            return Batch(self._images[place])
        return Batch(self._images[place], self._pair.one_hot(self._classes[place].long()))
