"""Compressors of updates: what a participant sends in place of its update of the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.config.options import make_part_unless
from fedgan_mpi.config.require import require

_KEY = "aggregation.compression"
_INDEX_BITS = 32
_LEVELS = 127  # of int8, in either direction


class Compressor(ABC):
    """Writes an update into a message of fixed length. Options in `aggregation.compression_options`
    are keywords of its constructor.

    A message begins with `floats` numbers of the update's dtype, by which the server knows whether
    it is finite.
    """

    def __init__(self, *, residual: bool = True) -> None:
        """residual: error feedback. Each device adds what it has not sent to its next update."""
        self.residual = residual

    @abstractmethod
    def floats(self, count: int) -> int:
        """Return the numbers of the update's dtype in the message for `count` numbers."""

    @abstractmethod
    def bits(self, count: int, bits_per_number: int) -> int:
        """Return the length of the message for `count` numbers of so many bits; whole bytes."""

    @abstractmethod
    def encode(self, update: Tensor, message: Tensor, stream: torch.Generator) -> None:
        """Overwrite the message, uint8, with the update, (n,). stream: for random rounding."""

    @abstractmethod
    def decode(self, message: Tensor, update: Tensor) -> None:
        """Overwrite the update with the one in the message."""


class Uncompressed:
    """Updates travel as they are."""


class TopK(Compressor):
    """The greatest numbers by magnitude, each with its index (Aji and Heafield 2017,
    arXiv:1704.05021)."""

    def __init__(self, *, share: float = 0.01, residual: bool = True) -> None:
        """share: part of the numbers that is sent. residual: error feedback."""
        super().__init__(residual=residual)
        require(0 < share <= 1, "aggregation.compression_options.share", share, "above 0 to 1")
        self.share = share

    def floats(self, count: int) -> int:
        return max(1, round(self.share * count))

    def bits(self, count: int, bits_per_number: int) -> int:
        return self.floats(count) * (_INDEX_BITS + bits_per_number)

    def encode(self, update: Tensor, message: Tensor, stream: torch.Generator) -> None:
        values, indices = self._parts(message, update)
        chosen = update.abs().topk(len(values), sorted=False).indices.sort().values
        torch.index_select(update, 0, chosen, out=values)
        indices.copy_(chosen)

    def decode(self, message: Tensor, update: Tensor) -> None:
        values, indices = self._parts(message, update)
        update.zero_()
        update[indices.long()] = values

    def _parts(self, message: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        end = self.floats(len(like)) * like.element_size()
        return message[:end].view(like.dtype), message[end:].view(torch.int32)


class QSGD(Compressor):
    """Every number rounded at random to 8 bits, without bias (Alistarh et al. 2017,
    arXiv:1610.02132).

    The numbers of a bucket are scaled by the greatest magnitude in it.
    """

    def __init__(self, *, bucket: int = 512, residual: bool = True) -> None:
        """bucket: numbers that share a scale. residual: error feedback."""
        super().__init__(residual=residual)
        require(bucket >= 1, "aggregation.compression_options.bucket", bucket, "at least 1")
        self.bucket = bucket

    def floats(self, count: int) -> int:
        return -(-count // self.bucket)

    def bits(self, count: int, bits_per_number: int) -> int:
        return 8 * count + self.floats(count) * bits_per_number

    def encode(self, update: Tensor, message: Tensor, stream: torch.Generator) -> None:
        greatest, levels = self._parts(message, update)
        table = self._buckets(update)
        torch.amax(table.abs(), 1, out=greatest)
        noise = torch.rand(update.shape, generator=stream, dtype=update.dtype).to(update.device)
        # A bucket of zeros has no scale. Sums may round up to 128. Division comes before
        # multiplication, so that neither subnormal nor huge numbers leave the range of floats.
        scale = greatest.where(greatest != 0, 1)[:, None]
        scaled = table.abs().div_(scale).mul_(_LEVELS)
        magnitudes = scaled.view(-1)[: len(update)].add_(noise).floor_().clamp_(max=_LEVELS)
        levels.copy_(magnitudes.mul_(update.sign()))

    def decode(self, message: Tensor, update: Tensor) -> None:
        greatest, levels = self._parts(message, update)
        table = self._buckets(levels.to(update.dtype)).div_(_LEVELS).mul_(greatest[:, None])
        update.copy_(table.view(-1)[: len(update)])

    def _parts(self, message: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        end = self.floats(len(like)) * like.element_size()
        return message[:end].view(like.dtype), message[end:].view(torch.int8)

    def _buckets(self, vector: Tensor) -> Tensor:
        """Return a copy as a table with a bucket a row; zeros follow the last number."""
        table = vector.new_zeros(self.floats(len(vector)), self.bucket)
        table.view(-1)[: len(vector)] = vector
        return table


def make_compressor(config: AggregationConfig) -> Compressor | None:
    """Return the configured compressor; None if updates travel as they are.

    Raises UserError for a name that is none, or does not take its options.
    """
    name, options = config.compression, config.compression_options
    return make_part_unless(Uncompressed, _KEY, name, Compressor, options)  # type: ignore[type-abstract]


def upload_bits(config: AggregationConfig, count: int, bits_per_number: int) -> int:
    """Return the bits of an upload of so many parameters."""
    if config.compression == "none":  # usual, and asked for in every round of a wireless clock
        return count * bits_per_number
    compressor = make_compressor(config)
    assert compressor is not None
    return compressor.bits(count, bits_per_number)
