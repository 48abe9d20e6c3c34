"""Gradients by finite differences, for tests of penalties on gradients."""

from __future__ import annotations

import torch


def input_gradients(D, images):
    """Return the gradient of each logit with respect to its image, (B, pixels), pixel by pixel."""
    gradients = torch.zeros_like(images).flatten(1)
    step = 1e-6
    with torch.no_grad():
        for pixel in range(gradients.shape[1]):
            shift = torch.zeros_like(gradients[0])
            shift[pixel] = step
            up, down = (D(images + sign * shift.view(images.shape[1:])) for sign in (1, -1))
            gradients[:, pixel] = (up - down) / (2 * step)
    return gradients


def assert_weight_gradients(weight, penalty, indices=((0, 0), (3, 7), (7, 15))):
    """Compare `weight.grad` with the differences of `penalty()` when a weight changes."""
    for index in indices:
        before = weight.data[index].item()
        penalties = []
        for shift in (1e-4, -1e-4):
            weight.data[index] = before + shift
            penalties.append(penalty())
        weight.data[index] = before
        expected = (penalties[0] - penalties[1]) / 2e-4
        torch.testing.assert_close(weight.grad[index], expected, rtol=1e-4, atol=1e-7)
