"""Folders that separate training images from held-out ones: train/, val/, test/ and their like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedgan_mpi.errors import UserError

_TRAIN = frozenset(["train", "training", "trn"])
_HELDOUT = frozenset(
    [
        "dev",
        "eval",
        "evaluation",
        "heldout",
        "holdout",
        "test",
        "testing",
        "tst",
        "val",
        "valid",
        "validation",
    ]
)
_FILLERS = frozenset(
    ["data", "dataset", "folder", "images", "image", "imgs", "img", "set", "split"]
)
_REMEDY = "--source-option splits=ignore takes all folders for classes"


@dataclass
class Splits:
    """Folders of images without those that name a part, and the images outside of training."""

    folders: list[tuple[str, ...]]
    heldout: list[int] = field(default_factory=list)
    """Indices of the images in folders such as val/ and test/."""
    parts: set[str] = field(default_factory=set)
    """Names of these folders."""


def find_splits(folders: Sequence[tuple[str, ...]]) -> Splits:
    """Find the level of folders that separates training from held-out images.

    folders: the folders of each image, outermost first. Raises UserError if only some of the
    images are in such folders.
    """
    found = Splits(folders=list(folders))
    kinds: list[set[bool]] = [set() for _ in folders]
    removed: list[int] = []
    for depth in range(max(map(len, folders), default=0)):
        if not _separates(folders, depth):
            continue
        removed.append(depth)
        for image, parents in enumerate(folders):
            is_heldout = _part(parents[depth]) in _HELDOUT
            kinds[image].add(is_heldout)
            if is_heldout:
                found.parts.add(parents[depth])
    for image, kind in enumerate(kinds):
        if len(kind) > 1:
            path = "/".join(folders[image])
            raise UserError(f"{path} names both a training and a held-out part; {_REMEDY}")
    found.heldout = [image for image, kind in enumerate(kinds) if True in kind]
    found.folders = [
        tuple(name for depth, name in enumerate(parents) if depth not in removed)
        for parents in folders
    ]
    return found


def _separates(folders: Sequence[tuple[str, ...]], depth: int) -> bool:
    """Return whether the folders of one depth separate the images.

    Raises UserError if some of them name a held-out part, but not all of them name a part.
    """
    names = {parents[depth] for parents in folders if len(parents) > depth}
    heldout = {name for name in names if _part(name) in _HELDOUT}
    train = {name for name in names if _part(name) in _TRAIN}
    if not heldout or len(names) == 1:
        return False
    others = sorted(names - heldout - train)
    is_everywhere = all(len(parents) > depth for parents in folders)
    if train and not others and is_everywhere:
        return True
    beside = others[0] if others else "images outside of it" if train or not is_everywhere else None
    if beside is None:
        raise UserError(
            f"the folders {', '.join(sorted(heldout))} hold out all images; name the one to train "
            f"on train, or {_REMEDY}"
        )
    raise UserError(
        f"the folder {min(heldout)} looks like held-out images, but there is also {beside}; sort "
        f"all images into train and held-out folders, or {_REMEDY}"
    )


def _part(name: str) -> str:
    """Return the word that a folder's name consists of, as in train2017, or Training set."""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word]
    words = [word for word in words if word not in _FILLERS] if len(words) > 1 else words
    return "".join(words)
