"""Oracle of the augmentations: one image at a time, by slices.

Written from Zhao et al. 2020 (arXiv:2006.10738) and their published constants, without code of the
package.
"""

from __future__ import annotations

import math

import torch

NUMBERS = {"flip": 1, "color": 3, "translation": 2, "cutout": 2}


def augment(images, names, numbers, probability=None):
    """Return the changed images. numbers: (B, all), each augmentation's own in order, followed by
    one that is compared with `probability` if that is given."""
    changed = []
    for image, row in zip(images, numbers.tolist(), strict=True):
        for name in names:
            own, row = row[: NUMBERS[name]], row[NUMBERS[name] :]
            applies = True
            if probability is not None:
                applies, row = row[0] < probability, row[1:]
            if applies:
                image = globals()[name](image, *own)
        assert not row
        changed.append(image)
    return torch.stack(changed)


def flip(image, coin):
    return torch.stack(list(image.unbind(2))[::-1], dim=2) if coin < 0.5 else image


def color(image, brightness, saturation, contrast):
    image = image + brightness - 0.5
    grey = sum(image.unbind(0)) / len(image)
    image = (image - grey) * (2 * saturation) + grey
    mean = image.sum() / image.numel()
    return (image - mean) * (contrast + 0.5) + mean


def translation(image, down, right):
    for axis, number in ((1, down), (2, right)):
        size = image.shape[axis]
        most = math.floor(size / 8 + 0.5)
        shift = range(-most, most + 1)[math.floor(number * (2 * most + 1))]
        lines, empty = list(image.unbind(axis)), torch.zeros_like(image.select(axis, 0))
        lines = [lines[n - shift] if 0 <= n - shift < size else empty for n in range(size)]
        image = torch.stack(lines, dim=axis)
    return image


def cutout(image, row, column):
    covered = []
    for axis, number in ((1, row), (2, column)):
        size = image.shape[axis]
        length = math.floor(size / 2 + 0.5)
        center = range(size + 1 - length % 2)[math.floor(number * (size + 1 - length % 2))]
        start = center - length // 2
        covered.append([start <= n < start + length for n in range(size)])
    hole = torch.tensor([[r and c for c in covered[1]] for r in covered[0]])
    return torch.where(hole, torch.zeros_like(image), image)
