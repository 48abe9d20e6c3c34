"""How convolutional networks reach an image size: doublings from a small base grid."""

from __future__ import annotations

from torch import Tensor

MOST_MAPS = 16
"""Largest number of feature maps, as a multiple of those next to the image."""


def doublings(height: int, width: int) -> int:
    """Return how often a base grid is doubled; its shorter side is 4 to 7 for images from 8 px."""
    return (min(height, width) // 4).bit_length() - 1


def base_grid(height: int, width: int) -> tuple[int, int]:
    """Return the smallest (rows, columns) that cover the image after the doublings."""
    scale = 2 ** doublings(height, width)
    return -(-height // scale), -(-width // scale)


def crop(images: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of images (B, C, H, W)."""
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]
