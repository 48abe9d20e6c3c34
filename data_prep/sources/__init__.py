"""The data sets: one class each. A new one is a new class here and a line in SOURCES."""

from __future__ import annotations

from data_prep.sources.base import Source
from data_prep.sources.celeba import CelebA
from data_prep.sources.cifar import Cifar10, Cifar100
from data_prep.sources.embedded import Digits
from data_prep.sources.folder import ImageFolder
from data_prep.sources.mnist import FashionMnist, Mnist
from data_prep.sources.npz import Npz
from data_prep.sources.rsna import Rsna

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (
        Mnist,
        FashionMnist,
        Cifar10,
        Cifar100,
        CelebA,
        Rsna,
        ImageFolder,
        Npz,
        Digits,
    )
}


def digits(size: int = 16) -> Digits:
    """The embedded digits, 8×8, enlarged smoothly to size×size."""
    return Digits(size=size)
