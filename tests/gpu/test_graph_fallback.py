"""A step that cannot be captured as a CUDA graph, in a process of its own.

A failed capture may leave CUDA in a state that other tests would notice. Run it with
`pytest -m gpu tests/gpu/test_graph_fallback.py`; it is skipped on a machine without a GPU.
"""

from __future__ import annotations

import pytest
import torch
from graph_cases import device_and_server
from torch import nn

from fedgan_mpi.errors import UserError
from fedgan_mpi.nn.cuda_graphs import WARM_UPS, can_end_failed_captures, make_recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

GPU = "cuda:0"
RECOVERS = can_end_failed_captures(torch.__version__)
ROUNDS = WARM_UPS + 3


class ReadsBack(nn.Module):
    """A network that reads a number from the GPU, which a capture forbids."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        output = self.network(x)
        self.last_sum = output.sum().item()
        return output


def train(recorder):
    """Return the losses of some rounds, and the parameters after them."""
    device, server = device_and_server(recorder, torch_device=GPU)
    device.pair.D = ReadsBack(device.pair.D)
    losses = [(device.train_discriminator(t), server.train_generator()) for t in range(ROUNDS)]
    return losses, device.pair.flat.vector.clone()


@pytest.mark.skipif(RECOVERS, reason="this torch goes on after a failed capture")
def test_a_torch_that_cannot_go_on_after_a_failed_capture_ends_the_run():
    with pytest.raises(
        UserError, match=r"training\.graphs is 'auto', but a step cannot be captured"
    ):
        train(make_recorder("auto", GPU))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.skipif(not RECOVERS, reason="this torch cannot go on after a failed capture")
def test_a_step_that_cannot_be_captured_runs_eagerly():
    expected_losses, expected = train(None)
    recorder = make_recorder("auto", GPU)
    if not recorder.recovers:  # a torch before 2.12
        with pytest.raises(UserError, match="a step cannot be captured"):
            train(recorder)
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        return
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        losses, found = train(recorder)
    assert recorder.failed
    assert losses == [pytest.approx(loss, rel=1e-9) for loss in expected_losses]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)

    # Neither the stream nor the allocator believes that a capture is under way.
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert not torch.cuda.is_current_stream_capturing()
    block = torch.ones(2**24, device=GPU)
    assert block.sum().item() == 2**24
    del block
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved
