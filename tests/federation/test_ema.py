"""The exponential moving average of G: compared with its definition, and exported to a file.

average ← decay · average + (1 - decay) · G,   for each step of G since the last average
"""

from __future__ import annotations

import math

import pytest
import torch
from mpi4py import MPI
from safetensors.torch import load_file
from toys import toy_algorithm, toy_config, toy_shards

import fedgan_mpi
from fedgan_mpi import load_generator
from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.comm.link import Link

SIZES = [10, 17, 4]
BATCH = 4


def epochs(count: int, size: int) -> int:
    """Return the local steps of fl_gan."""
    return math.ceil(count * size / min(size, BATCH))


FL_GAN = {"name": "fedgan", "preset": "fl_gan", "epochs": 2}
CASES = {
    # (algorithm, training, steps of G in a round)
    "ren": ({"name": "ren"}, {}, 1),
    "ren parallel": ({"name": "ren", "schedule": "parallel"}, {}, 1),
    "mdgan": ({"name": "mdgan"}, {"discriminator_steps": 3}, 1),
    "uagan": ({"name": "uagan"}, {"discriminator_steps": 3}, 1),
    "ensemble": ({"name": "ensemble"}, {}, 1),
    "fedgan": ({"name": "fedgan"}, {"discriminator_steps": 3}, 3),
    "fedgan, one step": ({"name": "fedgan"}, {"discriminator_steps": 1}, 1),
    "fegan": ({"name": "fegan"}, {"discriminator_steps": 5}, 5),
    "fl_gan": (FL_GAN, {"discriminator_steps": 1}, max(epochs(2, size) for size in SIZES)),
}


@pytest.mark.parametrize(
    ("decay", "warmup"), [(0.9, False), (0.5, False), (0.9, True), (0.4, True)]
)
@pytest.mark.parametrize("case", CASES)
def test_the_average_counts_the_steps_of_the_generator(case, decay, warmup):
    """Devices take several steps between two averages; only the last G of these is averaged."""
    algorithm_options, training, steps = CASES[case]
    config = toy_config(
        algorithm=algorithm_options, training={**training, "batch_size": BATCH},
        model={"ema": decay, "ema_warmup": warmup},
    )  # fmt: skip
    algorithm = toy_algorithm(Link(MPI.COMM_SELF), config, toy_shards(SIZES))
    server = algorithm.rank_state.server
    assert server is not None and server.ema is not None
    expected = server.pair.flat.whole_generator.clone()
    assert torch.equal(server.ema, expected)
    for t in range(3):
        algorithm.round(t)
        generator = server.pair.flat.whole_generator
        for step in range(t * steps + 1, (t + 1) * steps + 1):  # 0.1, 2/11, 3/12 and so on
            kept = min(decay, step / (step + 9)) if warmup else decay
            expected = kept * expected + (1 - kept) * generator
        torch.testing.assert_close(server.ema, expected, rtol=1e-12, atol=1e-14)
        assert warmup or (server.ema - generator).abs().max() > 1e-4
        assert torch.equal(algorithm.rank_state.evaluated_generator, server.ema)


def test_a_loaded_average_needs_no_warm_up_also_after_a_resume():
    algorithm = toy_algorithm(
        Link(MPI.COMM_SELF), toy_config(model={"ema": 0.9}), toy_shards(SIZES)
    )
    server = algorithm.rank_state.server
    assert server is not None and server.ema is not None
    average = torch.full_like(server.ema, 2.0)
    generator = server.pair.flat.whole_generator
    server.start_ema(average)
    server.load_state(server.state())
    server.update_ema()
    torch.testing.assert_close(server.ema, 0.9 * average + 0.1 * generator)


@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_several_steps_with_the_same_generator_equal_one_call(name):
    config = toy_config(algorithm={"name": name}, model={"ema": 0.8, "ema_warmup": False})
    averages = []
    for steps in ([3], [1, 1, 1], [2, 1]):
        algorithm = toy_algorithm(Link(MPI.COMM_SELF), config, toy_shards(SIZES))
        server = algorithm.rank_state.server
        assert server is not None and server.ema is not None
        server.pair.flat.whole_generator.add_(1.0)
        before = server.ema.clone()
        for count in steps:
            server.update_ema(count)
        averages.append(server.ema - before)
    for average in averages:  # 1 - 0.8^3 of the way
        torch.testing.assert_close(average, torch.full_like(average, 0.488))


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_the_average_is_what_is_exported(tmp_path, ema):
    result = fedgan_mpi.train(
        {
            "run": {"directory": str(tmp_path)},
            "algorithm": {"name": "fedgan"},
            "model": {"width": 4, "nz": 8, "ema": ema},
            "evaluation": {"every": 2, "samples": 32},
            "training": {"rounds": 2, "discriminator_steps": 2},
            "data": {"devices": 2},
        }
    )
    state = load_file(checkpoints_of(result.path)[-1] / "server.safetensors")
    expected = state.get("average", state["vector"])
    assert ("average" in state) == (ema > 0)
    network = load_generator(result.path / "generator.safetensors").network
    # The vector begins with all means and all variances of BatchNorm, then the parameters.
    buffers = dict(network.named_buffers())
    kinds = [[b for name, b in buffers.items() if name.endswith(f"running_{kind}")]
             for kind in ("mean", "var")]  # fmt: skip
    tensors = [*kinds[0], *kinds[1], *network.parameters()]
    exported = torch.cat([tensor.detach().flatten() for tensor in tensors])
    assert torch.equal(exported, expected[: len(exported)])
    assert torch.equal(exported, state["vector"][: len(exported)]) == (ema == 0)
