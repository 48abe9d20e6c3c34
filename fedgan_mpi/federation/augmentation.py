"""The random numbers of augmentations: a player's stream, and its state in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.federation.device_images import to_device
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.nn.steps import Batch
from fedgan_mpi.random_streams import Purpose, torch_stream


class AugmentationStream:
    """Gives batches their random numbers. Does nothing without `training.augment`."""

    def __init__(self, pair: NetworkPair, seed: int, player: int) -> None:
        """player: a device, or 0 for the server."""
        self._pair, self._seed, self._player = pair, seed, player
        self._stream = torch_stream(seed, Purpose.AUGMENT, player)

    def augment(self, batch: Batch) -> Batch:
        """Return images, or noise for images, with the next random numbers.

        They are drawn on the CPU, so that they do not depend on the torch device.
        """
        return self._augment(batch, self._stream)

    def augment_real(self, batch: Batch, drawn: int) -> Batch:
        """Return a batch of real images with random numbers that depend only on its position.

        An early start may therefore be repeated. drawn: number of real images before the batch.
        """
        if self._pair.augmentations is None:
            return batch
        stream = torch_stream(self._seed, Purpose.AUGMENT_REAL, self._player, drawn)
        return self._augment(batch, stream)

    def state(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint keeps; empty without augmentations."""
        return {} if self._pair.augmentations is None else {"augment": self._stream.get_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Overwrite the state with an entry of a result of `state`."""
        if self._pair.augmentations is not None:
            self._stream.set_state(state["augment"])

    def _augment(self, batch: Batch, stream: torch.Generator) -> Batch:
        augmentations = self._pair.augmentations
        if augmentations is None:
            return batch
        dtype = self._pair.flat.vector.dtype
        shape = (len(batch.data), augmentations.numbers)
        numbers = torch.rand(shape, generator=stream, dtype=dtype)
        return batch._replace(numbers=to_device(numbers, self._pair.torch_device))
