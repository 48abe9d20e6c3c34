"""Exports a trained generator to ONNX or torch.export, and checks that its images are equal."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import complete_or_absent, explain_write_errors, is_standard_output
from fedgan_mpi.random_streams import Purpose, torch_stream
from fedgan_mpi.run.generator_file import TrainedGenerator, find_generator, load, to_pixels

_SUFFIXES = {"onnx": ".onnx", "torchexport": ".pt2"}
_TRACED_IMAGES = 2
_CHECKED_IMAGES = 7  # another batch size than the traced one
_TOLERANCE = 1e-4  # of images in [-1, 1]; a step of 8 bits is 80 times as large


def convert(
    run: Path,
    kind: Literal["onnx", "torchexport"],
    out: Path | None,
    networks: str | None = None,
    *,
    standing_batches: int = 0,
) -> None:
    """Export the generator of a run directory to `out`; None: beside the generator.

    networks, standing_batches: see `load`.

    The exported network takes z (N, nz) and, if it is conditional, one-hot classes (N, classes). It
    returns images (N, C, H, W) in [-1, 1]. Raises UserError if a package is missing, or if the
    exported network generates other images.
    """
    path = find_generator(run)
    generator = load(path, networks, standing_batches=standing_batches)
    if out is None:
        out = path.with_suffix(_SUFFIXES[kind])
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a directory, so {out.name} cannot be written to it")
    export = _export_onnx if kind == "onnx" else _export_torch
    writing = explain_write_errors(out), complete_or_absent(out, stream=True)
    with writing[0], writing[1] as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporters
        exported = torch.from_numpy(np.asarray(export(generator, temporary)))
        with torch.no_grad():
            original = generator.network(*_inputs(generator, _CHECKED_IMAGES))
        if not torch.allclose(original, exported, rtol=0, atol=_TOLERANCE):
            difference = (original - exported).abs().max().item()
            raise UserError(f"{out} was not written: its images differ by up to {difference:.2g}")
        rounded = (
            to_pixels(original, generator.dtype) != to_pixels(exported, generator.dtype)
        ).mean()
    message = f"{out}: generates the same images ({rounded:.2%} of the pixels differ by rounding)"
    print(message, file=sys.stderr if is_standard_output(out) else sys.stdout)


def _inputs(generator: TrainedGenerator, count: int) -> tuple[Tensor, ...]:
    stream = torch_stream(0, Purpose.GRID)
    z = torch.randn(count, generator.about["nz"], generator=stream)
    shares = generator.about.get("class_shares")
    if shares is None:
        return (z,)
    return z, torch.eye(len(shares))[torch.arange(count) % len(shares)]


def _export_torch(generator: TrainedGenerator, path: Path) -> NDArray[np.float32]:
    """Write a torch.export program, and return images that the written file generates."""
    batch = torch.export.Dim("batch")
    inputs = _inputs(generator, _TRACED_IMAGES)
    program = torch.export.export(
        generator.network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)
    )
    with open(path, "wb") as file:
        torch.export.save(program, file)
    with open(path, "rb") as file:
        network = torch.export.load(file).module()
    with torch.no_grad():
        images: NDArray[np.float32] = network(*_inputs(generator, _CHECKED_IMAGES)).numpy()
    return images


def _export_onnx(generator: TrainedGenerator, path: Path) -> NDArray[np.float32]:
    """Write an ONNX file, and return images that the written file generates."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - needed by torch's exporter
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}: `pip install onnx onnxscript onnxruntime`"
        ) from None
    batch = torch.export.Dim("batch")
    inputs = _inputs(generator, _TRACED_IMAGES)
    names = ["z", "classes"][: len(inputs)]
    torch.onnx.export(
        generator.network,
        inputs,
        path,
        input_names=names,
        output_names=["images"],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    tensors = zip(names, _inputs(generator, _CHECKED_IMAGES), strict=True)
    feed = {name: tensor.numpy() for name, tensor in tensors}
    images: NDArray[np.float32] = session.run(None, feed)[0]
    return images
