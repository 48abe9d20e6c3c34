"""Data sets, one class each. SOURCES is the registry. A new one subclasses Source and joins it."""

from __future__ import annotations

from data_prep.sources.base import Source
from data_prep.sources.celeba import CelebA
from data_prep.sources.cifar import Cifar10, Cifar100
from data_prep.sources.embedded import Digits
from data_prep.sources.folder import ImageFolder
from data_prep.sources.mnist import FashionMnist, Mnist
from data_prep.sources.npz import Npz
from data_prep.sources.rsna import Rsna

__all__ = ["SOURCES", "Digits", "Source"]

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
