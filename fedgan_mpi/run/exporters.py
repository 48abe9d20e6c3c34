"""`export`: the trained generator in the formats of other programs, checked to draw the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import complete_or_absent
from fedgan_mpi.random_streams import Purpose, torch_stream
from fedgan_mpi.run.generator_file import TrainedGenerator, find_generator, load, to_pixels

_CHECKED = 7  # images; not the number the network was traced with
_TOLERANCE = 1e-4  # of images in [-1, 1]; far less than half a step of a pixel


def convert(run: Path, kind: str, out: Path | None) -> None:
    """Write the generator of `run` to `out`, by default beside it, as `onnx` or `torchexport`.

    Its inputs are z (N, nz) and, if it is conditional, classes (N, classes), one-hot; its output
    images (N, C, H, W) in [-1, 1].

    Raises UserError where a package is missing or the file draws other images.
    """
    path = find_generator(run)
    generator = load(path)
    if out is None:
        out = path.with_suffix({"onnx": ".onnx", "torchexport": ".pt2"}[kind])
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is no directory to write {out.name} in")
    with complete_or_absent(out) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        if kind == "onnx":
            drawn = _onnx(generator, temporary)
        else:
            drawn = _torchexport(generator, temporary)
        inputs = _inputs(generator, _CHECKED)
        with torch.no_grad():
            ours = generator.network(*inputs)
        theirs = torch.from_numpy(np.asarray(drawn))
        if not torch.allclose(ours, theirs, rtol=0, atol=_TOLERANCE):
            most = (ours - theirs).abs().max().item()
            raise UserError(f"{out} was not written: its images differ by up to {most:.2g}")
        different = (to_pixels(ours) != to_pixels(theirs)).mean()
    print(f"{out}: the same images ({different:.2%} of the pixels are rounded otherwise)")


def _inputs(generator: TrainedGenerator, count: int) -> tuple[Tensor, ...]:
    stream = torch_stream(0, Purpose.GRID)
    z = torch.randn(count, generator.about["nz"], generator=stream)
    shares = generator.about.get("class_shares")
    if shares is None:
        return (z,)
    return z, torch.eye(len(shares))[torch.arange(count) % len(shares)]


def _torchexport(generator: TrainedGenerator, path: Path) -> np.ndarray:
    batch = torch.export.Dim("batch")
    inputs = _inputs(generator, 2)
    program = torch.export.export(
        generator.network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)
    )
    with open(path, "wb") as file:
        torch.export.save(program, file)
    with open(path, "rb") as file:
        network = torch.export.load(file).module()
    with torch.no_grad():
        drawn: np.ndarray = network(*_inputs(generator, _CHECKED)).numpy()
    return drawn


def _onnx(generator: TrainedGenerator, path: Path) -> np.ndarray:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter asks for it
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}: `pip install onnx onnxscript onnxruntime`"
        ) from None
    batch = torch.export.Dim("batch")
    inputs = _inputs(generator, 2)
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
    tensors = zip(names, _inputs(generator, _CHECKED), strict=True)
    drawn: np.ndarray = session.run(None, {name: tensor.numpy() for name, tensor in tensors})[0]
    return drawn
