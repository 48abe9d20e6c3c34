"""A folder tree of image files, with folders as classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data_prep.sources.base import Source
from data_prep.sources.files import open_files, read_image
from data_prep.sources.image_file import decode_image_file, range_of_image_file
from fedgan_mpi.errors import UserError


class ImageFolder(Source):
    """Any folder (or .zip) of images; an image's folder is its class."""

    name = "imagefolder"
    default_size = 64
    channels = 3
    reads_pictures = True

    def __init__(self, path: Path) -> None:
        Image.init()
        extensions = Image.registered_extensions()
        self._files = open_files(path)
        names = self._files.names()
        self._names = [name for name in names if PurePosixPath(name).suffix.lower() in extensions]
        images = set(self._names)
        self.rejected = [f"{name}: it is not an image" for name in names if name not in images]
        if not self._names:
            raise UserError(f"{path} holds no images")
        folders = [str(PurePosixPath(name).parent) for name in self._names]
        self.class_names = [] if set(folders) == {"."} else sorted(set(folders))
        if "." in self.class_names:
            stray = self._names[folders.index(".")]
            raise UserError(f"{path}: {stray} is outside the class folders; move it into one")
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
        return decode_image_file(name, read_image(self._files, name), self.pictures)

    def value_range(self, index: int) -> tuple[float, float] | None:
        name = self._names[index]
        return range_of_image_file(name, self._files.read(name))
