"""Any tree of picture files, the folder being the class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data_prep.sources.base import Source
from data_prep.sources.files import open_files, read_image
from data_prep.sources.picture import decode_picture
from fedgan_mpi.errors import UserError


class ImageFolder(Source):
    """Any folder (or .zip) of images; the folder that an image lies in is its class."""

    name = "imagefolder"
    default_size = 64
    channels = 3

    def __init__(self, path: Path) -> None:
        Image.init()
        known = Image.registered_extensions()
        self._files = open_files(path)
        names = self._files.names()
        self._names = [name for name in names if PurePosixPath(name).suffix.lower() in known]
        pictures = set(self._names)
        self.rejected = [f"{name}: it is not an image" for name in names if name not in pictures]
        if not self._names:
            raise UserError(f"{path} holds no images")
        folders = [str(PurePosixPath(name).parent) for name in self._names]
        self.class_names = [] if set(folders) == {"."} else sorted(set(folders))
        if "." in self.class_names:
            beside = self._names[folders.index(".")]
            raise UserError(f"{path}: {beside} lies beside the folders of classes, in none of them")
        if self.class_names:
            numbers = {name: number for number, name in enumerate(self.class_names)}
            self.labels = np.array([numbers[folder] for folder in folders], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def keys(self) -> Sequence[str]:
        return self._names

    def image(self, index: int) -> Image.Image:
        name = self._names[index]
        return decode_picture(name, read_image(self._files, name))
