"""Augmentations against an oracle that changes one image at a time, and adaptive augmentation."""

from __future__ import annotations

import oracle_augment
import pytest
import torch

from fedgan_mpi.nn.adaptive import AdaptiveProbability
from fedgan_mpi.nn.augment import AugmentedDiscriminator, make_augmentations
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.steps import Batch

ALL = ("flip", "color", "translation", "cutout")
SHAPES = [(1, 8, 8), (3, 9, 14), (4, 16, 11)]


def images_and_numbers(shape, augmentations, count=64, seed=0):
    stream = torch.Generator().manual_seed(seed)
    images = torch.rand((count, *shape), generator=stream, dtype=torch.float64) * 2 - 1
    shape = (count, augmentations.numbers)
    return images, torch.rand(shape, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("names", [*((name,) for name in ALL), ALL, ALL[::-1]], ids="-".join)
def test_augmentations_equal_the_oracle(names, shape):
    augmentations = make_augmentations(names, {})
    images, numbers = images_and_numbers(shape, augmentations)
    numbers[0], numbers[1] = 0.0, 1 - 2**-53  # the borders of U(0, 1)
    before = images.clone()
    changed = augmentations(images, numbers)
    torch.testing.assert_close(changed, oracle_augment.augment(images, names, numbers))
    assert torch.equal(images, before)
    assert (changed != images).flatten(1).any(1).float().mean() > 0.3


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_each_augmentation_applies_with_its_probability(p):
    probability = torch.zeros((), dtype=torch.float64)
    augmentations = make_augmentations(ALL, {}, probability)
    images, numbers = images_and_numbers((3, 8, 8), augmentations, count=256)
    probability.fill_(p)
    changed = augmentations(images, numbers)
    torch.testing.assert_close(changed, oracle_augment.augment(images, ALL, numbers, p))
    if p == 0:
        assert torch.equal(changed, images)
    share = (changed != images).flatten(1).any(1).double().mean()
    # An image is unchanged if none applies; flips change one of two.
    assert share == pytest.approx(1 - (1 - p / 2) * (1 - p) ** 3, abs=0.08)


@pytest.mark.parametrize("name", ALL)
def test_augmentations_are_differentiable(name):
    augmentations = make_augmentations((name,), {})
    images, numbers = images_and_numbers((2, 8, 9), augmentations, count=3)
    assert torch.autograd.gradcheck(lambda x: augmentations(x, numbers), images.requires_grad_())


def test_float32_stays_float32_and_the_largest_number_is_inside():
    augmentations = make_augmentations(ALL, {})
    numbers = torch.full((2, augmentations.numbers), 1 - 2**-24)
    changed = augmentations(torch.ones(2, 3, 8, 8), numbers)
    assert changed.dtype == torch.float32 and changed.isfinite().all()


def test_d_sees_changed_images_and_its_own_class():
    D = torch.nn.Bilinear(64, 2, 1)

    class Conditional(torch.nn.Module):
        def forward(self, images, classes):
            return D(images.flatten(1), classes).flatten()

    augmentations = make_augmentations(("flip",), {})
    critic = AugmentedDiscriminator(Conditional(), augmentations)
    images, classes = torch.rand(4, 1, 8, 8), torch.eye(2)[[0, 1, 0, 1]]
    numbers = torch.tensor([0.1, 0.9, 0.4, 0.6])[:, None]
    logits = Batch(images, classes, numbers).through(critic)
    expected = [image.flip(2) if n < 0.5 else image for image, n in zip(images, numbers)]  # noqa: B905
    torch.testing.assert_close(logits, Conditional()(torch.stack(expected), classes))
    # Noise carries the numbers of its images, which G does not see.
    z = Batch(torch.rand(4, 64), None, numbers)
    fakes = z.generate(torch.nn.Linear(64, 3))
    assert fakes.data.shape == (4, 3) and fakes.numbers is numbers


# ------------------------------------------------------------ adaptive augmentation


def test_p_follows_the_sign_of_the_logits_like_a_plain_loop():
    """Karras et al. 2020: up by a fixed step while more signs are positive than aimed at."""
    adaptive = AdaptiveProbability(target=0.2, images=100, like=torch.zeros(1))
    loss = adaptive.watch(LOSSES["nonsaturating"])
    stream, p = torch.Generator().manual_seed(3), 0.0
    visited = []
    for round in range(60):
        offset = 1.5 if round < 30 else -1.5
        batches = [torch.randn(8, generator=stream) + offset for _ in range(3)]
        for logits in batches:
            torch.testing.assert_close(loss.real(logits), LOSSES["nonsaturating"].real(logits))
        sign = adaptive.mean_sign()
        positive = sum(int((logits > 0).sum()) for logits in batches)
        assert sign == pytest.approx((positive - (24 - positive)) / 24)
        adaptive.update(sign, images=24)
        p = min(1.0, p + 0.24) if (2 * positive - 24) / 24 > 0.2 else max(0.0, p - 0.24)
        assert adaptive.p == pytest.approx(p)
        assert float(adaptive.probability) == pytest.approx(p)
        visited.append(p)
    assert max(visited) == 1.0 and visited[-1] == 0.0
    assert adaptive.mean_sign() is None  # no images since the last call


def test_only_real_images_count_and_gradients_are_unchanged():
    adaptive = AdaptiveProbability(target=0.6, images=10, like=torch.zeros(1))
    loss = adaptive.watch(LOSSES["hinge"])
    logits = torch.tensor([0.5, -2.0, 3.0], requires_grad=True)
    (loss.fake(logits) + loss.generator(logits)).sum().backward()
    assert adaptive.mean_sign() is None
    logits.grad = None
    loss.real(logits).sum().backward()
    assert adaptive.mean_sign() == pytest.approx(1 / 3)
    assert logits.grad.tolist() == [-1.0, -1.0, 0.0]
