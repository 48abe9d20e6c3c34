"""The interface of everything that changes an update on its way, or the average on the server."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.federation.device import Device


@dataclass
class Upload:
    """A participant's upload before it is added to the uplink."""

    device: Device
    round: int
    share: float
    """The participant's weight in the average; a transform may change it."""
    vector: Tensor
    """The slice of the rank's vector that is uploaded; a transform changes it in place."""
    received: Tensor
    """The received values of that slice; read-only."""
    metrics: LocalMetrics
    is_update: bool = False
    """Whether the vector is v_k - v, not v_k."""

    def received_part(self, part: Tensor) -> Tensor:
        """Return the received values of a part, a 1-D view of the vector."""
        start = part.storage_offset() - self.vector.storage_offset()
        return self.received[start : start + part.numel()]


class UpdateTransform:
    """One change. The list of transforms runs in order; each method does nothing by default."""

    needs_received = False
    """Whether `on_device` reads `Upload.received`, which otherwise may be stale."""

    def on_device(self, upload: Upload) -> None:
        """Change a participant's upload after its local round."""

    def before_average(self, t: int) -> None:
        """Called on the server before the average of round t overwrites its vector."""

    def on_server(self, t: int) -> None:
        """Change the server's vector after the average of round t."""
