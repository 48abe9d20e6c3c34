"""Feature extractors in files of TorchScript (.pt), torch.export (.pt2) and ONNX (.onnx)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file

_ONNX_TYPES = {"tensor(uint8)": torch.uint8, "tensor(float)": torch.float32}


def read_network(path: Path) -> tuple[nn.Module, bytes]:
    """Return the network in a file, and the file's content.

    Raises UserError if the file is missing or does not hold a network.
    """
    try:
        content = read_regular_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _READERS[path.suffix](content), content
    except UserError:
        raise
    except Exception as error:  # each library raises types of its own
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no network of its kind: {problem}") from None


def _read_torchscript(content: bytes) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and such files exist
        network: nn.Module = torch.jit.load(BytesIO(content), map_location="cpu")
    return network.eval()


def _read_exported(content: bytes) -> nn.Module:
    network: nn.Module = torch.export.load(BytesIO(content)).module()
    return network


class _OnnxNetwork(nn.Module):
    """Runs an ONNX model on the CPU, with as many threads as torch."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                "an .onnx file as evaluation.extractor needs onnxruntime: `pip install onnxruntime`"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.input, *others = self.session.get_inputs()
        if others or self.input.type not in _ONNX_TYPES:
            raise ValueError("it must have one input, of uint8 or float32")

    def forward(self, images: Tensor) -> Tensor:
        given = images.to("cpu", _ONNX_TYPES[self.input.type]).numpy()
        features: Any = self.session.run(None, {self.input.name: given})[0]
        return torch.from_numpy(features).to(images.device)


_READERS: dict[str, Callable[[bytes], nn.Module]] = {
    ".pt": _read_torchscript,
    ".pt2": _read_exported,
    ".onnx": _OnnxNetwork,
}
