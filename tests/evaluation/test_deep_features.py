"""Features of images of 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

from data_prep.pca import fit_pca
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import EvaluationConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.extractors import OwnExtractor, read_extractors
from fedgan_mpi.evaluation.features import PCA, Classifier, Extractor, train_classifier

SHAPE = (5, 8, 12)


@pytest.fixture
def shallow():
    return np.random.default_rng(0).integers(0, 256, (40, *SHAPE), dtype=np.uint8)


def extractor(kind: str, images: np.ndarray) -> Extractor:
    if kind == "classifier":
        return train_classifier(images, np.arange(40) % 3, classes=3, seed=0)
    network, arrays = PCA(SHAPE, 39), fit_pca(images)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return network


@pytest.mark.parametrize("kind", ["classifier", "pca"])
def test_the_same_images_have_the_same_features_in_8_and_16_bits(kind, shallow):
    deep = shallow.astype(np.uint16) * 257
    by_shallow, by_deep = extractor(kind, shallow), extractor(kind, deep)
    features = by_shallow.compute(shallow)
    torch.testing.assert_close(by_shallow.compute(deep), features, rtol=1e-3, atol=1e-4)
    if kind == "pca":  # up to the signs of the directions; the last has no variance left
        torch.testing.assert_close(by_deep.compute(deep).abs(), features.abs(), rtol=0, atol=1e-2)
    finer = (deep + 100).clip(0, 65535).astype(np.uint16)  # equal if it is rounded to 8 bits
    assert not torch.equal(by_shallow.compute(finer), by_shallow.compute(deep))


class Sees(nn.Module):
    """Features are the pixels of the first row."""

    def forward(self, images):
        self.dtype = images.dtype
        return images[:, 0, 0].double()


@pytest.mark.parametrize("reads_uint16", [True, False])
def test_own_extractors_get_16_bits_only_if_they_ask_for_them(shallow, reads_uint16):
    network = Sees()
    if reads_uint16:
        network.reads_uint16 = True
    own = OwnExtractor(network, SHAPE, "sees", "0" * 64)
    assert torch.equal(own.compute(shallow), torch.from_numpy(shallow[:, 0, 0]).double())
    deep = shallow.astype(np.uint16) * 257
    expected = deep if reads_uint16 else shallow
    assert np.array_equal(own.compute(deep).numpy(), expected[:, 0, 0])
    assert network.dtype == (torch.uint16 if reads_uint16 else torch.uint8)


def test_a_classifier_has_any_number_of_channels(shallow):
    features = Classifier(SHAPE, 3).eval().compute(shallow)
    assert features.shape == (40, 64)


@pytest.mark.parametrize("options", [{"inception_weights": "x.pth"}, {"extractor": "imagenet"}])
def test_networks_of_photographs_refuse_other_channels(options):
    config = EvaluationConfig(**options)
    with pytest.raises(UserError, match="needs images of 1 or 3 channels, but these have 5"):
        read_extractors(Link(MPI.COMM_SELF), config, SHAPE, None, "cpu")
