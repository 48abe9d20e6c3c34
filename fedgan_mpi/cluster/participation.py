"""Who takes part in round t, and with which share. Every rank computes the same, so no message is
sent for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fedgan_mpi.config import ParticipationConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.streams import Purpose, numpy_stream


def check_count(config: ParticipationConfig, devices: int) -> None:
    """Raises UserError where more participants are asked for than there are devices."""
    if (config.count or 0) > devices:
        right = f"at most {devices}, the number of devices"
        raise UserError(f"participation.count is {config.count}, but must be {right}")


class Participation:
    """Participants and shares of every round. Devices count from 1, rounds from 0."""

    def __init__(
        self,
        config: ParticipationConfig,
        *,
        images: Sequence[int],
        batch_sizes: Sequence[int],
        shares: Literal["data", "batch", "uniform"],
        seed: int,
    ) -> None:
        """images, batch_sizes: of device 1, 2, …. Raises UserError where more are asked for than
        there are."""
        self._policy, self._seed = config.policy, seed
        self.devices = len(images)
        self.count = self.devices if config.count is None else config.count
        check_count(config, self.devices)
        sizes = {"data": images, "batch": batch_sizes, "uniform": [1] * self.devices}
        self._sizes = sizes[shares]

    def participants(self, t: int) -> list[int]:
        """The devices of round t, in increasing order."""
        if self._policy == "random":
            stream = numpy_stream(self._seed, Purpose.PARTICIPATION, t)
            chosen = stream.choice(self.devices, self.count, replace=False).tolist()
        elif self._policy == "round_robin":
            chosen = [(t * self.count + n) % self.devices for n in range(self.count)]
        else:
            chosen = list(range(self.devices))
        return sorted(index + 1 for index in chosen)

    def shares(self, t: int) -> dict[int, float]:
        """Each participant's share in the average of round t; they sum to 1."""
        participants = self.participants(t)
        total = sum(self._sizes[device - 1] for device in participants)
        return {device: self._sizes[device - 1] / total for device in participants}
