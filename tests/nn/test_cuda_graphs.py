"""Recorded steps, with a stand-in for CUDA graphs: the same path, replayed by calling."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from toys import NZ, conditional_networks, toy_config, toy_networks, toy_shards

from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.nn.cuda_graphs import WARM_UPS, Step, make_recorder
from fedgan_mpi.nn.losses import LOSSES


class Tape:
    """Records by keeping the function, and counts. `fails`: it cannot record."""

    def __init__(self, *, strict: bool = False, fails: bool = False) -> None:
        self.strict, self.fails, self.given_up = strict, fails, False
        self.warm_ups = self.recordings = self.replays = 0

    def warm_up(self, step):
        self.warm_ups += 1
        return step()

    def record(self, step):
        if self.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        self.recordings += 1

        def replay():
            self.replays += 1
            return step()

        return replay


def test_without_a_recorder_a_step_is_its_function():
    given = []
    step = Step(lambda *inputs: given.append(inputs) or (torch.ones(1),), None)
    x = torch.rand(3)
    assert step(x, None)[0] == 1 and given[0][0] is x and given[0][1] is None


def test_a_recorded_step_reads_each_calls_inputs_from_one_place():
    tape, places = Tape(), set()

    def act(x, y):
        places.add((x.data_ptr(), y))
        return (2 * x,)

    step = Step(act, tape)
    for n in range(6):
        x = torch.full((4,), float(n))
        assert torch.equal(step(x, None)[0], 2 * x)
        assert x.data_ptr() not in {place for place, _ in places}
    assert len(places) == 1
    assert (tape.warm_ups, tape.recordings, tape.replays) == (WARM_UPS, 1, 6 - WARM_UPS)
    for n in range(5):  # another shape is another recording, beside the first
        x = torch.full((7,), float(n))
        assert torch.equal(step(x, None)[0], 2 * x)
    assert torch.equal(step(torch.ones(4), None)[0], torch.full((4,), 2.0))
    assert tape.recordings == 2


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once():
    tape = Tape(fails=True)
    moved = torch.zeros(1)
    steps = [Step(lambda x: (moved.add_(x),), tape) for _ in range(2)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(WARM_UPS + 3):
            for step in steps:
                step(torch.ones(1))
    assert moved.item() == 2 * (WARM_UPS + 3)  # none was lost, none taken twice
    assert [str(w.message) for w in told] == [
        "steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_strictly_what_cannot_be_recorded_is_an_error():
    step = Step(lambda x: (x,), Tape(strict=True, fails=True))
    for _ in range(WARM_UPS):
        step(torch.ones(1))
    with pytest.raises(RuntimeError, match="not permitted"):
        step(torch.ones(1))


def test_recorders_are_for_gpus():
    assert make_recorder("on", "cpu") is None
    assert make_recorder("auto", "cpu") is None
    assert make_recorder("off", "cuda:0") is None


# ------------------------------------------------------------ whole steps


def device_and_server(
    recorder, loss="nonsaturating", conditional=False, algorithm=None, torch_device="cpu"
):
    """(device, server) on toys."""
    changes = {"training": {"loss": loss}, "algorithm": algorithm or {}}
    if loss == "wgan-gp":
        changes["model"] = {"discriminator_norm": "none"}
    if conditional:
        changes["model"] = {**changes.get("model", {}), "conditional": True}
    config = toy_config(**changes)
    networks = conditional_networks() if conditional else toy_networks(loss != "wgan-gp")
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) if conditional else None
    pair = pack_networks(
        *networks,
        nz=NZ,
        image_shape=(1, 4, 4),
        loss=LOSSES[loss],
        config=config,
        torch_device=torch_device,
        class_shares=shares,
    )
    pair.recorder = recorder
    shard = toy_shards([13])[1]
    batches = Batches(shard, batch_size=4, seed=0, device=1)
    return Device(1, batches, pair, config), Server(pair, config)


KINDS = {
    "as it comes": {},
    "penalty": {"loss": "wgan-gp"},
    "classes": {"conditional": True},
    "simultaneous": {"algorithm": {"name": "fedgan"}},
    "alternating": {"algorithm": {"name": "fedgan", "local_update": "alternating"}},
    "given fakes": {"algorithm": {"name": "mdgan"}},
}


def after_some_rounds(kind, recorder, torch_device="cpu"):
    """(losses, (device's state, server's state)) of five rounds."""
    kinds = copy.deepcopy(KINDS[kind])
    device, server = device_and_server(recorder, torch_device=torch_device, **kinds)
    losses = []
    for t in range(5):
        if kind in ("simultaneous", "alternating"):
            losses += device.train_both(t, 2, kind)
        elif kind == "given fakes":
            with device.at_work():
                losses.append(device.train_against(device.pair.fakes(device.noise())))
        else:
            losses += [device.train_discriminator(t), server.train_generator()]
    return losses, (device.state(), server.state())


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_equal_eager_ones_bitwise(kind):
    """Networks, moments, statistics, streams and losses after several rounds."""
    tape = Tape()
    losses, (device, server) = after_some_rounds(kind, None)
    again, (device_again, server_again) = after_some_rounds(kind, tape)
    assert tape.replays > 0 and tape.recordings >= 1
    assert losses == again
    assert torch.equal(server["vector"], server_again["vector"])
    assert torch.equal(device["noise_stream"], device_again["noise_stream"])
    for ours, theirs in zip(device["moments"], device_again["moments"], strict=True):
        assert ours["steps"] == theirs["steps"] > 0
        assert torch.equal(ours["first"], theirs["first"])


def test_adam_counts_in_a_tensor():
    """A number would be recorded as it stood: bias corrections would stand still."""
    device, _ = device_and_server(None)
    before = device.optimizer.steps
    device.train_discriminator(0)
    assert device.optimizer.steps is before and before.item() == 2
    device.optimizer.set_steps(7)
    assert before.item() == 7 and device.optimizer.state()["steps"] == 7
    device.optimizer.reset()
    assert before.item() == 0


class Fragile(nn.Module):
    """A network that fails when it is asked for the `last` time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.last = network, 0

    def forward(self, x):
        self.last -= 1
        if self.last == 0:
            raise RuntimeError("not while recording")
        return self.network(x)


def test_a_step_that_failed_in_the_middle_is_taken_whole():
    """Recording stops where D is frozen for G's gradient: eagerly, D must learn again."""

    class Breaking(Tape):
        def record(self, step):
            device.pair.D.last = 3  # D passes over real images, over fakes, and for G
            step()

    options = {"algorithm": {"name": "fedgan"}}
    device, _ = device_and_server(None, **copy.deepcopy(options))
    device.pair.D = Fragile(device.pair.D)
    device.step_of_both = Step(device._of_both, Breaking())
    for t in range(WARM_UPS):
        device.train_both(t, 1, "simultaneous")
    phi = device.pair.flat.phi.detach().clone()
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        device.train_both(WARM_UPS, 1, "simultaneous")
    assert not torch.equal(phi, device.pair.flat.phi)
    assert all(p.requires_grad for p in device.pair.D.parameters())
