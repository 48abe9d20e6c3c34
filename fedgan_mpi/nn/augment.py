"""Augmentations of the images that D judges, real and generated alike, differentiable.

Every step of D and of G augments, so that G does not learn to generate augmented images. The random
numbers are inputs: a step draws none itself. Plain torch, without ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedgan_mpi.config.options import make_part
from fedgan_mpi.errors import UserError

_KEY = "training.augment"
Shape = tuple[int, int, int]


class Augmentation(ABC):
    """A random, differentiable change of images.

    The table `training.augment_options.NAME` holds keywords of the constructor.
    """

    numbers: ClassVar[int] = 1
    """Random numbers that it needs per image."""

    @abstractmethod
    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the changed images, of the same shape and dtype.

        images: (B, C, H, W) in [-1, 1]. numbers: (B, `numbers`) from U(0, 1).
        """


class Flip(Augmentation):
    """Mirrors half of the images left to right."""

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        return torch.where(_per_image(numbers[:, 0] < 0.5), images.flip(-1), images)


class Color(Augmentation):
    """Changes brightness, saturation and contrast (Zhao et al. 2020, arXiv:2006.10738)."""

    numbers = 3

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        brightness, saturation, contrast = map(_per_image, numbers.unbind(1))
        images = images + (brightness - 0.5)
        if images.shape[1] > 1:
            grey = images.mean(1, keepdim=True)
            images = torch.lerp(grey, images, 2 * saturation)
        mean = images.mean((1, 2, 3), keepdim=True)
        return torch.lerp(mean, images, contrast + 0.5)


class Translation(Augmentation):
    """Moves images by up to an eighth of their size, with grey at the border (Zhao et al. 2020)."""

    numbers = 2

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        rows, columns = _sources(numbers[:, 0], height), _sources(numbers[:, 1], width)
        outside = _is_outside(rows, height)[:, :, None] | _is_outside(columns, width)[:, None]
        # One gather of pixels takes a third of the time of one for rows and one for columns.
        pixels = (
            rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
        )
        index = pixels.flatten(1)[:, None].expand(-1, channels, -1)
        moved = images.flatten(2).gather(2, index).view_as(images)
        return moved.masked_fill(outside[:, None], 0.0)


class Cutout(Augmentation):
    """Covers a rectangle of half the height and width in grey (Zhao et al. 2020)."""

    numbers = 2

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        _, _, height, width = images.shape
        rows, columns = _covered(numbers[:, 0], height), _covered(numbers[:, 1], width)
        hole = rows[:, None, :, None] & columns[:, None, None, :]
        return images.masked_fill(hole, 0.0)


class Augmentations:
    """All configured augmentations, one after the other."""

    def __init__(self, each: Sequence[Augmentation], probability: Tensor | None = None) -> None:
        """probability: with which each one changes an image, a scalar that may be overwritten
        between steps; None: always."""
        self.each, self.probability = list(each), probability
        self.numbers = sum(one.numbers for one in each)
        """Random numbers per image."""
        if probability is not None:
            self.numbers += len(self.each)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the changed images. images: (B, C, H, W). numbers: (B, `numbers`) from U(0, 1)."""
        used = 0
        for one in self.each:
            changed = one(images, numbers[:, used : used + one.numbers])
            used += one.numbers
            if self.probability is None:
                images = changed
            else:
                applies = _per_image(numbers[:, used] < self.probability)
                images = torch.where(applies, changed, images)
                used += 1
        return images


class AugmentedDiscriminator(nn.Module):
    """D behind augmentations."""

    def __init__(self, D: nn.Module, augmentations: Augmentations) -> None:
        super().__init__()
        self.D, self.augmentations = D, augmentations

    def forward(self, images: Tensor, *classes: Tensor, numbers: Tensor) -> Tensor:
        """Return D's logits (B,) of the changed images."""
        logits: Tensor = self.D(self.augmentations(images, numbers), *classes)
        return logits


def make_augmentations(
    names: Sequence[str], options: Mapping[str, Any], probability: Tensor | None = None
) -> Augmentations | None:
    """Return the augmentations of `training.augment`, in order; None for none.

    options: name -> table of options. probability: as in `Augmentations`. Raises UserError for a
    name that is no augmentation, or does not take its options.
    """
    each = []
    for name in names:
        one = make_part(_KEY, name, Augmentation, options.get(name, {}))  # type: ignore[type-abstract]
        if not (isinstance(one.numbers, int) and one.numbers >= 0):
            raise UserError(
                f"{_KEY} has {name!r}, whose numbers are {one.numbers}, but must be a whole number"
            )
        each.append(one)
    return Augmentations(each, probability) if each else None


def check_augmentations(names: Sequence[str], each: Augmentations, image_shape: Shape) -> None:
    """Raise UserError if an augmentation changes the shape of images (C, H, W) or their dtype."""
    images = torch.zeros(2, *image_shape)
    for name, one in zip(names, each.each, strict=True):
        changed = one(images, torch.full((2, one.numbers), 0.5))
        if changed.shape != images.shape or changed.dtype != images.dtype:
            raise UserError(
                f"{_KEY} has {name!r}, but it makes the shape {tuple(changed.shape)} of two "
                f"images, not {tuple(images.shape)}, or another dtype"
            )


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _steps(numbers: Tensor, size: int) -> Tensor:
    """Return whole steps (B,) of up to an eighth of the size, each equally likely."""
    most = int(size / 8 + 0.5)
    return (numbers * (2 * most + 1)).floor().clamp(max=2 * most).long() - most


def _sources(numbers: Tensor, size: int) -> Tensor:
    """Return the row (B, size) that each row of a moved image comes from. It may be outside."""
    return torch.arange(size, device=numbers.device) - _steps(numbers, size)[:, None]


def _is_outside(rows: Tensor, size: int) -> Tensor:
    return (rows < 0) | (rows >= size)


def _covered(numbers: Tensor, size: int) -> Tensor:
    """Return whether each row (B, size) is within half the size around a random center."""
    length = int(size / 2 + 0.5)
    centers = size + 1 - length % 2
    center = (numbers * centers).floor().clamp(max=centers - 1).long()
    offset = torch.arange(size, device=numbers.device) - (center - length // 2)[:, None]
    return (offset >= 0) & (offset < length)
