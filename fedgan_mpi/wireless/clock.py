"""The wireless clock: the simulated duration of each round.

Evaluates the cost functions of an algorithm over the simulated cell. The caller supplies the
algorithm; this package imports none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.wireless.cell import Cell, RadioRound
from fedgan_mpi.wireless.cost import CostFunctions, CostModel, macs_per_second, payload_sizes

if TYPE_CHECKING:
    from fedgan_mpi.wireless.macs import Macs

    Work = tuple[Macs, int, int]
    """(multiply-accumulates, |G|, |D| without fixed parameters)."""


class Clock:
    """Simulated seconds of the rounds of one experiment."""

    def __init__(self, algorithm: CostFunctions, cost_model: CostModel) -> None:
        self._algorithm, self._cost_model = algorithm, cost_model
        wireless, devices = cost_model.config.wireless, len(cost_model.images)
        self.cell = Cell(wireless, devices)
        cost, rates = algorithm.compute_cost(cost_model), macs_per_second(wireless, devices)
        self._device_seconds = [macs / rate for macs, rate in zip(cost.device, rates, strict=True)]
        self._server_seconds = cost.server / wireless.server_macs_per_second

    def seconds(
        self,
        t: int,
        participants: Sequence[int],
        measured: tuple[Mapping[int, float], float] | None = None,
    ) -> float:
        """Return the duration of round t with these participants.

        `measured` holds the compute seconds of each participant and of the server. It is required
        if `wireless.compute` is "measured".
        """
        radio = self.radio_round(participants)
        if self._cost_model.config.wireless.compute == "measured":
            assert measured is not None
            times, server_seconds = measured
            device_seconds = {k: times[k] for k in participants}
            radio = replace(radio, device_seconds=device_seconds, server_seconds=server_seconds)
        return self._algorithm.wireless_seconds(self._cost_model, radio, t)

    def radio_round(self, participants: Sequence[int]) -> RadioRound:
        """Return the compute and transfer times of these participants, without measured ones."""
        return RadioRound(
            cell=self.cell,
            participants=participants,
            device_seconds={k: self._device_seconds[k - 1] for k in participants},
            server_seconds=self._server_seconds,
        )


def make_clock(
    config: Config,
    algorithm: CostFunctions,
    image_shape: tuple[int, int, int],
    images: Sequence[int],
    classes: int,
    work: Work | None = None,
) -> Clock:
    """Build the clock of an experiment.

    `images` counts the images of device 1, 2, …; `centralized` has a single entry. `classes` is 0
    for unconditional networks. work: None to count it. Raises UserError if the compute rates do not
    fit the devices.
    """
    config = choose_by_size(config, image_shape)
    macs, theta, phi = work or count_work(config, image_shape, classes)
    sizes = payload_sizes(config, image_shape, theta, phi)
    return Clock(algorithm, CostModel(config=config, sizes=sizes, macs=macs, images=images))


def count_work(config: Config, image_shape: tuple[int, int, int], classes: int) -> Work:
    """Count the networks of an experiment; the cell does not matter. Allocates no networks."""
    import torch

    from fedgan_mpi.nn.freezing import count_trained, freeze_layers
    from fedgan_mpi.nn.losses import make_loss
    from fedgan_mpi.nn.registry import build, count_parameters
    from fedgan_mpi.wireless.macs import count_macs

    config = choose_by_size(config, image_shape)
    model, training = config.model, config.training
    with torch.device("meta"):
        G, D = build(model, image_shape, classes)
    freeze_layers(D, training.freeze_discriminator)
    loss = make_loss(training.loss_name, training.loss_options)
    regularizer = config.regularizer(loss.has_penalty)
    macs = count_macs(
        G, D, loss, image_shape, nz=model.nz, classes=classes, regularizer=regularizer
    )
    return macs, count_parameters(G), count_trained(D)
