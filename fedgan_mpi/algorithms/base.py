"""What an algorithm is given, and what it must offer: a round, and what one sends and takes."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.hardware.affinity import Affinity
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import Payload, Plan, Sizes, Work


@dataclass
class LocalMetrics:
    """What one rank notes in a round; the train loop adds the ranks' up."""

    d_loss: dict[int, float] = field(default_factory=dict)
    """Mean loss of D on each participant hosted here that took steps."""
    g_loss: dict[int, float] = field(default_factory=dict)
    """The same of G; 0 is the server."""
    skipped: list[int] = field(default_factory=list)
    """Participants hosted here that count as absent: what they computed is not finite."""
    update_norms: dict[int, float] = field(default_factory=dict)
    """How far participants hosted here went, where they are drawn by it."""
    seconds_of_device: dict[int, float] = field(default_factory=dict)
    """Of participants hosted here, each by itself."""
    images_drawn_before: int = 0
    """Real images that devices hosted here had drawn when the round began."""
    seconds_local: float = 0.0
    seconds_server: float = 0.0


class Algorithm(ABC):
    """One rank's part in every round. Subclasses call link verbs at their method's own
    indentation."""

    def __init__(self, rank_state: RankState) -> None:
        self.rank_state, self.link = rank_state, rank_state.link
        self.flat, self.server = rank_state.pair.flat, rank_state.server
        self.devices = {device.index: device for device in rank_state.devices}
        self.config = rank_state.config.algorithm
        self.training = rank_state.config.training
        on_cpu = rank_state.pair.torch_device.type == "cpu"
        parallel = self.config.schedule == "parallel"
        self.cores = Affinity(
            rank_state.link, rank_state.config.training.pin and on_cpu, server_computes_too=parallel
        )
        self.metrics = LocalMetrics()
        self.seconds_ahead: dict[int, float] = {}
        """Of devices, what was done before their round, and counts there."""

    @abstractmethod
    def round(self, t: int) -> None:
        """Do this rank's part in round t, counting from 0."""

    def start_over(self) -> None:
        """Rely on nothing that an earlier round left on device ranks: some may have gone back to a
        checkpoint, or have just begun."""
        self.metrics = LocalMetrics()
        self.seconds_ahead.clear()

    def prefetch(self, t: int) -> None:
        """Begin round t with what needs nothing that is yet to come, while other ranks are still at
        the one before: on a device rank, draw the real images that it begins with."""
        device = self.first_of(t)
        if device is not None:
            with self.ahead_of(device):
                device.prefetch_images()

    @staticmethod
    @abstractmethod
    def payload(sizes: Sizes) -> Payload:
        """What a round sends, from the sizes of networks and batches."""

    def payload_of_round(self, t: int, sizes: Sizes) -> Payload:
        """`payload`, for an algorithm whose rounds are not all alike."""
        return self.payload(sizes)

    @staticmethod
    @abstractmethod
    def work(plan: Plan) -> Work:
        """What a round computes."""

    @staticmethod
    @abstractmethod
    def wireless_seconds(plan: Plan, air: RadioRound, t: int) -> float:
        """How long round t takes on a radio link."""

    # ---------------------------------------------------------------- what rounds are made of

    def participants(self, t: int) -> Iterator[tuple[Device, float]]:
        """The participants of round t that this rank hosts, with their shares. What is done with
        each before the next counts as its seconds."""
        shares = self.rank_state.participation.shares(t)
        for k, device in self.devices.items():
            if k in shares:
                start = time.perf_counter()
                yield device, shares[k]
                seconds = time.perf_counter() - start + self.seconds_ahead.pop(k, 0.0)
                self.metrics.seconds_of_device[k] = seconds

    def first_of(self, t: int) -> Device | None:
        """The first participant of round t that this rank hosts, where that is known before. What
        is done ahead is done for one a rank: it takes memory, and may stay in the rank's vector."""
        participation = self.rank_state.participation
        if t >= self.training.rounds or not participation.is_known_ahead:
            return None
        present = participation.participants(t)
        return next((device for k, device in self.devices.items() if k in present), None)

    @contextmanager
    def ahead_of(self, device: Device) -> Iterator[None]:
        """What is done before the device's round."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds_ahead[device.index] = self.seconds_ahead.get(device.index, 0.0) + seconds

    def train_generator(self) -> None:
        """The server's n_g steps on G, against the D in its vector."""
        assert self.server is not None
        with self.computing("seconds_server"):
            self.note("g_loss", 0, self.server.train_generator())

    def note(self, what: Literal["d_loss", "g_loss"], player: int, loss: float | None) -> None:
        """Enter the mean loss of a device, or of the server, 0; None says that it took no steps."""
        if loss is not None:
            getattr(self.metrics, what)[player] = loss

    def succeeded(self, device: Device, *losses: float | None) -> bool:
        """Whether a device that has just trained in the rank's vector counts. Where a loss or the
        vector is not finite, or not on the wire, and such are to be skipped, it does not, and has
        its moments and own networks back as they were."""
        if not self.rank_state.config.skips_non_finite:
            return True
        sound = all(loss is None or math.isfinite(loss) for loss in losses)
        if sound and is_finite(self.flat.vector) and self.link.wire.carries(self.flat.vector):
            return True
        device.undo()
        self.metrics.skipped.append(device.index)
        return False

    @contextmanager
    def computing(self, what: Literal["seconds_local", "seconds_server"]) -> Iterator[None]:
        """What this rank computes, and for whom it counts."""
        start = time.perf_counter()
        with self.cores.work():
            yield
        setattr(self.metrics, what, getattr(self.metrics, what) + time.perf_counter() - start)


class Uplink:
    """What a rank sends up: its participants' vectors times their shares, added up or a row a
    hosted device.

    Rows keep devices apart, so that the server can add them in the order of devices whatever rank
    hosts them.
    """

    def __init__(self, rank_state: RankState, vector: Tensor) -> None:
        self.link, self.vector = rank_state.link, vector
        link = self.link
        self.normalizes = rank_state.config.skips_non_finite
        """Whether shares need not sum to 1 by themselves."""
        self.total = 0.0  # of this rank's shares
        self._sent: list[tuple[Device, Tensor]] = []
        self._in_order = link.in_order
        hosted = -(-rank_state.participation.devices // max(1, link.device_ranks))
        self.rows = link.rows(hosted if self._in_order else 1, vector)
        self._row_of = {
            device.index: row if self._in_order else 0
            for row, device in enumerate(rank_state.devices)
        }
        self._filled: set[int] = set()  # rows that hold this round's numbers
        self._stale: set[int] = set()  # and those that hold an earlier one's
        # Hosted devices train one after the other in the same vector: each starts from what came
        # down.
        self._received = vector.clone() if len(rank_state.devices) > 1 else None

    def clear(self) -> None:
        """Begin a round. What no device overwrites stands until `finish`."""
        self._stale |= self._filled
        self._filled = set()
        self.total, self._sent = 0.0, []

    def remember(self) -> None:
        """Keep what has just come down, for all devices that start from it."""
        if self._received is not None:
            self._received.copy_(self.vector)

    def restore(self) -> None:
        """Bring back what came down, before the next hosted device."""
        if self._received is not None:
            self.vector.copy_(self._received)

    def add(self, device: Device, share: float) -> None:
        """Add a participant's part: share · vector."""
        self.total += share
        place = self._row_of[device.index]
        row = self.rows[place]
        if place in self._filled:
            row.add_(self.vector, alpha=share)
        else:
            torch.mul(self.vector, share, out=row)
        self._filled.add(place)
        self._stale.discard(place)
        if self._in_order:
            self._sent.append((device, row))

    def finish(self) -> None:
        """Collective where devices may be skipped or shares are only known now: make them sum to 1.
        Rows of devices that are absent become zeros; then, with error feedback, a participant's row
        takes up what rounding took from the device's last one."""
        for place in self._stale:
            self.rows[place].zero_()
        self._stale.clear()
        self._normalize()
        for device, row in self._sent:
            if device.residual is not None:
                self.link.wire.send_with(device.residual, row)

    def _normalize(self) -> None:
        if not self.normalizes:
            return
        total = self.link.sum(np.array([self.total]))[0]
        if total > 0 and abs(total - 1) > 1e-9:  # no one's share is so small
            self.rows.div_(total)
