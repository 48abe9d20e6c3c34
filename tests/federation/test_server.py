"""The server's round of G, started before the new D arrives or not."""

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
    """Change D in place, as the average of a round does."""
    server.pair.flat.discriminator.add_(shift)


def trained(server: Server, *, early: bool) -> list[torch.Tensor]:
    """Return losses and state after two rounds."""
    losses = []
    for shift in (0.1, -0.2):
        if early:
            server.start_early()
        average(server, shift)
        losses.append(server.train_generator())
    state = server.state()
    kept = [state["vector"], state["noise_stream"], *state["moments"].values()]
    return [torch.as_tensor(value).clone() for value in [losses, *kept, state["average"]]]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_early_start_changes_no_bit(steps):
    early = trained(make_server(steps, ema=0.9), early=True)
    whole = trained(make_server(steps, ema=0.9), early=False)
    for one, other in zip(early, whole, strict=True):
        assert torch.equal(one, other)


def test_no_steps_draw_no_noise():
    server = make_server(0)
    before = server.noise_stream.get_state()
    server.start_early()
    assert server.train_generator() is None
    assert torch.equal(server.noise_stream.get_state(), before)


def test_an_early_start_trains_against_the_new_discriminator():
    servers = [make_server(1) for _ in range(2)]
    for server, shift in zip(servers, (0.1, 0.5), strict=True):
        server.start_early()
        average(server, shift)
        server.train_generator()
    assert not torch.equal(*(server.pair.flat.theta for server in servers))


def test_a_rollback_discards_an_early_start():
    server, fresh = make_server(1), make_server(1)
    start = deepcopy(server.state())
    server.start_early()
    start["noise_stream"] = torch.Generator().manual_seed(5).get_state()
    for one in (server, fresh):
        one.load_state(deepcopy(start))
        one.train_generator()
    assert torch.equal(server.pair.flat.theta, fresh.pair.flat.theta)
    assert torch.equal(server.noise_stream.get_state(), fresh.noise_stream.get_state())


def test_recorded_steps_do_not_start_early():
    server = make_server(1)
    server.pair.recorder = object()  # type: ignore[assignment]
    before = server.noise_stream.get_state()
    server.start_early()
    assert torch.equal(server.noise_stream.get_state(), before)
