"""The route of a GPU's vectors: which memory MPI reads, chosen for each kind of transfer.

Owns the options of the section `link`; `transfers.py` moves the vectors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mpi4py import MPI

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu import timing
from fedgan_mpi.comm.gpu.staging import Accelerator, Cuda, Staging
from fedgan_mpi.comm.gpu.support import is_gpu_aware
from fedgan_mpi.comm.gpu.timing import Probe
from fedgan_mpi.comm.gpu.torch_comm import TorchComm, connect_store, problem_of_nccl
from fedgan_mpi.comm.gpu.trial import allocator_warning, problem_of_trial
from fedgan_mpi.comm.transfers import KINDS, Kind, Transfers
from fedgan_mpi.comm.transport import Transport
from fedgan_mpi.comm.verbs import verb
from fedgan_mpi.config import LinkConfig
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.faults.watchdog import GRACE, exit_after
from fedgan_mpi.hardware.gpu import gpu_count

if TYPE_CHECKING:
    from torch import Tensor

_TITLES: dict[Kind, str] = {
    "down": "Vectors to the devices",
    "sum": "Sums on the server",
    "point_to_point": "Vectors between two ranks",
}
logger = logging.getLogger(__name__)


class RoutedTransfers(Transfers):
    """Transfers that follow the section `link` of a configuration."""

    def __init__(self, comm: MPI.Comm | None = None, *, transport: Transport | None = None) -> None:
        super().__init__(comm, transport=transport)
        self._config = LinkConfig()
        self.routes: list[str] = []
        """Sentences: how the vectors of GPUs travel. Empty without a GPU."""

    def configure(self, config: LinkConfig) -> None:
        """Apply the configured wire, route and sum. Raises AgreedError if a rank cannot."""
        problem = None
        if config.route in ("cuda", "nccl") and not gpu_count():
            problem = f"link.route is {config.route!r}, but there is no GPU here; use 'host'"
        elif config.route == "cuda" and not is_gpu_aware(self._comm):
            problem = f"link.route is 'cuda', but {_NO_CLAIM}; use 'host'"
        elif config.survive and not can_survive():
            right = "an Open MPI of 5 or later, started as `mpirun --with-ft ulfm`"
            problem = f"link.survive needs {right}; leave it out here"
        self.agree(problem)
        self._config, self.wire = config, Wire(config.wire_dtype)
        self.peer_monitor = config.peer_monitor
        self.in_order = config.average == "gather" or self.wire.is_lossy
        if config.survive:
            # A rank asleep in shared memory would not notice a death.
            self.transport = "mpi" if self.transport == "mpi" else "polling"
            self._doorbell, self._channels, self._own_rows, self.shared_cores = None, {}, [], []
            self._comm = self._comm.Dup()
            self.survives = True

    @verb
    def choose_route(
        self,
        torch_device: str,
        lengths: Mapping[Kind, int] | None = None,
        gpu: Accelerator | None = None,
    ) -> None:
        """Collective. Choose the memory that MPI reads, for vectors on `torch_device`.

        lengths: kind of transfer -> numbers in a vector of the rounds that follow. Each kind is
        timed with them, and with the route `auto` takes the faster road. None: no rounds follow,
        and `auto` means `host`. gpu: None for the real one.

        Raises AgreedError if the route `cuda` or `nccl` is configured but does not work.
        """
        has_gpu = torch_device != "cpu"
        if not self.any(has_gpu):
            return
        gpu = gpu or (Cuda() if has_gpu else None)
        self._any_gpu = True
        if self._config.route == "nccl" and self.size > 1:
            self._open_nccl(gpu, torch_device)
        roads = self._working_roads(gpu, with_rounds=lengths is not None)
        self._roads = dict.fromkeys(KINDS, roads[0])
        self.routes = [f"All vectors: {self._name(roads[0])}"]
        # Then the result does not depend on the road that was faster.
        self._sums_in_rank_order = any(road.direct for road in roads)
        if lengths is None or self.size == 1:
            return
        self.routes = []
        choice = {
            kind: self._fastest_road(kind, length, roads, gpu) for kind, length in lengths.items()
        }
        # New ones: the probes have left buffers of other sizes in these.
        fresh = {road: Staging(gpu, direct=road.direct) for road in roads}
        self._roads = {kind: fresh[choice.get(kind, roads[-1])] for kind in KINDS}

    def _working_roads(self, gpu: Accelerator | None, *, with_rounds: bool) -> list[Staging]:
        """Collective. Return the roads that the configuration allows and that work here."""
        direct, host = Staging(gpu, direct=True), Staging(gpu, direct=False)
        route = self._config.route
        if self._torch_comm is not None:
            return [direct]
        if route == "host" or self.size == 1 or (route == "auto" and not with_rounds):
            return [host]
        problem = self._problem_of_direct_road(gpu)
        if route == "cuda":
            if problem is not None:
                raise AgreedError(f"link.route is 'cuda', but {problem}; use 'host'")
            return [direct]
        return [host] if problem is not None else [direct, host]

    def _open_nccl(self, gpu: Accelerator | None, torch_device: str) -> None:
        """Collective. Let NCCL move vectors."""
        if self.any(gpu is None):
            raise AgreedError("link.route is 'nccl', but a rank has no GPU; use 'auto'")
        assert gpu is not None
        problem = problem_of_nccl(self._comm, gpu.identity)
        if problem is not None:
            raise AgreedError(f"link.route is 'nccl', but {problem}; use 'auto'")
        store = connect_store(self._comm)
        with timing.time_limit(timing.SECONDS, partial(self._end_job, "Connecting the ranks")):
            self._torch_comm = TorchComm(self._comm, store, torch_device, gpu.synchronize)

    def _problem_of_direct_road(self, gpu: Accelerator | None) -> str | None:
        """Collective. Return why MPI does not carry GPU memory on all ranks; None if it does."""
        everyone = self.allgather((gpu is not None, gpu is not None and is_gpu_aware(self._comm)))
        if not all(has_gpu for has_gpu, _ in everyone):
            return "a rank has no GPU"
        if gpu is None or not all(claims for _, claims in everyone):
            return _NO_CLAIM
        if self.is_server:
            logger.warning(
                "trying MPI with GPU memory; if the job dies now, set link.route to 'host'"
            )
            if (warning := allocator_warning()) is not None:
                logger.warning("%s", warning)
        problem = problem_of_trial(self._comm, gpu)
        if problem is not None and self.is_server:
            logger.warning("MPI does not work with GPU memory here: %s", problem)
        return problem and f"a trial with GPU memory has failed: {problem}"

    def _fastest_road(
        self, kind: Kind, length: int, roads: Sequence[Staging], gpu: Accelerator | None
    ) -> Staging:
        """Collective. Return the fastest road for one kind of transfer, and add to `routes`."""
        probe = self._probe(kind, length, gpu)

        def move(road: Staging) -> None:
            limit = timing.time_limit(timing.SECONDS, partial(self._end_job, _TITLES[kind]))
            with limit if road.direct else nullcontext():
                probe.move(road)

        seconds = timing.measure(replace(probe, move=move), roads, self._comm)
        speeds = [
            "wrong values" if each is None else f"{probe.nbytes / each / 1e9:.3g} GB/s"
            for each in seconds
        ]
        ways = [f"{self._name(road)}, {speed}" for road, speed in zip(roads, speeds, strict=True)]
        best = timing.fastest_road(seconds)
        if best is None:
            right = "use link.route 'host'" if roads[-1].direct else "use another MPI library"
            raise AgreedError(f"{_TITLES[kind]}: {'; '.join(ways)}: {right}")
        ways.insert(0, ways.pop(best))
        others = f" (not {'; '.join(ways[1:])})" if ways[1:] else ""
        self.routes.append(f"{_TITLES[kind]}: {ways[0]}{others}")
        return roads[best]

    def _end_job(self, what: str, reason: str) -> None:
        carrier = "NCCL" if self._config.route == "nccl" else "MPI with GPU memory"
        logger.error("%s: %s %s; set link.route to 'host'", what, carrier, reason)
        exit_after(GRACE)  # MPI_Abort may wait for the other ranks
        self.abort()

    def _name(self, road: Staging) -> str:
        if not road.direct:
            return "pinned host memory"
        return "GPU memory" if self._torch_comm is None else "NCCL"

    def close(self) -> None:
        if self._torch_comm is not None:
            self._torch_comm.free()
        super().close()

    # ---------------------------------------------------------------- transfers to be timed

    def _probe(self, kind: Kind, length: int, gpu: Accelerator | None) -> Probe:
        """Return a transfer of vectors of `length` numbers; it is counted nowhere."""
        import torch

        dtype = torch.float64 if self._config.wire_dtype == "float64" else torch.float32
        empty = torch.empty if gpu is None else gpu.empty
        vector = empty((length,), dtype=dtype)
        row = empty((1, length if kind == "sum" else 0), dtype=dtype)
        wire = Wire(self._config.wire_dtype)  # its memory is freed with the probe
        own: dict[int, Tensor] = {} if self.is_server else {self.rank: vector}
        ring = {rank: rank % self.device_ranks + 1 for rank in range(1, self.size)}
        before = (self.rank - 2) % self.device_ranks + 1
        moves: dict[Kind, tuple[int, int, Callable[[Staging], None]]] = {
            "down": (self.is_server, 1, lambda road: self._send_down(vector, wire, road)),
            "sum": (
                0,
                self.device_ranks if self.is_server else 0,
                lambda road: self._sum_up(row, vector, wire, road),
            ),
            "point_to_point": (
                self.rank % 100,  # exact in 16 bits
                0 if self.is_server else before % 100,
                lambda road: self._permute(own, ring, wire, road),
            ),
        }
        sent, received, start = moves[kind]

        def prepare() -> None:
            vector.fill_(sent)
            row.fill_(not self.is_server)
            if gpu is not None:
                gpu.synchronize()

        def move(road: Staging) -> None:
            start(road)
            if gpu is not None:
                gpu.synchronize()

        return Probe(
            nbytes=wire.nbytes(vector),
            prepare=prepare,
            move=move,
            has_arrived=lambda: bool((vector == received).all()),
        )


_NO_CLAIM = "this MPI library does not claim to accept GPU memory"


def can_survive() -> bool:
    """Whether MPI reports deaths as errors: Open MPI with ULFM, requested from its mpirun."""
    requested = os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - its own spelling
    return requested and RoutedTransfers.library().startswith("Open MPI")
