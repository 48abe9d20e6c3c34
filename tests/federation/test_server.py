"""The server's steps of G, begun before D has come and not."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from toys import NZ, toy_config, toy_networks

from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.nn.losses import LOSSES


def make_server(steps: int, **model: float) -> Server:
    torch.manual_seed(3)
    config = toy_config(training={"generator_steps": steps}, model=model)
    G, D = toy_networks()
    pair = pack_networks(
        G, D, nz=NZ, image_shape=(1, 4, 4), loss=LOSSES[config.training.loss], config=config
    )  # fmt: skip
    return Server(pair, config)


def average(server: Server, shift: float) -> None:
    """As the devices' D arrives: over the old one."""
    server.pair.flat.discriminator.add_(shift)


def trained(server: Server, *, ahead: bool) -> list[torch.Tensor]:
    """All that two rounds leave behind."""
    losses = []
    for shift in (0.1, -0.2):
        if ahead:
            server.prefetch()
        average(server, shift)
        losses.append(server.train_generator())
    state = server.state()
    kept = [state["vector"], state["noise_stream"], *state["moments"].values()]
    return [torch.as_tensor(value).clone() for value in [losses, *kept, state["average"]]]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_first_step_begun_ahead_is_the_same_step(steps):
    begun = trained(make_server(steps, ema=0.9), ahead=True)
    whole = trained(make_server(steps, ema=0.9), ahead=False)
    for one, other in zip(begun, whole, strict=True):
        assert torch.equal(one, other)


def test_no_steps_begin_with_nothing():
    server = make_server(0)
    before = server.noise_stream.get_state()
    server.prefetch()
    assert server.train_generator() is None
    assert torch.equal(server.noise_stream.get_state(), before)


def test_it_is_the_new_discriminator_that_counts():
    servers = [make_server(1) for _ in range(2)]
    for server, shift in zip(servers, (0.1, 0.5), strict=True):
        server.prefetch()
        average(server, shift)
        server.train_generator()
    assert not torch.equal(*(server.pair.flat.theta for server in servers))


def test_who_goes_back_forgets_what_was_begun():
    server, fresh = make_server(1), make_server(1)
    start = deepcopy(server.state())
    server.prefetch()
    start["noise_stream"] = torch.Generator().manual_seed(5).get_state()
    for one in (server, fresh):
        one.load_state(deepcopy(start))
        one.train_generator()
    assert torch.equal(server.pair.flat.theta, fresh.pair.flat.theta)
    assert torch.equal(server.noise_stream.get_state(), fresh.noise_stream.get_state())


def test_a_recorded_step_is_taken_whole():
    server = make_server(1)
    server.pair.recorder = object()  # type: ignore[assignment]
    before = server.noise_stream.get_state()
    server.prefetch()
    assert torch.equal(server.noise_stream.get_state(), before)
