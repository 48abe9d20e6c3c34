"""The class of an image in scores of single classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Images
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import Classifier, Extractor, read_extractor

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ImageClasses:
    """The rule by which real and generated images get their classes.

    A conditional generator is asked for a class, so images have their labels. Other generators are
    not, so the classifier of the shards decides, for real images too.
    """

    number: int
    classifier: Classifier | None
    """None: images have labels."""

    def of(self, images: Images, labels: Labels | None) -> Labels:
        """Return the class of each image. labels: needed without a classifier."""
        if self.classifier is None:
            assert labels is not None
            return labels
        logits = self.classifier.logits(self.classifier.compute(images))
        predicted: Labels = logits.argmax(1).cpu().numpy()
        return predicted


def find_classes(
    link: Link,
    config: Config,
    extractors: Sequence[Extractor],
    *,
    is_needed: bool,
    classes: int,
    shards: Path | None,
) -> ImageClasses | None:
    """Return the rule of a run; None if it is not needed. Collective.

    classes: Classes of the shards.
    shards: File of the extractor beside the shards.

    Raises AgreedError if it is needed, but images have neither labels nor a classifier.
    """
    if not is_needed:
        return None
    if config.model.conditional:
        return ImageClasses(number=classes, classifier=None)

    def find() -> ImageClasses:
        for extractor in extractors:
            if isinstance(extractor, Classifier):
                return ImageClasses(number=extractor.classes, classifier=extractor)
        network = None if shards is None else read_extractor(shards)
        if not isinstance(network, Classifier):
            raise UserError(
                "evaluation.metrics has a score of single classes, but the shards have no labels; "
                "leave it out"
            )
        network.place(extractors[0].device)
        return ImageClasses(number=network.classes, classifier=network)

    return link.on_every_rank(find)
