"""Features of scores on a GPU, on one rank.

Run them with `pytest -m gpu`; they are skipped on a machine without a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan_mpi.evaluation.features import BLOCK, Classifier
from fedgan_mpi.hardware.tf32 import use_tf32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

GPU = "cuda:0"
SHAPE = (1, 12, 12)


def images(dtype: type) -> np.ndarray:
    count, top = BLOCK + 17, np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, (count, *SHAPE), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tf32", [False, True])
def test_features_and_classes_on_a_gpu_equal_those_of_the_cpu(dtype, tf32):
    """In float32, also in a run whose training uses TF32, which rounds to 10 bits."""
    torch.manual_seed(0)
    extractor = Classifier(SHAPE, 3).eval()
    expected, pixels = extractor.rows(images(dtype)), images(dtype)
    expected_logits = extractor.logits(extractor.compute(pixels))
    use_tf32(tf32)
    extractor.place(GPU)
    computed = extractor.compute(pixels)
    assert computed.device == torch.device(GPU) and computed.dtype == torch.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(extractor.rows(pixels), expected, rtol=0, atol=1e-5 * scale)
    logits = extractor.logits(computed).cpu()
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
