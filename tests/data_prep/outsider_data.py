"""Third-party sources and partitions, right and wrong ones."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.partitions import Partition
from data_prep.sources import ArraySource, Source

with open(Path(__file__).with_name("imported"), "a") as file:
    file.write("x")  # each import leaves a trace


class Shades(ArraySource):
    """Gray images, each of one shade."""

    channels = 1

    def __init__(self, path: Path | None = None, *, count: int = 40, classes: int = 4):
        shades = np.arange(count, dtype=np.uint8)
        self.images = np.broadcast_to(shades[:, None, None, None], (count, 1, 8, 8)).copy()
        self.class_names = [f"shade {n}" for n in range(classes)]
        self.labels = np.arange(count) % classes


def shades(path=None, *, double: bool = False, title: str = "1"):
    """Twice as many shades."""
    source = Shades(count=80 if double else 40)
    source.name = f"shades of {title}"
    return source


class Files(Source):
    """Text files, whose first letter is a shade."""

    channels = 3
    class_names = []  # noqa: RUF012

    def __init__(self, path: Path):
        self.paths = sorted(path.iterdir())

    def __len__(self):
        return len(self.paths)

    @property
    def keys(self):
        return [path.name for path in self.paths]

    def image(self, index):
        text = self.paths[index].read_text()
        if text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        value = int(text)
        return Image.new("RGB", (12, 8), (value, value, value))


class HalfASource(Source):
    def __len__(self):
        return 3


class Wrong(Shades):
    """Shades with one attribute replaced."""

    def __init__(self, path: Path | None = None, *, what: str):
        super().__init__()
        wrong = {
            "float": ("images", self.images / 255),
            "shape": ("images", self.images[:, 0]),
            "channels": ("channels", 3),
            "labels": ("labels", self.labels[:-1]),
            "float labels": ("labels", self.labels / 2),
            "many labels": ("labels", self.labels + 1),
            "names": ("class_names", "abcd"),
            "no labels": ("labels", None),
            "heldout": ("heldout", np.array([40])),
            "all": ("heldout", np.arange(40)),
            "size": ("default_size", "big"),
            "name": ("name", "../up"),
            "none": ("images", self.images[:0]),
        }
        setattr(self, *wrong[what])


class Sick(Shades):
    """Shades that fail somewhere."""

    def __init__(self, path: Path | None = None, *, where: str):
        self.where = where
        super().__init__()
        if where == "constructor":
            raise ValueError("boom")
        if where == "exit at once":
            sys.exit("boom")
        if where == "open file":
            self.file = open(__file__)  # noqa: SIM115

    def __len__(self):
        if self.where == "length":
            raise KeyError("boom")
        return super().__len__()

    def attribute(self, name):
        raise ValueError("boom")

    def image(self, index):
        if index == 17 and self.where == "image":
            raise ValueError("boom")
        if index == 17 and self.where == "exit":
            sys.exit("boom")
        if index == 17 and self.where == "array":
            return np.zeros((8, 8), np.int16)
        if index == 17 and self.where == "mode":
            return Image.new("RGBA", (8, 8))
        return super().image(index)


@dataclass(frozen=True, kw_only=True)
class Halves(Partition):
    """The first device gets a share of the images."""

    share: float = 0.5

    def assign(self, source, train, devices, stream):
        cut = round(self.share * len(train))
        return [train[:cut], *np.array_split(train[cut:], devices - 1)]


class Stripes(Partition):
    """Not a dataclass."""

    def __init__(self, step: int):
        self.step = step

    def assign(self, source, train, devices, stream):
        order = np.concatenate([train[n :: self.step] for n in range(self.step)])
        return np.array_split(order, devices)


def halves_of_halves():
    """A quarter."""
    return Halves(share=0.25)


class Odd(Partition):
    def __init__(self, what: str):
        self.what = what

    def assign(self, source, train, devices, stream):
        parts = np.array_split(train, devices)
        match self.what:
            case "raises":
                return source.no_such_attribute
            case "none":
                return None
            case "few":
                return parts[1:]
            case "twice":
                return [parts[0], *parts[:-1]]
            case "left out":
                return [part[1:] for part in parts]
            case "foreign":
                return [np.append(parts[0], 10_000), *parts[1:]]
            case "floats":
                return [part / 2 for part in parts]
            case "texts":
                return ["a", "b", "c"]
            case "empty":
                return [np.concatenate(parts), *([[]] * (devices - 1))]


number = 3
