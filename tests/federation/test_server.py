"""The server's round of G, with and without an early start, and its checkpointed state."""

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
        G, D, nz=NZ, image_shape=(1, 4, 4), loss=LOSSES[config.training.loss_name], config=config
    )  # fmt: skip
    return Server(pair, config)


def change_discriminator(server: Server, shift: float) -> None:
    """Overwrite D, as the average of a round does."""
    server.pair.flat.discriminator.add_(shift)


def trained(server: Server, *, early: bool) -> list[torch.Tensor]:
    """Return losses and state after two rounds."""
    losses = []
    for shift in (0.1, -0.2):
        if early:
            server.start_early()
        change_discriminator(server, shift)
        losses.append(server.train_generator())
    state = server.state()
    values = [losses, state["vector"], state["noise_stream"], state["average"]]
    return [torch.as_tensor(value).clone() for value in [*values, *state["moments"].values()]]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_early_start_changes_no_bit(steps):
    early = trained(make_server(steps, ema=0.9), early=True)
    plain = trained(make_server(steps, ema=0.9), early=False)
    assert all(torch.equal(*pair) for pair in zip(early, plain, strict=True))


def test_zero_steps_draw_no_noise():
    server = make_server(0)
    before = server.noise_stream.get_state()
    server.start_early()
    assert server.train_generator() is None
    assert torch.equal(server.noise_stream.get_state(), before)


def test_an_early_start_trains_against_the_new_discriminator():
    servers = [make_server(1) for _ in range(2)]
    for server, shift in zip(servers, (0.1, 0.5), strict=True):
        server.start_early()
        change_discriminator(server, shift)
        server.train_generator()
    assert not torch.equal(*(server.pair.flat.theta for server in servers))


def test_a_rollback_discards_an_early_start():
    server, fresh = make_server(1), make_server(1)
    start = deepcopy(server.state())
    server.start_early()
    start["noise_stream"] = torch.Generator().manual_seed(5).get_state()
    for each in (server, fresh):
        each.load_state(deepcopy(start))
        each.train_generator()
    assert torch.equal(server.pair.flat.theta, fresh.pair.flat.theta)
    assert torch.equal(server.noise_stream.get_state(), fresh.noise_stream.get_state())


def test_steps_recorded_as_cuda_graphs_do_not_start_early():
    server = make_server(1)
    server.pair.recorder = object()  # type: ignore[assignment]
    before = server.noise_stream.get_state()
    server.start_early()
    assert torch.equal(server.noise_stream.get_state(), before)
