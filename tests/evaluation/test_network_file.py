"""Feature extractors in files: the features of the module, and refusals."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import EvaluationConfig
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.evaluation.extractors import make_extractor, read_extractors

SHAPE = (3, 8, 12)


class Features(nn.Module):
    """Five numbers of an image of any scale."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images.float() / 255).relu().mean((2, 3))


def export(network: nn.Module, path: Path) -> Path:
    """Write a network in the format of the file's ending."""
    example = (torch.zeros(2, *SHAPE, dtype=torch.uint8),)
    dynamic = {"images": {0: torch.export.Dim("count")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".pt":
            torch.jit.trace(network, example).save(path)
        elif path.suffix == ".pt2":
            torch.export.save(torch.export.export(network, example, dynamic_shapes=dynamic), path)
        else:
            pytest.importorskip("onnxscript")
            torch.onnx.export(
                network, example, path, dynamic_shapes=dynamic, external_data=False, verbose=False
            )
    return path


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Features().eval()


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_a_file_gives_the_features_of_its_network(network, tmp_path, ending):
    path = export(network, tmp_path / f"my net.{ending}")
    config = EvaluationConfig(extractor=str(path))
    with pytest.raises(UserError, match="a file does not choose what code runs"):
        make_extractor(config, SHAPE)
    plugins.allow([str(path)])
    (extractor,) = read_extractors(Link(MPI.COMM_SELF), config, SHAPE, None, "cpu")
    assert extractor.width == 5
    assert re.fullmatch(r"frechet_my_net_distance-[0-9a-f]{8}", extractor.metric("frechet"))
    images = np.random.default_rng(0).integers(0, 256, (7, *SHAPE)).astype(np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))
    torch.testing.assert_close(extractor.compute(images), expected)
    # Another network of the same name is another metric.
    nn.init.zeros_(network.convolution.weight)
    export(network, path)
    (other,) = read_extractors(Link(MPI.COMM_SELF), config, SHAPE, None, "cpu")
    assert other.metric("frechet") != extractor.metric("frechet")


class Grid(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.pt", None, "cannot be read: No such file"),
        ("folder.onnx", "folder", "cannot be read"),
        ("noise.pt", b"noise", "holds no network of its kind"),
        ("noise.pt2", b"PK\x03\x04 noise", "holds no network of its kind"),
        ("noise.onnx", b"\x08\x07", "holds no network of its kind"),
        ("grid.pt2", Grid(), r"gives the shape \(2, 3, 8, 12\) for two images"),
        ("state.pt", "state", "holds no network of its kind"),
    ],
)
def test_a_wrong_file_is_refused(network, tmp_path, name, content, problem):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, nn.Module):
        export(content, path)
    elif content == "folder":
        path.mkdir()
    elif content == "state":
        torch.save(network.state_dict(), path)
    plugins.allow([str(path)])
    with pytest.raises(AgreedError, match=rf"evaluation.extractor is '.*{name}', but .*{problem}"):
        config = EvaluationConfig(extractor=str(path))
        read_extractors(Link(MPI.COMM_SELF), config, SHAPE, None, "cpu")


def test_an_unknown_ending_is_refused():
    with pytest.raises(UserError, match=r"or a file that ends in \.pt, \.pt2, \.onnx"):
        EvaluationConfig(extractor="features.pth")
