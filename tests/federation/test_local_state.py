"""The state that a device keeps between its rounds, apart from other devices on its rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedgan_mpi.federation.local_state import LocalState
from fedgan_mpi.nn.optimizers import Optimizer, make_optimizer


class Rank:
    """A vector of two parameters and two statistics, on which hosted devices train."""

    def __init__(self) -> None:
        self.vector = torch.zeros(4, dtype=torch.float64)
        self.parameters = nn.Parameter(self.vector[:2])
        self.parameters.grad = torch.zeros(2, dtype=torch.float64)
        self.statistics = self.vector[2:]

    def make_device(self, moments="persistent", *, can_undo: bool = False) -> LocalState:
        optimizer = make_optimizer(self.parameters, kind="adam", lr=0.1, betas=(0.5, 0.9))
        return LocalState([optimizer], [self.statistics], moments, can_undo=can_undo)

    def train(self, device: LocalState, gradient: float, steps_before: int = 0) -> None:
        """Run a local round of one step that adds the gradient to the statistics."""
        device.enter(steps_before)
        self.parameters.grad.fill_(gradient)
        device.optimizers[0].step()
        self.statistics.add_(gradient)
        device.leave()


def first_moment(optimizer: Optimizer) -> list[float]:
    return optimizer.state()["first"].tolist()


def test_hosted_devices_keep_their_own_sections_and_moments():
    rank = Rank()
    devices = [rank.make_device(), rank.make_device()]
    for _ in range(2):
        for device, gradient in zip(devices, (1.0, 10.0), strict=True):
            rank.train(device, gradient)
    assert devices[0].own[0].tolist() == [2.0, 2.0]
    assert devices[1].own[0].tolist() == [20.0, 20.0]
    assert first_moment(devices[0].optimizers[0]) == pytest.approx([0.75, 0.75])
    assert first_moment(devices[1].optimizers[0]) == pytest.approx([7.5, 7.5])


def test_reset_forgets_the_moments_before_each_round():
    rank = Rank()
    device = rank.make_device("reset")
    rank.train(device, 1.0)
    rank.train(device, 3.0)
    assert first_moment(device.optimizers[0]) == pytest.approx([1.5, 1.5])


def test_undo_restores_moments_and_sections_but_not_parameters():
    rank = Rank()
    device = rank.make_device(can_undo=True)
    rank.train(device, 1.0)
    parameters = rank.parameters.tolist()
    rank.train(device, 5.0)
    device.undo()
    assert device.own[0].tolist() == [1.0, 1.0]
    assert first_moment(device.optimizers[0]) == pytest.approx([0.5, 0.5])
    assert rank.parameters.tolist() != parameters


def test_averaged_moments_continue_at_the_given_step():
    """A device that skipped rounds has received moments with more steps than its own."""
    rank = Rank()
    device = rank.make_device("averaged")
    rank.train(device, 1.0, steps_before=6)
    assert device.optimizers[0].state()["steps"] == 7
