"""The base classes of all algorithms: a round, its costs, and the steps that rounds are made of."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

from fedgan_mpi.algorithms.aggregation.detectors import Detector, make_detector
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.config import Config
from fedgan_mpi.config.algorithm_traits import AlgorithmTraits
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.run.stats import AUGMENT_SIGN, ROUND_KEYS
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Memory, Payload, Sizes
from fedgan_mpi.wireless.timeline import Timeline


class Algorithm(ABC):
    """One rank's part in every round. Every rank calls the same link verbs in the same order.

    A subclass outside of this program defines `round` and `local_round`. Options in
    `algorithm.options` are keywords of its constructor, after `rank_state`.
    """

    traits: ClassVar[AlgorithmTraits] = AlgorithmTraits()
    """Properties that the program depends on."""
    timeline: Timeline | None = None
    """Times of the rounds if uploads may arrive late; replaces the wireless clock."""

    def __init__(self, rank_state: RankState) -> None:
        self.rank_state, self.link = rank_state, rank_state.link
        self.flat, self.server = rank_state.pair.flat, rank_state.server
        self.devices = {device.index: device for device in rank_state.devices}
        self.config = rank_state.config.algorithm
        self.training = rank_state.config.training
        self.metrics = LocalMetrics()
        self.detector: Detector | None = None
        """Finds dishonest devices (`aggregation.detector`)."""
        self._player: int | None = 0 if self.server else None  # whose value `log` takes

    @abstractmethod
    def round(self, t: int) -> None:
        """Run this rank's part of round t, counted from 0."""

    @property
    def trains_generator_last(self) -> bool:
        """Whether the server trains G after the average of the same round. It may then make its
        first fakes while the devices train."""
        return False

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload | None:
        """Return the numbers that a participant sends and receives in a round; None: stats.jsonl
        has the bytes that the link counts."""
        return None

    @staticmethod
    def memory(config: Config, sizes: Sizes, devices: int) -> Memory | None:
        """Return the memory that grows with the networks and the devices; None: not stated."""
        return None

    def payload_of_round(self, t: int, sizes: Sizes) -> Payload | None:
        """Return the payload of round t, for algorithms whose rounds differ."""
        return self.payload(sizes)

    def bytes_up(self, payload: Payload) -> int:
        """Return the bytes that a participant sends of this payload."""
        return payload.up * self.link.wire.nbytes(self.flat.phi) // self.flat.phi.numel()

    @classmethod
    def has_cost_model(cls) -> bool:
        """Whether the algorithm can be timed in the simulated cell (`wireless.on`)."""
        return cls.wireless_seconds is not Algorithm.wireless_seconds

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        """Return the multiply-accumulates of a round."""
        raise NotImplementedError

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        """Return the duration of round t in the simulated cell."""
        raise NotImplementedError

    # ---------------------------------------------------------------- steps of a round

    def train_participants(self, t: int) -> None:
        """Run the local round of each participant hosted here, one after the other."""
        shares = self.rank_state.participation.shares(t)
        with self.timed("seconds_local"), self.rank_state.device_view():
            self.before_local_rounds(t)
            for k, device in self.devices.items():
                if k in shares:
                    start = time.perf_counter()
                    self._player = k
                    losses = self.local_round(device, t)
                    self._record_sign(k)
                    if self._is_valid(device, *losses):
                        self.metrics.set_loss(self.metrics.d_loss, k, losses[0])
                        self.metrics.set_loss(self.metrics.g_loss, k, losses[1])
                        self.upload(device, shares[k])
                    else:
                        self.reject(device)
                    self.metrics.add_device_seconds(k, time.perf_counter() - start)
            self._player = 0 if self.server else None

    def train_generator(self) -> None:
        """Take the server's n_g steps on G, against the D in its vector."""
        assert self.server is not None
        with self.timed("seconds_server"):
            loss = self.server.train_generator()
        self.metrics.set_loss(self.metrics.g_loss, 0, loss)

    # ---------------------------------------------------------------- what subclasses define

    def before_local_rounds(self, t: int) -> None:  # noqa: B027 - optional
        """Prepare the local rounds of round t on this rank. May be called twice for one t."""

    @abstractmethod
    def local_round(self, device: Device, t: int) -> tuple[float | None, float | None]:
        """Train a participant; return its mean losses of D and of G, None for no steps."""

    def upload(self, device: Device, share: float) -> None:  # noqa: B027 - optional
        """Take up what a participant has just trained, for the next link verb."""

    def reject(self, device: Device) -> None:
        """Treat a participant as absent: its loss or update is not finite."""
        device.local.undo()
        self.metrics.skipped.append(device.index)
        for values in self.metrics.logged.values():
            values.pop(device.index, None)

    def log(self, name: str, value: float) -> None:
        """Put a number into the round's line of stats.jsonl, the progress bar and TensorBoard.

        In a local round it is the participant's; values of participants are averaged by share. On
        the server outside of local rounds it is the server's, with weight 1. Elsewhere it is
        ignored. Raises ValueError for a name that stats.jsonl has already.
        """
        if name in ROUND_KEYS:
            raise ValueError(f"{name} is a key of stats.jsonl; log under another name")
        if self._player is not None:
            self.metrics.logged.setdefault(name, {})[self._player] = float(value)

    def start_over(self) -> None:
        """Discard prefetched state. Called before the first round, after a resume and after a
        rollback."""
        self.metrics = LocalMetrics()
        self.link.discard_prefetched()
        for owner in self.rank_state.owners:
            owner.early_start.discard()

    @contextmanager
    def timed(self, key: Literal["seconds_local", "seconds_server"]) -> Iterator[None]:
        """Add the duration of the block to a metric of this rank."""
        start = time.perf_counter()
        yield
        setattr(self.metrics, key, getattr(self.metrics, key) + time.perf_counter() - start)

    def _record_sign(self, k: int) -> None:
        """Record the sign of D's logits on device k's images, if augmentation adapts to it."""
        adaptive = self.rank_state.pair.adaptive
        if adaptive is not None and (sign := adaptive.mean_sign()) is not None:
            self.metrics.logged.setdefault(AUGMENT_SIGN, {})[k] = sign

    def _is_valid(self, device: Device, *losses: float | None) -> bool:
        """Whether the losses and the vector are finite, also on the wire; always true unless
        `training.non_finite` is "skip"."""
        if not self.rank_state.config.skips_non_finite:
            return True
        finite = all(loss is None or math.isfinite(loss) for loss in losses)
        vector = self.flat.vector
        return finite and is_finite(vector) and self.link.wire.can_represent(vector)


class AveragingAlgorithm(Algorithm):
    """An algorithm whose devices train networks that the server averages."""

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        self.detector = make_detector(rank_state.config.aggregation)
        self.uplink = self.make_uplink()

    @abstractmethod
    def make_uplink(self) -> Uplink:
        """Return the uplink with its transforms; collective."""

    @abstractmethod
    def train(self, device: Device, t: int) -> tuple[float | None, float | None]:
        """Train a participant from the received networks, which are in the rank's vector; return
        its mean losses of D and of G, None for no steps."""

    def bytes_up(self, payload: Payload) -> int:
        bits = 8 * self.link.wire.nbytes(self.flat.phi) // self.flat.phi.numel()
        return self.uplink.bits(payload.up, bits) // 8

    def before_local_rounds(self, t: int) -> None:
        self.uplink.begin(t)

    def local_round(self, device: Device, t: int) -> tuple[float | None, float | None]:
        if not device.early_start.has_started:
            self.uplink.restore_received()
        return self.train(device, t)

    def upload(self, device: Device, share: float) -> None:
        self.uplink.add(device, share, self.metrics)

    def start_over(self) -> None:
        super().start_over()
        self.uplink.discard()
