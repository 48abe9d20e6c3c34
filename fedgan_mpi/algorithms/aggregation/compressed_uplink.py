"""The uplink of participants that send compressed updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.compressors import Compressor
from fedgan_mpi.algorithms.aggregation.row_uplink import RowUplink
from fedgan_mpi.algorithms.aggregation.rules import Rule
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose, torch_stream

_ABSENT = 255  # as bytes of any floating-point type, it is NaN


class CompressedUplink(RowUplink):
    """Sends one message per participant: the compressed update of the parameters, and all other
    numbers of the vector as they are."""

    def __init__(
        self,
        rank_state: RankState,
        vector: Tensor,
        transforms: Sequence[UpdateTransform],
        rule: Rule | None,
        compressor: Compressor,
        parameters: Tensor,
    ) -> None:
        """rule: None for the weighted mean. parameters: the part of the vector that is compressed.
        The residuals of the devices become part of their checkpoints."""
        self._compressor, self._parameters = compressor, parameters
        self._seed = rank_state.config.run.seed
        start = parameters.storage_offset() - vector.storage_offset()
        self._part = slice(start, start + len(parameters))
        self._exact = len(vector) - len(parameters)
        super().__init__(rank_state, vector, transforms, rule)
        self._received = vector.clone()
        self._keeps_received = True
        if compressor.residual:
            for device in rank_state.devices:
                device.kept["residual"] = torch.zeros_like(parameters)

    def make_rows(self, devices: Sequence[int]) -> dict[int, Tensor]:
        number = 8 * self.vector.element_size()
        bits = self._exact * number + self._compressor.bits(len(self._parameters), number)
        return {
            k: torch.zeros(bits // 8, dtype=torch.uint8, device=self.vector.device) for k in devices
        }

    def bits(self, count: int, bits_per_number: int) -> int:
        return self._compressor.bits(count, bits_per_number)

    def refuse(self, device: int) -> None:
        self._rows[device].fill_(_ABSENT)

    def add(self, device: Device, share: float, metrics: LocalMetrics) -> None:
        """Transform a participant's upload, and compress its update plus its residual."""
        assert self._round is not None
        self._transform(Upload(device, self._round, share, self.vector, self._received, metrics))
        update = self.vector[self._part] - self._received[self._part]
        residual = device.kept.get("residual")
        if residual is not None:
            update += residual
        exact, message = self._split(self._rows[device.index])
        stream = torch_stream(self._seed, Purpose.ROUNDING, self._round, device.index)
        self._compressor.encode(update, message, stream)
        torch.cat(self._others(self.vector), out=exact)
        if residual is not None:
            self._compressor.decode(message, residual)
            torch.sub(update, residual, out=residual)

    def is_valid(self, device: int) -> bool:
        exact, message = self._split(self._rows[device])
        numbers = self._compressor.floats(len(self._parameters))
        begin = message[: numbers * self.vector.element_size()].view(self.vector.dtype)
        return is_finite(begin) and (not self._exact or is_finite(exact))

    def read(self, device: int, before: Tensor) -> Tensor:
        exact, message = self._split(self._rows[device])
        vector = torch.empty_like(before)
        self._compressor.decode(message, vector[self._part])
        vector[self._part] += before[self._part]
        first, last = self._others(vector)
        first.copy_(exact[: len(first)])
        last.copy_(exact[len(first) :])
        return vector

    def _split(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers that are sent as they are, and the message of the compressor."""
        end = self._exact * self.vector.element_size()
        return row[:end].view(self.vector.dtype), row[end:]

    def _others(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector before and after the parameters."""
        return [vector[: self._part.start], vector[self._part.stop :]]
