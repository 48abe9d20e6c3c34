"""Decodes blocks of images, in this process or in a pool of processes. ranks.py adds MPI ranks.

Every method returns the blocks in the requested order. A pool has at most two blocks per process
in progress, which bounds memory for any size of data set.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.plugins import describe_error, load
from data_prep.resize import crop_and_resize
from data_prep.sources.base import BadImage, Indices, Source
from fedgan_mpi import plugins
from fedgan_mpi.errors import UserError
from fedgan_mpi.plugins.built_in import SOURCE_KEY

_BLOCK_BYTES = 2**20
_MAX_BLOCK_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class DecodedBlock:
    """The readable images of a block, and one error message for each unreadable image."""

    images: NDArray[np.uint8]
    indices: Indices
    """Index of each readable image in the source."""
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes the images of a source to one shape."""

    source: Source
    size: int | None
    """Height and width in pixels. None: keep the source's size."""
    image_shape: tuple[int, int, int]
    plugin: str | None = None
    """Name under which the source's class is loaded in another process. None: it is importable."""

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            state = pickle.dumps({"source": self.source, "size": self.size})
        except Exception as error:
            name = self.plugin or self.source.name
            raise UserError(
                f"DATASET {name!r} cannot be sent to another process: {describe_error(error)}; "
                "open files in image() instead"
            ) from None
        return _rebuild, (self.plugin, state, self.image_shape)

    def __call__(self, indices: Indices) -> DecodedBlock:
        """Decode one block of images."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        readable: list[int] = []
        errors: list[str] = []
        with warnings.catch_warnings():
            # After a warning, a library reads the image correctly or raises an error.
            warnings.simplefilter("ignore")
            for index in indices.tolist():
                try:
                    images[len(readable)] = self._decode(index)
                except BadImage as error:
                    errors.append(str(error))
                    continue
                readable.append(index)
        return DecodedBlock(
            images=images[: len(readable)], indices=np.array(readable, np.int64), errors=errors
        )

    def _decode(self, index: int) -> NDArray[np.uint8]:
        """Return one image, uint8 (C, H, W). Raises BadImage for whatever is raised on the way."""
        try:
            image: Any = self.source.image(index)
            if not isinstance(image, Image.Image) or image.mode not in ("L", "RGB"):
                kind = getattr(image, "mode", type(image).__name__)
                wrong = f"it is {kind}, but must be a PIL image of mode L or RGB"
                raise BadImage(self._name_plugin(f"{self._key(index)}: {wrong}"))
            return crop_and_resize(image, self.size, self.image_shape[0])
        except (BadImage, UserError):
            raise
        except Exception as error:
            problem = f"{self._key(index)}: {describe_error(error)}"
            where = plugins.blame(error)
            raise BadImage(f"{problem}. {where}" if where else problem) from None

    def _name_plugin(self, problem: str) -> str:
        return f"{problem} (from DATASET {self.plugin!r})" if self.plugin else problem

    def _key(self, index: int) -> str:
        try:
            return str(self.source.keys[index])
        except Exception:
            return f"image {index}"

    def blocks(self, indices: Indices) -> list[Indices]:
        """Split indices into consecutive blocks of about 1 MiB of pixels."""
        images = _BLOCK_BYTES // int(np.prod(self.image_shape))
        size = min(max(images, 1), _MAX_BLOCK_IMAGES)
        return [indices[start : start + size] for start in range(0, len(indices), size)]


def _rebuild(plugin: str | None, state: bytes, image_shape: tuple[int, int, int]) -> Decoder:
    """Make a Decoder in another process, after the module of its source has been imported."""
    if plugin is not None:
        load(SOURCE_KEY, plugin)
    return Decoder(**pickle.loads(state), image_shape=image_shape, plugin=plugin)


Decode = Callable[[Decoder, Iterable[Indices]], Iterator[DecodedBlock]]
"""Decodes blocks of indices and yields the results in order."""


def decode_serially(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
    """Decode in this process. Suits small data, and programs that must not fork."""
    return map(decoder, blocks)


def decode_in_processes(processes: int) -> Decode:
    """Return a function that decodes in a pool of processes. The calling process only writes."""

    def decode(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
        # Forked processes share a source's arrays; spawned ones would each copy them.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        pool = ProcessPoolExecutor(processes, context, _initialize_worker, (decoder,))
        remaining = iter(blocks)
        # Submitting now starts the processes before the caller opens a file, which a later fork
        # would inherit.
        pending = deque(
            pool.submit(_decode_in_worker, block) for block in islice(remaining, 2 * processes)
        )
        return _in_order(pool, pending, remaining)

    return decode


def _in_order(
    pool: ProcessPoolExecutor, pending: deque[Future[DecodedBlock]], remaining: Iterator[Indices]
) -> Iterator[DecodedBlock]:
    """Yield results in order and submit one new block for each result."""
    try:
        while pending:
            block = pending.popleft().result()
            pending += [pool.submit(_decode_in_worker, indices) for indices in islice(remaining, 1)]
            yield block
    except BrokenProcessPool:
        raise UserError(
            "a decoding process was killed, perhaps for lack of memory; use fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_worker_decoder: Decoder | None = None
"""The decoder of a worker process. Sent once, because sending it with each block is slow."""


def _initialize_worker(decoder: Decoder) -> None:
    global _worker_decoder
    _worker_decoder = decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this worker when its parent ends. A killed parent cannot stop its workers itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _decode_in_worker(indices: Indices) -> DecodedBlock:
    assert _worker_decoder is not None
    return _worker_decoder(indices)
